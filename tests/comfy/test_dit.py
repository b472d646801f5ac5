"""The DiT inside ComfyUI against the library's, on one tiny model in both forms."""

import importlib
import itertools
from pathlib import Path
from types import SimpleNamespace

import comfy.context_windows
import comfy.ldm.common_dit
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import edit_graph
import pytest
import torch
from differences import record
from safetensors.torch import load_file

from kiwi_core import conditioning, schedule
from kiwi_core.checkpoints import dit_keys
from kiwi_core.transformer import KiwiTransformer3DModel

GOLDEN = Path(__file__).resolve().parents[1] / "fixtures" / "golden" / "dit"
CHANNELS, DIM = 16, 256  # ComfyUI reads 128-wide heads out of the width
TOLERANCE = 5e-5


@pytest.fixture(scope="module", autouse=True)  # importing it is what makes the stock loader know our files
def dit(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.dit")


@pytest.fixture(scope="module")
def library():
    """The library's DiT and its two embedders, with random weights."""
    torch.manual_seed(0)
    model = KiwiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=128, in_channels=CHANNELS, out_channels=CHANNELS,
        text_dim=4096, freq_dim=256, ffn_dim=512, num_layers=2,
    )  # fmt: skip
    embedders = [conditioning.PatchEmbedder(CHANNELS, DIM) for _ in range(2)]
    for part in (model, *embedders):
        for name, parameter in part.named_parameters():
            spread = 0.5 if name.endswith("scale_shift_table") else 0.05
            parameter.data = torch.randn_like(parameter) * spread + ("norm" in name and "weight" in name)
        part.requires_grad_(False)
    return SimpleNamespace(model=model, source=embedders[0], reference=embedders[1])


def single_file(library, reference=True, reference_first=None) -> dict[str, torch.Tensor]:
    """The same weights as a ComfyUI single file."""
    file = {dit_keys.to_original(name): tensor.clone() for name, tensor in library.model.state_dict().items()}
    parts = {dit_keys.SOURCE_PREFIX: library.source}
    if reference:
        parts[dit_keys.REFERENCE_PREFIX] = library.reference
    for prefix, part in parts.items():
        file |= {prefix + name: tensor.clone() for name, tensor in part.state_dict().items()}
    if reference_first is not None:
        file[dit_keys.REFERENCE_FIRST] = torch.tensor([reference_first], dtype=torch.uint8)
    return file


def load(file, dtype=torch.float32):
    """A MODEL by the way of the stock loader."""
    return comfy.sd.load_diffusion_model_state_dict(dict(file), model_options={"dtype": dtype})


@pytest.fixture(scope="module")
def models(dit, library):
    """MODELs by ``ref_pad_first``."""
    return {first: load(single_file(library, reference_first=first)) for first in (False, True)}


@pytest.fixture
def sample():
    """Latents in the model's scale, a context and two noise levels."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    return SimpleNamespace(
        x=noise(2, CHANNELS, 3, 8, 12),
        source=noise(2, CHANNELS, 3, 8, 12),
        reference=noise(1, CHANNELS, 2, 8, 12),
        context=noise(2, 11, DIM),
        sigma=torch.tensor([0.83, 0.4]),
    )


def predict_library(library, x, sigma, context, source=None, reference=None, first=False, rounding="shipped"):
    return library.model(
        x, sigma * 1000, context,
        source=None if source is None else library.source(source), source_sigma=sigma,
        reference=None if reference is None else library.reference(reference), reference_first=first,
        rounding=rounding,
    ).sample  # fmt: skip


def predict_comfy(
    patcher,
    x,
    sigma,
    context,
    source=None,
    reference=None,
    timestep=None,
    sigmas=None,
    rounding=None,
    **options,
):
    """One forward as the sampler does it; ``sigmas`` where a cond and an uncond are batched in ``x``."""
    options |= {"sigmas": sigma if sigmas is None else sigmas}
    if rounding:
        options["kiwi_rounding"] = rounding
    conditions = {"source_latents": source, "reference_latents": reference}
    conditions = {name: tensor for name, tensor in conditions.items() if tensor is not None}
    with torch.no_grad():
        return patcher.model.diffusion_model(
            x, sigma * 1000 if timestep is None else timestep, context=context, transformer_options=options,
            **conditions,
        )  # fmt: skip


def largest_difference(a, b):
    assert a.shape == b.shape
    return (a.float() - b.float()).abs().max().item()


CASES = {
    "no source": dict(source=False, references=0, first=False),
    "source": dict(source=True, references=0, first=False),
    "reference last": dict(source=True, references=1, first=False),
    "reference first": dict(source=True, references=1, first=True),
    "two references": dict(source=True, references=2, first=False),
    "two references first": dict(source=True, references=2, first=True),
}


@pytest.mark.parametrize("rounding", ["shipped", "none"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_forward_equals_the_library(models, library, sample, case, rounding):
    source = sample.source if case["source"] else None
    reference = sample.reference[:, :, : case["references"]] if case["references"] else None
    expected = predict_library(
        library, sample.x, sample.sigma, sample.context, source, reference, case["first"], rounding
    )
    got = predict_comfy(
        models[case["first"]], sample.x, sample.sigma, sample.context, source, reference, rounding=rounding
    )
    record("comfy dit", largest_difference(got, expected), TOLERANCE)


@pytest.mark.parametrize("first", [False, True])
def test_an_odd_size_is_padded_and_cropped_back(models, library, sample, first):
    latents = [latents[..., :7, :11] for latents in (sample.x, sample.source, sample.reference)]
    x, source, reference = (comfy.ldm.common_dit.pad_to_patch_size(odd, (1, 2, 2)) for odd in latents)
    expected = predict_library(library, x, sample.sigma, sample.context, source, reference, first)[..., :7, :11]
    x, source, reference = latents
    got = predict_comfy(models[first], x, sample.sigma, sample.context, source, reference)
    record("comfy dit", largest_difference(got, expected), TOLERANCE)


def test_sigmas_are_repeated_for_a_batch_of_cond_and_uncond(models, sample):
    both = predict_comfy(
        models[False], sample.x.repeat(2, 1, 1, 1, 1), sample.sigma.repeat(2), sample.context.repeat(2, 1, 1),
        sample.source.repeat(2, 1, 1, 1, 1), sigmas=sample.sigma,
    )  # fmt: skip
    alone = predict_comfy(models[False], sample.x, sample.sigma, sample.context, sample.source)
    torch.testing.assert_close(both, alone.repeat(2, 1, 1, 1, 1), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("first", [False, True])
def test_timesteps_a_frame_reach_over_the_references(models, sample, first):
    """A noise mask's scheme: references are as noisy as the noisiest frame."""
    arguments = (models[first], sample.x, sample.sigma, sample.context, sample.source, sample.reference)
    timestep = (sample.sigma * 1000).unsqueeze(1).repeat(1, 3)
    same = predict_comfy(*arguments, timestep=timestep)
    torch.testing.assert_close(same, predict_comfy(*arguments), atol=TOLERANCE, rtol=0)
    timestep[:, 0] = 0
    seen = []

    def after(args):
        seen.append(args["vec"])
        return args

    predict_comfy(*arguments, timestep=timestep, patches={"double_block": [after]})
    kept = 2 if first else 0
    for time in seen[0]:
        assert len(time) == 3 + 2
        assert all(torch.allclose(row, time[1], atol=1e-5) for i, row in enumerate(time) if i != kept)
        assert (time[kept] - time[1]).abs().max() > 1e-2


def golden_model(dit):
    weights = load_file(GOLDEN / "weights_wan.safetensors")
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    model = dit.KiwiWanModel(
        has_reference=True, dim=48, ffn_dim=64, freq_dim=32, in_dim=8, out_dim=8, num_heads=2,
        num_layers=layers, dtype=torch.float32, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    missing, _ = model.load_state_dict(weights, strict=False)
    assert missing == [dit_keys.REFERENCE_FIRST]
    return model.requires_grad_(False)


@pytest.mark.parametrize("rounding, variant", [("none", "a"), ("shipped", "b2")])
@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize(
    "case",
    ["nosrc", "src", "src_ref_last", "src_ref_first", "ref_only_last", "src_2ref_last", "image_b2"],
)
def test_goldens(dit, case, step, rounding, variant):
    inputs = load_file(GOLDEN / "inputs.safetensors")
    outputs = load_file(GOLDEN / "outputs.safetensors")
    batch = "_b2_1frame" if case == "image_b2" else ""
    x = inputs[f"latents{batch}"]
    model = golden_model(dit)
    model.reference_first = case.endswith("ref_first")
    conditions = {}
    if "ref_only" not in case and case != "nosrc":
        conditions["source_latents"] = inputs[f"source_latents{batch}"]
    if "2ref" in case:
        conditions["reference_latents"] = torch.cat([inputs["ref_latent"], inputs["ref_latent_2"]], dim=2)
    elif "ref" in case:
        conditions["reference_latents"] = inputs["ref_latent"]
    got = model(
        x, inputs["timesteps"][step].expand(len(x)), context=inputs["context_b2" if batch else "context"],
        transformer_options={"sigmas": inputs["sigmas"][step].expand(len(x)), "kiwi_rounding": rounding},
        **conditions,
    )  # fmt: skip
    expected = outputs[f"out.{case}.t{step}.{variant}"]
    record("comfy dit, published numbers", largest_difference(got, expected), TOLERANCE)


def conditioning_of(dit, context, source=None, references=None):
    values = {}
    if source is not None:
        values[dit.SOURCE] = source
    if references is not None:
        values[dit.REFERENCES] = references
    return [[context, values]]


def sampled(patcher, noise, positive, negative=None, cfg=1.0, steps=4, **options):
    patcher = patcher.clone()
    patcher.model_options["transformer_options"] |= options.pop("transformer_options", {})
    patcher.model_options |= options
    return comfy.sample.sample_custom(
        patcher, noise, cfg, comfy.samplers.sampler_object("euler"), schedule.flow_sigmas(steps), positive,
        positive if negative is None else negative, torch.zeros_like(noise), disable_pbar=True, seed=0,
    )  # fmt: skip


def euler(library, noise, context, source, reference, steps=4, cfg=1.0, negative=None):
    sigmas = schedule.flow_sigmas(steps)
    x = noise * sigmas[0]
    for sigma, following in itertools.pairwise(sigmas):
        level = sigma.expand(len(x))
        velocity = predict_library(library, x, level, context, source, reference)
        if cfg != 1.0:
            without = predict_library(library, x, level, negative, source, reference)
            velocity = without + cfg * (velocity - without)
        x = x + velocity * (following - sigma)
    return x


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_stock_sampling_equals_the_library(dit, models, library, sample, cfg):
    patcher = models[False]
    to_raw = patcher.model.process_latent_out
    noise, context, negative = sample.x[:1], sample.context[:1], sample.context[1:]
    references = list(sample.reference.split(1, dim=2))
    given = dict(source=to_raw(sample.source[:1]), references=[to_raw(reference) for reference in references])
    got = sampled(
        patcher, noise, conditioning_of(dit, context, **given), conditioning_of(dit, negative, **given), cfg
    )
    expected = euler(library, noise, context, sample.source[:1], sample.reference, cfg=cfg, negative=negative)
    record("comfy sampling", largest_difference(patcher.model.process_latent_in(got), expected), 6e-5)


def context_windows(length, overlap):
    return comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=comfy.context_windows.get_matching_fuse_method("flat"),
        context_length=length, context_overlap=overlap, dim=2,
    )  # fmt: skip


def test_context_windows_cut_the_source_and_keep_the_references(dit, models, sample):
    noise, source = (torch.cat(latents.split(1), dim=2) for latents in (sample.x, sample.source))
    references = [sample.reference[:, :, :1]] * noise.shape[2]  # as many as frames
    seen = []

    def spy(executor, *args, **kwargs):
        seen.append((args[0], kwargs["source_latents"], kwargs["reference_latents"]))
        return executor(*args, **kwargs)

    patcher = models[False].clone()
    patcher.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, spy)
    sampled(
        patcher, noise, conditioning_of(dit, sample.context[:1], source, references), steps=1,
        context_handler=context_windows(3, 0),
    )  # fmt: skip
    assert len(seen) == 2
    scaled = patcher.model.process_latent_in(source)
    for (x, cut, kept), frames in zip(seen, (slice(0, 3), slice(3, 6))):
        assert cut.shape == x.shape and kept.shape[2] == 6
        torch.testing.assert_close(cut[:, :, -3:], scaled[:, :, frames])  # newer ones add a frame before


def test_block_hooks(dit, models, sample):
    arguments = (models[True], sample.x[:1], sample.sigma[:1], sample.context[:1], sample.source[:1])
    plain = predict_comfy(*arguments, reference=sample.reference)
    seen = []

    def replaced(args, extra):
        seen.append(args["transformer_options"]["block_index"])
        return extra["original_block"](args)

    def after(args):
        seen.append((args["block_index"], args["img_offset"]))
        return {"img": args["img"]}

    hooked = predict_comfy(
        *arguments, reference=sample.reference, patches={"double_block": [after]},
        patches_replace={"dit": {("double_block", 1): replaced}},
    )  # fmt: skip
    assert seen == [(0, 48), 1, (1, 48)]
    assert torch.equal(hooked, plain)


def wide_file(library):
    """The single file with 48 channels, as of Wan 2.2."""
    file = single_file(library)
    for name in ("patch_embedding", "vae_condition.patch_embedding", "ref_vae_condition.patch_embedding"):
        file[f"{name}.weight"] = file[f"{name}.weight"].repeat(1, 3, 1, 1, 1)
    for name in ("head.head.weight", "head.head.bias"):
        file[name] = torch.cat([file[name]] * 3)
    return file


def test_a_noise_mask_keeps_one_timestep_and_shows_what_is_kept_at_its_noise(dit, library, sample):
    """As in training, with a reference, also where a mask leaves half a frame; what is kept comes out as it went in."""
    patcher = load(wide_file(library))
    noise, clean = sample.x.repeat(1, 3, 1, 1, 1)
    noise, clean = noise[None], clean[None]
    mask = torch.ones_like(noise[:, :1])
    mask[:, :, 0] = 0
    mask[:, :, 2, :4] = 0
    kept = (mask == 0).expand_as(clean)
    positive = conditioning_of(dit, sample.context[:1], clean, [clean[:, :, :1]])
    seen = []

    def spy(executor, *args, **kwargs):
        seen.append(args[:2])
        return executor(*args, **kwargs)

    patcher.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, spy)
    sigmas = schedule.flow_sigmas(3)
    got = comfy.sample.sample_custom(
        patcher, noise, 1.0, comfy.samplers.sampler_object("euler"), sigmas, positive, positive, clean,
        noise_mask=mask, disable_pbar=True, seed=0,
    )  # fmt: skip
    torch.testing.assert_close(got[kept], clean[kept], atol=1e-5, rtol=0)
    assert largest_difference(got[~kept], clean[~kept]) > 0.1
    scaled = patcher.model.process_latent_in(clean)
    assert len(seen) == 3
    for (x, timestep), sigma in zip(seen, sigmas):
        assert timestep.tolist() == [pytest.approx(1000 * sigma.item())]
        torch.testing.assert_close(x[kept], ((1 - sigma) * scaled + sigma * noise)[kept], atol=1e-5, rtol=0)


def relative_error(got, expected):
    return ((got.float() - expected).square().mean() / expected.square().mean()).sqrt().item()


def predict_all(predict, model, sample, dtype=torch.float32):
    """With a source and two references, latents and context in ``dtype``."""
    x, source, reference, context = (
        tensor.to(dtype) for tensor in (sample.x, sample.source, sample.reference, sample.context)
    )
    return predict(model, x, sample.sigma, context, source, reference)


@pytest.mark.parametrize(
    "dtype, allowed", [(torch.bfloat16, 0.03), (torch.float16, 0.03), (torch.float8_e4m3fn, 0.1)]
)
def test_other_dtypes(library, sample, dtype, allowed):
    patcher = load(single_file(library), dtype)
    assert patcher.model.diffusion_model.blocks[0].ffn[0].weight.dtype == dtype
    expected = predict_all(predict_library, library, sample)
    got = predict_all(predict_comfy, patcher, sample, patcher.model.get_dtype_inference())
    record(f"comfy dit {dtype} (relative rms)", relative_error(got, expected), allowed)


def test_scaled_fp8_file(library, sample):
    file = single_file(library) | {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, weight in list(file.items()):
        if name.startswith("blocks.") and weight.dim() == 2:
            scale = weight.abs().max() / 448
            file[name] = (weight / scale).to(torch.float8_e4m3fn)
            file[f"{name.removesuffix('weight')}scale_weight"] = scale
    patcher = load(file, None)
    expected = predict_all(predict_library, library, sample)
    got = predict_all(predict_comfy, patcher, sample, patcher.model.get_dtype_inference())
    record("comfy dit, scaled fp8 (relative rms)", relative_error(got, expected), 0.1)


def with_lora(patcher):
    generator = torch.Generator().manual_seed(3)
    lora = {}
    for layer in ("self_attn.q", "cross_attn.k"):
        for part, shape in (("A", (4, DIM)), ("B", (DIM, 4))):
            weight = torch.randn(shape, generator=generator) * 0.05
            lora[f"diffusion_model.blocks.1.{layer}.lora_{part}.weight"] = weight
    return comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)[0]


@pytest.mark.parametrize("share", [0, 0.3, 0.7])
def test_partially_loaded_is_fully_loaded(library, sample, share):
    whole, part = (with_lora(load(single_file(library))) for _ in range(2))
    plain = predict_all(predict_comfy, whole, sample)
    comfy.model_management.load_models_gpu([whole])
    expected = predict_all(predict_comfy, whole, sample)
    assert largest_difference(expected, plain) > 1e-3  # the LoRA does something
    edit_graph.load_share(part, share)
    assert torch.equal(predict_all(predict_comfy, part, sample), expected)


def test_the_stock_loader_recognises_the_file(dit, library, caplog):
    patcher = load(single_file(library))
    assert type(patcher.model) is dit.KiwiWan
    assert type(load(wide_file(library)).model) is dit.KiwiWan
    assert patcher.model.model_sampling.shift == 5.0
    assert "text_embedding.0.weight" in single_file(library)
    assert "missing" not in caplog.text and "unexpected" not in caplog.text
    dit.check_kiwi(patcher)


def test_a_plain_wan_file_stays_wan(dit, library):
    file = {name: tensor for name, tensor in single_file(library).items() if "vae_condition" not in name}
    patcher = load(file)
    assert type(patcher.model) is comfy.model_base.WAN21
    with pytest.raises(ValueError, match="not a Kiwi-Edit DiT"):
        dit.check_kiwi(patcher)


def test_registering_again_changes_nothing(dit):
    models = list(comfy.supported_models.models)
    dit.register()
    assert comfy.supported_models.models == models
    importlib.reload(dit)  # as when the pack is reloaded: the new classes take the old ones' places
    assert [model.__name__ for model in comfy.supported_models.models] == [model.__name__ for model in models]
    assert comfy.supported_models.models[0] is dit.KiwiEdit22


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_saving_keeps_the_model_and_its_reference_order(library, sample, tmp_path, dtype):
    patcher = load(single_file(library, reference_first=True), dtype)
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), patcher)
    saved = comfy.utils.load_torch_file(str(tmp_path / "saved.safetensors"))
    loaded = comfy.sd.load_diffusion_model(str(tmp_path / "saved.safetensors"), {"dtype": dtype})
    checkpoint = comfy.sd.load_state_dict_guess_config(saved, output_vae=False, output_clip=False)[0]
    for again in (loaded, checkpoint):
        assert again.model.diffusion_model.reference_first
    half = patcher.model.get_dtype_inference()
    expected = predict_all(predict_comfy, patcher, sample, half)
    assert torch.equal(predict_all(predict_comfy, loaded, sample, half), expected)


def test_references_count_for_memory(dit, models, sample):
    model, shape = models[False].model, list(sample.x.shape)
    shapes = model.extra_conds_shapes(**{dit.REFERENCES: list(sample.reference.split(1, dim=2))})
    with_references = model.memory_required(shape, {name: [value] for name, value in shapes.items()})
    assert with_references == pytest.approx(model.memory_required(shape) * 4 / 3)


REFUSED = {
    "text encoder": (dict(context=torch.zeros(1, 8, 4096)), "instruction node"),
    "no text": (dict(context=None), "conditioning is missing"),
    "no source": (dict(source=None), "has no source clip"),
    "frame count": (dict(source=torch.zeros(1, CHANNELS, 2, 8, 12)), "source is 2 frames of 8x12"),
    "size": (dict(source=torch.zeros(1, CHANNELS, 3, 8, 10)), "source is 3 frames of 8x10"),
    "reference size": (dict(references=[torch.zeros(1, CHANNELS, 1, 8, 10)]), "letterbox"),
    "other VAE": (dict(noise=torch.zeros(1, 48, 3, 8, 12)), "VAE that belongs to the model"),
}


@pytest.mark.parametrize("given, sentence", REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused(dit, models, sample, given, sentence):
    given = dict(context=sample.context[:1], source=sample.source[:1]) | given
    noise = given.pop("noise", sample.x[:1])
    with pytest.raises(ValueError, match=sentence) as refused:
        sampled(models[False], noise, conditioning_of(dit, **given))
    assert str(refused.value).count(". ") == 0


def test_a_reference_needs_a_model_trained_with_some(dit, library, sample):
    patcher = load(single_file(library, reference=False))
    positive = conditioning_of(dit, sample.context[:1], sample.source[:1], [sample.reference[:, :, :1]])
    with pytest.raises(ValueError, match="not trained with reference pictures"):
        sampled(patcher, sample.x[:1], positive)
