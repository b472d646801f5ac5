"""Whether a reference picture shows what the target shows, by its colours and outline, and whether it is whole."""

from __future__ import annotations

import numpy as np

from ... import frames
from ...pairs.pair import SCENE
from .. import Check, Match, pixels
from ..pixels import ramp
from . import cutout, descriptor, painting, views

_LEAST_SIDE = 64
_RIM_SIDE = 96


def verify(check: Check) -> Match:
    """How well a reference serves, 0 to 10 each, and in words what spoke against it."""
    same, usable = (_scene if check.kind == SCENE else _subject)(check)
    reason = " ".join(text for value, text in (*same, *usable) if value < 0.75)
    return Match(10 * _product(same), 10 * min((value for value, _ in usable), default=0.0), reason)


def _product(found: list[tuple[float, str]]) -> float:
    """The first value, of the colours, which the second halves at most: a thing seen from elsewhere has another
    outline."""
    (colours, _), *others = found
    return colours * float(np.prod([0.5 + 0.5 * value for value, _ in others]))


def _subject(check: Check) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    mask = cutout.alone(check.reference)
    seen = [place for place in range(len(check.target)) if check.masks[place].sum() >= 20]
    if not mask.any() or not seen:
        return [(0.0, "There is nothing in the reference or in the target.")], []
    own = check.masks & np.stack([pixels.shrunk(one, 1) for one in check.masks])
    own = own if own.any() else check.masks
    colours = _alike(check.reference[mask], check.target[own])
    places = [seen[place] for place in frames.spread(len(seen), 3)]
    targets = [views.brought(check.target[place], check.masks[place]) for place in places]
    outline = max(views.overlap(view, target) for view in views.turned(check.reference, mask) for target in targets)
    count, _ = pixels.components(mask, 0.15)
    same = [(colours, "Its colours are others."), (ramp(outline, 0.5, 0.85), "Its outline is another.")]
    return same, [
        (ramp(float(mask.mean()), 0.01, 0.06), "It is small in the picture."),
        (ramp(painting.at_border(mask), 0.15, 0.02), "It is cut off by the picture's border."),
        (ramp(count, 4, 1), "It is in pieces."),
        (ramp(_crispness(check.reference, mask), 0.3, 0.55), "Its outline is blurred."),
        (ramp(min(mask.shape), 24, _LEAST_SIDE), "The picture is small."),
    ]


def _scene(check: Check) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    shown = ~np.stack([pixels.grown(mask, 1) for mask in check.masks])
    if shown.sum() < 50:
        return [(0.0, "The target shows no background.")], []
    colours = _alike(check.reference.reshape(-1, 3), check.target[shown])
    place = int(shown.mean(axis=(1, 2)).argmax())
    ground = cutout.filled(check.target[place], shown[place])
    edges = [descriptor.directions(picture) for picture in (check.reference, np.rint(ground).astype(np.uint8))]
    pattern = float(np.dot(*edges) / max(1e-6, np.prod([np.linalg.norm(one) for one in edges])))
    left = cutout.foreign(check.reference, check.target, check.masks)
    same = [(colours, "Its colours are others."), (ramp(pattern, 0.8, 0.95), "Its pattern is another.")]
    return same, [
        (ramp(left, 0.04, 0.01), "What stands before the background is still in it."),
        (ramp(min(check.reference.shape[:2]), 24, _LEAST_SIDE), "The picture is small."),
    ]


def _alike(one: np.ndarray, other: np.ndarray) -> float:
    """How alike the colours of two sets of pixels are, 0 to 1, whatever the light."""
    labs = [pixels.lab(_some(colours)[None])[0] for colours in (one, other)]
    light = [float(np.median(lab[:, 0])) for lab in labs]
    labs[0] = labs[0] + [np.clip(light[1] - light[0], -12, 12), 0, 0]
    shares = [descriptor.histogram(lab, np.ones(len(lab))) for lab in labs]
    return ramp(float(np.sqrt(shares[0] * shares[1]).sum()), 0.45, 0.85)


def _some(colours: np.ndarray) -> np.ndarray:
    return colours[:: max(1, len(colours) // 20_000)]


def _crispness(picture: np.ndarray, mask: np.ndarray) -> float:
    """How steep the outline is where the thing is brought to one size: 0 to 1 for a step from pixel to pixel."""
    import cv2

    left, top, right, bottom = pixels.bounds(mask)
    scale = _RIM_SIDE / max(right - left, bottom - top)
    size = max(8, round(mask.shape[1] * scale)), max(8, round(mask.shape[0] * scale))
    light = pixels.lab(pixels.resized(picture, *size))
    outline = pixels.resized(mask, *size)
    rim = pixels.grown(outline, 1) & ~pixels.shrunk(outline, 1)
    steps = cv2.dilate(light, np.ones((5, 5))) - cv2.erode(light, np.ones((5, 5)))
    across = np.linalg.norm(np.median(light[outline], axis=0) - np.median(light[~outline], axis=0))
    return float(np.median(np.linalg.norm(steps[rim], axis=-1)) / max(across, 1))
