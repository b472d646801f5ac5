"""Arithmetic on frames (uint8 ``[T, H, W, 3]``) and masks (bool ``[T, H, W]``) that the classical methods share."""

from __future__ import annotations

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def lab(picture: np.ndarray) -> np.ndarray:
    """CIE Lab of uint8 RGB ``[H, W, 3]``, float32: lightness 0..100, a and b about -100..100."""
    import cv2

    return cv2.cvtColor(np.ascontiguousarray(picture).astype(np.float32) / 255, cv2.COLOR_RGB2Lab)


def grey(frames: np.ndarray) -> np.ndarray:
    """Luma ``[...]`` of RGB ``[..., 3]``, float32 in 0..255."""
    return frames.astype(np.float32) @ LUMA


def resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """A picture, mask or float array ``[H, W, ...]`` in another size: averaged when smaller, cubic when larger."""
    import cv2

    smaller = width * height < picture.shape[0] * picture.shape[1]
    plain = picture.astype(np.float32) if picture.dtype == bool else picture
    made = cv2.resize(plain, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    return made > 0.5 if picture.dtype == bool else made


def components(mask: np.ndarray, least: float) -> tuple[int, np.ndarray]:
    """How many connected parts of a mask ``[H, W]`` have ``least`` of the area of the largest, and these parts alone,
    numbered from 1: int32 ``[H, W]``."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if not len(areas):
        return 0, labels
    stays = np.concatenate([[False], areas >= least * areas.max()])
    numbers = np.where(stays, np.cumsum(stays), 0).astype(np.int32)
    return int(stays.sum()), numbers[labels]


def main_parts(mask: np.ndarray, least: float = 0.2) -> np.ndarray:
    """A mask ``[H, W]`` without its specks."""
    return components(mask, least)[1] > 0


def opened(mask: np.ndarray, radius: int) -> np.ndarray:
    """A mask ``[H, W]`` without what is thinner than the radius."""
    return grown(shrunk(mask, radius), radius)


def closed(mask: np.ndarray, radius: int) -> np.ndarray:
    """A mask ``[H, W]`` without gaps thinner than the radius."""
    return shrunk(grown(mask, radius), radius)


def grown(mask: np.ndarray, radius: int) -> np.ndarray:
    """A mask ``[H, W]`` with all within the radius, in pixels."""
    import cv2

    return cv2.dilate(mask.astype(np.uint8), _disc(radius)) > 0


def shrunk(mask: np.ndarray, radius: int) -> np.ndarray:
    """A mask ``[H, W]`` without what is within the radius of its outside; the frame's border is none."""
    import cv2

    return cv2.erode(mask.astype(np.uint8), _disc(radius)) > 0


def _disc(radius: int) -> np.ndarray:
    import cv2

    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def bounds(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom in pixels of what a mask ``[H, W]`` holds, None if nothing."""
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """The same as shares of the frame."""
    found = bounds(mask)
    if found is None:
        return None
    height, width = mask.shape
    return found[0] / width, found[1] / height, found[2] / width, found[3] / height


def ramp(value: float, bad: float, good: float) -> float:
    """0 to 1 for how far a value has come from bad to good."""
    return float(np.clip((value - bad) / (good - bad), 0, 1))


def frames_as_one(frames: np.ndarray) -> np.ndarray:
    """Frames ``[T, H, W, ...]`` one below the other: ``[T * H, W, ...]``."""
    return np.ascontiguousarray(frames.reshape(-1, *frames.shape[2:]))
