"""Colour names: which pixels English would call by them, in CIE Lab's lightness, chroma and hue."""

from __future__ import annotations

import numpy as np

from .. import pixels

# Lightness, chroma and hue (in degrees) from and to; a hue that ends before it begins goes through 0.
_ANY = (0, 360)
_RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((18, 62), (34, 200), (12, 50)),
    "orange": ((48, 90), (38, 200), (46, 76)),
    "yellow": ((62, 101), (34, 200), (80, 112)),
    "green": ((12, 96), (16, 200), (108, 178)),
    "teal": ((22, 98), (14, 200), (172, 232)),
    "blue": ((8, 90), (16, 200), (228, 304)),
    "purple": ((8, 72), (20, 200), (304, 335)),
    "pink": ((58, 95), (14, 100), (335, 38)),
    "magenta": ((30, 66), (50, 200), (318, 358)),
    "brown": ((14, 54), (12, 58), (30, 88)),
    "beige": ((62, 97), (6, 32), (55, 108)),
    "gold": ((50, 92), (34, 200), (68, 98)),
    "white": ((84, 101), (0, 11), _ANY),
    "grey": ((24, 88), (0, 11), _ANY),
    "black": ((0, 26), (0, 16), _ANY),
}
_SAME = {
    "gray": "grey", "silver": "grey", "golden": "gold", "blond": "gold", "blonde": "gold", "violet": "purple",
    "lilac": "purple", "lavender": "purple", "crimson": "red", "scarlet": "red", "maroon": "red", "burgundy": "red",
    "cyan": "teal", "turquoise": "teal", "aqua": "teal", "navy": "blue", "azure": "blue", "indigo": "blue",
    "emerald": "green", "lime": "green", "olive": "green", "fuchsia": "magenta", "rose": "pink", "tan": "beige",
    "cream": "beige", "ivory": "white", "snowy": "white", "chocolate": "brown", "amber": "orange",
}  # fmt: skip
_SOFT = (8.0, 6.0, 8.0)
"""How far beyond its range a colour fades out."""

NAMES = frozenset((*_RANGES, *_SAME))
"""Words that are taken for colours."""


def share(frames: np.ndarray, masks: np.ndarray, names: tuple[str, ...]) -> float:
    """Share of the masked pixels, 0 to 1, that have one of the named colours; 0 where nothing is masked.

    Args:
        frames: uint8 ``[T, H, W, 3]``. masks: bool ``[T, H, W]``. names: of :data:`NAMES`.
    """
    if not masks.any():
        return 0.0
    return float(np.max([called(frames[masks], name) for name in names], axis=0).mean())


def called(colours: np.ndarray, name: str) -> np.ndarray:
    """How rightly each colour, uint8 RGB ``[N, 3]``, has a name: ``[N]``, 0 to 1."""
    lightness, a, b = np.moveaxis(pixels.lab(colours[None])[0], -1, 0)
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360
    light, strong, (begin, end) = _RANGES[_SAME.get(name, name)]
    middle, half = begin + (end - begin) % 360 / 2, (end - begin) % 360 / 2
    fits = _within(lightness, *light, _SOFT[0]) * _within(chroma, *strong, _SOFT[1])
    if (begin, end) != _ANY:
        fits = fits * _within(np.abs((hue - middle + 180) % 360 - 180), -1, half, _SOFT[2])
    return fits


def _within(value: np.ndarray, low: float, high: float, soft: float) -> np.ndarray:
    return np.clip(1 - np.maximum(low - value, value - high) / soft, 0, 1)
