"""Which frame of a clip shows a thing best, and which part of that frame."""

from __future__ import annotations

import numpy as np

from . import pixels

_ROOM = 0.3
"""Beside a thing on each side, as a share of its longer side."""
_CUT = 0.5
"""What a thing's area counts that reaches the frame's border, where it is likely cut off."""


def best(masks: np.ndarray) -> int | None:
    """The frame with the largest mask, rather away from the borders; None if nothing is masked.

    Args:
        masks: bool ``[T, H, W]``.
    """
    if not masks.any():
        return None
    border = masks[:, [0, -1]].any(axis=(1, 2)) | masks[:, :, [0, -1]].any(axis=(1, 2))
    return int(np.argmax(masks.sum(axis=(1, 2)) * np.where(border, _CUT, 1)))


def clearest(masks: np.ndarray) -> int:
    """The frame in which the least is masked."""
    return int(np.argmin(masks.sum(axis=(1, 2))))


def around(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The part of a picture ``[H, W, 3]`` around a mask, bool ``[H, W]`` and not empty: square where the frame allows,
    with room on all sides."""
    left, top, right, bottom = pixels.bounds(mask)
    side = round((1 + 2 * _ROOM) * max(right - left, bottom - top))
    rows, columns = (
        _span(*ends, side, whole) for ends, whole in (((top, bottom), mask.shape[0]), ((left, right), mask.shape[1]))
    )
    return picture[rows, columns]


def _span(begin: int, end: int, side: int, whole: int) -> slice:
    side = min(side, whole)
    start = min(max(0, (begin + end - side) // 2), whole - side)
    return slice(start, start + side)
