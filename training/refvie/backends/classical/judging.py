"""How good an edit looks by its statistics, as the four values of :class:`training.refvie.backends.Quality`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...pairs.pair import ADD, BACKGROUND, REMOVE, STYLE
from .. import Quality, View, pixels
from ..pixels import ramp
from . import colours, cutout, difference, wording
from .wording import Wish

_UNKNOWN = 0.5


@dataclass(frozen=True)
class Seen:
    """What is to be known of a pair before it is judged or its region named."""

    view: View
    wish: Wish
    changed: np.ndarray
    """bool ``[T, H, W]``"""
    region: np.ndarray
    """bool ``[T, H, W]``: of the changes those that hang together; of a background or a style all of them."""
    masks: np.ndarray
    """bool ``[T, H, W]``: the thing that was added, changed or removed; what stands before a background that was
    changed; of a style everything."""

    @property
    def extent(self) -> float:
        """Share of the pixels that have changed."""
        return float(self.changed.mean())


def see(view: View) -> Seen:
    """Compare source and target of a pair."""
    wish = wording.read(view.prompt, view.category)
    everywhere = wish.category in (BACKGROUND, STYLE)
    changed = difference.changed(view.source, view.target, everywhere)
    region = changed if everywhere else difference.region(changed)
    if wish.category == STYLE:
        masks = np.ones_like(changed)
    elif wish.category == BACKGROUND:
        masks = cutout.foreground(view.source, view.target, changed)
    else:
        masks = cutout.changed_thing(view.source, view.target, list(map(pixels.box, region)), region, wish.category)
    return Seen(view, wish, changed, region, masks)


def judge(view: View) -> Quality:
    """The four values, and in words what spoke against the pair or could not be known."""
    seen = see(view)
    reasons: list[str] = []

    def worst(*found: tuple[float, str]) -> float:
        reasons.extend(text for value, text in found if value < 0.75 and text)
        return 10 * min(value for value, _ in found)

    if not seen.changed.any():
        calm = _calm(seen)
        return Quality(0.0, 10.0, worst(*calm[:2]), worst(*calm[2:]), "The target is the same as the source.")
    follows, keeps, calm = worst(*_follows(seen)), worst(*_keeps(seen)), _calm(seen)
    return Quality(follows, keeps, worst(*calm[:2]), worst(*calm[2:]), " ".join(reasons))


def _follows(seen: Seen) -> list[tuple[float, str]]:
    """What speaks for the asked edit being there, 0 to 1 each."""
    wish, view = seen.wish, seen.view
    if not view.prompt.strip():
        return [(0.0, "There is no instruction.")]
    if not wish.category:
        return [(_UNKNOWN, "The instruction's kind is not known.")]
    if wish.category == STYLE:
        found = [(_redone(seen), "The whole has hardly changed.")]
        if not wish.style:
            return [*found, (_UNKNOWN, "Nothing is known of the style.")]
        return [*found, (_STYLES[wish.style](view.source, view.target), f"It does not look {wish.style}.")]
    if wish.category == BACKGROUND:
        found = [(_redone(seen), "The background has hardly changed.")]
        return [*found, *_coloured(view.target, ~seen.masks, wish.colours)]
    found = []
    if wish.category == REMOVE:
        before, after = (_stands_out(clip, seen.masks) for clip in (view.source, view.target))
        found.append((ramp(after - before, 0.1, -0.2) * ramp(after, 0.5, 0.2), "Nothing is gone."))
        if not wish.old_colours:
            found.append((_UNKNOWN, "No colour is named, so that it is not known whether the right thing is gone."))
    if wish.category == ADD:
        before, after = (_stands_out(clip, seen.masks) for clip in (view.source, view.target))
        found.append((ramp(after - before, -0.1, 0.2), "Nothing is new."))
        found += _placed(seen.masks, wish.place)
    if wish.category != REMOVE:
        found += _coloured(view.target, seen.masks, wish.colours)
    if wish.old_colours:
        before = colours.share(view.source, seen.region, wish.old_colours)
        found.append((ramp(before, 0.02, 0.15), f"Nothing {' and '.join(wish.old_colours)} was there before."))
    return found


def _redone(seen: Seen) -> float:
    """Whether all but what stands before it is another, and not merely drawn anew: much of it has changed, and either
    by many levels or in its structure."""
    view = seen.view
    rest = ~seen.masks if seen.wish.category == BACKGROUND else seen.masks
    level = float(difference.levels(view.source, view.target)[rest].mean()) if rest.any() else 0.0
    other = max(ramp(level, 8, 20), ramp(_same_structure(view.source, view.target), 0.9, 0.6))
    return min(ramp(seen.extent, 0.05, 0.25), other)


def _coloured(frames: np.ndarray, masks: np.ndarray, names: tuple[str, ...]) -> list[tuple[float, str]]:
    if not names:
        return [(_UNKNOWN, "No colour is named, so that it is not known whether the right thing is there.")]
    told = " or ".join(names)
    return [(ramp(colours.share(frames, masks, names), 0.05, 0.4), f"What is new is not {told}.")]


def _placed(masks: np.ndarray, place: tuple[float | None, float | None]) -> list[tuple[float, str]]:
    """Whether a thing's middle is on the asked side of the frame, or not far beyond."""
    if not masks.any():
        return []
    found = []
    for asked, axis in zip(place, (2, 1)):
        if asked is not None:
            centre = float(np.mean(np.nonzero(masks)[axis] + 0.5)) / masks.shape[axis]
            beyond = abs(centre - 0.5) - 0.2 if asked == 0.5 else (centre - 0.5) * (1 if asked < 0.5 else -1)
            found.append((ramp(beyond, 0.15, 0.0), "It is at another place."))
    return found


def _keeps(seen: Seen) -> list[tuple[float, str]]:
    """What speaks for the rest having stayed as it was, 0 to 1 each."""
    view = seen.view
    if seen.wish.category == STYLE:
        return [(ramp(_same_structure(view.source, view.target), 0.2, 0.5), "The scene is another.")]
    if seen.wish.category == BACKGROUND:
        if not seen.masks.any():
            return [(_UNKNOWN, "Nothing was found that stands before the background.")]
        return [(ramp(_outlined(view.source, seen.masks), 0.3, 0.6), "What stands before the background has changed.")]
    outside = float((seen.changed & ~seen.region).mean())
    found = [
        (ramp(seen.extent, 0.75, 0.45), "Too much has changed."),
        (ramp(outside, 0.1, 0.02), "More has changed than one region."),
    ]
    if seen.wish.recolours:
        boxes = [pixels.box(mask | other) for mask, other in zip(seen.region, seen.masks)]
        before = cutout.thing(view.source, boxes, seen.region)
        same = float((before & seen.masks).sum() / max(1, (before | seen.masks).sum()))
        found.append((ramp(same, 0.4, 0.75), "More than the colour has changed."))
    return found


def _calm(seen: Seen) -> list[tuple[float, str]]:
    """Two values for naturalness, three for artifacts, 0 to 1 each."""
    source, target = seen.view.source, seen.view.target
    noisier = difference.noise(target) - difference.noise(source)
    blockier = _blockiness(target) - _blockiness(source)
    same = np.stack([~pixels.grown(mask, 3) for mask in seen.changed])
    blurred = (_detail(target, same) + 1) / (_detail(source, same) + 1)
    steady = np.array([mask.sum() for mask in seen.masks], float)
    jumps = float(np.abs(np.diff(steady)).mean() / max(steady.mean(), 1)) if len(steady) > 1 else 0.0
    return [
        (ramp(_flicker(target) - _flicker(source), 10, 2), "The light flickers."),
        (ramp(jumps, 1.2, 0.5), "What has changed comes and goes."),
        (ramp(noisier, 12, 3), "The target is noisy."),
        (ramp(blockier, 6, 2), "The target is blocky."),
        (ramp(blurred, 0.1, 0.5), "The target is blurred."),
    ]


def _stands_out(frames: np.ndarray, masks: np.ndarray) -> float:
    """How much of the masked area has colours that are not around it, 0 to 1."""
    around = np.stack([pixels.grown(mask, max(3, mask.shape[0] // 12)) for mask in masks])
    around &= ~np.stack([pixels.grown(mask, 1) for mask in masks])
    if not masks.any() or not around.any():
        return 0.0
    return float((~cutout.common(frames, around, masks))[masks].mean())


def _outlined(frames: np.ndarray, masks: np.ndarray) -> float:
    """Share of the masks' outlines where the frames have an edge, too."""
    import cv2

    shares = []
    for frame, mask in zip(frames, masks):
        rim = pixels.grown(mask, 1) & ~pixels.shrunk(mask, 1)
        rim[[0, -1]] = rim[:, [0, -1]] = False
        if rim.any():
            kernel = np.ones((3, 3), np.uint8)
            steps = (cv2.dilate(frame, kernel).astype(int) - cv2.erode(frame, kernel)).max(axis=-1)
            shares.append(float((steps[rim] > 30).mean()))
    return float(np.mean(shares)) if shares else 0.0


def _same_structure(source: np.ndarray, target: np.ndarray) -> float:
    """Correlation of the edges' strengths, mean over frames, -1 to 1."""
    return float(np.mean([_correlation(_edges(one), _edges(other)) for one, other in zip(source, target)]))


def _edges(frame: np.ndarray) -> np.ndarray:
    import cv2

    sigma = max(1.0, max(frame.shape) / 200)
    lab = cv2.GaussianBlur(pixels.lab(frame), (0, 0), sigma)
    steps = [cv2.Sobel(lab, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1))]
    return cv2.GaussianBlur(np.sqrt(sum((step**2).sum(axis=-1) for step in steps)), (0, 0), sigma)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / max(float(np.sqrt((one**2).sum() * (other**2).sum())), 1e-6))


def _flicker(frames: np.ndarray) -> float:
    """How many levels the frames' mean light is off the middle of their neighbours'."""
    light = pixels.grey(frames).mean(axis=(1, 2))
    return float(np.abs(light[1:-1] - (light[:-2] + light[2:]) / 2).mean()) if len(light) > 2 else 0.0


def _blockiness(frames: np.ndarray) -> float:
    """By how many levels steps over the edges of 8 x 8 blocks are larger than others."""
    grey = pixels.grey(frames)
    found = []
    for axis in (1, 2):
        steps = np.abs(np.diff(grey, axis=axis)).mean(axis=(0, 3 - axis))
        at = np.arange(len(steps)) % 8 == 7
        if at.sum() > 15:  # in small frames a thing's edge may lie there
            found.append(float(np.median(steps[at]) - np.median(steps[~at])))
    return max(found, default=0.0)


def _detail(frames: np.ndarray, masks: np.ndarray) -> float:
    """Standard deviation of the finest detail, in levels, where masked."""
    import cv2

    if not masks.any():
        return 0.0
    fine = np.stack([cv2.Laplacian(pixels.grey(frame), cv2.CV_32F) for frame in frames])
    return float(fine[masks].std())


def _chroma(frames: np.ndarray) -> float:
    lab = pixels.lab(pixels.frames_as_one(frames))
    return float(np.hypot(lab[..., 1], lab[..., 2]).mean())


def _warmth(frames: np.ndarray) -> float:
    return float(pixels.lab(pixels.frames_as_one(frames))[..., 2].mean())


def _light(frames: np.ndarray) -> float:
    return float(pixels.grey(frames).mean())


def _brown(frames: np.ndarray) -> float:
    """Share of pixels whose hue is sepia's or that have hardly any, times whether there is some on the whole."""
    lab = pixels.lab(pixels.frames_as_one(frames))
    chroma, hue = np.hypot(lab[..., 1], lab[..., 2]), np.degrees(np.arctan2(lab[..., 2], lab[..., 1]))
    fits = ((hue > 45) & (hue < 100)) | (chroma < 6)
    return ramp(float(fits.mean()), 0.6, 0.9) * ramp(float(chroma.mean()), 4, 10)


def _contrast(frames: np.ndarray) -> float:
    return float(pixels.grey(frames).std())


_STYLES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "grey": lambda source, target: ramp(_chroma(target), 12, 5),
    "sepia": lambda source, target: _brown(target),
    "negative": lambda source, target: ramp(_correlation(pixels.grey(source), pixels.grey(target)), 0.2, -0.4),
    "dark": lambda source, target: ramp(_light(target) / max(_light(source), 1), 1.0, 0.75),
    "bright": lambda source, target: ramp(_light(target) / max(_light(source), 1), 1.0, 1.2),
    "pale": lambda source, target: ramp(_contrast(target) / max(_contrast(source), 1), 1.0, 0.75),
    "vivid": lambda source, target: ramp(_chroma(target) / max(_chroma(source), 1), 1.0, 1.25),
    "warm": lambda source, target: ramp(_warmth(target) - _warmth(source), 0, 8),
    "cold": lambda source, target: ramp(_warmth(source) - _warmth(target), 0, 8),
}
"""How much a target has of a style that its source has not, 0 to 1."""
