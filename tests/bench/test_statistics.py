"""Statistics where rounding could decide; what else there is of them is tested with the outcome."""

import itertools

import numpy as np
import pytest

from training.bench import statistics


def exactly(points):
    """p by whole numbers, which have no rounding."""
    known = points[points != 0]
    signs = np.array(list(itertools.product((1, -1), repeat=len(known))))
    return (np.abs(signs @ known) >= abs(known.sum())).mean() if len(known) else 1.0


def test_three_items_by_hand():
    # of the eight sums of 1, 2 and -4 with either sign, |-1| is matched or passed by 7, 3, 5 and 1, each twice
    assert statistics.sign_flip([1, 2, -4]) == 1.0
    assert statistics.sign_flip([1, 2, 4]) == 2 / 8 and statistics.sign_flip([-1, 2, 4]) == 4 / 8


def test_sums_that_are_alike_stay_so_in_thirds():
    # means of three criteria: 5, 4, -5 and -4 thirds add up to no 0 if they come out of subtractions
    rng = np.random.default_rng(0)
    for _ in range(1000):
        before, after = rng.integers(1, 6, (2, rng.integers(2, 11), 3))
        differences = after.astype(float).mean(axis=1) - before.astype(float).mean(axis=1)
        points = after.sum(axis=1) - before.sum(axis=1)
        told = statistics.sign_flip(np.where(points == 0, 0, differences))
        assert told == pytest.approx(exactly(points)), points
