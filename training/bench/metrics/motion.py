"""How an edit goes from frame to frame: what its own movement does not explain, and moments that come again.

Clips are uint8 ``[T, H, W, 3]``.
"""

from __future__ import annotations

import numpy as np

from ...refvie.frames import spread
from .region import shrunk

PAIRS = 32
"""Of neighbouring frames, at most so many are looked at where that is slow."""
_FLOW_SIDE = 512
_LEAST_SIDE = 16
_STILL_SIDE = 64
_STRONGEST = 0.05
"""Share of the pixels that tell whether anything has moved: a small thing is not lost in a large frame."""
_MOVES, _STILL, _SHARE = 4.0, 1.0, 0.1
"""Levels by which these must differ for a movement, and by which they may for none, or which share of the source's."""
_LONGEST = 400
"""Frames among which moments are looked for that come again."""


def pairs(count: int) -> np.ndarray:
    """The first places of neighbouring frames to look at, evenly spread."""
    return spread(count - 1, PAIRS) if count > 1 else np.zeros(0, int)


def warp_error(frames: np.ndarray) -> float | None:
    """Mean difference in levels of neighbouring frames, once one is moved onto the other along the clip's own flow.

    The flow is the clip's, not its source's: what is added, removed or painted anew moves in its own way, and a style
    or a background has none of the source's edges. What no flow explains is left: flicker, textures that boil, shapes
    that melt. Pixels that the next frame hides do not count; they are known by flows forth and back that disagree.
    Where that is said of more than half of a frame it is not hidden but torn, and all its pixels count.

    None for one frame, or frames too small for a flow.
    """
    if len(frames) < 2 or min(frames.shape[1:3]) < _LEAST_SIDE:
        return None
    errors = [_pair_error(*shrunk(frames[place : place + 2], _FLOW_SIDE)) for place in pairs(len(frames))]
    return float(np.mean(errors))


def _pair_error(now: np.ndarray, then: np.ndarray) -> float:
    import cv2

    greys = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in (now, then)]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    forth, back = flow.calc(greys[0], greys[1], None), flow.calc(greys[1], greys[0], None)
    height, width = greys[0].shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    x, y = columns + forth[..., 0], rows + forth[..., 1]
    returned = cv2.remap(back, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    moved = cv2.remap(then, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # A flow may err by a good half pixel, and by a seventh of its length.
    away = np.square(forth + returned).sum(axis=-1)
    agrees = away < 0.01 * (np.square(forth) + np.square(returned)).sum(axis=-1) + 0.5
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    counts = agrees & inside
    counts = counts if counts.mean() > 0.5 else inside
    left = np.abs(now.astype(np.int16) - moved).mean(axis=-1)
    return float(left[counts].mean()) if counts.any() else float(left.mean())


def repeats(source: np.ndarray, edit: np.ndarray, kept: np.ndarray | None = None) -> tuple[float | None, float | None]:
    """Which share of neighbouring frames of the edit is the same though the source moves, and which share of frames
    shows an earlier moment again, with another between, though the source does not.

    Args:
        kept: bool ``[T, H, W]``, where the edit should move as the source does; None for everywhere.

    None where the source stands still, or for too few frames.
    """
    source, edit = (shrunk(clip[:_LONGEST], _STILL_SIDE) for clip in (source, edit))
    shown = None
    if kept is not None:
        height, width = source.shape[1:3]
        rows = np.linspace(0, kept.shape[1] - 1, height).round().astype(int)
        columns = np.linspace(0, kept.shape[2] - 1, width).round().astype(int)
        shown = kept[:_LONGEST][:, rows[:, None], columns]
    before, after = _apart(source, shown), _apart(edit, shown)
    moves = before >= _MOVES
    still = after < np.maximum(_STILL, _SHARE * before)
    nexts = np.arange(1, len(source))
    moving = moves[nexts, nexts - 1]
    frozen = float(still[nexts, nexts - 1][moving].mean()) if moving.any() else None
    able, again = 0, 0
    for place in range(2, len(source)):
        earlier = moves[place, : place - 1]
        able += bool(earlier.any())
        # Not one that merely lasts: between the two the edit has shown something else.
        again += any(
            still[place, other] and after[other, other + 1 : place].max() >= _MOVES for other in np.flatnonzero(earlier)
        )
    return frozen, again / able if able else None


def _apart(frames: np.ndarray, shown: np.ndarray | None) -> np.ndarray:
    """By how many levels any two frames differ where they differ most: ``[T, T]``."""
    count, size = len(frames), frames.shape[1] * frames.shape[2]
    strongest = max(1, round(_STRONGEST * size))
    flat = frames.reshape(count, size, 3).astype(np.int16)
    found = np.zeros((count, count))
    for place in range(1, count):
        levels = np.abs(flat[:place] - flat[place]).max(axis=-1)
        if shown is not None:
            levels = levels * (shown[:place] & shown[place]).reshape(place, size)
        found[place, :place] = np.partition(levels, size - strongest, axis=1)[:, size - strongest :].mean(axis=1)
    return found + found.T
