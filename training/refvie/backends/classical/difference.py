"""Where a target differs from its source, and where that is one region."""

from __future__ import annotations

import numpy as np

from .. import pixels

_FLOOR, _CEILING = 9.0, 45.0
"""Levels between which the bound lies above which a pixel has changed."""
_SPECK = 0.0015
"""Share of the frame that something must have to be a change."""


def levels(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How many levels each pixel differs, by the channel that does most: float32 ``[T, H, W]``, 0 to 255.

    Both frames are blurred a little, so that neither noise nor a shift by half a pixel counts.
    """
    import cv2

    sigma = max(0.7, max(source.shape[1:3]) / 300)
    blurred = [np.stack([cv2.GaussianBlur(one, (0, 0), sigma) for one in clip]) for clip in (source, target)]
    return np.abs(blurred[0].astype(np.int16) - blurred[1]).max(axis=-1).astype(np.float32)


def bound(differing: np.ndarray, noise: float, everywhere: bool = False) -> float:
    """Levels above which a pixel counts as changed, for what :func:`levels` gave.

    Args:
        noise: standard deviation of the source's noise, in levels. everywhere: whether the edit may change all of
            the frame.

    An edit model draws the whole frame anew, so what it leaves alone differs a little: by what the calmer part of
    the pixels does, if the edit is of a part. Between that and the changes lies the bound.
    """
    calm = 0.0 if everywhere else float(np.quantile(differing, 0.3))
    lowest = float(np.clip(max(_FLOOR, 2.5 * noise, 2.5 * calm), _FLOOR, _CEILING))
    above = differing[differing > lowest]
    return lowest if not above.size else min(_CEILING, max(lowest, 0.3 * float(np.median(above))))


def changed(source: np.ndarray, target: np.ndarray, everywhere: bool = False) -> np.ndarray:
    """Which pixels the edit has changed, bool ``[T, H, W]``, see :func:`bound`; without specks, nor outlines of things
    that a large frame drawn anew has moved by less than a pixel."""
    differing = levels(source, target)
    masks = differing > bound(differing, noise(source), everywhere)
    least, thin = _SPECK * masks[0].size, max(source.shape[1:3]) // 200
    masks = [pixels.opened(mask, thin) if thin else mask for mask in masks]
    return np.stack([_without_specks(mask, least) for mask in masks])


def region(masks: np.ndarray) -> np.ndarray:
    """Of what has changed, the largest group of parts that lie near each other, and others of like weight.

    Parts of one thing hang together over gaps of a twelfth of the frame: a star in the place of a disc of the same
    colour changes five separate corners. ``masks`` as :func:`changed` gives them; so is the result.
    """
    near = max(1, max(masks.shape[1:]) // 24)
    everywhere = pixels.grown(masks.any(axis=0), near)
    count, labels = pixels.components(everywhere, 0.0)
    weights = np.array([masks[:, labels == number].sum() for number in range(1, count + 1)])
    if not count:
        return masks
    stays = np.concatenate([[False], weights >= 0.3 * weights.max()])
    return np.stack([pixels.main_parts(mask, 0.03) for mask in masks & stays[labels]])


def noise(frames: np.ndarray) -> float:
    """Standard deviation of the noise in levels: of what a filter leaves that takes out slopes and edges.

    The median over pixels, so that textures count only where they are everywhere.
    """
    import cv2

    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
    left = [np.abs(cv2.filter2D(pixels.grey(one), -1, kernel)) for one in frames]
    return float(np.median(left)) / 0.6745


def _without_specks(mask: np.ndarray, least: float) -> np.ndarray:
    count, labels = pixels.components(mask, 0.0)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    stays = areas >= least
    stays[0] = False
    return stays[labels]
