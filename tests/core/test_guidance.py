"""Guidance against a negative: an empty instruction on the same clip."""

import numpy as np
import pytest
import torch

from kiwi_core import schedule

STEPS = 3
VIDEO = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
PICTURE = VIDEO[0, ::-1].copy()


def edit(pipe, **changes):
    generator = torch.Generator().manual_seed(0)
    return pipe(
        "Make it red.", VIDEO, PICTURE, num_inference_steps=STEPS, generator=generator, output_type="latent", **changes
    ).latents


@pytest.mark.parametrize("negative", ["", "Blur it."])
@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_guidance_is_the_formula_on_two_plain_calls(random_pipe, scale, negative):
    """Worked out here from the model's own two answers at each step."""
    contexts = [
        random_pipe.encode_prompt(text, VIDEO, PICTURE, allow_empty=not text) for text in ("Make it red.", negative)
    ]
    source = random_pipe.source_embedder(random_pipe.encode_video(VIDEO))
    reference = random_pipe.ref_embedder(random_pipe._encode_references(_images(), 32, 48))
    latents = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    sigmas = schedule.flow_sigmas(STEPS)
    nearest = schedule.nearest_index(schedule.round_timestep(sigmas[:-1] * 1000), sigmas[:-1] * 1000)
    for step in range(STEPS):
        cond, uncond = (
            random_pipe.transformer(
                latents, sigmas[step : step + 1] * 1000, context, source=source, source_sigma=sigmas[nearest[step]],
                reference=reference,
            ).sample
            for context in contexts
        )  # fmt: skip
        latents = latents + (uncond + scale * (cond - uncond)) * (sigmas[step + 1] - sigmas[step])
    found = edit(random_pipe, guidance_scale=scale, negative_prompt=negative)
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=0)
    assert (found - edit(random_pipe)).abs().max() > 1e-2


def _images():
    from PIL import Image

    return [Image.fromarray(PICTURE)]


@pytest.mark.parametrize("scale, calls", [(1.0, STEPS), (3.0, 2 * STEPS)])
def test_without_guidance_a_step_is_one_call(random_pipe, scale, calls):
    count = []
    hook = random_pipe.transformer.register_forward_hook(lambda *_: count.append(1))
    edit(random_pipe, guidance_scale=scale)
    hook.remove()
    assert len(count) == calls


def test_guidance_works_in_windows(random_pipe):
    windows = {"window_frames": 5, "window_overlap": 4}
    plain, guided = (edit(random_pipe, guidance_scale=scale, **windows) for scale in (1.0, 2.0))
    doubled = edit(random_pipe, guidance_scale=2.0, negative_prompt="Make it red.", **windows)
    torch.testing.assert_close(doubled, plain)  # pushed away from itself
    assert (guided - plain).abs().max() > 1e-2


def test_caches_of_diffusers_remember_each_call_by_itself(random_model, random_pipe):
    """A threshold of 0 takes nothing from the cache; one above all changes takes all but the first step from it."""
    from diffusers import FirstBlockCacheConfig

    from kiwi_core import KiwiEditPipeline

    changes = {"guidance_scale": 2.0, "window_frames": 5, "window_overlap": 0}
    wanted = edit(random_pipe, **changes)
    pipe = KiwiEditPipeline.from_pretrained(random_model / "released", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    for _ in range(2):  # nothing stays from one edit to the next
        assert torch.equal(edit(pipe, **changes), wanted)
    pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    last = []
    hook = pipe.transformer.blocks[-1].ffn.register_forward_hook(lambda *_: last.append(1))
    edit(pipe, **changes)
    hook.remove()
    assert len(last) == 4  # windows, each with its negative


def test_a_negative_that_would_do_nothing_is_refused(random_pipe):
    with pytest.raises(ValueError, match="does nothing without guidance"):
        edit(random_pipe, negative_prompt="Blur it.")
    assert torch.equal(edit(random_pipe, negative_prompt=None), edit(random_pipe))


def test_an_empty_prompt_is_still_refused(random_pipe):
    with pytest.raises(ValueError, match="instruction is empty"):
        random_pipe(" ", VIDEO, guidance_scale=2.0)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_number_from_0_on_is_refused(random_pipe, scale):
    with pytest.raises(ValueError, match="guidance_scale"):
        edit(random_pipe, guidance_scale=scale)
