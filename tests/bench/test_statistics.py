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


def test_a_few_items_do_not_look_certain():
    alone = statistics.mean({"a": [3.0]})
    assert (alone.value, alone.low, alone.high, alone.text()) == (3.0, None, None, "3.00")
    apart = statistics.mean({"a": [1.0], "b": [3.0], "c": [5.0]})  # one of each category
    assert apart.value == 3 and apart.low < 2 and apart.high > 4
    assert statistics.mean({"a": [1.0], "b": [3.0], "c": [5.0]}, macro=True).low < 2
    all_right = statistics.mean({"a": [1.0] * 30, "b": [1.0] * 26})
    assert (all_right.value, round(all_right.low, 2), all_right.high) == (1.0, 0.94, 1.0)  # Wilson's, of 56 of 56


def test_a_mean_of_groups_weighs_them_alike():
    groups = {"a": [1.0, 1.0, 2.0, 2.0], "b": [4.0, 5.0], "c": [3.0]}
    found = statistics.mean(groups, macro=True)
    assert found.value == pytest.approx((1.5 + 4.5 + 3) / 3) and found.low < found.value < found.high
    assert found.low >= (1 + 4 + 3) / 3 and found.high <= (2 + 5 + 3) / 3
