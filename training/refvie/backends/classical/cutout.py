"""The pixels of a thing before its ground, found by colours: what is in its box and not around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...pairs.pair import ADD, REMOVE
from .. import pixels

Box = tuple[float, float, float, float]
_BINS = 16
"""Of each colour channel."""
_RING = 0.2
"""Width of the ground around a box that is looked at, as a share of the box's longer side."""
_PLAIN = 8.0
"""How far colours of a plain ground may be from each other, in Lab."""
_CUT_SIDE = 160
"""Longest side in pixels at which GrabCut works."""


def thing(
    frames: np.ndarray, boxes: Sequence[Box | None], hints: np.ndarray, plain: np.ndarray | None = None
) -> np.ndarray:
    """Masks of what stands in the boxes, bool ``[T, H, W]``; nothing where there is no box.

    Args:
        frames: uint8 ``[T, H, W, 3]``. boxes: as shares of the frame, for each frame. hints: bool ``[T, H, W]``, what
            the edit has changed. plain: the other clip's frames if they show the ground without the thing.

    Colours that are as frequent around the boxes as in them are the ground's; GrabCut begins with the others. Where
    that leaves nothing, as for a thing of its ground's colours, the hints are the answer.
    """
    masks = np.zeros(frames.shape[:3], bool)
    windows = [None if box is None else _window(box, frames.shape[1:3]) for box in boxes]
    seen = [place for place, window in enumerate(windows) if window is not None]
    if not seen:
        return masks
    insides = np.stack([_inside(box, frames.shape[1:3]) for box in boxes])
    likeness = _ground_likeness(frames, windows, insides, plain)
    for place in seen:
        rows, columns = windows[place]
        window = np.ascontiguousarray(frames[place, rows, columns])
        hint, inside = hints[place, rows, columns], insides[place, rows, columns]
        probable = inside & ~likeness[place]
        if probable.sum() < 0.04 * inside.sum():
            probable = inside & hint
        masks[place, rows, columns] = edged(window, pixels.main_parts(grab(window, probable, ~inside)))
    return masks


def changed_thing(
    source: np.ndarray, target: np.ndarray, boxes: Sequence[Box | None], hints: np.ndarray, category: str
) -> np.ndarray:
    """The thing that was changed or added, in the target; that was removed, in the source. See :func:`thing`."""
    if category == REMOVE:
        return thing(source, boxes, hints, target)
    return thing(target, boxes, hints, source if category == ADD else None)


def grab(picture: np.ndarray, probable: np.ndarray, never: np.ndarray) -> np.ndarray:
    """GrabCut's mask of uint8 ``[H, W, 3]``, from what is probably the thing and what is never.

    Where it loses a part that was probable, doubles it or fills a hole, it has gone astray: that stays as it was.
    """
    import cv2

    height, width = probable.shape
    scale = min(1.0, _CUT_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small, inner, outer = (pixels.resized(one, *size) for one in (picture, probable, never))
    labels = np.where(outer, cv2.GC_BGD, np.where(inner, cv2.GC_PR_FGD, cv2.GC_PR_BGD)).astype(np.uint8)
    if (labels == cv2.GC_PR_FGD).sum() < 10 or (labels != cv2.GC_PR_FGD).sum() < 10:
        return probable & ~never
    cv2.setRNGSeed(0)
    cv2.grabCut(small, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    found = found if scale == 1 else pixels.resized(found, width, height)
    for part in _parts(probable):
        if (found & part).sum() < 0.5 * part.sum():
            found |= part
    for part in _parts(~probable):
        if not (part & never).any() and (found & part).sum() > 0.5 * part.sum() > 0.02 * probable.sum():
            found &= ~part
    return found if found.sum() < 2 * probable.sum() else probable & ~never


def _parts(mask: np.ndarray) -> Iterator[np.ndarray]:
    count, parts = pixels.components(mask, 0.01)
    return (parts == number for number in range(1, count + 1))


def edged(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mask with its border where the colours are half the thing's and half the ground's."""
    return matte(picture, mask) > 0.5


def matte(picture: np.ndarray, mask: np.ndarray, reach: int = 2) -> np.ndarray:
    """How much of each pixel is the thing's, float32 ``[H, W]``: 0 and 1 further than ``reach`` from the mask's border,
    between by the colours of both sides nearby."""
    inner, outer = pixels.shrunk(mask, reach), ~pixels.grown(mask, reach)
    band = ~inner & ~outer
    thing, known = _spread(picture, inner, 1.5 * reach)
    ground, known_too = _spread(picture, outer, 1.5 * reach)
    across = thing - ground
    along = ((picture - ground) * across).sum(axis=-1) / np.maximum((across**2).sum(axis=-1), 1)
    usable = band & known & known_too & ((across**2).sum(axis=-1) > 30**2)
    return np.where(usable, np.clip(along, 0, 1), mask).astype(np.float32)


def filled(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture, float32 ``[H, W, 3]``, whose colours outside of the mask are those of the mask nearby."""
    nearby, known = _spread(picture, mask, 2.0)
    far = picture[mask].mean(axis=0)
    return np.where(mask[..., None], picture, np.where(known[..., None], nearby, far)).astype(np.float32)


def _spread(picture: np.ndarray, mask: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the masked pixels, smoothed over the others, and where there are any."""
    import cv2

    weights = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma)
    total = cv2.GaussianBlur(picture.astype(np.float32) * mask[..., None], (0, 0), sigma)
    return total / np.maximum(weights, 1e-6)[..., None], weights > 1e-3


def common(frames: np.ndarray, outside: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Which pixels, bool ``[T, H, W]``, have colours that are about as frequent in one mask as in another."""
    codes = _codes(frames)
    ground, within = (_smoothed(_counted(codes[part])) for part in (outside, inside))
    return (ground > 0.15 * within)[codes]


def foreign(picture: np.ndarray, frames: np.ndarray, masks: np.ndarray) -> float:
    """Share of a picture ``[H, W, 3]`` that has colours of what is masked in the frames and not of the rest."""
    codes = _codes(frames)
    inside, outside = (_smoothed(_counted(codes[part])) for part in (masks, ~masks))
    own = (inside > 1e-3) & (outside < 0.05 * inside)
    return float(own[_codes(picture)].mean())


def _ground_likeness(frames, windows, insides, plain) -> dict[int, np.ndarray]:
    """For each window, which pixels have colours that are the ground's: around the boxes, or in the plain frames."""
    seen = [place for place, window in enumerate(windows) if window is not None]
    ground, within = np.zeros(_BINS**3), np.zeros(_BINS**3)
    codes = {place: _codes(frames[place][windows[place]]) for place in seen}
    for place in seen:
        inside = insides[place][windows[place]]
        within += _counted(codes[place][inside])
        ground += _counted(codes[place][~inside])
        if plain is not None:
            ground += _counted(_codes(plain[place][windows[place]]))
    ground, within = (_smoothed(counts) for counts in (ground, within))
    like = ground > 0.15 * within
    return {place: like[codes[place]] for place in seen}


def _codes(picture: np.ndarray) -> np.ndarray:
    bins = picture.astype(np.int32) * _BINS // 256
    return (bins[..., 0] * _BINS + bins[..., 1]) * _BINS + bins[..., 2]


def _counted(codes: np.ndarray) -> np.ndarray:
    return np.bincount(codes.ravel(), minlength=_BINS**3).astype(float)


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """A histogram whose bins also count a part of their neighbours, of sum 1."""
    cube = counts.reshape(_BINS, _BINS, _BINS)
    for axis in range(3):
        padded = np.pad(cube, [(1, 1) if one == axis else (0, 0) for one in range(3)])
        sides = [np.take(padded, np.arange(start, start + _BINS), axis=axis) for start in (0, 1, 2)]
        cube = 0.25 * sides[0] + 0.5 * sides[1] + 0.25 * sides[2]
    return cube.ravel() / max(1.0, counts.sum())


def _window(box: Box, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a box with the ground around it."""
    height, width = shape
    left, top, right, bottom = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    ring = max(3.0, _RING * max(right - left, bottom - top))
    return (
        slice(max(0, int(top - ring)), min(height, int(np.ceil(bottom + ring)))),
        slice(max(0, int(left - ring)), min(width, int(np.ceil(right + ring)))),
    )


def _inside(box: Box | None, shape: tuple[int, int]) -> np.ndarray:
    inside = np.zeros(shape, bool)
    if box is not None:
        height, width = shape
        # A pixel more, for the edge that the blur of a compressed clip has moved.
        rows = slice(max(0, int(box[1] * height) - 1), int(np.ceil(box[3] * height)) + 1)
        inside[rows, max(0, int(box[0] * width) - 1) : int(np.ceil(box[2] * width)) + 1] = True
    return inside


def foreground(source: np.ndarray, target: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Masks of what a background's edit has left alone, bool ``[T, H, W]``.

    Both clips uint8 ``[T, H, W, 3]``; ``changed`` bool of the same frames. Parts of the ground that look the same
    before and after, as the light squares of two chequered floors, are known by their colours: in one of the clips
    they are as frequent among what has changed. A part that is mostly of other colours stays whole.
    """
    ground = common(source, changed, ~changed) | common(target, changed, ~changed)
    masks = np.zeros_like(changed)
    for place, frame in enumerate(target):
        count, parts = pixels.components(pixels.opened(~changed[place], 1), 0.0)
        areas, alike = (np.bincount(parts[part], minlength=count + 1) for part in (parts >= 0, ground[place]))
        probable = pixels.opened((parts > 0) & (~ground[place] | (alike < 0.5 * areas)[parts]), 1)
        if probable.mean() < 0.004:
            continue
        cut = grab(frame, probable, pixels.shrunk(changed[place], 2))
        masks[place] = edged(frame, pixels.main_parts(pixels.opened(cut, 1), 0.1))
    return masks


def alone(picture: np.ndarray) -> np.ndarray:
    """Mask ``[H, W]`` of the thing of a reference picture, uint8 ``[H, W, 3]``: what is not as its border is.

    Before a plain ground that is plain to see; else GrabCut looks for it in the middle. Empty where all is alike.
    """
    lab = pixels.lab(picture)
    border = np.concatenate([lab[:2].reshape(-1, 3), lab[-2:].reshape(-1, 3), lab[:, :2].reshape(-1, 3),
                             lab[:, -2:].reshape(-1, 3)])  # fmt: skip
    ground = np.median(border, axis=0)
    apart = np.linalg.norm(lab - ground, axis=-1)
    if (np.linalg.norm(border - ground, axis=-1) < _PLAIN).mean() > 0.8:
        mask = apart > np.clip(0.4 * np.quantile(apart, 0.98), 5, 25)
    else:
        height, width = apart.shape
        middle = np.zeros(apart.shape, bool)
        middle[height // 10 : height - height // 10, width // 10 : width - width // 10] = True
        mask = grab(picture, middle, ~middle)
    return pixels.main_parts(mask, 0.05) if mask.sum() >= 20 else np.zeros_like(mask)
