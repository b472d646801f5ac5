"""Where an edit is, and where nothing was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kiwi_core import media

from ...refvie import backends
from ...refvie.backends import Region, Track, pixels
from ...refvie.backends.classical import difference, wording
from ...refvie.frames import spread
from ...refvie.pairs.pair import ADD, BACKGROUND, CATEGORIES, CHANGE, STYLE
from .. import clips
from ..items import BACKGROUNDS, STYLES, Item

_SIDE = 256
"""Longest side in pixels at which regions are looked for."""
_LEAST = 0.002
"""Share of the clip that must be outside for there to be anything preserved."""


def category_of(item: Item) -> str:
    """Which of :data:`training.refvie.pairs.pair.CATEGORIES` an item's edit is; a local change where nothing tells.

    What stands in a reference's place is a change or an addition, as the wording has it.
    """
    if item.category in STYLES:
        return STYLE
    if item.category in BACKGROUNDS:
        return BACKGROUND
    if item.category in CATEGORIES:
        return item.category
    read = wording.read(item.prompt).category
    if item.reference is not None:
        return read if read == ADD else CHANGE
    return read or CHANGE


@dataclass(frozen=True, eq=False)
class Where:
    """The region of an edit in its clip, of T frames of H x W pixels."""

    item: Item
    both: clips.Both
    given: np.ndarray | None
    """bool ``[T, H, W]`` if the benchmark knows the region."""

    @cached_property
    def category(self) -> str:
        return category_of(self.item)

    @cached_property
    def region(self) -> np.ndarray:
        """bool ``[T, H, W]``: as given, else found.

        Of a style's edit it is everywhere, of a background's all but what stands before it, of others what differs
        from the source and hangs together. Damage elsewhere that is as large as the edit passes for a part of it:
        only a given region tells.
        """
        if self.given is not None:
            return self.given
        if self.category == STYLE:
            return np.ones(self.both.edit.shape[:3], bool)
        source, edit = self._small
        if self.category == BACKGROUND:
            found = ~_tracked(source, edit, [None] * len(edit), BACKGROUND)
        else:
            found = difference.region(difference.changed(source, edit))
        height, width = self.both.edit.shape[1:3]
        return np.stack([pixels.resized(mask, width, height) for mask in found])

    @cached_property
    def outside(self) -> np.ndarray | None:
        """bool ``[T, H, W]``: all that is a few pixels away from the region; None if that is next to nothing."""
        margin = max(3, max(self.region.shape[1:]) // 160)
        outside = np.stack([~pixels.grown(mask, margin) for mask in self.region])
        return outside if outside.mean() >= _LEAST else None

    def things(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Some frames' places ``[N]``, and what stands there in the region, bool ``[N, H, W]``; of a background or a
        style, what stands before it."""
        places = spread(len(self.both.edit), most)
        if self.category in (BACKGROUND, STYLE):
            return places, ~self.region[places]
        small = [clip[places] for clip in self._small]
        masks = _tracked(*small, [pixels.box(mask) for mask in self.region[places]], self.category)
        height, width = self.both.edit.shape[1:3]
        return places, np.stack([pixels.resized(mask, width, height) for mask in masks])

    @cached_property
    def _small(self) -> tuple[np.ndarray, np.ndarray]:
        return shrunk(self.both.source, _SIDE), shrunk(self.both.edit, _SIDE)


def of(item: Item, both: clips.Both, align: str) -> Where:
    """The region of an item's edit. ValueError or FileNotFoundError for a given one that cannot be used."""
    return Where(item, both, None if item.region is None else _given(item, both, align))


def shrunk(frames: np.ndarray, side: int) -> np.ndarray:
    """Frames uint8 ``[T, H, W, 3]`` averaged until their longest side fits; smaller ones as they are."""
    height, width = frames.shape[1:3]
    scale = side / max(height, width)
    if scale >= 1:
        return frames
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.stack([pixels.resized(frame, *size) for frame in frames])


def _given(item: Item, both: clips.Both, align: str) -> np.ndarray:
    clip = media.load_video(item.region)
    count, (height, width) = len(both.edit), both.edit.shape[1:3]
    if len(clip.frames) == 1:
        places = np.zeros(count, int)
    else:
        places = clips.matched(len(clip.frames), clip.frame_rate, count, both.rate, align)
    if len(places) < count:
        raise ValueError(
            f"The region {item.region} ends after {len(places)} of the edit's {count} frames; give a picture or a clip "
            "as long as the source."
        )
    return np.stack([pixels.resized(clip.frames[place].mean(axis=-1) > 127, width, height) for place in places])


def _tracked(source: np.ndarray, edit: np.ndarray, boxes: list, category: str) -> np.ndarray:
    segmenter = backends.load("segment", "classical", {})
    return segmenter.track([Track(source, edit, Region(category, "", tuple(boxes)))])[0]
