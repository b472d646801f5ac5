"""Means with intervals, and whether one run is better than another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..intervals import wilson

RESAMPLES = 2000
_SEED = 20260302
_EXACT = 14
"""Items up to which every way to flip signs is tried."""
_FLIPS = 10_000


@dataclass(frozen=True)
class Mean:
    """A mean and its 95% interval, None of no values; one value has no interval."""

    value: float | None
    low: float | None
    high: float | None
    count: int

    def text(self, digits: int = 2) -> str:
        if self.value is None:
            return "-"
        if self.low is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def mean(groups: Mapping[str, Sequence[float]], macro: bool = False) -> Mean:
    """The mean of items' values with a bootstrap interval; items are drawn anew within each group.

    Groups of one item, which tell nothing of how values vary, are drawn from together. Of values that are all 0 or 1
    the interval is Wilson's, which knows that one of a few may be otherwise.

    Args:
        groups: values by group, such as an item's category. macro: the mean of the groups' means instead of the items'.
    """
    known = [np.asarray(values, float) for values in groups.values() if len(values)]
    count = sum(map(len, known))
    if not count:
        return Mean(None, None, None, 0)
    every = np.concatenate(known)
    value = float(np.mean([values.mean() for values in known]) if macro else every.mean())
    if count == 1:
        return Mean(value, None, None, count)
    if not macro and np.isin(every, (0, 1)).all():
        return Mean(value, *wilson(int(every.sum()), count), count)
    strata = [(values, 1 if macro else len(values)) for values in known if len(values) > 1]
    lone = [values for values in known if len(values) == 1]
    strata += [(np.concatenate(lone), len(lone))] if len(lone) > 1 else [(values, 1) for values in lone]
    weights = np.array([weight for _, weight in strata], float)
    rng = np.random.default_rng(_SEED)
    drawn = np.stack([
        values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1) for values, _ in strata
    ])  # fmt: skip
    low, high = np.percentile(weights / weights.sum() @ drawn, [2.5, 97.5])
    return Mean(value, float(low), float(high), count)


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of a paired permutation test: how often a mean as far from 0 comes about where each difference could
    as well have had the other sign. Exact for few items; 1 for none."""
    values = np.asarray(differences, float)
    values = values[values != 0]  # flipping nothing changes nothing
    if not len(values):
        return 1.0
    seen = abs(values.sum()) - 1e-9 * np.abs(values).sum()  # sums that are alike differ by their rounding
    if len(values) <= _EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
        return float((np.abs(signs @ values) >= seen).mean())
    rng = np.random.default_rng(_SEED)
    signs = rng.integers(0, 2, (_FLIPS, len(values))) * 2 - 1
    return float(((np.abs(signs @ values) >= seen).sum() + 1) / (_FLIPS + 1))


@dataclass(frozen=True)
class Steadiness:
    """How far a judge agrees with itself."""

    deviation: float
    """Mean standard deviation of an item's repeats."""
    error: float
    """Standard error that this causes in the mean of these items."""
    items: int
    """With two repeats or more."""


def steadiness(repeats: Sequence[Sequence[float]]) -> Steadiness | None:
    """Of items' repeated values; None where no item was judged twice."""
    several = [np.asarray(values, float) for values in repeats if len(values) > 1]
    if not several:
        return None
    variances = np.array([values.var(ddof=1) for values in several])
    counts = np.array([len(values) for values in several])
    error = float(np.sqrt((variances / counts).sum()) / len(several))
    return Steadiness(float(np.sqrt(variances).mean()), error, len(several))
