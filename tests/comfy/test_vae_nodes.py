"""Encode and decode: as the stock nodes, in tiles where memory is short, and stopped by a cancel."""

import importlib

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import random_model
import torch
import torch.nn.functional as F

import nodes as comfy_nodes

FRAMES, HEIGHT, WIDTH = 5, 128, 320  # three tiles of 128 x 128 with a quarter of overlap, exactly


@pytest.fixture(scope="module")
def nodes(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.vae")


@pytest.fixture(scope="module")
def vae(pack):
    return comfy.sd.VAE(sd=random_model.random_parts().vae, dtype=torch.float32)


@pytest.fixture(scope="module")
def frames():
    """A smooth moving picture with a little noise: IMAGE in 0..1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, FRAMES, 4, 10, generator=generator)
    clip = F.interpolate(coarse, (FRAMES, HEIGHT, WIDTH), mode="trilinear")
    return (clip + 0.02 * torch.rand(clip.shape, generator=generator)).clamp(0, 1)[0].permute(1, 2, 3, 0)


@pytest.fixture(scope="module")
def latent(vae, frames):
    with torch.inference_mode():
        return vae.encode(frames)


def out_of_memory_above(monkeypatch, vae, half, pixels):
    """The VAE fails on larger inputs as CUDA does; returns the sizes that it was given."""
    seen, forward = [], getattr(vae.first_stage_model, half)
    unit = 8 if half == "decode" else 1

    def limited(part, *args, **kwargs):
        seen.append(part.shape[3] * part.shape[4] * unit**2)
        if seen[-1] > pixels:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(part, *args, **kwargs)

    monkeypatch.setattr(vae.first_stage_model, half, limited)
    return seen


def test_encode_is_the_stock_nodes(nodes, vae, frames, latent):
    assert torch.equal(nodes.encode(vae, frames), latent)
    assert latent.shape == (1, 16, 2, HEIGHT // 8, WIDTH // 8)


def test_decode_is_the_stock_nodes(nodes, vae, latent):
    with torch.inference_mode():
        (stock,) = comfy_nodes.VAEDecode().decode(vae, {"samples": latent})
    found = nodes.KiwiEditDecode.execute({"samples": latent}, vae).result[0]
    assert found.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert torch.equal(found, stock)


def test_a_batch_of_latents_is_decoded_one_after_the_other(nodes, vae, latent):
    small = torch.cat([latent, latent.flip(3)])[..., :8, :8]
    with torch.inference_mode():
        stock = torch.cat([comfy_nodes.VAEDecode().decode(vae, {"samples": one})[0] for one in small.split(1)])
    assert torch.equal(nodes.decode(vae, small), stock)


def test_tiles_of_a_vae_that_looks_at_one_place_at_a_time_join_without_a_seam(nodes, vae, monkeypatch):
    # The blend alone, in both directions: weights that add up to one leave what all tiles agree on, to rounding.
    model = vae.first_stage_model
    monkeypatch.setattr(model, "decode", lambda z: F.interpolate(z[:, :3], scale_factor=(1, 8, 8)))
    monkeypatch.setattr(model, "encode", lambda x: F.avg_pool3d(x[:, :1].expand(-1, 16, -1, -1, -1), (1, 8, 8)))
    generator = torch.Generator().manual_seed(0)
    latent, frame = torch.randn(1, 16, 1, 44, 60, generator=generator), torch.rand(1, 352, 480, 3, generator=generator)
    for edge in (128, 160, 256):
        assert (nodes.decode(vae, latent, edge) - nodes.decode(vae, latent)).abs().max() < 1e-5
        assert (nodes.encode(vae, frame, edge) - nodes.encode(vae, frame)).abs().max() < 1e-5


def test_tiles_give_the_picture_of_stock_tiles(nodes, vae, frames, latent):
    # The same tiles and ramps, so to rounding; a random VAE's own tiles differ much from its whole frames.
    with torch.inference_mode():
        stock = vae.decode_tiled(latent, tile_x=16, tile_y=16, overlap=4)[0]
        stock_latent = vae.encode_tiled(frames, tile_x=128, tile_y=128, overlap=32)
    assert (nodes.decode(vae, latent, 128) - stock).abs().max() < 1e-5
    assert (nodes.encode(vae, frames, 128) - stock_latent).abs().max() < 1e-5


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_running_out_of_memory_takes_smaller_tiles(nodes, vae, frames, latent, monkeypatch, half):
    given = frames if half == "encode" else latent
    wanted = getattr(nodes, half)(vae, given, 128)
    seen = out_of_memory_above(monkeypatch, vae, half, 130 * 130)
    found = getattr(nodes, half)(vae, given)
    assert torch.equal(found, wanted)
    sizes = [size // HEIGHT for size in seen]
    assert sizes[0] == WIDTH  # whole first, then one tile of the next size, then all the small ones
    assert sizes[1] < WIDTH
    assert sizes[2:] == [128] * 3


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_no_memory_at_all_is_told_in_a_sentence(nodes, vae, frames, latent, monkeypatch, half):
    seen = out_of_memory_above(monkeypatch, vae, half, 0)
    with pytest.raises(MemoryError, match="lower max_pixels or max_frames"):
        getattr(nodes, half)(vae, frames if half == "encode" else latent)
    assert len(seen) == 3  # whole, 256, 128


def test_a_full_card_is_tiled_before_memory_runs_out(nodes, vae, latent, monkeypatch):
    needed = nodes.decode_bytes(vae, latent.shape[2], 128, 128)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: needed)
    seen = out_of_memory_above(monkeypatch, vae, "decode", float("inf"))
    nodes.decode(vae, latent)
    assert max(seen) <= 128 * 128


def test_long_clips_need_more_room(nodes, vae):
    short, long = (nodes.decode_bytes(vae, count, 704, 1280) for count in (21, 101))
    assert long - short == 3 * 4 * 80 * 704 * 1280 * 3 * 4  # copies, frames a latent, latents, pixels, colours, float32


def test_other_errors_are_not_taken_for_lack_of_memory(nodes, vae, latent, monkeypatch):
    def fail(*_):
        raise RuntimeError("broken weights")

    monkeypatch.setattr(vae.first_stage_model, "decode", fail)
    with pytest.raises(RuntimeError, match="broken weights"):
        nodes.decode(vae, latent)


@pytest.mark.parametrize("shape", [(1, 48, 3, 4, 4), (1, 16, 4, 4)])
def test_another_latent_is_refused(nodes, vae, shape):
    with pytest.raises(ValueError, match="videos of 16 channels; use the VAE that belongs to the model"):
        nodes.decode(vae, torch.zeros(shape))


def test_a_tile_that_is_too_small_is_refused(nodes):
    assert nodes.KiwiEditDecode.validate_inputs(tile=64) == "A tile of 64 is too small; use at least 128, or 0."
    assert nodes.KiwiEditDecode.validate_inputs(tile=0) is True


@pytest.mark.parametrize("edge", [0, 128])
@pytest.mark.parametrize("half", ["encode", "decode"])
def test_progress_counts_frames_to_its_end(nodes, vae, frames, latent, monkeypatch, half, edge):
    steps = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *_, **__: steps.append(done / total))
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0, raising=False)
    getattr(nodes, half)(vae, frames if half == "encode" else latent, edge)
    assert len(steps) >= 2
    assert steps == sorted(steps)
    assert steps[0] <= 0.5
    assert steps[-1] == 1


@pytest.mark.parametrize("edge", [0, 128])
@pytest.mark.parametrize("half", ["encode", "decode"])
def test_a_cancel_stops_within_a_chunk_of_frames(nodes, vae, frames, latent, half, edge):
    management, calls = comfy.model_management, []

    def cancel(*_):
        calls.append(1)
        management.interrupt_current_processing()

    module = getattr(vae.first_stage_model, half + "r")
    hook = module.register_forward_hook(cancel)
    given = frames if half == "encode" else latent
    try:
        with pytest.raises(management.InterruptProcessingException):
            getattr(nodes, half)(vae, given, edge)
    finally:
        hook.remove()
    assert len(calls) == 1
    assert not module._forward_hooks and not module._forward_pre_hooks
    assert not management.processing_interrupted()
    assert torch.isfinite(getattr(nodes, half)(vae, given, edge)).all()
