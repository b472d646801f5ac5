"""How much a reference picture is a copy of pixels of the target: a model could learn to paste it instead of to see.

A copy is found again however it was resized, mirrored, turned a little or lit: the fine structure of the reference,
brought to the target's size, lies where it lies in the target. In a new view of the same thing the outline is another,
or the structure lies elsewhere in it.

What has no structure, such as a disc of one colour or a bare wall, looks the same copied or seen anew. There the
outline alone decides, and a wall counts as copied: for such things a high value says that nothing would tell a copy.
"""

from __future__ import annotations

import numpy as np

from . import frames as frames_of
from .backends import pixels
from .backends.classical import cutout, views

_FRAMES = 6
"""Of a clip, at most so many are looked at."""
_STRUCTURE = 2.5
"""Standard deviation in levels above which a structure is more than noise."""
_SHIFT = 3
_SCENE_SIDE = 96
_SCALES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.7, 1.06, 1.12, 1.2, 1.3)


def of_subject(reference: np.ndarray, frames: np.ndarray, masks: np.ndarray) -> float:
    """The best agreement of the reference's thing with the target's in any frame: 0 for another view, 1 for a copy.

    That is the area which both outlines share, as a part of the area of both, times the correlation of what is within,
    if there is anything.

    Args:
        reference: uint8 ``[H, W, 3]``, a thing before a plain ground. frames: the target's, uint8 ``[T, H, W, 3]``.
        masks: the thing in them, bool ``[T, H, W]``.

    0.0 where either shows nothing.
    """
    mask = cutout.alone(reference)
    seen = [place for place in range(len(frames)) if masks[place].sum() >= 20]
    if not mask.any() or not seen:
        return 0.0
    places = [seen[place] for place in frames_of.spread(len(seen), _FRAMES)]
    targets = [views.brought(frames[place], pixels.main_parts(masks[place], 0.05)) for place in places]
    return max(_agreement(view, target) for view in views.turned(reference, mask) for target in targets)


def of_scene(reference: np.ndarray, frames: np.ndarray, masks: np.ndarray) -> float:
    """The best correlation of the reference's structure with a frame's where nothing stands before it, 0 to 1.

    1.0 where both are bare.

    Args:
        reference: uint8 ``[H, W, 3]``. frames: the target's, uint8 ``[T, H, W, 3]``. masks: what stands before the
            background, bool ``[T, H, W]``.
    """
    best = 0.0
    for place in frames_of.spread(len(frames), 3):
        height, width = frames.shape[1:3]
        scale = _SCENE_SIDE / max(height, width)
        size = max(8, round(width * scale)), max(8, round(height * scale))
        shown = pixels.shrunk(~pixels.resized(masks[place], *size), 2)
        if shown.mean() < 0.1:
            continue
        part = views.structure(cutout.filled(pixels.resized(frames[place], *size), shown))
        middle = tuple(slice(side // 5, side - side // 5) for side in shown.shape)
        part, shown = np.ascontiguousarray(part[middle]), np.ascontiguousarray(shown[middle])
        if not shown.any():
            continue
        for factor in _SCALES:
            other = tuple(max(8, round(side * factor)) for side in size)
            whole = views.structure(pixels.resized(reference, *other))
            if np.less(whole.shape, part.shape).any():
                continue
            for view in (whole, np.ascontiguousarray(whole[:, ::-1])):
                best = max(best, _alike(view, part, shown, (_strength(part[shown]), _strength(whole))))
    return best


def _agreement(one: views.Thing, other: views.Thing) -> float:
    outline = views.overlap(one, other)
    inner = one.inner & other.inner
    if inner.sum() < 100:
        return outline
    padded = np.pad(one.structure, _SHIFT, mode="edge")
    strengths = _strength(one.structure[inner]), _strength(other.structure[inner])
    return outline * _alike(padded, other.structure, inner, strengths)


def _alike(whole: np.ndarray, part: np.ndarray, shown: np.ndarray, strengths: tuple[float, float]) -> float:
    """The best correlation, 0 to 1, of a part's shown pixels with any place of the whole; 1 where both are bare."""
    import cv2

    weak, strong = sorted(strengths)
    matter = pixels.ramp(strong, 0.6 * _STRUCTURE, 1.6 * _STRUCTURE)
    if matter == 0:
        return 1.0
    found = cv2.matchTemplate(whole, part, cv2.TM_CCOEFF_NORMED, mask=shown.astype(np.float32))
    best = float(np.clip(np.max(found[np.isfinite(found)], initial=0.0), 0, 1))
    return 1 - matter + matter * best * pixels.ramp(weak, 0, 0.3 * strong)


def _strength(structure: np.ndarray) -> float:
    """Its standard deviation, of all but the strongest twentieth: a rim of another colour counts for nothing."""
    return float(np.clip(structure, *np.quantile(structure, [0.03, 0.97])).std())
