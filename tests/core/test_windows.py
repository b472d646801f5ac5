"""Long clips in overlapping windows."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from kiwi_core import windows


def clip(count, height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def edit(pipe, video, reference=None, **changes):
    changes = {"num_inference_steps": 2, "output_type": "latent"} | changes
    return pipe("Make it red.", video, reference, generator=torch.Generator().manual_seed(0), **changes).latents


@pytest.fixture
def calls(random_pipe):
    """What the DiT is called with: latents, context, and its keyword arguments."""
    seen = []
    hook = random_pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0], args[2], kwargs)), with_kwargs=True
    )
    yield seen
    hook.remove()


@pytest.mark.parametrize(
    "total, length, overlap, starts",
    [
        (21, 21, 4, [0]),
        (5, 21, 4, [0]),
        (22, 21, 4, [0, 1]),
        (38, 21, 4, [0, 17]),
        (101, 21, 4, [0, 17, 34, 51, 68, 80]),
        (9, 3, 0, [0, 3, 6]),
        (6, 4, 3, [0, 1, 2]),
    ],
)
def test_windows_cover_the_clip_and_end_with_it(total, length, overlap, starts):
    found = windows.split(total, length, overlap)
    assert [window.start for window in found] == starts
    assert {len(window) for window in found} == {min(total, length)}
    assert found[-1].stop == total
    assert all(after.start + overlap <= before.stop for before, after in pairwise(found))


def test_a_window_names_its_frames():
    found = [windows.frames_of(window) for window in windows.split(7, 3, 1)]
    assert found == [slice(0, 9), slice(5, 17), slice(13, 25)]


@pytest.mark.parametrize(
    "frames, overlap, sizes", [(81, 16, (21, 4)), (80, 16, (21, 4)), (5, 7, (2, 1)), (9, 0, (3, 0))]
)
def test_sizes_in_frames_become_latent_ones(frames, overlap, sizes):
    assert windows.latent_sizes(frames, overlap) == sizes


@pytest.mark.parametrize("frames, overlap, sentence", [(4, 0, "too short"), (9, 12, "lower it"), (9, -4, "0 or more")])
def test_windows_that_cannot_be_are_refused(random_pipe, frames, overlap, sentence):
    with pytest.raises(ValueError, match=sentence):
        edit(random_pipe, clip(13), window_frames=frames, window_overlap=overlap)


def test_an_overlap_fades_linearly_and_the_rest_is_its_windows_own():
    spans = windows.split(8, 5, 2)  # 0-4 and 3-7
    latents = torch.zeros(1, 1, 8, 1, 1)
    blended = windows.blend(spans, latents, lambda index, shown: torch.full((1, 1, len(shown), 1, 1), float(index)))
    torch.testing.assert_close(blended.flatten(), torch.tensor([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1]))


def test_windows_that_agree_give_what_they_agree_on():
    latents = torch.randn(1, 2, 13, 2, 2, generator=torch.Generator().manual_seed(0))
    blended = windows.blend(
        windows.split(13, 4, 2), latents, lambda index, shown: latents[:, :, shown.start : shown.stop]
    )
    torch.testing.assert_close(blended, latents)


def test_a_clip_within_one_window_is_edited_as_without(random_pipe):
    video = clip(13)
    assert torch.equal(edit(random_pipe, video, window_frames=13, window_overlap=4), edit(random_pipe, video))


def test_a_window_alone_gives_what_its_frames_alone_give(random_pipe, calls):
    """The first window's prediction is that of the first frames, with their source and their part of the noise."""
    edit(random_pipe, clip(21), window_frames=9, window_overlap=4, num_inference_steps=1)
    latents, _, kwargs = calls[0]
    assert latents.shape[2] == 3
    source = random_pipe.source_embedder(random_pipe.encode_video(clip(21)))
    torch.testing.assert_close(kwargs["source"], source[:, :, :3], atol=1e-5, rtol=0)
    noise = torch.randn(1, 16, 6, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(latents, noise[:, :, :3])
    second = calls[1]
    assert torch.equal(second[0], noise[:, :, 1:5])  # 2-4 and the frame before
    torch.testing.assert_close(second[2]["source"], source[:, :, 1:5], atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [81, 161, 401])
def test_the_model_is_called_with_windows_whatever_the_length(random_pipe, calls, count):
    latents = edit(
        random_pipe, clip(count, 16, 16), clip(1)[0], window_frames=33, window_overlap=8, num_inference_steps=1
    )
    assert latents.shape[2] == (count + 3) // 4 and latents.isfinite().all()
    assert max(latents.shape[2] for latents, *_ in calls) == 9 + windows.ANCHOR
    assert {kwargs["reference"].shape[2] for *_, kwargs in calls} == {1}  # whole, in every window
    assert len(calls) == len(windows.split(latents.shape[2], 9, 2))


def test_windows_take_the_whole_clip_unless_told(random_pipe, monkeypatch):
    monkeypatch.setattr("kiwi_core.geometry.MAX_FRAMES", 9)
    assert edit(random_pipe, clip(21), window_frames=9, window_overlap=4).shape[2] == 6
    assert edit(random_pipe, clip(21), window_frames=9, window_overlap=4, num_frames=13).shape[2] == 4


@pytest.mark.parametrize("view, lengths", [("clip", [21]), ("window", [9, 12, 12])])
def test_the_language_model_sees_the_clip_or_each_window(random_pipe, calls, monkeypatch, view, lengths):
    encode, seen = random_pipe.encode_prompt, []

    def spy(prompt, video, *rest):
        seen.append(len(video))
        return encode(prompt, video, *rest)

    monkeypatch.setattr(random_pipe, "encode_prompt", spy)
    edit(random_pipe, clip(21), window_frames=9, window_overlap=4, mllm_view=view, num_inference_steps=1)
    assert seen == lengths
    contexts = [context for _, context, _ in calls]
    assert len(contexts) == 3
    assert torch.equal(contexts[0], contexts[1]) == (view == "clip")


def test_another_view_is_refused(random_pipe):
    with pytest.raises(ValueError, match='"clip" or "window"'):
        edit(random_pipe, clip(5), mllm_view="frame")
