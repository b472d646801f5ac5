"""The whole pipeline against the published one, and what it promises beyond."""

import logging

import golden
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from kiwi_core import KiwiEditPipeline, geometry, schedule
from kiwi_core import vae as vae_ops

GOLDEN = golden.load("e2e/golden")
DIFFSYNTH = golden.load("e2e/diffsynth_golden")
FACTS = golden.FACTS["e2e"]
MODES = tuple(FACTS["modes"])
LATENTS_ATOL = golden.atol("e2e f32 final latents")
SOURCE_ATOL = golden.atol("e2e f32 source/ref latents")
CONTEXT_ATOL = golden.atol("e2e f32 context")


def arguments_of(mode):
    """Arguments of a stored run, under this pipeline's names."""
    inputs = {name: tensor.numpy() for name, tensor in golden.load("e2e/inputs").items()}
    kwargs = dict(FACTS["modes"][mode]["kwargs"])
    video = inputs["resize_source_frames"] if mode == "resize" else inputs["source_frames"]
    return {
        "prompt": kwargs["prompt"],
        "video": video[:1] if mode.startswith("image") else video,
        "reference": inputs["ref_image"] if mode.endswith("ref") else None,
        "height": kwargs["height"],
        "width": kwargs["width"],
        "num_frames": kwargs["num_frames"],
        "num_inference_steps": kwargs["num_inference_steps"],
        "shift": kwargs["sigma_shift"],
        "generator": torch.Generator().manual_seed(kwargs["seed"]),
    }


def run(pipe, mode, **changes):
    """Output of a stored run, the latents after each step, and what the model said."""
    latents, velocities = [], []
    hook = pipe.transformer.register_forward_hook(lambda module, args, output: velocities.append(output[0]))

    def keep(pipe, step, timestep, values):
        latents.append(values["latents"])

    try:
        output = pipe(**arguments_of(mode), callback_on_step_end=keep, **changes)
    finally:
        hook.remove()
    assert torch.equal(output.latents, latents[-1])
    return output, torch.stack(latents), torch.stack(velocities)


@pytest.fixture
def only_round_timesteps(pipe):
    """Round the timestep's value, but not its embedding: a variant that no setting of the pipeline gives."""

    def rounded(module, args, kwargs):
        latents, timestep, *rest = args
        return (latents, schedule.round_timestep(timestep), *rest), kwargs

    hook = pipe.transformer.register_forward_pre_hook(rounded, with_kwargs=True)
    yield
    hook.remove()


# Against the published numbers


@pytest.mark.parametrize("mode", MODES)
def test_float32_run_is_the_published_one(pipe, mode):
    output, latents, velocities = run(pipe, mode, rounding="none")
    stored = GOLDEN[f"{mode}.f32.latents_per_step"]
    golden.assert_close("e2e latents", latents, stored, LATENTS_ATOL)
    stored = GOLDEN[f"{mode}.f32.model_out_per_step"]
    golden.assert_close("e2e velocities", velocities, stored, LATENTS_ATOL)
    golden.assert_same_frames("e2e frames", output.frames, GOLDEN[f"{mode}.f32.frames_uint8"])
    assert output.frames.dtype == np.uint8


@pytest.mark.parametrize("mode", MODES)
def test_shipped_rounding_is_the_published_one(pipe, mode):
    output, _, _ = run(pipe, mode, output_type="latent")
    stored = GOLDEN[f"{mode}.f32_round.final_latents"]
    golden.assert_close("e2e latents", output.latents, stored, LATENTS_ATOL)
    assert torch.equal(output.frames, output.latents)


@pytest.mark.parametrize("mode", MODES)
def test_rounded_timesteps_alone_give_the_published_latents(pipe, mode, only_round_timesteps):
    output, _, _ = run(pipe, mode, output_type="latent", rounding="none")
    golden.assert_close("e2e latents", output.latents, GOLDEN[f"{mode}.f32_ts16.final_latents"], LATENTS_ATOL)


@pytest.mark.parametrize("mode", MODES)
def test_encoders_are_the_published_ones(pipe, mode):
    values = arguments_of(mode)
    context = pipe.encode_prompt(values["prompt"], values["video"], values["reference"], rounding="none")
    golden.assert_close("e2e context", context, GOLDEN[f"{mode}.f32.context"], CONTEXT_ATOL)
    source = pipe.encode_video(values["video"], values["height"], values["width"])
    golden.assert_close("e2e source latents", source, GOLDEN[f"{mode}.f32.source_latents"], SOURCE_ATOL)
    if values["reference"] is not None:
        boxed = geometry.letterbox(Image.fromarray(values["reference"]), 64, 96)
        assert np.array_equal(np.asarray(boxed), GOLDEN["ref_image_padded_uint8"].numpy())
        golden.assert_close(
            "e2e reference latents", pipe.encode_video(boxed), GOLDEN[f"{mode}.f32.ref_latents"], SOURCE_ATOL
        )


def test_frames_are_resized_as_published():
    frames = geometry.resize_frames(arguments_of("resize")["video"], *FACTS["resize_target_hw"])
    assert np.array_equal(frames[0], GOLDEN["resize_source_frame0_lanczos_uint8"].numpy())


@pytest.mark.parametrize("mode", MODES)
def test_noise_and_schedule_are_the_published_ones(mode):
    noise = torch.randn(GOLDEN[f"{mode}.noise"].shape, generator=arguments_of(mode)["generator"])
    assert torch.equal(noise, GOLDEN[f"{mode}.noise"])
    golden.assert_close("e2e sigmas", schedule.flow_sigmas(4)[:-1], GOLDEN[f"{mode}.sigmas"], 1e-6)


@pytest.mark.parametrize("mode", ["video", "image"])
def test_decoded_latents_are_the_published_ones(pipe, mode):
    decoded = vae_ops.decode(pipe.vae, GOLDEN[f"{mode}.f32.latents_per_step"][-1])
    stored = GOLDEN[f"{mode}.f32.decoded_first2_last1"]
    frames = decoded[:, :, [0, 1, -1]] if mode == "video" else decoded[:, :, [0]].expand_as(stored)
    golden.assert_close("e2e decoded", frames, stored, golden.atol("vae float32"))


@pytest.fixture(scope="module")
def bf16_pipe():
    pipe = KiwiEditPipeline.from_pretrained(golden.RELEASE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_bfloat16_is_the_default_and_whole(bf16_pipe):
    for name, module in bf16_pipe.components.items():
        if isinstance(module, torch.nn.Module):
            assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}, name


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_run_is_the_published_one(bf16_pipe, mode):
    output, latents, _ = run(bf16_pipe, mode)
    golden.assert_close_bf16("e2e latents bfloat16", latents, GOLDEN[f"{mode}.bf16.latents_per_step"])
    rounded = golden.relative_rms(output.latents, GOLDEN[f"{mode}.f32_round.final_latents"])
    exact = golden.relative_rms(output.latents, GOLDEN[f"{mode}.f32.latents_per_step"][-1])
    assert rounded < exact / 2

    limits = golden.TOLERANCES["bf16 (any)"]
    stored = GOLDEN[f"{mode}.bf16.frames_uint8_first_last"].numpy().astype(int)
    difference = np.abs(output.frames[[0, -1]].astype(int) - stored)
    assert difference.mean() <= limits["frames_mean_abs"]
    assert difference.max() <= limits["frames_max_abs"]


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_encoders_are_the_published_ones(bf16_pipe, mode):
    values = arguments_of(mode)
    context = bf16_pipe.encode_prompt(values["prompt"], values["video"], values["reference"])
    golden.assert_close_bf16("e2e context bfloat16", context, GOLDEN[f"{mode}.bf16.context"])
    source = bf16_pipe.encode_video(values["video"], values["height"], values["width"])
    golden.assert_close_bf16("e2e source latents bfloat16", source, GOLDEN[f"{mode}.bf16.source_latents"])
    if values["reference"] is not None:
        boxed = geometry.letterbox(Image.fromarray(values["reference"]), 64, 96)
        stored = GOLDEN[f"{mode}.bf16.ref_latents"]
        golden.assert_close_bf16("e2e reference latents bfloat16", bf16_pipe.encode_video(boxed), stored)


@pytest.mark.parametrize("mode", ["video", "image", "video_ref"])
def test_training_schedule_gives_the_published_training_pipelines_latents(pipe, mode, monkeypatch):
    encode = pipe.encode_prompt

    def with_rounded_pixels(prompt, video, reference, rounding, *rest):  # that run rounds pixels, but not timesteps
        return encode(prompt, video, reference, "shipped", *rest)

    monkeypatch.setattr(pipe, "encode_prompt", with_rounded_pixels)
    output, _, _ = run(pipe, mode, sigma_min=0.0, rounding="none")
    stored = DIFFSYNTH[f"{mode}.diffsynth_f32.final_latents"]
    golden.assert_close("e2e latents, DiffSynth", output.latents, stored, LATENTS_ATOL)
    stored = DIFFSYNTH[f"{mode}.diffsynth_f32.frame_last_uint8"]
    golden.assert_same_frames("e2e frames, DiffSynth", output.frames[-1], stored)


# The sampling loop alone, on the stored latents and contexts of schedule/


def sampler(pipe, dtype, monkeypatch):
    """The pipeline around the DiT of dit/, its encoders replaced by their stored results."""
    noise, inputs = golden.load("schedule/sampling")["noise"], golden.load("dit/inputs")
    transformer, source_embedder, ref_embedder = golden.dit_modules(dtype)
    small = KiwiEditPipeline(transformer, pipe.vae, pipe.mllm_encoder, source_embedder, ref_embedder)
    small.set_progress_bar_config(disable=True)
    frames = {9: inputs["source_latents"], 1: inputs["ref_latent"]}
    monkeypatch.setattr(small, "encode_prompt", lambda *_: inputs["context"].to(dtype))
    monkeypatch.setattr(small, "encode_video", lambda video, *_: frames[len(video)].to(dtype))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise.clone())
    return small


@pytest.mark.parametrize("name", sorted(golden.load("schedule/sampling").keys() - {"noise"}))
def test_every_step_is_the_published_one(pipe, monkeypatch, name):
    flavour, case, variant = name.split(".")
    small = sampler(pipe, torch.bfloat16 if variant == "bf16" else torch.float32, monkeypatch)
    if variant == "b1":
        small.transformer.register_forward_pre_hook(
            lambda module, args: (args[0], schedule.round_timestep(args[1]), *args[2:])
        )
    latents = [golden.load("schedule/sampling")["noise"]]
    small(
        "Go.",
        np.zeros((9, 128, 192, 3), dtype=np.uint8),
        np.zeros((64, 64, 3), dtype=np.uint8) if case == "src_ref_last" else None,
        num_inference_steps=4,
        sigma_min=schedule.SIGMA_MIN if flavour == "diffusers" else 0.0,
        rounding="shipped" if variant in ("b2", "bf16") else "none",
        callback_on_step_end=lambda pipe, step, timestep, values: latents.append(values["latents"]),
        output_type="latent",
    )
    stored = golden.load("schedule/sampling")[name]
    if variant == "bf16":
        golden.assert_close_bf16("sampling bfloat16", torch.stack(latents[1:]), stored[1:])
    else:
        golden.assert_close("sampling", torch.stack(latents), stored, golden.atol("sampling float32"))


# What comes out


def clip(count, height=64, width=96, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def edit(pipe, video, reference=None, seed=0, **changes):
    changes = {"num_inference_steps": 2, "output_type": "latent"} | changes
    generator = torch.Generator().manual_seed(seed)
    return pipe("Make it red.", video, reference, generator=generator, **changes)


@pytest.mark.parametrize("count, latent_frames", [(1, 1), (2, 2), (4, 2), (5, 2), (7, 3), (9, 3), (13, 4)])
def test_as_many_frames_come_out_as_go_in(random_pipe, count, latent_frames):
    output = edit(random_pipe, clip(count, 32, 48), output_type="np")
    assert output.frames.shape == (count, 32, 48, 3)
    assert output.frames.dtype == np.uint8
    assert output.latents.shape == (1, 16, latent_frames, 4, 6)


def test_missing_frames_repeat_the_last(random_pipe):
    video = clip(7, 32, 48)
    padded = np.concatenate([video, video[-1:], video[-1:]])
    assert torch.equal(random_pipe.encode_video(video), random_pipe.encode_video(padded))


@pytest.mark.parametrize(
    "height, width, wanted", [(64, 96, (64, 96)), (70, 100, (64, 96)), (33, 20, (32, 16)), (16, 16, (16, 16))]
)
def test_the_default_size_is_the_clips_own_in_steps_of_16(random_pipe, height, width, wanted):
    assert edit(random_pipe, clip(1, height, width), output_type="np").frames.shape[1:3] == wanted


@pytest.mark.parametrize("height, width, wanted", [(50, 84, (64, 96)), (64, 65, (64, 96)), (1, 32, (32, 32))])
def test_a_given_size_is_rounded_up_in_steps_of_32_for_the_wan22_vae(pipe, height, width, wanted):
    output = edit(pipe, clip(1), height=height, width=width, output_type="np")
    assert output.frames.shape[1:3] == wanted


def test_num_frames_cuts_the_clip_and_the_language_model_sees_what_is_edited(random_pipe, monkeypatch):
    video, seen = clip(9, 32, 48), []
    encode = random_pipe.encode_prompt

    def encode_and_count(prompt, video, *rest):
        seen.append(len(video))
        return encode(prompt, video, *rest)

    monkeypatch.setattr(random_pipe, "encode_prompt", encode_and_count)
    output = edit(random_pipe, video, num_frames=6, output_type="np")
    assert len(output.frames) == 6
    assert output.latents.shape[2] == 3
    assert seen == [6]
    assert len(edit(random_pipe, video, num_frames=100, output_type="np").frames) == 9


def test_longer_clips_than_in_training_are_cut_with_a_warning(random_pipe, monkeypatch, caplog):
    monkeypatch.setattr(geometry, "MAX_FRAMES", 5)
    with caplog.at_level(logging.WARNING):
        assert edit(random_pipe, clip(6, 32, 48)).latents.shape[2] == 2
    assert "The clip is longer than 5 frames; the first are edited. Set num_frames for more." in caplog.text
    caplog.clear()
    assert edit(random_pipe, clip(6, 32, 48), num_frames=6).latents.shape[2] == 3
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_output_types_hold_the_same_frames(random_pipe):
    video = clip(5, 32, 48)
    arrays, pictures = (edit(random_pipe, video, output_type=kind).frames for kind in ("np", "pil"))
    assert [picture.size for picture in pictures] == [(48, 32)] * 5
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), arrays)
    assert len(np.unique(arrays)) > 10


def test_clips_may_be_arrays_pictures_or_paths(random_pipe, tmp_path):
    video = clip(5, 32, 48)
    pictures = [Image.fromarray(frame) for frame in video]
    pictures[0].save(tmp_path / "frame.png")
    whole = edit(random_pipe, video).latents
    assert torch.equal(edit(random_pipe, pictures).latents, whole)
    first = edit(random_pipe, video[0]).latents
    assert first.shape[2] == 1
    assert torch.equal(edit(random_pipe, str(tmp_path / "frame.png")).latents, first)
    assert torch.equal(edit(random_pipe, tmp_path / "frame.png").latents, first)


def test_references_may_be_one_or_several_in_any_form(random_pipe, tmp_path):
    video, pictures = clip(1, 32, 48), clip(2, 40, 30, seed=1)
    Image.fromarray(pictures[1]).save(tmp_path / "reference.png")
    one = edit(random_pipe, video, pictures[0]).latents
    assert torch.equal(edit(random_pipe, video, Image.fromarray(pictures[0])).latents, one)
    assert torch.equal(edit(random_pipe, video, [pictures[0]]).latents, one)
    two = edit(random_pipe, video, [pictures[0], tmp_path / "reference.png"]).latents
    assert torch.equal(edit(random_pipe, video, pictures).latents, two)
    nothing = edit(random_pipe, video).latents
    assert torch.equal(edit(random_pipe, video, []).latents, nothing)
    assert not torch.allclose(one, two)
    assert not torch.allclose(one, nothing)


def test_transparency_is_composited_on_white(random_pipe):
    colours = clip(1, 32, 48)[0]
    alpha = np.zeros((32, 48, 1), dtype=np.uint8)
    alpha[8:] = 255
    pasted = np.where(alpha > 0, colours, 255).astype(np.uint8)
    rgba = Image.fromarray(np.concatenate([colours, alpha], axis=2))
    palette = Image.fromarray(colours).convert("P")
    for transparent, plain in ((rgba, Image.fromarray(pasted)), (palette, palette.convert("RGB"))):
        shown, wanted = (edit(random_pipe, [image], image).latents for image in (transparent, plain))
        assert torch.equal(shown, wanted)


@pytest.mark.parametrize("first", [False, True])
def test_references_stand_where_the_checkpoint_wants_them(first):
    import random_model

    pipe = KiwiEditPipeline.from_parts(random_model.random_parts(ref_pad_first=first), torch.float32)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["reference_first"]), with_kwargs=True
    )
    edit(pipe, clip(1, 32, 48), clip(1)[0])
    assert seen == [first] * 2


# Sampling


def test_a_seed_decides_the_result(random_pipe):
    video = clip(1, 32, 48)
    assert torch.equal(edit(random_pipe, video).latents, edit(random_pipe, video).latents)
    assert not torch.equal(edit(random_pipe, video).latents, edit(random_pipe, video, seed=1).latents)
    assert random_pipe("Go.", video, num_inference_steps=1, output_type="latent").latents.isfinite().all()


def test_prompt_and_source_matter(random_pipe):
    video = clip(1, 32, 48)
    base = edit(random_pipe, video).latents
    generator = torch.Generator().manual_seed(0)
    other = random_pipe("Paint it.", video, generator=generator, num_inference_steps=2, output_type="latent")
    assert not torch.allclose(other.latents, base)
    assert not torch.allclose(edit(random_pipe, clip(1, 32, 48, seed=2)).latents, base)


def test_a_lower_strength_starts_from_the_source(random_pipe):
    video = clip(1, 32, 48)
    source = random_pipe.encode_video(video)
    far, near = (
        edit(random_pipe, video, denoising_strength=strength, num_inference_steps=1).latents - source
        for strength in (1.0, 0.01)
    )
    assert near.abs().mean() < far.abs().mean() / 3


def test_the_callback_sees_and_may_change_every_step(random_pipe):
    seen = []

    def callback(pipe, step, timestep, values):
        assert pipe is random_pipe
        seen.append((step, float(timestep)))
        return {"latents": torch.zeros_like(values["latents"])} if step == 2 else None

    output = edit(random_pipe, clip(1, 32, 48), num_inference_steps=3, callback_on_step_end=callback)
    timesteps = schedule.timesteps_of(schedule.flow_sigmas(3))
    assert seen == list(enumerate(timesteps.tolist()))
    assert not output.latents.any()


def test_interrupting_stops_after_the_step(random_pipe):
    steps = []

    def callback(pipe, step, timestep, values):
        steps.append(values["latents"])
        pipe.interrupt = len(steps) == 2

    video = clip(1, 32, 48)
    output = edit(random_pipe, video, num_inference_steps=5, callback_on_step_end=callback)
    assert len(steps) == 2
    assert torch.equal(output.latents, steps[-1])
    edit(random_pipe, video, num_inference_steps=3, callback_on_step_end=lambda *_: steps.append(None))
    assert len(steps) == 5


def test_progress_is_shown(random_pipe, capfd):
    random_pipe.set_progress_bar_config(disable=False)
    try:
        edit(random_pipe, clip(1, 32, 48), num_inference_steps=3)
    finally:
        random_pipe.set_progress_bar_config(disable=True)
    assert "3/3" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["model", "group"])
def test_offloading_changes_nothing(random_model, random_pipe, kind):
    pipe = KiwiEditPipeline.from_pretrained(random_model / "released", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if kind == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    video, reference = clip(1, 32, 48), clip(1)[0]
    wanted = edit(random_pipe, video, reference, output_type="np").frames
    for _ in range(2):
        assert np.array_equal(edit(pipe, video, reference, output_type="np").frames, wanted)


def test_a_component_is_put_away_before_the_next_phase(random_model, monkeypatch):
    pipe = KiwiEditPipeline.from_pretrained(random_model / "released", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_model_cpu_offload(device="cpu")
    there, when = set(), {}

    def follow(name, module):
        move = module.to

        def to(device, *args, **kwargs):
            (there.discard if str(device) == "cpu" else there.add)(name)  # accelerate brings it to "cpu:0"
            return move(device, *args, **kwargs)

        monkeypatch.setitem(module.__dict__, "to", to)

    for name in ("mllm_encoder", "transformer", "vae"):
        follow(name, pipe.components[name])
    pipe.vae.quant_conv.register_forward_hook(lambda *_: when.update(encode={*there}))
    pipe.transformer.proj_out.register_forward_hook(lambda *_: when.update(sample={*there}))
    pipe.vae.post_quant_conv.register_forward_hook(lambda *_: when.update(decode={*there}))
    edit(pipe, clip(5, 32, 48), clip(1)[0], output_type="np")
    assert when == {"encode": {"vae"}, "sample": {"transformer"}, "decode": {"vae"}}


@pytest.mark.parametrize("part", ["vae", "mllm_encoder"])
def test_a_component_may_be_more_exact_than_the_others(random_model, part):
    pipe = KiwiEditPipeline.from_pretrained(random_model / "released")
    pipe.set_progress_bar_config(disable=True)
    getattr(pipe, part).to(torch.float32)
    output = edit(pipe, clip(5, 32, 48), clip(1)[0], output_type="np")
    assert output.latents.dtype == torch.bfloat16 and output.frames.std() > 1


def test_a_dtype_is_the_same_model_however_it_was_come_by(random_model):
    folder = random_model / "released"
    exact, half = (KiwiEditPipeline.from_pretrained(folder, dtype) for dtype in (torch.float32, torch.bfloat16))
    frequencies = exact.transformer.rope.freqs_cos.clone()
    cast = KiwiEditPipeline.from_pretrained(folder, torch.float32).to(torch.bfloat16)
    for pipe in (half, cast):
        pipe.set_progress_bar_config(disable=True)
    assert torch.equal(edit(half, clip(5, 32, 48)).latents, edit(cast, clip(5, 32, 48)).latents)
    assert torch.equal(cast.to(torch.float32).transformer.rope.freqs_cos, frequencies)


def test_a_compiled_model_takes_loras_and_is_saved(random_model, tmp_path):
    pipe = KiwiEditPipeline.from_pretrained(random_model / "released", dtype=torch.float32)
    for part in ("transformer", "source_embedder", "ref_embedder", "vae"):
        setattr(pipe, part, torch.compile(getattr(pipe, part)))  # nothing is compiled before it is called
    name = "blocks.0.attn1.to_q.weight"
    before = pipe.transformer.get_parameter(name).clone()
    rows, columns = before.shape
    names = (f"diffusion_model.blocks.0.self_attn.q.lora_{side}.weight" for side in "AB")
    save_file(dict(zip(names, (torch.ones(4, columns), torch.ones(rows, 4)))), tmp_path / "lora.safetensors")
    report = pipe.load_lora(tmp_path / "lora.safetensors")
    assert report.matched == report.total == 2
    assert not torch.equal(pipe.transformer.get_parameter(name), before)
    pipe.save_pretrained(tmp_path / "saved")
    saved = KiwiEditPipeline.from_pretrained(tmp_path / "saved", torch.float32)
    assert torch.equal(saved.transformer.get_parameter(name), pipe.transformer.get_parameter(name))


def test_numbers_that_overflow_end_the_edit(random_model):
    pipe = KiwiEditPipeline.from_pretrained(random_model / "released", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.proj_out.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="use bfloat16 or float32"):
        edit(pipe, clip(1, 32, 48))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"prompt": ["Make it red."]}, "one text, not list"),
        ({"generator": [torch.Generator()]}, "one torch.Generator"),
        ({"num_inference_steps": 4.0}, "whole number"),
        ({"rounding": "shiped"}, "rounding"),
    ],
)
def test_arguments_of_another_kind_are_refused_before_the_work(random_pipe, monkeypatch, changes, sentence):
    monkeypatch.setattr(random_pipe, "encode_prompt", lambda *_: pytest.fail("it was at work already"))
    with pytest.raises(ValueError, match=sentence):
        random_pipe(**{"prompt": "Make it red.", "video": clip(1, 32, 48)} | changes)


def test_what_offloading_cannot_do_is_told(random_model, tmp_path):
    pipe = KiwiEditPipeline.from_pretrained(random_model / "released", dtype=torch.float32)
    with pytest.raises(ValueError, match="cannot be offloaded sequentially; call enable_group_offload"):
        pipe.enable_sequential_cpu_offload()
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    # With streams the old weights would come back: they are kept elsewhere.
    with pytest.raises(ValueError, match="offloaded already; load the LoRA before enable_group_offload"):
        pipe.load_lora(tmp_path / "any.safetensors")


def test_tiles_are_used_above_480p_or_as_asked(random_pipe, monkeypatch):
    monkeypatch.setattr(random_pipe, "_tile", "auto")
    assert random_pipe.tile_for(480, 832) is None
    assert random_pipe.tile_for(704, 1280) is not None
    random_pipe.enable_vae_tiling(vae_ops.Tile((4, 4), (2, 2)))
    assert random_pipe.tile_for(64, 96) == vae_ops.Tile((4, 4), (2, 2))
    tiled = edit(random_pipe, clip(1), output_type="np").frames
    random_pipe.disable_vae_tiling()
    assert random_pipe.tile_for(704, 1280) is None
    assert not np.array_equal(edit(random_pipe, clip(1), output_type="np").frames, tiled)
    random_pipe.enable_vae_tiling()
    assert random_pipe.tile_for(64, 96) is not None
