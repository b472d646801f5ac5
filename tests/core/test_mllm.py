"""What the language model is shown and what comes of it, on transformers 4.57 as on 5."""

import hashlib
import json

import golden
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

from kiwi_core import mllm
from kiwi_core.connector import DualConnector
from kiwi_core.mllm_encoder import MLLMEncoder

GOLDEN = golden.load("mllm/golden")
FACTS = golden.FACTS["mllm"]
ATOL = golden.atol("mllm vision embeds, hidden, context (f32)")
CONTEXT_ATOL = golden.atol("e2e f32 context")
ROWS_ATOL = golden.atol("mllm pixel rows")
LIMITS = mllm.VisionLimits(max_pixels_per_frame=131072, max_object_token=16, tokens_per_second=2)
MODES = ("image", "video", "long", "ref", "single_ref", "big")


def sample(mode):
    """Instruction, frames and reference of a stored mode."""
    inputs = {name: tensor.numpy() for name, tensor in golden.load("mllm/inputs").items()}
    frames, reference = inputs["source_frames"], None
    if mode in ("image", "single_ref"):
        frames = frames[:1]
    elif mode == "long":
        frames = inputs["long_frames"]
    elif mode == "big":
        frames = inputs["big_frames_before_repeat"].repeat(8, axis=1).repeat(8, axis=2)
    if mode == "ref":
        reference = inputs["ref_image_big"]
    elif mode == "single_ref":
        reference = inputs["ref_image"]
    return golden.CONFIG["prompts"][mode], frames, reference


@pytest.fixture(scope="module")
def tokenizer():
    return mllm.load_tokenizer((golden.RELEASE / "processor" / "tokenizer.json").read_text(encoding="utf-8"))


def build(tokenizer):
    connector_weights = load_file(golden.RELEASE / "mllm_encoder" / "diffusion_pytorch_model.safetensors")
    connector = DualConnector(**DualConnector.sizes_from(connector_weights))
    connector.load_state_dict(connector_weights)
    return MLLMEncoder.from_state_dict(
        load_file(golden.RELEASE / "mllm_encoder" / "model.safetensors"),
        json.loads((golden.RELEASE / "processor" / "qwen_config.json").read_text()),
        connector=connector,
        tokenizer=tokenizer,
        limits=LIMITS,
    )


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return build(tokenizer)


def inputs_of(tokenizer, mode, rounding="none"):
    return mllm.build_inputs(tokenizer, *sample(mode), golden.CONFIG["nq"], LIMITS, rounding)


def sha256(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def kinds_of(mode):
    """(stored names of pixels, of grid) of each picture, in order."""
    kinds = {"video": ("pixel_values_videos", "video_grid_thw"), "image": ("pixel_values", "image_grid_thw")}
    order = ("image",) if mode == "image" else ("video", "image") if mode.endswith("ref") else ("video",)
    return [kinds[kind] for kind in order]


# Inputs, to the bit


@pytest.mark.parametrize("mode", MODES)
def test_sequence_is_the_published_one(tokenizer, mode):
    inputs = inputs_of(tokenizer, mode)
    assert torch.equal(inputs.input_ids, GOLDEN[f"{mode}.input_ids"])
    assert torch.equal(inputs.position_ids, GOLDEN[f"{mode}.position_ids"].long())
    assert inputs.input_ids.shape[1] == FACTS["modes"][mode]["seq_len"]
    delta = inputs.position_ids.max() + 1 - inputs.input_ids.shape[1]
    assert delta == FACTS["modes"][mode]["rope_delta"][0][0]
    assert len(inputs.vision) == len(kinds_of(mode))


@pytest.mark.parametrize("mode", MODES)
def test_pictures_are_the_published_ones(tokenizer, mode):
    inputs = inputs_of(tokenizer, mode)
    for vision, (pixels, grid) in zip(inputs.vision, kinds_of(mode)):
        fact = FACTS["modes"][mode][pixels]
        assert torch.equal(vision.grid_thw, GOLDEN[f"{mode}.{grid}"])
        assert list(vision.pixel_values.shape) == fact["shape"]
        assert sha256(vision.pixel_values) == fact["sha256"]
        rows = vision.pixel_values[GOLDEN[f"{mode}.{pixels}.rows"]]
        golden.assert_close("mllm pixel rows", rows, GOLDEN[f"{mode}.{pixels}.at_rows"], ROWS_ATOL)
        sums, stored = vision.pixel_values.sum(dim=1), GOLDEN[f"{mode}.{pixels}.row_sums"]
        golden.assert_close("mllm pixel row sums", sums, stored, 1176 * ROWS_ATOL)
        assert int(vision.token_mask.sum()) * 4 == len(vision.pixel_values)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "image"])
def test_resized_frames_are_the_published_ones(mode):
    fact = FACTS["modes"][mode]
    _, frames, _ = sample(mode)
    video = mllm.resize_video(mllm.sample_frames(frames), LIMITS.max_pixels_per_frame)
    assert list(video.shape) == fact["video_after_resize"]["shape"]
    assert sha256(video.to(torch.uint8)) == fact["video_after_resize"]["sha256_as_uint8"]
    means = video.mean(dim=(2, 3))
    golden.assert_close("mllm frame means", means, GOLDEN[f"{mode}.video_frame_means"], 1e-4)


def test_both_passes_of_the_resize_are_the_published_ones(monkeypatch):
    between = []
    interpolate = mllm.F.interpolate
    monkeypatch.setattr(
        mllm.F, "interpolate", lambda video, **options: between.append(video) or interpolate(video, **options)
    )
    video = mllm.resize_video(sample("video")[1], LIMITS.max_pixels_per_frame)
    first_pass = between[0][0].permute(1, 2, 0).to(torch.uint8)
    assert torch.equal(first_pass, GOLDEN["video.frame0_first_pass_uint8"])
    assert torch.equal(video[0, :, :140, :140].to(torch.uint8), GOLDEN["video.frame0_resized_uint8_topleft"])
    assert sha256(video[0].to(torch.uint8)) == FACTS["modes"]["video"]["frame0_resized_sha256_uint8_chw"]


@pytest.mark.parametrize("mode", ["image", "ref", "single_ref"])
def test_resized_pictures_are_the_published_ones(mode):
    _, frames, reference = sample(mode)
    image = (
        mllm.resize_image(frames[0])
        if reference is None
        else mllm.resize_image(reference, LIMITS.max_object_token * 28 * 28)
    )
    assert torch.equal(image[0].permute(1, 2, 0).to(torch.uint8), GOLDEN[f"{mode}.image_resized_uint8"])


def test_long_clips_are_sampled_as_published():
    frames = np.arange(20, dtype=np.uint8)
    assert mllm.sample_frames(frames).tolist() == FACTS["modes"]["long"]["kept_frame_indices"]
    for count in (1, 7, 16):
        assert np.array_equal(mllm.sample_frames(frames[:count]), frames[:count])


@pytest.mark.parametrize("mode", MODES)
def test_chat_text_is_the_published_one(mode):
    stored = json.loads((golden.ROOT / "mllm" / "chat_text.json").read_text(encoding="utf-8"))
    kind = "ref" if mode.endswith("ref") else "image" if mode == "image" else "video"
    text = mllm.chat_text(golden.CONFIG["prompts"][mode], kind, golden.CONFIG["nq"][kind])
    assert text == stored[mode]


# Through the model


def watch(encoder, inputs):
    """What passes through the model: vision features, embeddings, mask, hidden states, context."""
    seen = {"vision": []}

    def on_vision(module, args, output):
        seen["vision"].append(getattr(output, "pooler_output", output))

    def on_text(module, args, kwargs, output):
        seen.update(kwargs, hidden=output.last_hidden_state)

    hooks = [
        encoder.model.visual.register_forward_hook(on_vision),
        encoder.model.language_model.register_forward_hook(on_text, with_kwargs=True),
    ]
    with torch.no_grad():
        seen["context"] = encoder(inputs)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("mode", MODES)
def test_states_are_the_published_ones(encoder, mode):
    seen = watch(encoder, encoder.prepare(*sample(mode), "none"))
    for features, (pixels, _) in zip(seen["vision"], kinds_of(mode)):
        name = "video_embeds" if pixels.endswith("videos") else "image_embeds"
        step = 1 if FACTS["modes"][mode][name]["stored"] == "all rows" else 8
        golden.assert_close("mllm vision embeds", features[::step], GOLDEN[f"{mode}.{name}"], ATOL)
    assert torch.equal(seen["attention_mask"], GOLDEN[f"{mode}.attention_mask"])
    if f"{mode}.inputs_embeds_after_scatter" in GOLDEN:
        golden.assert_close(
            "mllm input embeds", seen["inputs_embeds"], GOLDEN[f"{mode}.inputs_embeds_after_scatter"], ATOL
        )
    hidden = seen["hidden"][0, GOLDEN[f"{mode}.last_hidden_state_rows"]]
    golden.assert_close("mllm hidden states", hidden, GOLDEN[f"{mode}.last_hidden_state_at_rows"], ATOL)
    golden.assert_close("mllm context", seen["context"], GOLDEN[f"{mode}.context"], CONTEXT_ATOL)


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_rounded_pixels_give_the_published_context(encoder, mode):
    context = encoder(encoder.prepare(*sample(mode), "shipped"))
    golden.assert_close("mllm context, rounded pixels", context, GOLDEN[f"{mode}.context_pixel_bf16"], CONTEXT_ATOL)


@torch.no_grad()
def test_bfloat16_context_is_the_published_one(tokenizer):
    encoder = build(tokenizer).to(torch.bfloat16)
    frequencies = [buffer for name, buffer in encoder.named_buffers() if name.endswith(".inv_freq")]
    assert frequencies
    assert all(buffer.dtype == torch.float32 for buffer in frequencies)
    for mode in MODES:
        context = encoder(encoder.prepare(*sample(mode)))
        golden.assert_close_bf16("mllm context bfloat16", context, GOLDEN[f"{mode}.context_bf16_shipped"])


@pytest.mark.parametrize("cap", [None, 0])
@torch.no_grad()
def test_without_a_frame_cap_the_library_limit_holds(encoder, cap):
    frames = sample("big")[1]
    inputs = mllm.build_inputs(
        encoder.tokenizer, "Go.", frames, None, encoder.connector.num_queries, mllm.VisionLimits(cap, 16, 2)
    )
    assert inputs.vision[0].pixel_values.shape[0] * 14 * 14 // 2 <= mllm.MAX_VIDEO_PIXELS
    assert inputs.vision[0].pixel_values.shape[0] > FACTS["modes"]["big"]["pixel_values_videos"]["shape"][0]
    assert encoder(inputs).shape == (1, 6, 48)


@pytest.mark.parametrize("cap", [6272, 100351])
def test_too_small_a_frame_cap_is_refused(cap):
    assert "AssertionError" in FACTS["errors"][f"max_pixels_per_frame={cap}"]
    with pytest.raises(ValueError, match="use at least 100352, or 0"):
        mllm.VisionLimits(max_pixels_per_frame=cap)


def test_a_small_model_may_see_small_frames(encoder):
    frames = np.zeros((9, 64, 64, 3), dtype=np.uint8)
    published, small = mllm.VisionLimits(), mllm.VisionLimits(50176, 16, min_pixels_per_frame=112 * 112)
    grids = [mllm.patchify_source(frames, "video", limits)[1].tolist() for limits in (published, small)]
    assert grids == [[[5, 24, 24]], [[5, 8, 8]]]  # 112 x 112 to the published 128 tokens a frame pair or more, or as is
    inputs = mllm.build_inputs(encoder.tokenizer, "Go.", frames, None, encoder.connector.num_queries, small)
    assert encoder(inputs).shape == (1, 6, 48)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [((262144, 768, 2, 3135), "at least 3136"), ((12543, 768, 2, 12544), "12544, or 0")],
)
def test_limits_that_contradict_each_other_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        mllm.VisionLimits(*given)


# Any size


def random_frames(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("reference", [None, (30, 90)])
@pytest.mark.parametrize(
    "count, height, width", [(1, 31, 57), (2, 20, 200), (5, 300, 41), (8, 64, 64), (17, 33, 77)]
)
def test_any_clip_makes_a_consistent_sequence(tokenizer, count, height, width, reference):
    picture = random_frames(1, *reference)[0] if reference else None
    numbers = {"image": 3, "video": 11, "ref": 7}
    frames = random_frames(count, height, width)
    inputs = mllm.build_inputs(tokenizer, "Make it red.", frames, picture, numbers, LIMITS)
    length = inputs.input_ids.shape[1]
    assert inputs.mode == ("ref" if reference else "image" if count == 1 else "video")
    assert inputs.position_ids.shape == (3, 1, length)
    assert int(inputs.query_mask.sum()) == numbers[inputs.mode]
    assert inputs.query_slice == slice(length - numbers[inputs.mode], length)
    assert not inputs.query_mask[0, -2:].any()
    assert inputs.query_mask[0, -2 - numbers[inputs.mode] : -2].all()
    for vision in inputs.vision:
        time, rows, columns = vision.grid_thw[0].tolist()
        assert vision.pixel_values.shape == (time * rows * columns, 1176)
        assert int(vision.token_mask.sum()) == time * rows * columns // 4
    if count > 1:
        assert inputs.vision[0].grid_thw[0, 0] == -(-min(count, 16) // 2)
    if reference:
        start, stop = inputs.reference_slice.start, inputs.reference_slice.stop
        assert inputs.vision[-1].token_mask[0].nonzero().flatten().tolist() == list(range(start, stop))
        assert stop - start <= LIMITS.max_object_token
    else:
        assert inputs.reference_slice is None


@pytest.mark.skipif(
    not transformers.__version__.startswith("4."), reason="not the rule of transformers 5; runs in test-library-oldest"
)
@pytest.mark.parametrize("tokens_per_second", [2, 4])
@pytest.mark.parametrize(
    "count, height, width, reference",
    [
        *((1, 40, 70, None), (1, 40, 70, (50, 20)), (5, 20, 90, None)),
        *((13, 90, 20, (30, 90)), (33, 64, 64, (9, 9))),
    ],
)
def test_positions_are_those_of_transformers_4(encoder, tokens_per_second, count, height, width, reference):
    picture = random_frames(1, *reference)[0] if reference else None
    frames, limits = random_frames(count, height, width), mllm.VisionLimits(131072, 16, tokens_per_second)
    inputs = mllm.build_inputs(
        encoder.tokenizer, "Make it red.", frames, picture, golden.CONFIG["nq"], limits
    )
    config = Qwen2_5_VLConfig(**encoder.qwen_config)
    config.vision_config.tokens_per_second = tokens_per_second
    with torch.device("meta"):
        model = Qwen2_5_VLModel(config)
    grids = {}
    for vision, (_, grid) in zip(inputs.vision, kinds_of(inputs.mode)):
        grids[grid] = vision.grid_thw
    seconds = torch.ones(1) if "video_grid_thw" in grids else None
    expected, _ = model.get_rope_index(inputs.input_ids, second_per_grid_ts=seconds, **grids)
    assert torch.equal(inputs.position_ids, expected)


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_an_empty_instruction_is_refused(tokenizer, prompt):
    with pytest.raises(ValueError, match="instruction is empty; say in a sentence"):
        mllm.build_inputs(tokenizer, prompt, random_frames(1, 32, 32), None, golden.CONFIG["nq"])


@pytest.mark.parametrize("token", ["<|object_ref_start|>", "<|image_pad|>", "<|video_pad|>"])
def test_a_reserved_token_in_the_instruction_is_refused(tokenizer, token):
    with pytest.raises(ValueError, match="reserved token"):
        mllm.build_inputs(tokenizer, f"Make {token} red.", random_frames(1, 32, 32), None, {"image": 4})


def test_a_mode_without_queries_is_refused_before_the_model_runs(tokenizer):
    frames, numbers = random_frames(5, 32, 32), {"image": 4, "video": 6, "ref": 0}
    with pytest.raises(ValueError, match="not trained for reference pictures; use one that was"):
        mllm.build_inputs(tokenizer, "Go.", frames, frames[0], numbers)


@pytest.mark.parametrize("height, width", [(1, 201), (3000, 10)])
def test_too_narrow_a_picture_is_refused(tokenizer, height, width):
    with pytest.raises(ValueError, match="crop it to at most 200:1"):
        mllm.build_inputs(tokenizer, "Go.", random_frames(1, height, width), None, golden.CONFIG["nq"])


@pytest.mark.parametrize("text", ["", "{}", '{"version": "1.0"', "not json"])
def test_a_damaged_tokenizer_is_refused(text):
    with pytest.raises(ValueError, match="tokenizer"):
        mllm.load_tokenizer(text)


def test_another_models_tokenizer_is_refused(tokenizer):
    tokens = json.loads(tokenizer.to_str())
    tokens["added_tokens"] = [token for token in tokens["added_tokens"] if "_ref_" not in token["content"]]
    with pytest.raises(ValueError, match="not a Qwen2"):
        mllm.load_tokenizer(json.dumps(tokens))
