"""Guidance in the graph: against the library, and against the formula on two plain model calls."""

import comfy.patcher_extension
import edit_graph
import pytest
import torch
from edit_graph import PROMPT, SEED, STEPS
from PIL import Image

from kiwi_core import KiwiEditPipeline, schedule


@pytest.fixture(scope="module")
def loaded(pack, tmp_path_factory):
    return edit_graph.load(pack, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pipeline(loaded):
    import folder_paths
    import random_model

    pipeline = KiwiEditPipeline.from_single_files(
        **{part: f"{folder_paths.models_dir}/{path}" for part, path in random_model.FILES.items()}, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


CLIP, PICTURE = edit_graph.clip(9, 32, 48), Image.fromarray(edit_graph.pictures()[0])


@pytest.fixture(scope="module")
def edit(loaded, pipeline):
    """Positive, negative and latent of the library's own encodings."""
    raw = loaded.model.model.process_latent_out
    source = raw(pipeline.encode_video(CLIP))
    references = [raw(pipeline._encode_references([PICTURE], 32, 48))]
    values = {"kiwi_source_latent": source, "kiwi_reference_latents": references}
    positive, negative = (
        [[pipeline.encode_prompt(text, CLIP, PICTURE, allow_empty=not text), values]] for text in (PROMPT, "")
    )
    return positive, negative, {"samples": source}


def sample(pack, model, edit, cfg, with_negative=True, **changes):
    positive, negative, latent = edit
    (sampled,) = pack.nodes.sampling.KiwiEditSampler.execute(
        model, positive, latent, SEED, STEPS, 5.0, 1.0, cfg=cfg, negative=negative if with_negative else None, **changes
    )
    return model.model.process_latent_in(sampled["samples"])


def test_numbers_that_overflow_are_no_black_video(pack, loaded, edit):
    ((context, values),), _, latent = edit
    broken = [[torch.full_like(context, float("nan")), values]], None, latent
    with pytest.raises(FloatingPointError, match="lower the strength of LoRAs"):
        sample(pack, loaded.model, broken, 1.0, with_negative=False)


def spied(model):
    seen = []

    def spy(executor, *args, **kwargs):
        seen.append(len(args[0]))
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, spy)
    return model, seen


@pytest.mark.parametrize("cfg", [0.5, 3.0])
def test_graph_with_cfg_gives_the_latents_of_the_library(pack, loaded, pipeline, edit, cfg):
    wanted = pipeline(
        PROMPT, CLIP, PICTURE, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(SEED),
        output_type="latent", guidance_scale=cfg,
    ).latents  # fmt: skip
    assert (sample(pack, loaded.model, edit, cfg) - wanted).abs().max() < 1e-3


def test_cfg_is_the_formula_on_two_plain_model_calls(pack, loaded, edit):
    positive, negative, latent = edit
    model = loaded.model.model
    values = positive[0][1]
    given = {
        "source_latents": model.process_latent_in(values["kiwi_source_latent"]),
        "reference_latents": model.process_latent_in(values["kiwi_reference_latents"][0]),
    }
    sigmas = schedule.flow_sigmas(STEPS)
    x = torch.randn(latent["samples"].shape, generator=torch.manual_seed(SEED))
    with torch.no_grad():
        for step in range(STEPS):
            sigma = sigmas[step : step + 1]
            cond, uncond = (
                model.diffusion_model(
                    x, sigma * 1000, context=conditioning[0][0], transformer_options={"sigmas": sigma}, **given
                )
                for conditioning in (positive, negative)
            )
            x = x + (uncond + 3.0 * (cond - uncond)) * (sigmas[step + 1] - sigma)
    found = sample(pack, loaded.model, edit, 3.0)
    assert (found - x).abs().max() < 1e-3
    assert (found - sample(pack, loaded.model, edit, 1.0)).abs().max() > 1e-2


def test_without_guidance_a_step_is_one_call_of_one_clip(pack, loaded, edit):
    model, seen = spied(loaded.model)
    plain = sample(pack, model, edit, 1.0)
    assert seen == [1] * STEPS
    assert torch.equal(plain, sample(pack, model, edit, 1.0, with_negative=False))
    del seen[:]
    sample(pack, model, edit, 2.0)
    assert sum(seen) == 2 * STEPS


def test_guidance_works_in_windows(pack, loaded, edit):
    changes = {"window_frames": 5, "window_overlap": 4}
    positive, _, latent = edit
    plain = sample(pack, loaded.model, edit, 1.0, **changes)
    from_itself = sample(pack, loaded.model, (positive, positive, latent), 2.0, **changes)
    torch.testing.assert_close(from_itself, plain, atol=1e-4, rtol=0)
    assert (sample(pack, loaded.model, edit, 2.0, **changes) - plain).abs().max() > 1e-2


@pytest.mark.parametrize("cfg", [0.0, 2.0])
def test_guidance_without_a_negative_is_refused(pack, loaded, edit, cfg):
    with pytest.raises(ValueError, match="no negative; connect Encode Negative") as refused:
        sample(pack, loaded.model, edit, cfg, with_negative=False)
    assert str(refused.value).count(". ") == 0


def test_new_inputs_stand_after_the_old_ones(pack):
    schema = pack.nodes.sampling.KiwiEditSampler.GET_SCHEMA()
    names = [given.id for given in schema.inputs]
    assert names == [
        "model", "conditioning", "latent", "seed", "steps", "shift", "denoise", "cfg", "negative", "window_frames",
        "window_overlap",
    ]  # fmt: skip
    assert all(given.optional for given in schema.inputs[7:])
