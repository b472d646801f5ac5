"""Several references, negatives and windows: what the encoding nodes put into a conditioning."""

import logging

import edit_graph
import pytest
import torch
from differences import record
from edit_graph import PROMPT, node

from kiwi_core import KiwiEditPipeline

REFERENCES, SOURCE = "kiwi_reference_latents", "kiwi_source_latent"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def loaded(pack, folder):
    return edit_graph.load(pack, folder)


@pytest.fixture(scope="module")
def nodes(pack):
    return pack.nodes.encode


@pytest.fixture(scope="module")
def clip(pack):
    return pack.nodes.images.from_uint8(edit_graph.clip())


@pytest.fixture(scope="module")
def pictures(pack):
    return [pack.nodes.images.from_uint8(picture[None]) for picture in edit_graph.pictures()]


def encode(nodes, loaded, source, **inputs):
    return nodes.KiwiEditEncodeInstruction.execute(loaded.mllm, loaded.connector, PROMPT, source, **inputs)[0]


def growing(*pictures):
    return {f"reference_{number}": picture for number, picture in enumerate(pictures, 2)}


@pytest.mark.parametrize("frames, reference", [(1, False), (9, False), (9, True)], ids=["image", "video", "ref"])
def test_the_context_is_the_librarys(nodes, loaded, folder, clip, pictures, frames, reference):
    library = KiwiEditPipeline.from_pretrained(folder / "released", dtype=torch.float32)
    picture = edit_graph.pictures()[0] if reference else None
    wanted = library.encode_prompt(PROMPT, edit_graph.clip()[:frames], picture)
    found = encode(nodes, loaded, clip[:frames], reference=pictures[0] if reference else None)[0][0]
    assert found.shape == wanted.shape
    record("comfy context", (found - wanted).abs().max().item(), 4e-5)


def test_the_language_model_sees_the_first_reference_as_published(nodes, loaded, clip, pictures):
    one = encode(nodes, loaded, clip, reference=pictures[0])
    several = encode(nodes, loaded, clip, reference=pictures[0], references=growing(*pictures[1:]))
    assert torch.equal(one[0][0], several[0][0])
    without_the_first = encode(nodes, loaded, clip, references=growing(pictures[0]))
    assert torch.equal(one[0][0], without_the_first[0][0])


def test_the_language_model_sees_all_references_on_request(nodes, loaded, clip, pictures):
    def all_of(*chosen):
        return encode(
            nodes, loaded, clip, reference=chosen[0], references=growing(*chosen[1:]), mllm_references="all"
        )[0][0]  # fmt: skip

    one, two, three = (all_of(*pictures[:count]) for count in (1, 2, 3))
    tokens = [context.shape[1] - 8 for context in (one, two, three)]  # beside the eight queries
    assert tokens[0] < tokens[1] < tokens[2]
    # A token sees only what stands before it, so the first picture's are those of the picture alone.
    torch.testing.assert_close(three[:, : tokens[0]], one[:, : tokens[0]], atol=1e-5, rtol=0)
    torch.testing.assert_close(three[:, : tokens[1]], two[:, : tokens[1]], atol=1e-5, rtol=0)
    assert (three[:, -8:] - one[:, -8:]).abs().max() > 1e-3
    swapped = all_of(pictures[1], pictures[0])
    assert swapped.shape == two.shape
    assert (swapped - two).abs().max() > 1e-3


def test_every_reference_becomes_one_latent_frame_in_order(nodes, loaded, clip, pictures):
    conditioning, latent, _ = nodes.KiwiEditSourceVideo.execute(encode(nodes, loaded, clip), loaded.vae, clip).args
    made = nodes.KiwiEditReferenceImage.execute(
        conditioning, loaded.vae, latent, pictures[0], references=growing(*pictures[1:])
    )[0]
    alone = [
        nodes.KiwiEditReferenceImage.execute(conditioning, loaded.vae, latent, picture)[0][0][1][REFERENCES][0]
        for picture in pictures
    ]
    assert len(made[0][1][REFERENCES]) == 3
    for found, wanted in zip(made[0][1][REFERENCES], alone):
        assert found.shape == (1, 16, 1, 8, 12)
        assert torch.equal(found, wanted)


def test_a_batch_is_as_many_references(nodes, loaded, clip, pictures):
    two = torch.cat([pictures[0], pictures[0].flip(1)])
    conditioning, latent, _ = nodes.KiwiEditSourceVideo.execute(encode(nodes, loaded, clip), loaded.vae, clip).args

    def given(first, **others):
        return nodes.KiwiEditReferenceImage.execute(conditioning, loaded.vae, latent, first, **others)[0]

    found, wanted = (
        made[0][1][REFERENCES] for made in (given(two), given(two[:1], references=growing(two[1:])))
    )
    assert len(found) == 2
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_the_negative_gets_the_same_source_and_references_encoded_once(nodes, loaded, clip, pictures, monkeypatch):
    calls, encode_frames = [], nodes.encode_frames
    monkeypatch.setattr(nodes, "encode_frames", lambda *inputs: calls.append(inputs) or encode_frames(*inputs))
    clip, pictures = clip.clone(), [picture.clone() for picture in pictures]  # that no other test has encoded
    positive = encode(nodes, loaded, clip, reference=pictures[0])
    negative = nodes.KiwiEditEncodeNegative.execute(loaded.mllm, loaded.connector, "", clip, reference=pictures[0])[0]
    positive, latent, negative = nodes.KiwiEditSourceVideo.execute(positive, loaded.vae, clip, negative).args
    positive, negative = nodes.KiwiEditReferenceImage.execute(
        positive, loaded.vae, latent, pictures[0], negative, growing(pictures[1])
    ).args
    assert len(calls) == 3
    assert positive[0][1][SOURCE] is negative[0][1][SOURCE]
    assert [id(value) for value in positive[0][1][REFERENCES]] == [id(value) for value in negative[0][1][REFERENCES]]
    assert positive[0][0].shape == negative[0][0].shape
    assert (positive[0][0] - negative[0][0]).abs().max() > 1e-3


def test_windows_are_encoded_as_clips_of_their_own(nodes, loaded, clip):
    long = torch.cat([clip, clip.flip(0)])  # 18 frames
    whole = encode(nodes, loaded, long)
    assert "kiwi_window_contexts" not in whole[0][1]
    windowed = encode(nodes, loaded, long, window_frames=8)
    assert torch.equal(windowed[0][0], whole[0][0])
    found = windowed[0][1]["kiwi_window_contexts"]
    spans = [(0, 8), (4, 12), (8, 16), (10, 18)]
    assert [centre for centre, _ in found] == pytest.approx([(start + stop) / 36 for start, stop in spans])
    for (start, stop), (_, context) in zip(spans, found):
        assert torch.equal(context, encode(nodes, loaded, long[start:stop])[0][0])
    short = encode(nodes, loaded, clip, window_frames=81)
    assert "kiwi_window_contexts" not in short[0][1]


def test_a_negative_is_encoded_for_windows_too(nodes, loaded, clip):
    long = torch.cat([clip, clip.flip(0)])
    (negative,) = nodes.KiwiEditEncodeNegative.execute(loaded.mllm, loaded.connector, "", long, window_frames=8)
    parts = negative[0][1]["kiwi_window_contexts"]
    assert len(parts) == 4
    alone = nodes.KiwiEditEncodeNegative.execute(loaded.mllm, loaded.connector, "", long[4:12])[0]
    assert torch.equal(parts[1][1], alone[0][0])
    fitted = nodes.KiwiEditSourceVideo.execute(negative, loaded.vae, clip, negative)[2]
    assert [centre for centre, _ in fitted[0][1]["kiwi_window_contexts"]] == pytest.approx([8 / 18, 16 / 18])
    assert "at least 5" in nodes.KiwiEditEncodeNegative.validate_inputs(4)


def test_windows_follow_the_frames_that_are_edited(nodes, loaded, clip):
    conditioning = encode(nodes, loaded, torch.cat([clip, clip]), window_frames=8)
    fitted = nodes.KiwiEditSourceVideo.execute(conditioning, loaded.vae, clip)[0]  # the first 9 of 18 frames
    centres = [centre for centre, _ in fitted[0][1]["kiwi_window_contexts"]]
    assert centres == pytest.approx([8 / 18, 16 / 18])
    assert len(conditioning[0][1]["kiwi_window_contexts"]) == 4  # the input is left alone


@pytest.mark.parametrize("window", [1, 4])
def test_a_window_too_short_for_a_video_is_refused(nodes, loaded, clip, window):
    assert "at least 5" in nodes.KiwiEditEncodeInstruction.validate_inputs(PROMPT, window)
    with pytest.raises(ValueError, match="at least 5, or 0"):
        encode(nodes, loaded, clip, window_frames=window)


def test_a_reference_that_only_one_model_gets_is_warned_of(nodes, loaded, clip, pictures, caplog):
    unseen = nodes.KiwiEditSourceVideo.execute(encode(nodes, loaded, clip), loaded.vae, clip).args
    seen = nodes.KiwiEditSourceVideo.execute(encode(nodes, loaded, clip, reference=pictures[0]), loaded.vae, clip).args
    with caplog.at_level(logging.WARNING):
        both = nodes.KiwiEditReferenceImage.execute(seen[0], loaded.vae, seen[1], pictures[0])[0]
        nodes.warn_of_lost_references(both)
        nodes.warn_of_lost_references(unseen[0])
        assert not caplog.messages
        nodes.warn_of_lost_references(seen[0])
        assert "the video model gets none" in caplog.messages[-1]
        nodes.KiwiEditReferenceImage.execute(unseen[0], loaded.vae, unseen[1], pictures[0])
        assert "language model did not see" in caplog.messages[-1]


# In the server


@pytest.fixture(scope="module")
def graph(server, tmp_path_factory):
    return edit_graph.EditGraph(server, tmp_path_factory.mktemp("graph"))


def with_references(prompt, **inputs):
    prompt["encoded"]["inputs"] |= {"reference": ["picture0", 0]} | inputs
    prompt["reference"] = node(
        "KiwiEditReferenceImage", conditioning=["source", 0], vae=["vae", 0], latent=["source", 1],
        reference=["picture0", 0], **inputs,
    )  # fmt: skip
    prompt["sampled"]["inputs"]["conditioning"] = ["reference", 0]
    return prompt


def test_growing_inputs_reach_the_model_from_an_api_file(graph):
    one = graph.latents(with_references(graph.prompt()))
    further = {"references.reference_2": ["picture1", 0], "references.reference_3": ["picture2", 0]}
    three = graph.latents(with_references(graph.prompt(), **further))
    chained = with_references(graph.prompt())
    for number, before in ((1, "reference"), (2, "reference1")):
        chained[f"reference{number}"] = node(
            "KiwiEditReferenceImage", conditioning=[before, 0], vae=["vae", 0], latent=["source", 1],
            reference=[f"picture{number}", 0],
        )  # fmt: skip
    chained["sampled"]["inputs"]["conditioning"] = ["reference2", 0]
    assert (three - one).abs().max() > 1e-3
    assert torch.equal(three, graph.latents(chained))


def guided(prompt, cfg, negative):
    sampler = prompt["sampled"]["inputs"]
    prompt["sampled"] = node(
        "KSampler", model=sampler["model"], positive=sampler["conditioning"], negative=negative,
        latent_image=sampler["latent"], seed=edit_graph.SEED, steps=4, cfg=cfg, sampler_name="euler",
        scheduler="simple", denoise=1.0,
    )  # fmt: skip
    return prompt


def with_negative(prompt, instruction=""):
    prompt["negative"] = node(
        "KiwiEditEncodeNegative", mllm=["mllm", 0], connector=["connector", 0], prompt=instruction,
        source=["prepared", 1],
    )  # fmt: skip
    prompt["source"]["inputs"]["negative"] = ["negative", 0]
    return prompt


def test_guidance_runs_on_the_stock_sampler_with_an_empty_instruction(graph):
    plain = graph.latents(guided(graph.prompt(), 1.0, ["source", 0]))
    same = graph.latents(guided(with_negative(graph.prompt()), 1.0, ["source", 2]))
    assert torch.equal(plain, same)
    pushed = graph.latents(guided(with_negative(graph.prompt()), 3.0, ["source", 2]))
    assert (pushed - plain).abs().max() > 1e-3
    # Against the instruction itself as the negative, guidance cancels out.
    against_itself = graph.latents(guided(with_negative(graph.prompt(), PROMPT), 3.0, ["source", 2]))
    assert (against_itself - plain).abs().max() < 1e-4


def test_an_unconnected_negative_is_told_in_a_sentence(graph):
    with pytest.raises(RuntimeError, match="connect Encode Negative"):
        graph.latents(guided(graph.prompt(), 3.0, ["source", 2]))


def test_windows_of_the_sampler_use_the_contexts_of_their_part(graph):
    def latents(encoded, sampled):
        prompt = graph.prompt()
        prompt["encoded"]["inputs"]["window_frames"] = encoded
        prompt["sampled"]["inputs"] |= {"window_frames": sampled, "window_overlap": 0}
        return graph.latents(prompt)

    assert torch.equal(latents(5, 81), latents(0, 81))  # sampled as a whole, only the whole clip's counts
    assert (latents(5, 5) - latents(0, 5)).abs().max() > 1e-3
