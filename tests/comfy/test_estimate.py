"""The dry run: ComfyUI's own estimates for the published model, which has no weights here."""

import importlib
import re

import bench
import published_sizes
import pytest
import torch

from kiwi_core import memory as library_memory
from kiwi_core.transformer import KiwiTransformer3DModel

GIB = 2**30


@pytest.fixture(scope="module", autouse=True)
def on_cuda():
    with published_sizes.as_on_cuda():
        yield


@pytest.fixture(scope="module")
def nodes(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.memory")


@pytest.fixture(scope="module", params=published_sizes.DTYPES)
def any_dtype(request, pack):
    return published_sizes.published_5b(pack, request.param)


@pytest.fixture(scope="module")
def bf16(pack):
    return published_sizes.published_5b(pack, "bf16")


def phases(nodes, published, card=8, width=1280, height=704, frames=81, references=1, **options):
    parts = nodes.phases(
        published.model, published.vae, published.mllm, published.connector, width, height, frames, references,
        card * GIB, **options,
    )  # fmt: skip
    return {phase.name: phase for phase in parts}


def estimate(nodes, published, card_gb, frames=81, window_frames=81, mllm=True):
    return nodes.KiwiEditEstimate.execute(
        published.model, published.vae, 1280, 704, frames, 1, float(card_gb), window_frames,
        published.mllm if mllm else None, published.connector if mllm else None,
    ).result  # fmt: skip


def test_the_published_size_with_a_reference_fits_8_gib_in_every_phase(nodes, any_dtype):
    text, fits = estimate(nodes, any_dtype, 8)
    assert fits
    assert re.findall(r"^(\w+) .*fits", text, re.M) == ["encode", "mllm", "sample", "decode"]
    for phase in phases(nodes, any_dtype).values():
        assert phase.least < 8 * GIB


def test_weights_are_those_of_the_published_files(nodes, bf16):
    # Computed elsewhere: 10.0, 7.5 and 1.4 GB; ours hold embedders and connectors too.
    parts = phases(nodes, bf16)
    for name, gigabytes in (("sample", 10.0), ("mllm", 7.5), ("decode", 1.4)):
        assert abs(parts[name].weights / 1e9 - gigabytes) < 0.1 * gigabytes


def test_a_step_takes_about_what_its_tensors_add_up_to(nodes, bf16):
    with torch.device("meta"):
        transformer = KiwiTransformer3DModel(
            num_attention_heads=24, in_channels=48, out_channels=48, ffn_dim=14336, num_layers=30
        ).to(torch.bfloat16)
    for size in ({"frames": 81, "references": 1}, {"frames": 41, "references": 0}):
        counted = library_memory.dit_bytes(transformer, 704, 1280, size["frames"], size["references"], 16)
        planned = phases(nodes, bf16, **size)["sample"].working
        assert 0.9 * counted < planned < 1.2 * counted  # ComfyUI's factor is a rule of thumb over all Wan models


@pytest.mark.parametrize("half", ["encode", "decode"])
@pytest.mark.parametrize("frames", [17, 65])
def test_the_vae_estimate_holds_the_tensors_that_live_at_once(pack, bf16, monkeypatch, half, frames):
    # Without the workspace of the card's convolutions, for which the rest of the estimate is.
    vae_nodes, vae, edge = importlib.import_module(f"{pack.__name__}.nodes.vae"), bf16.vae, 256
    for module in vae.first_stage_model.modules():
        if hasattr(module, "optimized_attention"):  # the sliced one asks the device for its memory
            monkeypatch.setattr(module, "optimized_attention", lambda q, k, v: torch.empty_like(q))
    latents = (frames + 3) // 4
    shape, estimated = {
        "encode": ((1, 3, frames, edge, edge), vae_nodes.encode_bytes(vae, frames, edge, edge)),
        "decode": ((1, 48, latents, edge // 16, edge // 16), vae_nodes.decode_bytes(vae, latents, edge, edge)),
    }[half]
    with torch.inference_mode(), bench.PeakBytes() as memory:
        given = torch.zeros(shape, dtype=torch.bfloat16, device="meta")
        getattr(vae.first_stage_model, half)(given)
    assert memory.peak < estimated < 3 * memory.peak


def test_references_are_counted_where_the_video_model_sees_them(nodes, bf16):
    none, one, three = (phases(nodes, bf16, references=count)["sample"].working for count in (0, 1, 3))
    assert none < one < three
    assert abs((three - none) / (one - none) - 3) < 1e-3
    assert abs(one / none - 22 / 21) < 1e-6  # 21 latent frames and one more


def test_memory_grows_with_the_window_and_not_with_the_clip(nodes, bf16):
    windowed, longer = (phases(nodes, bf16, frames=count)["sample"] for count in (201, 401))
    assert windowed == longer
    assert phases(nodes, bf16, frames=401, window_frames=0)["sample"].working > 4 * longer.working


def test_a_long_clip_without_windows_is_told_what_to_lower(nodes, bf16):
    text, fits = estimate(nodes, bf16, 8, frames=401, window_frames=0)
    assert not fits
    (pixels,) = re.findall(r"sample .* does not fit: lower max_pixels to (\d+), or window_frames", text)
    side = int((int(pixels) / 2) ** 0.5) // 32 * 32
    assert phases(nodes, bf16, width=2 * side, height=side, frames=401, window_frames=0)["sample"].least <= 8 * GIB


@pytest.mark.parametrize("card, tiles", [(8, True), (16, True), (24, False)])
def test_decoding_is_planned_in_tiles_on_small_cards(nodes, bf16, card, tiles):
    decode = phases(nodes, bf16, card=card)["decode"]
    assert ("in tiles of" in decode.how) == tiles
    assert decode.peak <= card * GIB


def test_fp8_is_advised_where_it_keeps_the_weights_on_the_card(nodes, bf16):
    small, large = (estimate(nodes, bf16, card)[0] for card in (8, 16))
    assert re.search(r"sample .* fits with \d\.\d GiB of weights in RAM, or as fp8 without", small)
    assert re.search(r"sample .* fits$", large, re.M)


def test_without_a_language_model_its_phase_is_left_out(nodes, bf16):
    text, fits = estimate(nodes, bf16, 8, mllm=False)
    assert fits
    assert "mllm" not in text
    assert "sample" in text


def test_what_runs_on_the_cpu_is_told_so(nodes, bf16):
    """As the language model does on a Mac, and the VAE with --cpu-vae: RAM is no card."""
    text, fits = estimate(nodes, bf16, 0)
    assert fits and len(re.findall(r"^(?:encode|mllm|sample|decode) .*on the CPU", text, re.M)) == 4
    assert "on the CPU" not in estimate(nodes, bf16, 80)[0]


def test_the_report_is_shown_on_the_node(nodes, bf16):
    output = nodes.KiwiEditEstimate.execute(bf16.model, bf16.vae, 1290, 710, 80, 0, 8.0, 81)
    assert output.ui.as_dict() == {"text": (output.result[0],)}
    assert output.result[0].startswith("1280x704, 81 frames, 0 references, on a card of 8.0 GiB")
