"""Colours that go astray where nothing was asked for."""

from __future__ import annotations

import numpy as np

from ...refvie.backends import pixels

_SIDE = 256
"""About so many pixels of the longest side are looked at."""


def shift_and_drift(source: np.ndarray, edit: np.ndarray, outside: np.ndarray) -> tuple[float, float | None]:
    """How far mean colours are from the source's, and how far they go during the clip, in Delta E (CIE 1976).

    Args:
        source, edit: uint8 ``[T, H, W, 3]``. outside: bool ``[T, H, W]`` with at least one pixel.

    The shift is the mean over frames. The drift is the way from the mean of the first quarter to that of the last, less
    the source's way: a constant cast has none, nor has a clip whose light changes with the source's. None for less than
    two frames in which there is anything to compare.
    """
    step = max(1, max(source.shape[1:3]) // _SIDE)
    means = []
    for before, after, mask in zip(source, edit, outside):
        shown = mask[::step, ::step]
        if shown.any():
            means.append([pixels.lab(one[::step, ::step][shown][None])[0].mean(axis=0) for one in (before, after)])
    if not means:  # only between the pixels that are looked at
        return 0.0, None
    apart = np.array([after - before for before, after in means], float)
    shift = float(np.linalg.norm(apart, axis=1).mean())
    if len(apart) < 2:
        return shift, None
    quarter = max(1, len(apart) // 4)
    return shift, float(np.linalg.norm(apart[-quarter:].mean(axis=0) - apart[:quarter].mean(axis=0)))
