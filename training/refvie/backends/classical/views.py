"""Things brought to one size, mirrored and turned, so that pictures of them can be laid over each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .. import pixels
from . import cutout

SIDE = 64
"""Pixels of a side to which things are brought."""
ANGLES = tuple(range(-24, 25, 4))
"""Degrees by which they are turned."""


@dataclass(frozen=True)
class Thing:
    """A thing brought to one size, whatever its proportions."""

    mask: np.ndarray
    """bool ``[SIDE, SIDE]``"""
    structure: np.ndarray
    """float32 ``[SIDE, SIDE]``, see :func:`structure`."""
    inner: np.ndarray
    """bool ``[SIDE, SIDE]``: what is far enough from the outline for the structure to be the thing's own."""
    ratio: float
    """Width to height before."""


def brought(picture: np.ndarray, mask: np.ndarray) -> Thing:
    """A thing of a picture uint8 ``[H, W, 3]`` by its mask ``[H, W]``, which holds something."""
    left, top, right, bottom = pixels.bounds(mask)
    crop = slice(top, bottom), slice(left, right)
    own = np.ascontiguousarray(mask[crop])
    core = pixels.shrunk(np.pad(own, 2), 2)[2:-2, 2:-2]  # without pixels that are half the ground's
    core = core if core.sum() > 0.2 * own.sum() else own
    colours = pixels.resized(cutout.filled(np.ascontiguousarray(picture[crop]), core), SIDE, SIDE)
    whole, inner = (pixels.resized(one, SIDE, SIDE) for one in (own, core))
    return Thing(whole, structure(colours), inner, own.shape[1] / own.shape[0])


def turned(picture: np.ndarray, mask: np.ndarray) -> Iterator[Thing]:
    """A thing at all :data:`ANGLES`, as it is and mirrored."""
    for mirrored in (False, True):
        for angle in ANGLES:
            view = _turned(picture, mask, angle, mirrored)
            if view[1].any():
                yield brought(*view)


def overlap(one: Thing, other: Thing) -> float:
    """Area that two outlines share as a part of the area of both, 0 to 1, less if one is slimmer."""
    both = float((one.mask & other.mask).sum() / max(1, (one.mask | other.mask).sum()))
    return both * min(one.ratio, other.ratio) / max(one.ratio, other.ratio)


def structure(picture: np.ndarray) -> np.ndarray:
    """What is neither noise nor shading of a picture ``[H, W, 3]``: its lightness between two blurs, in levels."""
    import cv2

    grey = pixels.grey(picture)
    return cv2.GaussianBlur(grey, (0, 0), 1.2) - cv2.GaussianBlur(grey, (0, 0), 7.0)


def _turned(picture: np.ndarray, mask: np.ndarray, angle: float, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    import cv2

    left, top, right, bottom = pixels.bounds(mask)
    across = float(np.hypot(right - left, bottom - top))
    scale = min(1.0, 2 * SIDE / across)
    side = int(across * scale) + 8
    turn = cv2.getRotationMatrix2D(((left + right) / 2, (top + bottom) / 2), angle, scale)
    if mirrored:
        turn[0] = [-1, 0, left + right] @ np.vstack([turn, [0, 0, 1]])
    turn[:, 2] += side / 2 - np.array([left + right, top + bottom]) / 2
    placed = cv2.warpAffine(picture, turn, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return placed, cv2.warpAffine(mask.astype(np.float32), turn, (side, side), flags=cv2.INTER_LINEAR) > 0.5
