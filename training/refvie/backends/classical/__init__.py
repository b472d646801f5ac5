"""Answers to all stages by classical image processing on a CPU: no weights, nothing to download.

What it can do: compare. It finds where a target differs from its source, cuts out what is there by its colours, and
puts backgrounds together from several frames. It reads of an instruction whether something is to be added, removed or
changed, or the background or the style, and the names of colours, sides and a few styles (see
:mod:`.wording`), and checks these against the pixels that changed. It sees noise, flicker, blur and block edges that
the source has not.

What it cannot do: see what a picture shows. A red ball passes for a red car, and a cat is as good an answer to "add a
dog" as a dog; where an instruction names nothing that it could check, it says so in its reason and gives the middle of
the scale. It does not know a thing in the colours of its ground from the ground, cuts a shadow out with its thing or
not as it happens, and takes a background for changed wherever an edit model has drawn it anew in other colours. It
paints what the clip shows, mirrored, turned and lit otherwise at most, never another side of it.

Good enough to try the pipeline, to sort out what is plainly broken, and to test against exact truth
(:mod:`training.refvie.truth`); for quadruplets to train on, use models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...pairs.pair import BACKGROUND, SCENE, STYLE
from .. import Check, Match, Painting, Quality, Region, Track, View, pixels
from . import cutout, descriptor, difference, judging, painting, verifying


class _Classical:
    version = 1
    prompts: tuple[str, ...] = ()
    unkeyed: tuple[str, ...] = ()


class Judge(_Classical):
    """Scores by what can be compared, see :mod:`.judging`."""

    def judge(self, views: Sequence[View], attempt: int = 0) -> list[Quality | None]:
        return [judging.judge(view) for view in views]


class Grounder(_Classical):
    """The region by what has changed, its name by the wording."""

    def locate(self, views: Sequence[View], attempt: int = 0) -> list[Region | None]:
        return [self._one(view) for view in views]

    def _one(self, view: View) -> Region:
        seen = judging.see(view)
        if not seen.wish.category:
            raise ValueError("What kind of edit it is cannot be read from the instruction; give its category.")
        return Region(seen.wish.category, seen.wish.name, tuple(pixels.box(mask) for mask in seen.masks))


class Segmenter(_Classical):
    """The region's pixels by their colours and by what has changed."""

    def track(self, tracks: Sequence[Track]) -> list[np.ndarray]:
        return [self._one(track) for track in tracks]

    def _one(self, track: Track) -> np.ndarray:
        source, target, category = track.source, track.target, track.region.category
        if category == STYLE:
            return np.ones(target.shape[:3], bool)
        changed = difference.changed(source, target, category == BACKGROUND)
        if category == BACKGROUND:
            return cutout.foreground(source, target, changed)
        return cutout.changed_thing(source, target, track.region.boxes, changed, category)


class Painter(_Classical):
    """Cut out of the clip, or put together from its frames."""

    def paint(self, paintings: Sequence[Painting]) -> list[np.ndarray]:
        return [(painting.scene if one.kind == SCENE else painting.subject)(one) for one in paintings]


class Verifier(_Classical):
    """Colours, outline and wholeness of the reference."""

    def verify(self, checks: Sequence[Check], attempt: int = 0) -> list[Match | None]:
        return [verifying.verify(check) for check in checks]


class Embedder(_Classical):
    """A fixed descriptor of colours and edges, see :mod:`.descriptor`."""

    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        if not len(pictures):
            return np.zeros((0, descriptor.SIZE), np.float32)
        return np.stack([descriptor.describe(picture) for picture in pictures]).astype(np.float32)
