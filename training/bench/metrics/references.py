"""How well an edit shows what its reference picture shows, and whether it was seen or pasted."""

from __future__ import annotations

import numpy as np

from ...refvie import leak
from ...refvie.backends import pixels
from ...refvie.backends.classical import cutout, views
from ...refvie.pairs.pair import BACKGROUND, STYLE
from . import motion
from .likeness import Embed
from .region import Where, shrunk

_FRAMES = 6
"""Of a clip, at most so many are looked at."""
_SIDE = 384
_ROOM = 0.12
"""Plain ground on each side of a thing, as a share of its longer side."""
_PAGES = 255, 128, 40
_STANDS_OUT = 35
_LEAST = 20
"""Pixels that a thing must have to be seen."""
_LOSS = 0.3
"""Of the similarity, that a paste costs at most: it falls behind the same thing seen anew, not behind another thing."""
_COPY = 0.75, 0.95
"""Agreement with the reference's pixels from which on it counts as a copy, and at which it counts in full."""
_SAME = 30
"""Levels up to which a ground counts as the reference's."""
_STRUCTURE = 1.5, 4.0
"""Standard deviation in levels of a reference's structure, from where nothing tells a copy to where it is plain."""


def compare(reference: np.ndarray, where: Where, embed: Embed) -> dict[str, float]:
    """reference_similarity, copy_paste and reference_fidelity of an edit, 0 to 1 each.

    Args:
        reference: uint8 ``[H, W, 3]``.

    A thing is compared alone before a plain ground, as it is in some frames; a background without what stands before
    it. 0 where the edit shows nothing in the reference's place.

    Copying is what :mod:`training.refvie.leak` finds, as the mean over frames: a sticker is the same in all of them, a
    thing that turns is like its picture in some at most. One that was pasted with its plain ground is found by that.
    Copying costs up to three tenths of the similarity, and only where the reference has structure, since bare things
    look copied however they came about. A background may well be the very picture that was given: it costs something
    only if it stands still though the source's moves.
    """
    if where.category in (BACKGROUND, STYLE):
        return _scene(reference, where, embed)
    return _subject(reference, where, embed)


def _subject(reference: np.ndarray, where: Where, embed: Embed) -> dict[str, float]:
    places, masks = where.things(_FRAMES)
    seen = [number for number, mask in enumerate(masks) if mask.sum() >= _LEAST]
    if not seen:
        return _values(0.0, 0.0, 0.0)
    own = cutout.alone(shrunk(reference[None], _SIDE)[0])
    own = pixels.resized(own, *reference.shape[1::-1])
    if own.sum() < _LEAST:
        own = np.ones_like(own)
    page = _page(reference[own])
    frames = where.both.edit[places]
    shown = [_alone(frames[number], masks[number], page) for number in seen]
    vectors = embed([_alone(reference, own, page), *shown])
    similarity = float((vectors[1:] @ vectors[0]).mean())
    small, before = shrunk(reference[None], _SIDE)[0], where.both.source[places]
    pages = [_with_page(reference, own, before[number], frames[number], masks[number]) for number in seen]
    frames = shrunk(frames[seen], _SIDE)
    height, width = frames.shape[1:3]
    masks = np.stack([pixels.resized(masks[number], width, height) for number in seen])
    things = [leak.of_subject(small, frames[[number]], masks[[number]]) for number in range(len(seen))]
    brought = views.brought(reference, own)
    part = brought.structure[brought.inner] if brought.inner.any() else brought.structure
    # A page in the middle of a clip tells of a paste whatever is on it.
    matters = max(pixels.ramp(float(part.std()), *_STRUCTURE), pixels.ramp(float(np.mean(pages)), *_COPY))
    return _values(similarity, float(np.mean(np.maximum(things, pages))), matters)


def _with_page(
    reference: np.ndarray, own: np.ndarray, before: np.ndarray, after: np.ndarray, mask: np.ndarray
) -> float:
    """How much of the reference's plain ground is in the edit around its thing, where the source has none of it."""
    left, top, right, bottom = pixels.bounds(mask)
    parts = [np.ascontiguousarray(frame[top:bottom, left:right]) for frame in (before, after)]
    whole, before, after = (pixels.resized(one, views.SIDE, views.SIDE).astype(np.int16) for one in (reference, *parts))
    ground = ~pixels.grown(pixels.resized(own, views.SIDE, views.SIDE), 3)
    ground &= np.abs(before - whole).max(axis=-1) > _SAME
    if ground.mean() < 0.05:
        return 0.0
    return float((np.abs(after - whole).max(axis=-1) <= _SAME)[ground].mean())


def _scene(reference: np.ndarray, where: Where, embed: Embed) -> dict[str, float]:
    places, before = where.things(_FRAMES)
    frames = shrunk(where.both.edit[places], _SIDE)
    height, width = frames.shape[1:3]
    before = np.stack([pixels.grown(pixels.resized(mask, width, height), 2) for mask in before])
    seen = [number for number, mask in enumerate(before) if mask.mean() < 0.95]
    if not seen:
        return _values(0.0, 0.0, 0.0)
    pictures = [np.rint(cutout.filled(frames[number], ~before[number])).astype(np.uint8) for number in seen]
    vectors = embed([reference, *pictures])
    similarity = float((vectors[1:] @ vectors[0]).mean())
    copies = [leak.of_scene(reference, frames[[number]], before[[number]]) for number in seen]
    structure = views.structure(shrunk(reference[None], 96)[0])
    matters = pixels.ramp(float(structure.std()), *_STRUCTURE) * _stands(where)
    return _values(similarity, float(np.mean(copies)), matters)


def _values(similarity: float, copying: float, matters: float) -> dict[str, float]:
    similarity = max(0.0, similarity)
    loss = _LOSS * matters * pixels.ramp(copying, *_COPY)
    return {
        "reference_similarity": similarity, "copy_paste": copying, "reference_fidelity": similarity * (1 - loss),
    }  # fmt: skip


def _stands(where: Where) -> float:
    """Whether the edit's background stands still though the source's moves, 0 to 1."""
    both, moved, moved_before = where.both, 0.0, 0.0
    for place in motion.pairs(len(both.edit)):
        ground = where.region[place] & where.region[place + 1]
        if ground.any():
            before, after = (_step(clip, place, ground) for clip in (both.source, both.edit))
            moved_before, moved = moved_before + before, moved + after
    least = 0.5 * max(1, len(both.edit) - 1)
    return pixels.ramp(moved / moved_before, 0.4, 0.1) if moved_before > least else 0.0


def _step(clip: np.ndarray, place: int, mask: np.ndarray) -> float:
    return float(np.abs(clip[place + 1][mask].astype(np.int16) - clip[place][mask]).mean())


def _page(colours: np.ndarray) -> int:
    """Which plain ground a thing of these colours, ``[N, 3]``, stands out from: white, where that will do."""
    apart = [float(np.quantile(np.abs(colours.astype(np.int16) - page).max(axis=-1), 0.1)) for page in _PAGES]
    return _PAGES[0] if apart[0] > _STANDS_OUT else _PAGES[int(np.argmax(apart))]


def _alone(picture: np.ndarray, mask: np.ndarray, page: int) -> np.ndarray:
    """A thing by its mask in the middle of a square page: uint8 ``[S, S, 3]``."""
    left, top, right, bottom = pixels.bounds(mask)
    part, own = picture[top:bottom, left:right], mask[top:bottom, left:right]
    height, width = own.shape
    side = round(max(height, width) * (1 + 2 * _ROOM)) + 2
    whole = np.full((side, side, 3), page, np.uint8)
    rows, columns = (side - height) // 2, (side - width) // 2
    whole[rows : rows + height, columns : columns + width] = np.where(own[..., None], part, page)
    return whole
