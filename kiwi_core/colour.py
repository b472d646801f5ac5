"""Colour drift of an edit, measured where the edit left the source untouched, and taken back.

Each channel of a frame may have got a gain and an offset. Both are fitted on the mean colours of cells that, once
corrected, agree with the source in detail too; cells that never do belong to the edit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from . import geometry

logger = logging.getLogger(__name__)

CELLS = 24  # on the shorter side
UNTOUCHED = 0.15
"""Share of a frame's cells, of those outside a mask, that must be untouched for a fit."""
MAX_GAIN, MAX_SHIFT = 1.3, 40.0
"""What counts as drift; more is an edit of the colours. The shift is of mid grey, in levels of 255."""
_THRESHOLDS = (45.0, 32.0, 24.0, 18.0, 14.0, 11.0, 9.0, 9.0, 9.0)  # levels; falling as the fit gets better
_SMOOTHING = 4.0  # frames


def drift(frames: int, frame_at: Callable[[int], tuple], mask: torch.Tensor | None = None):
    """Gain and offset that bring each frame's colours back to the source's.

    Args:
        frames: how many. frame_at: gives edited and source of a frame, uint8 ``[H, W, 3]`` each.
        mask: bool ``[1 or T, H, W]``, true where the edit is.

    Returns:
        two float64 ``[frames, 3]``, the offset in levels of 255; or None where too little is untouched, with a
        warning in the log.
    """
    fits, shares = np.zeros((frames, 2, 3)), np.zeros(frames)
    for index in range(frames):
        edited, source = frame_at(index)
        if source.shape != edited.shape:
            source = geometry.resize_frames(source[None], *edited.shape[:2])[0]
        outside = None if mask is None else mask[min(index, len(mask) - 1)]
        fits[index], shares[index] = _fit(edited, source, outside)
    known = shares >= UNTOUCHED
    if known.mean() < 0.5:
        logger.warning("Colours are left as they are: too little of the picture is as in the source to compare with.")
        return None
    gain, middle = _smooth(fits, np.where(known, shares, 0.0))
    return gain, middle - 128 * gain


def match_colours(
    edited: np.ndarray, source: np.ndarray, mask: torch.Tensor | None = None, strength: float = 1.0
) -> np.ndarray:
    """The edit with its colour drift taken back, as far as the source shows it; see :func:`drift`.

    Args:
        edited, source: uint8 ``[T, H, W, 3]``; a source of another size is resized, a shorter one stands still.
        mask: bool ``[1 or T, H, W]``, true where the edit is; without one it is found.
        strength: 0 leaves the edit as it is, 1 corrects it.
    """
    found = drift(len(edited), lambda index: (edited[index], source[min(index, len(source) - 1)]), mask)
    if found is None:
        return edited
    gain, offset = found
    levels = np.arange(256)[:, None]
    result = np.empty_like(edited)
    for target, frame, scale, shift in zip(result, edited, 1 + strength * (gain - 1), strength * offset):
        table = np.rint(levels * scale + shift).clip(0, 255).astype(np.uint8)
        for channel in range(3):
            target[..., channel] = table[frame[..., channel], channel]
    return result


def _fit(edited: np.ndarray, source: np.ndarray, outside: torch.Tensor | None) -> tuple[np.ndarray, float]:
    """Gain and corrected mid grey ``[2, 3]`` of one frame, and the share of cells (of a mask: outside) that agree."""
    pair = torch.from_numpy(np.stack([edited, source])).permute(0, 3, 1, 2).float()
    height, width = edited.shape[:2]
    cell = max(1, min(height, width) // CELLS)
    size = max(1, height // cell), max(1, width // cell)
    e, s = pair
    moments = torch.stack([e, s, e * e, s * s, e * s])
    moments = F.adaptive_avg_pool2d(moments, size).flatten(2).double().numpy()
    if outside is not None:
        moments = moments[..., (F.adaptive_max_pool2d(outside[None].float(), size)[0] == 0).flatten().numpy()]
    lost = np.zeros((2, 3)), 0.0
    if moments.shape[2] < 8:
        return lost
    # Where most is edited, the cells in the middle of all differences are not the untouched ones.
    middle = np.median(moments[1] - moments[0], axis=1, keepdims=True)
    return max((_fit_from(moments, offset) or lost for offset in (middle, 0 * middle)), key=lambda fit: fit[1])


def _fit_from(moments: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, float] | None:
    """As :func:`_fit`, from a first guess; None where it leads to nothing that could be a drift."""
    mean_e, mean_s, ee, ss, es = moments
    gain = np.ones_like(offset)
    for threshold in _THRESHOLDS:
        # Mean square over the pixels of a cell of what the fit leaves.
        left = ss + gain**2 * ee + offset**2 - 2 * gain * es - 2 * offset * mean_s + 2 * gain * offset * mean_e
        agreeing = left.max(axis=0) < threshold**2
        if agreeing.sum() < 8:
            return None
        x, y = mean_e[:, agreeing], mean_s[:, agreeing]
        x0, y0 = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
        # Flat frames do not tell a gain: it is drawn to 1 as by a contrast of 4 levels.
        covariance = ((x - x0) * (y - y0)).mean(axis=1, keepdims=True)
        gain = (covariance + 16) / (x.var(axis=1, keepdims=True) + 16)
        offset = y0 - gain * x0
    middle = gain * 128 + offset
    if not np.all((gain < MAX_GAIN) & (gain * MAX_GAIN > 1) & (abs(middle - 128) < MAX_SHIFT)):
        return None
    return np.concatenate([gain, middle], axis=1).T, agreeing.mean()


def _smooth(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A line fitted around each time to ``[T, 2, 3]``, by a Gaussian as wide as it takes to bridge lost frames."""
    times = np.arange(len(values))
    sigma = _SMOOTHING
    while True:
        distance = times - times[:, None]
        kernel = np.exp(-0.5 * (distance / sigma) ** 2) * weights
        total = kernel.sum(axis=1)
        if total.min() > 1e-3:
            break
        sigma *= 2
    kernel /= total[:, None]
    first, second = (kernel * distance).sum(axis=1), (kernel * distance**2).sum(axis=1) + 0.1
    kernel *= (second[:, None] - first[:, None] * distance) / (second - first**2)[:, None]
    smooth = np.tensordot(kernel, values, axes=1)
    return smooth[:, 0], smooth[:, 1]
