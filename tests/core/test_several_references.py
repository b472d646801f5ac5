"""More than one reference picture, and no instruction, in the library."""

import json
from itertools import pairwise

import golden
import numpy as np
import pytest
import random_model
import torch
import transformers

from kiwi_core import KiwiEditPipeline, mllm

LIMITS = mllm.VisionLimits(max_pixels_per_frame=131072, max_object_token=16)
QUERIES = {"image": 3, "video": 11, "ref": 7}


@pytest.fixture(scope="module")
def tokenizer():
    return mllm.load_tokenizer((golden.RELEASE / "processor" / "tokenizer.json").read_text(encoding="utf-8"))


def noise(*size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


CLIP = noise(5, 64, 96)
PICTURES = [noise(40, 72), noise(64, 48, seed=1), noise(30, 30, seed=2)]


def build(tokenizer, references, prompt="Use this hat.", **options):
    return mllm.build_inputs(tokenizer, prompt, CLIP, references, QUERIES, LIMITS, **options)


def equal(one, other):
    same = all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("input_ids", "position_ids"))
    pixels = (torch.equal(a.pixel_values, b.pixel_values) for a, b in zip(one.vision, other.vision, strict=True))
    return same and all(pixels) and one.query_slice == other.query_slice


def test_a_list_of_one_is_the_picture_itself(tokenizer):
    one, listed = build(tokenizer, PICTURES[0]), build(tokenizer, PICTURES[:1])
    assert equal(one, listed)
    assert one.reference_slice == listed.reference_slice


def test_an_empty_list_is_no_reference(tokenizer):
    none, empty = build(tokenizer, None), build(tokenizer, [])
    assert none.mode == empty.mode == "video"
    assert equal(none, empty)
    assert empty.reference_slice is None


def test_each_picture_is_a_block_of_its_own_in_order(tokenizer):
    inputs = build(tokenizer, PICTURES)
    ids = inputs.input_ids[0].tolist()
    start, end = (tokenizer.token_to_id(f"<|vision_{edge}|>") for edge in ("start", "end"))
    spans = [part.token_mask[0].nonzero().flatten().tolist() for part in inputs.vision]
    assert len(spans) == 4
    for span in spans:
        assert span == list(range(span[0], span[-1] + 1))
        assert (ids[span[0] - 1], ids[span[-1] + 1]) == (start, end)
    for before, after in pairwise(spans[1:]):
        assert after[0] == before[-1] + 3  # between them, only the end of one and the start of the next
    assert inputs.reference_slice.tolist() == [position for span in spans[1:] for position in span]
    for part, picture in zip(inputs.vision[1:], PICTURES):
        alone = build(tokenizer, picture).vision[1]
        assert torch.equal(part.pixel_values, alone.pixel_values)
        assert torch.equal(part.grid_thw, alone.grid_thw)


def test_positions_continue_over_the_pictures(tokenizer):
    one, three = build(tokenizer, PICTURES[0]), build(tokenizer, PICTURES)
    shared = one.reference_slice.stop
    assert torch.equal(three.position_ids[:, :, :shared], one.position_ids[:, :, :shared])
    for before, part in pairwise(three.vision):
        position = part.token_mask[0].nonzero()[0, 0]
        last = before.token_mask[0].nonzero()[-1, 0]
        start = three.position_ids[:, 0, position]
        assert (start == start[0]).all()
        if before is not three.vision[0]:  # two text tokens lie between
            assert start[0] == three.position_ids[:, 0, : last + 1].max() + 3
    assert (three.position_ids[:, 0, three.query_mask[0]].diff(dim=1) == 1).all()


def test_an_empty_instruction_is_taken_only_on_request(tokenizer):
    with pytest.raises(ValueError, match="instruction is empty"):
        build(tokenizer, None, prompt="")
    empty, said = build(tokenizer, None, prompt="", allow_empty=True), build(tokenizer, None)
    words = len(tokenizer.encode("Use this hat.", add_special_tokens=False).ids)
    assert empty.input_ids.shape[1] == said.input_ids.shape[1] - words


@pytest.fixture(scope="module")
def pipeline():
    return KiwiEditPipeline.from_parts(random_model.random_parts(), torch.float32)


def test_the_pipeline_shows_the_first_or_all(pipeline):
    one = pipeline.encode_prompt("Use it.", CLIP, PICTURES[0])
    assert torch.equal(pipeline.encode_prompt("Use it.", CLIP, PICTURES), one)
    every = pipeline.encode_prompt("Use it.", CLIP, PICTURES, mllm_references="all")
    tokens = [build_tokens(pipeline, pictures) for pictures in (PICTURES[:1], PICTURES)]
    assert (one.shape[1], every.shape[1]) == (tokens[0] + 8, tokens[1] + 8)
    torch.testing.assert_close(every[:, : tokens[0]], one[:, : tokens[0]], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match='mllm_references is \'some\'; use "first" or "all"'):
        pipeline.encode_prompt("Use it.", CLIP, PICTURES, mllm_references="some")


def build_tokens(pipeline, pictures):
    inputs = pipeline.mllm_encoder.prepare("Use it.", CLIP, pictures)
    return sum(int(part.token_mask.sum()) for part in inputs.vision[1:])


def test_the_pipeline_encodes_an_empty_instruction_for_guidance(pipeline):
    empty = pipeline.encode_prompt("", CLIP, allow_empty=True)
    said = pipeline.encode_prompt("Make it red.", CLIP)
    assert empty.shape == said.shape
    assert (empty - said).abs().max() > 1e-3


@pytest.mark.skipif(
    not transformers.__version__.startswith("4."), reason="not the rule of transformers 5; runs in test-library-oldest"
)
@pytest.mark.parametrize("frames", [CLIP[:1], CLIP], ids=["image", "video"])
def test_positions_are_those_of_transformers_4(tokenizer, frames):
    inputs = mllm.build_inputs(tokenizer, "Use it.", frames, PICTURES, QUERIES, LIMITS)
    config = json.loads((golden.RELEASE / "processor" / "qwen_config.json").read_text())
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLModel(transformers.Qwen2_5_VLConfig(**config))
    expected, _ = model.get_rope_index(
        inputs.input_ids,
        image_grid_thw=torch.cat([part.grid_thw for part in inputs.vision[1:]]),
        video_grid_thw=inputs.vision[0].grid_thw,
        second_per_grid_ts=torch.ones(1),
    )
    assert torch.equal(inputs.position_ids, expected)
