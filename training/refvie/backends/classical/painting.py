"""Reference pictures out of the clip itself: the thing cut out, or the ground put together from all frames."""

from __future__ import annotations

import numpy as np

from .. import Painting, pixels
from . import cutout

LEAST_SIDE, MOST_SIDE = 112, 768
"""Of a subject's picture, in pixels; smaller things are enlarged."""
_ROOM = 0.72
"""Share of the picture's side that the thing's longer side takes."""
_LEAST_AREA = 0.001
_MOST_COVERED = 0.75
_MOST_MISSED = 25.0
"""Levels by which the surroundings of a hole may differ from those of what is copied into it."""
_PAGES = 255, 128, 40
_STANDS_OUT = 35
"""Levels by which nearly all of a thing must be apart from its page."""


def subject(painting: Painting) -> np.ndarray:
    """The thing of its best frame alone, uint8 ``[S, S, 3]``, before white, or grey where it would not stand out.

    With a variation it is mirrored, turned, moved, scaled and lit otherwise by the seed: a classical method shows no
    other side of it, whatever the words ask for. ValueError if no frame has enough of it.
    """
    best = _best(painting.target, painting.masks)
    if best is None:
        raise ValueError("The thing is too small or cut off in every frame; there is nothing to cut out.")
    frame, mask = painting.target[best], painting.masks[best]
    colours, alpha = _cut(frame, mask)
    side = int(np.clip(max(alpha.shape) / _ROOM, LEAST_SIDE, MOST_SIDE))
    rng = np.random.default_rng(painting.seed)
    varies = _Varied(rng) if painting.variation else _Varied(None)
    colours, alpha = varies.placed(colours, alpha, side)
    colours = varies.lit(colours)
    page = _page(colours[alpha > 0.5])
    return np.clip(np.rint(page + alpha[..., None] * (colours - page)), 0, 255).astype(np.uint8)


def scene(painting: Painting) -> np.ndarray:
    """The ground without what stands before it, uint8 ``[H, W, 3]``.

    What the middle frame does not show comes from the frames that do, moved into place as the camera moved; what none
    shows is copied from a place with like surroundings, or blended from its own. A variation mirrors, crops and lights
    it by the seed. ValueError if there is too little ground.
    """
    covered = np.stack([pixels.grown(mask, 2 + mask.shape[1] // 60) for mask in painting.masks])
    middle = int(np.argmin(covered.mean(axis=(1, 2)) + 1e-3 * np.abs(np.arange(len(covered)) - len(covered) // 2)))
    if covered[middle].mean() > _MOST_COVERED:
        raise ValueError("Too much stands before the background in every frame; there is too little of it to show.")
    picture, open_ = painting.target[middle].copy(), ~covered[middle]
    if not open_.all():
        found, known = _uncovered(painting.target, covered, middle)
        picture[~open_ & known] = found[~open_ & known]
        picture = _painted_over(picture, ~open_ & ~known)
    if not painting.variation:
        return picture
    rng = np.random.default_rng(painting.seed)
    height, width = picture.shape[:2]
    share = rng.uniform(0.78, 0.92)
    rows, columns = round(height * share), round(width * share)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    picture = pixels.resized(np.ascontiguousarray(picture[top : top + rows, left : left + columns]), width, height)
    varies = _Varied(rng)
    picture = picture[:, ::-1] if varies.mirrored else picture
    return np.clip(np.rint(varies.lit(picture.astype(np.float32))), 0, 255).astype(np.uint8)


def _page(colours: np.ndarray) -> int:
    """Which ground a thing of these colours stands out from: white, where that will do."""
    apart = [float(np.quantile(np.abs(colours - page).max(axis=-1), 0.1)) if len(colours) else 255 for page in _PAGES]
    return _PAGES[0] if apart[0] > _STANDS_OUT else _PAGES[int(np.argmax(apart))]


class _Varied:
    """How a picture differs from the clip."""

    def __init__(self, rng: np.random.Generator | None):
        self.mirrored = bool(rng is not None and rng.random() < 0.5)
        self.angle = 0.0 if rng is None else float(rng.choice([-1, 1]) * rng.uniform(8, 20))
        self.scale = 1.0 if rng is None else float(rng.uniform(0.8, 1.1))
        self.shift = np.zeros(2) if rng is None else rng.uniform(-0.06, 0.06, 2)
        self.gain = 1.0 if rng is None else float(rng.uniform(0.88, 1.12))
        self.bend = 1.0 if rng is None else float(rng.uniform(0.9, 1.12))

    def placed(self, colours: np.ndarray, alpha: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Colours and cover of a cut-out in the middle of a square picture."""
        import cv2

        height, width = alpha.shape
        cos, sin = abs(np.cos(np.radians(self.angle))), abs(np.sin(np.radians(self.angle)))
        reach = max(width * cos + height * sin, width * sin + height * cos)
        scale = min(self.scale * _ROOM / max(width, height), 0.86 / reach) * side
        turn = cv2.getRotationMatrix2D((0.0, 0.0), self.angle, scale)
        if self.mirrored:
            turn[:, 0] *= -1
        turn[:, 2] = side * (0.5 + self.shift) - turn[:, :2] @ (np.array([width, height]) / 2)
        how = {"dsize": (side, side), "flags": cv2.INTER_CUBIC if scale > 0.7 else cv2.INTER_AREA}
        placed = cv2.warpAffine(colours, turn, borderMode=cv2.BORDER_REPLICATE, **how)
        cover = cv2.warpAffine(alpha, turn, borderMode=cv2.BORDER_CONSTANT, **how)
        # Enlarged pixels would show as steps in the outline.
        soft = cv2.GaussianBlur(cover, (0, 0), max(0.3, 0.35 * scale))
        return placed, np.clip((soft - 0.5) * max(1.0, 1.2 * min(scale, 2.0)) + 0.5, 0, 1)

    def lit(self, colours: np.ndarray) -> np.ndarray:
        return 255 * np.clip(colours / 255, 0, 1) ** self.bend * self.gain


def _best(frames: np.ndarray, masks: np.ndarray) -> int | None:
    """The frame with the thing largest, whole and sharp. A mask much larger than the others is rather a wrong one."""
    import cv2

    usual = 1.1 * float(np.median([mask.sum() for mask in masks if mask.any()] or [0]))
    found = []
    for place, (frame, mask) in enumerate(zip(frames, masks)):
        if mask.mean() >= _LEAST_AREA and mask.sum() >= 30:
            whole = 0.3 if at_border(mask) > 0.05 else 1.0
            sharp = float(np.abs(cv2.Laplacian(pixels.grey(frame), cv2.CV_32F))[mask].mean()) + 1
            found.append((min(mask.sum(), usual) * whole * sharp**0.5, -abs(place - len(frames) // 2), place))
    return max(found)[2] if found else None


def at_border(mask: np.ndarray) -> float:
    """Share of a mask's outline that lies on the frame's border."""
    outline = mask & ~pixels.shrunk(np.pad(mask, 1), 1)[1:-1, 1:-1]
    edge = np.ones_like(mask)
    edge[1:-1, 1:-1] = False
    return float((outline & edge).sum() / max(1, outline.sum()))


def _cut(frame: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours float32 ``[h, w, 3]`` and cover ``[h, w]`` of a thing in its box, with colours of its own at the rim."""
    mask = pixels.main_parts(mask, 0.1)
    left, top, right, bottom = pixels.bounds(mask)
    room = 3
    rows = slice(max(0, top - room), bottom + room)
    columns = slice(max(0, left - room), right + room)
    part, own = np.ascontiguousarray(frame[rows, columns]), mask[rows, columns]
    alpha = cutout.matte(part, own, 1)
    inner = pixels.shrunk(own, 1)
    return cutout.filled(part, inner if inner.sum() > 0.3 * own.sum() else own), alpha


def _uncovered(frames: np.ndarray, covered: np.ndarray, middle: int) -> tuple[np.ndarray, np.ndarray]:
    """The median, over the frames that show it, of what is behind things in the middle frame; and where there is one.

    Other frames are moved by whole parts of pixels to where the camera was; those that fit badly are not used.
    """
    import cv2

    shape = frames.shape[1:3]
    stack = np.full((len(frames), *frames.shape[1:]), np.nan, np.float32)
    here = pixels.grey(frames[middle])
    for place, (frame, mask) in enumerate(zip(frames, covered)):
        if place == middle:
            continue
        shift = _shift(here, pixels.grey(frame), covered[middle] | mask)
        move = np.array([[1, 0, -shift[0]], [0, 1, -shift[1]]], np.float32)
        moved = cv2.warpAffine(frame, move, shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        shown = cv2.warpAffine((~mask).astype(np.float32), move, shape[::-1], borderValue=0.0) > 0.99
        both = shown & ~covered[middle]
        if both.any() and np.abs(pixels.grey(moved) - here)[both].mean() < 6:
            stack[place][shown] = moved[shown]
    known = ~np.isnan(stack[..., 0]).all(axis=0)
    result = np.zeros((*shape, 3), np.uint8)
    if known.any():
        result[known] = np.rint(np.nanmedian(stack[:, known], axis=0)).astype(np.uint8)
    return result, known


def _painted_over(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A picture without its holes, filled patch by patch from their rims with what continues the surroundings best,
    copied from elsewhere in the picture; where nothing is alike, they are blended from their surroundings."""
    import cv2

    picture, left, hopeless = picture.copy(), hole.copy(), np.zeros_like(hole)
    reach = max(5, max(hole.shape) // 10)
    while left.any():
        known = cv2.boxFilter((~(left | hopeless)).astype(np.float32), -1, (reach, reach))
        y, x = np.unravel_index(int(np.argmax(np.where(left, known, -1))), left.shape)
        rows, columns = slice(max(0, y - reach), y + reach + 1), slice(max(0, x - reach), x + reach + 1)
        wanted, missing = np.ascontiguousarray(picture[rows, columns]), left[rows, columns] | hopeless[rows, columns]
        weights = np.repeat(~missing[..., None], 3, axis=-1).astype(np.float32)
        misses = cv2.matchTemplate(picture.astype(np.float32), wanted.astype(np.float32), cv2.TM_SQDIFF, mask=weights)
        taken = cv2.matchTemplate(hole.astype(np.float32), np.ones(missing.shape, np.float32), cv2.TM_CCORR)
        misses = np.where(taken < 0.5, misses, np.inf) / max(1.0, float(weights.sum()))
        best = np.unravel_index(int(np.argmin(misses)), misses.shape)
        if misses[best] < _MOST_MISSED**2:
            patch = picture[best[0] : best[0] + len(wanted), best[1] : best[1] + wanted.shape[1]]
            picture[rows, columns][missing] = patch[missing]
            hopeless[rows, columns] = False
        else:
            hopeless[rows, columns] |= missing
        left[rows, columns] = False
    return cv2.inpaint(picture, hopeless.astype(np.uint8), max(3, hole.shape[1] // 100), cv2.INPAINT_TELEA)


def _shift(here: np.ndarray, there: np.ndarray, hidden: np.ndarray) -> tuple[float, float]:
    """How far the ground of one frame has moved in another, in pixels to the right and down."""
    import cv2

    clean = [np.where(hidden, one[~hidden].mean() if (~hidden).any() else 0, one) for one in (here, there)]
    window = cv2.createHanningWindow(here.shape[::-1], cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(*(one.astype(np.float32) for one in clean), window)
    candidates = [(0.0, 0.0), (x, y)] if max(abs(x), abs(y)) < 0.25 * min(here.shape) else [(0.0, 0.0)]

    def miss(shift: tuple[float, float]) -> float:
        move = np.array([[1, 0, -shift[0]], [0, 1, -shift[1]]], np.float32)
        moved = cv2.warpAffine(there, move, here.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        return float(np.abs(moved - here)[~hidden].mean()) if (~hidden).any() else 0.0

    return min(candidates, key=miss)
