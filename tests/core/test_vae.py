"""The VAE against the reference's numbers; its names and sizes in both layouts."""

import json

import golden
import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan
from safetensors.torch import load_file

from kiwi_core import vae as kiwi_vae
from kiwi_core.checkpoints.vae_keys import (
    LATENTS_MEAN,
    LATENTS_STD,
    is_original_vae,
    vae_config,
    vae_to_diffusers,
    vae_to_original,
)

ATOL = golden.atol("vae float32")

PUBLISHED = {
    "wan2.1": {
        "base_dim": 96,
        "decoder_base_dim": 96,
        "z_dim": 16,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "is_residual": False,
        "in_channels": 3,
        "out_channels": 3,
        "patch_size": None,
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 8,
    },
    "wan2.2": {
        "base_dim": 160,
        "decoder_base_dim": 256,
        "z_dim": 48,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 16,
    },
}


class Case:
    def __init__(self, name):
        self.weights = golden.load(f"vae/{name}_weights")
        self.golden = golden.load(f"vae/{name}_golden")
        self.facts = golden.FACTS["vae"][name]
        self.clip = (self.golden["clip_uint8"].float() / 127.5 - 1).permute(3, 0, 1, 2)[None]
        self.latents = self.golden["latent_for_decode"]
        self.tile = kiwi_vae.Tile(*(tuple(pair) for pair in self.facts["tile"]))
        self.vae = self.load()

    def load(self, dtype=torch.float32):
        return kiwi_vae.load_vae(self.weights, self.facts["mean"], self.facts["std"], dtype)

    def check(self, found, name):
        golden.assert_close("vae float32", found, self.golden[name], ATOL)


@pytest.fixture(scope="module", params=["vae21", "vae38"])
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request):
    """A VAE of the published size, without memory."""
    with torch.device("meta"):
        return PUBLISHED[request.param], AutoencoderKLWan(
            **PUBLISHED[request.param],
            latents_mean=LATENTS_MEAN[PUBLISHED[request.param]["z_dim"]],
            latents_std=LATENTS_STD[PUBLISHED[request.param]["z_dim"]],
        )


def test_encode(case):
    latents = kiwi_vae.encode(case.vae, case.clip)
    case.check(latents, "encode")
    case.check(kiwi_vae.denormalize(case.vae, latents), "encode_raw_mu")


def test_frames_are_encoded_as_their_pixels_are(case):
    """Bytes stay bytes until a few frames are computed: a minute of 720p is 5 GB as such, and 20 as floats."""
    generator = torch.Generator().manual_seed(0)
    size = (1, *case.clip.shape[2:], 3)
    frames = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    for tile in (None, case.tile):
        wanted = kiwi_vae.encode(case.vae, kiwi_vae.pixels(frames), tile)
        assert torch.equal(kiwi_vae.encode(case.vae, frames, tile, device=torch.device("cpu")), wanted)


def test_frames_beyond_the_last_group_of_four_are_dropped(case):
    case.check(kiwi_vae.encode(case.vae, case.clip[:, :, :1]), "encode_first_frame_only")
    case.check(kiwi_vae.encode(case.vae, case.clip[:, :, :-1]), "encode_one_frame_fewer")


def test_decode(case):
    case.check(kiwi_vae.decode(case.vae, case.latents), "decode")
    case.check(kiwi_vae.decode(case.vae, case.latents[:, :, :1]), "decode_first_frame_only")


def test_tiled(case):
    seen = []
    case.check(
        kiwi_vae.encode(case.vae, case.clip, case.tile, lambda *step: seen.append(step)), "tiled_encode"
    )
    assert seen == [(index, 9) for index in range(1, 10)]
    video = kiwi_vae.decode(case.vae, case.latents, case.tile)
    case.check(video[:, :, [0, 1, -1]], "tiled_decode_first2_last1")


def test_only_tiled_videos_are_clamped(case):
    loud = {name: case.weights[name] * 8 for name in ("decoder.head.2.weight", "decoder.head.2.bias")}
    vae = kiwi_vae.load_vae(case.weights | loud, case.facts["mean"], case.facts["std"])
    video = kiwi_vae.decode(vae, case.latents)
    assert video.abs().max() > 1
    case.check(video / 8, "decode")
    tiled = kiwi_vae.decode(vae, case.latents, case.tile)
    assert tiled.abs().max() == 1


def test_a_clip_smaller_than_a_tile_is_as_untiled(case):
    tile = kiwi_vae.Tile(size=(9, 9), stride=(7, 7))
    case.check(kiwi_vae.encode(case.vae, case.clip, tile), "encode")
    case.check(kiwi_vae.decode(case.vae, case.latents, tile), "decode")


def test_samples_of_a_batch_do_not_mix(case):
    both = torch.cat([case.clip, case.clip.flip(-1)])
    latents = kiwi_vae.encode(case.vae, both, case.tile)
    case.check(latents[:1], "tiled_encode")
    torch.testing.assert_close(
        latents[1:], kiwi_vae.encode(case.vae, case.clip.flip(-1), case.tile), atol=1e-5, rtol=0
    )
    video = kiwi_vae.decode(case.vae, torch.cat([case.latents, -case.latents]))
    case.check(video[:1], "decode")


def test_offload_hooks_fetch_the_weights(case):
    """As ``enable_model_cpu_offload`` needs: forward is never called, the hook still has to run."""

    class Fetch(ModelHook):
        fetched = 0

        def pre_forward(self, module, *args, **kwargs):
            self.fetched += 1
            return args, kwargs

    vae, hook = case.load(), Fetch()
    add_hook_to_module(vae, hook)
    kiwi_vae.decode(vae, kiwi_vae.encode(vae, case.clip[:, :, :1]))
    assert hook.fetched == 2


def test_bfloat16_with_the_rounding_of_the_reference(case, monkeypatch):
    """The stored run normalised in bfloat16 and rounded the attention's exponentials, not the probabilities.

    Both are choices of kernels that move with the versions of torch and diffusers, and in so small a decoder
    they are the largest error; everything else has to agree.
    """

    def normalise(self, hidden):
        return F.normalize(hidden, dim=1) * self.scale * self.gamma

    def attend(query, key, value):
        scores = query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        return (weights.to(value.dtype).float() @ value.float() / weights.sum(-1, keepdim=True)).to(
            value.dtype
        )

    monkeypatch.setattr(autoencoder_kl_wan.WanRMS_norm, "forward", normalise)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    vae = case.load(torch.bfloat16)
    latents = kiwi_vae.encode(vae, case.clip)
    assert latents.dtype == torch.bfloat16
    golden.assert_close_bf16("vae bfloat16", latents, case.golden["bf16.encode"])
    last = kiwi_vae.decode(vae, case.latents.bfloat16())[:, :, -1:]
    assert last.dtype == torch.bfloat16
    golden.assert_close_bf16("vae bfloat16", last, case.golden["bf16.decode_last_frame"])


def test_bfloat16_is_as_near_to_float32_as_the_reference_was(case):
    vae = case.load(torch.bfloat16)
    latents, video = kiwi_vae.encode(vae, case.clip), kiwi_vae.decode(vae, case.latents.bfloat16())
    for found, stored, exact in (
        (latents, case.golden["bf16.encode"], case.golden["encode"]),
        (video[:, :, -1:], case.golden["bf16.decode_last_frame"], case.golden["decode"][:, :, -1:]),
    ):
        assert golden.relative_rms(found, exact) < 1.25 * golden.relative_rms(stored, exact)


def test_released_folder():
    """Original names, statistics in config.json, decoder width nowhere but in the shapes."""
    folder = golden.RELEASE / "vae"
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    vae = kiwi_vae.load_vae(weights, config["latents_mean"], config["latents_std"])
    assert (vae.config.z_dim, vae.config.num_res_blocks, vae.config.scale_factor_spatial) == (48, 1, 16)


def test_names_there_and_back(case):
    renamed = vae_to_diffusers(case.weights)
    assert is_original_vae(case.weights)
    assert not is_original_vae(renamed)
    back = vae_to_original(renamed)
    assert list(back) == list(case.weights)
    assert all(back[name] is case.weights[name] for name in back)
    assert renamed.keys() == case.vae.state_dict().keys()


def test_either_kind_of_names_loads(case):
    renamed = kiwi_vae.load_vae(vae_to_diffusers(case.weights), case.facts["mean"], case.facts["std"])
    assert renamed.config == case.vae.config
    case.check(kiwi_vae.encode(renamed, case.clip), "encode")


def test_names_and_config_at_published_size(published):
    sizes, vae = published
    tensors = vae.state_dict()
    original = vae_to_original(tensors)
    assert is_original_vae(original)
    assert vae_to_diffusers(original).keys() == tensors.keys()
    config = vae_config({name: list(tensor.shape) for name, tensor in original.items()})
    mean, std = config.pop("latents_mean"), config.pop("latents_std")
    assert config == sizes
    assert (mean, std) == (list(LATENTS_MEAN[sizes["z_dim"]]), list(LATENTS_STD[sizes["z_dim"]]))
    assert vae_config(tensors) == vae_config(original)


@pytest.mark.parametrize(
    ("size", "original", "diffusers"),
    [
        ("wan2.1", "encoder.downsamples.5.time_conv.bias", "encoder.down_blocks.5.time_conv.bias"),
        ("wan2.1", "encoder.downsamples.10.residual.6.bias", "encoder.down_blocks.10.conv2.bias"),
        ("wan2.1", "decoder.upsamples.3.resample.1.bias", "decoder.up_blocks.0.upsamplers.0.resample.1.bias"),
        ("wan2.1", "decoder.upsamples.4.shortcut.bias", "decoder.up_blocks.1.resnets.0.conv_shortcut.bias"),
        ("wan2.1", "decoder.upsamples.14.residual.3.gamma", "decoder.up_blocks.3.resnets.2.norm2.gamma"),
        (
            "wan2.2",
            "encoder.downsamples.2.downsamples.2.time_conv.bias",
            "encoder.down_blocks.2.downsampler.time_conv.bias",
        ),
        (
            "wan2.2",
            "encoder.downsamples.3.downsamples.1.residual.2.weight",
            "encoder.down_blocks.3.resnets.1.conv1.weight",
        ),
        (
            "wan2.2",
            "decoder.upsamples.2.upsamples.3.resample.1.weight",
            "decoder.up_blocks.2.upsampler.resample.1.weight",
        ),
        ("wan2.2", "decoder.middle.1.to_qkv.weight", "decoder.mid_block.attentions.0.to_qkv.weight"),
        ("wan2.2", "decoder.middle.2.residual.0.gamma", "decoder.mid_block.resnets.1.norm1.gamma"),
        ("wan2.2", "conv1.weight", "quant_conv.weight"),
    ],
)
def test_where_tensors_go(size, original, diffusers):
    with torch.device("meta"):
        tensors = AutoencoderKLWan(**PUBLISHED[size]).state_dict()
    found = vae_to_original(tensors)
    assert found[original] is tensors[diffusers]


def test_published_statistics():
    with torch.device("meta"):
        default = AutoencoderKLWan().config
    assert list(LATENTS_MEAN[16]) == list(default.latents_mean)
    assert list(LATENTS_STD[16]) == list(default.latents_std)


@pytest.mark.parametrize(("height", "width"), [(704, 1280), (1280, 704), (512, 960), (64, 16384)])
def test_default_tiles_are_equal_and_small(published, height, width):
    sizes, vae = published
    factor = sizes["scale_factor_spatial"]
    tile = kiwi_vae.default_tile(vae, height, width)
    for side, size, stride in zip((height, width), tile.size, tile.stride):
        assert size * factor <= 512
        starts = range(0, max(1, side // factor - size + stride), stride)
        assert len(starts) == 1 or size - stride == 128 // factor
        assert starts[-1] + size >= side // factor  # the last tile reaches the end ...
        assert starts[-1] + size < side // factor + len(starts) or len(starts) == 1  # ... and hardly more


def test_frames_up_to_480p_are_not_tiled(published):
    _, vae = published
    assert kiwi_vae.default_tile(vae, 480, 832) is None
    assert kiwi_vae.default_tile(vae, 832, 480) is None
    assert kiwi_vae.default_tile(vae, 512, 832) is not None


def test_bad_input_is_refused(case):
    mean, std = case.facts["mean"], case.facts["std"]
    incomplete = {name: case.weights[name] for name in case.weights if name != "decoder.head.2.bias"}
    other = {"blocks.0.self_attn.q.weight": torch.zeros(2, 2)}
    unpaired = {name: case.weights[name] for name in case.weights if not name.endswith(".shortcut.bias")}
    wide = case.weights | {"conv1.weight": torch.zeros(2, 2, 1, 1, 1)}
    for weights, message in (
        (incomplete, "decoder.head.2.bias is missing"),
        (other, "not a complete Wan VAE"),
        ({}, "not a complete Wan VAE"),
        (case.weights | other, "blocks.0.self_attn.q.weight does not belong"),
        (unpaired, "is absent"),
        (wide, r"quant_conv.weight should be \[16, 16, 1, 1, 1\] and is \[2, 2, 1, 1, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            kiwi_vae.load_vae(weights, mean, std)
    with pytest.raises(ValueError, match="8 channels; give its latents_mean"):
        kiwi_vae.load_vae(case.weights)
    with pytest.raises(ValueError, match="has 8 latent channels, latents_mean has 7"):
        kiwi_vae.load_vae(case.weights, mean[:7], std)

    with pytest.raises(ValueError, match="no frames"):
        kiwi_vae.encode(case.vae, case.clip[:, :, :0])
    with pytest.raises(ValueError, match="multiples of"):
        kiwi_vae.encode(case.vae, case.clip[..., :-1])
    with pytest.raises(ValueError, match="9 channels, the VAE decodes 8"):
        kiwi_vae.decode(case.vae, torch.zeros(1, 9, 1, 2, 2))
    for stride in ((0, 1), (3, 4)):
        with pytest.raises(ValueError, match="stride from 1"):
            kiwi_vae.Tile(size=(2, 3), stride=stride)
