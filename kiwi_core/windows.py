"""Clips longer than in training: overlapping windows of latent frames, blended after every model call.

ComfyUI's rule (static schedule, pyramid weights, a frame before each window), so that library and graph agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from . import geometry

FRAMES, OVERLAP = 81, 16
# Latent frames before a window that the model sees and whose result is dropped: it takes the first latent frame for
# one that stands for a single frame, which in a window other than the first it is not.
ANCHOR = 1


def latent_sizes(window_frames: int, window_overlap: int) -> tuple[int, int]:
    """Length and overlap of a window in latent frames, of frames.

    The length is rounded up to 4k + 1 frames, the overlap down to 4k.

    Raises ValueError for a window without room beside its overlap.
    """
    if window_frames < 5:
        raise ValueError(f"A window of {window_frames} frames is too short; use at least 5 ({FRAMES} as in training).")
    if window_overlap < 0:
        raise ValueError(f"The overlap of windows is {window_overlap}; use 0 or more frames.")
    length, overlap = geometry.latent_frame_count(geometry.padded_frame_count(window_frames)), window_overlap // 4
    if overlap >= length:
        raise ValueError(f"An overlap of {window_overlap} frames fills a window of {window_frames}; lower it.")
    return length, overlap


def split(total: int, length: int, overlap: int) -> list[range]:
    """Windows of latent frames over a clip of ``total``; the last one is moved back to end with the clip."""
    if total <= length:
        return [range(total)]
    last = total - length
    starts = [*range(0, last, length - overlap), last]
    return [range(start, start + length) for start in starts]


def frames_of(window: range) -> slice:
    """The frames that a window of latent frames stands for."""
    return slice(max(0, 4 * window.start - 3), 4 * window.stop - 3)


def weights(length: int) -> torch.Tensor:
    """Weight of each frame of a window: rises to the middle, so that every overlap is a linear cross-fade."""
    rising = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(rising, rising.flip(0))


def blend(windows: Sequence[range], latents: torch.Tensor, predict: Callable[[int, range], torch.Tensor]):
    """Weighted mean, in the shape of ``latents`` ``[B, C, F, h, w]``, of the predictions for each window.

    ``predict(index, shown)`` is given a window's number and the latent frames to show to the model.
    """
    if len(windows) == 1:
        return predict(0, windows[0])
    total = torch.zeros_like(latents, dtype=torch.float32)
    weight = total.new_zeros(latents.shape[2], 1, 1)
    for index, window in enumerate(windows):
        shown = range(max(window.start - ANCHOR, 0), window.stop)
        predicted = predict(index, shown)[:, :, window.start - shown.start :]
        share = weights(len(window)).to(total.device).reshape(-1, 1, 1)
        total[:, :, window.start : window.stop] += predicted * share
        weight[window.start : window.stop] += share
    return (total / weight).to(latents.dtype)
