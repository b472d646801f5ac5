"""A judge without weights: what RefVIE's classical back end can compare, on the benchmark's scale.

It sees differences and colours, and nothing in them (see :mod:`training.refvie.backends.classical`): good enough to
notice that nothing was done or that noise was added, not to tell a dog from a cat. Its audit says how far to trust it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...refvie.backends import Check, Quality, Region, Track, View, classical, pixels
from ...refvie.backends.classical import wording
from ...refvie.pairs.pair import BACKGROUND as SCENE_CATEGORY
from ...refvie.pairs.pair import CATEGORIES, CHANGE, SCENE
from ...refvie.pairs.pair import SUBJECT as THING
from ..items import BACKGROUND, BACKGROUNDS, CRITERIA, INSTRUCTION
from . import CLASSICAL, Case, Scores, ruled


class ClassicalJudge:
    """See the module."""

    def __init__(self, frames: int):
        self.name, self.frames = CLASSICAL, frames
        versions = [one.version for one in (classical.Judge, classical.Segmenter, classical.Verifier)]
        self.identity = f"{CLASSICAL} {versions} {frames}"
        self._judge, self._segmenter, self._verifier = classical.Judge(), classical.Segmenter(), classical.Verifier()

    def score(self, cases: Sequence[Case], attempt: int = 0) -> list[Scores | ValueError | None]:
        return [self._one(case) for case in cases]

    def _one(self, case: Case) -> Scores:
        category = _category(case)
        (quality,) = self._judge.judge([View(case.prompt, category, case.source, case.edit)])
        if case.kind == INSTRUCTION:
            values = quality.prompt_following, quality.consistency, quality.quality
            return _scored(case, values, quality.reason)
        same, reason = self._same(case, category)
        return _scored(case, (same, *_rest(case, quality)), " ".join(filter(None, (reason, quality.reason))))

    def _same(self, case: Case, category: str) -> tuple[float, str]:
        """Whether the edit shows what the reference does, 0 to 10."""
        if np.array_equal(case.source, case.edit):
            return 0.0, "The edit is the same as the source."
        boxes = tuple(None for _ in case.edit)
        if category != SCENE_CATEGORY:
            changed = classical.difference.region(classical.difference.changed(case.source, case.edit, False))
            boxes = tuple(map(pixels.box, changed))
        region = Region(category, "", boxes)
        (masks,) = self._segmenter.track([Track(case.source, case.edit, region)])
        kind = SCENE if category == SCENE_CATEGORY else THING
        (match,) = self._verifier.verify([Check(kind, "", case.prompt, case.reference, case.edit, masks)])
        return match.same, match.reason


def _rest(case: Case, quality: Quality) -> tuple[float, float]:
    if case.kind == BACKGROUND:
        return quality.consistency, quality.quality
    return quality.artifacts, min(quality.consistency, quality.naturalness)


def _category(case: Case) -> str:
    """The paper's category that a benchmark's stands for."""
    if case.category in CATEGORIES:
        return case.category
    if case.kind == BACKGROUND or case.category in BACKGROUNDS:
        return SCENE_CATEGORY
    return wording.read(case.prompt, "").category or CHANGE


def _scored(case: Case, values: Sequence[float], reason: str) -> Scores:
    names = CRITERIA[case.kind]
    return ruled(case.kind, {name: 1 + 4 * value / 10 for name, value in zip(names, values)}, reason)
