"""Is one run better than another, item by item?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import results, statistics
from .folder import Folder
from .statistics import Mean

ALL, NO_JUDGE = "all", "numbers without a judge"
_NEAR = 1e-9
"""Differences below it are rounding."""


@dataclass(frozen=True)
class Difference:
    """Of the second run from the first, over the items of both; more is better."""

    mean: Mean
    p: float
    """Of a paired sign-flip test."""
    wins: int
    """Items in which the second run is better."""
    ties: int
    losses: int


@dataclass(frozen=True)
class Comparison:
    """Two runs of a benchmark, A and B."""

    a: str
    b: str
    of: str
    """The judge whose scores are compared, or "numbers without a judge"."""
    differences: dict[str, Difference]
    """By category and under "all"; without a judge by metric, turned so that more is better."""
    alone: tuple[int, int]
    """Items that only A, and only B, has anything to say of."""
    lacking: int
    """Of A's, those that B was asked as well."""
    max_drop: float | None
    dropped: tuple[str, ...]
    """What fell by more than ``max_drop``."""

    @property
    def passed(self) -> bool:
        """Nothing fell, and no edit is lacking of which it cannot be told."""
        return self.max_drop is None or not (self.dropped or self.lacking)

    def text(self) -> str:
        """A table in Markdown, and the word of the gate."""
        lines = [
            f"{self.b} against {self.a}, by {self.of}.", "",
            "| | difference (95% interval) | p | better | same | worse |", "|---|---|---|---|---|---|",
        ]  # fmt: skip
        digits = 3 if self.of == NO_JUDGE else 2
        for name, one in self.differences.items():
            lines.append(f"| {name} | {one.mean.text(digits)} | {one.p:.3g} | {one.wins} | {one.ties} | {one.losses} |")
        if any(self.alone):
            left_out = zip(self.alone, (self.a, self.b))
            lines += ["", f"Left out: {', '.join(f'{count} items that only {name} has' for count, name in left_out)}."]
        if self.max_drop is not None:
            lacking = (f"{self.lacking} items that {self.b} lacks",) if self.lacking else ()
            told = "passed" if self.passed else f"failed by {', '.join((*self.dropped, *lacking))}"
            lines += ["", f"Allowed drop {self.max_drop:g}: {told}."]
        return "\n".join(lines)


def compare(
    a: Folder, b: Folder, judge: str | None = None, max_drop: float | None = None, per_category: bool = False
) -> Comparison:
    """Compare two runs by the judge that has scored both, or by their metrics if none has. A failed item counts as the
    lowest score, and what B was asked and lacks fails the gate, so that fewer edits cannot look better.

    Args:
        judge: name of the judge's folder, where several have scored both. max_drop: how far the mean may fall; without
            a judge, the mean of any metric in its own unit. per_category: whether it also holds for each category.

    Raises ValueError for runs of other items, of judges that are not the same, and where there is nothing to compare.
    """
    if max_drop is not None and not max_drop >= 0:
        raise ValueError(f"--max-drop is {max_drop}; give 0 or more.")
    asked = {item.id: (item.prompt, item.category) for item in a.items}
    both = [item.id for item in b.items if asked.get(item.id) == (item.prompt, item.category)]
    if not both:
        raise ValueError(f"{a.path} and {b.path} have no item in common; compare runs of one benchmark.")
    names = _named(a, b)
    chosen = _judge(a, b, judge)
    if chosen is None:
        if per_category and max_drop is not None:
            raise ValueError("Without a judge --max-drop holds for metrics, not for categories; leave --per-category.")
        differences, alone, lacking = _numbers(a, b, both)
        told = NO_JUDGE
    else:
        differences, alone, lacking = _scores(a, b, chosen, both)
        told = b.judge(chosen)["model"]
    dropped = ()
    if max_drop is not None:
        judged = differences if chosen is None or per_category else {ALL: differences[ALL]}
        dropped = tuple(name for name, one in judged.items() if one.mean.value < -max_drop - _NEAR)
    return Comparison(*names, told, differences, alone, lacking, max_drop, dropped)


def _named(a: Folder, b: Folder) -> tuple[str, str]:
    names = [folder.run["system"]["name"] for folder in (a, b)]
    return tuple(names) if names[0] != names[1] else (str(a.path), str(b.path))


def _judge(a: Folder, b: Folder, judge: str | None) -> str | None:
    """The judge's folder; None if there is none in either run."""
    both = sorted(set(a.judges()) & set(b.judges()))
    if judge is not None:
        for folder in (a, b):
            if judge not in folder.judges():
                known = ", ".join(folder.judges()) or "none"
                raise ValueError(f"{folder.path} has no scores by {judge}; there are {known}.")
        both = [judge]
    if not both:
        if a.judges() or b.judges():
            raise ValueError("No judge has scored both runs; have one score the other as well, with the same settings.")
        return None
    if len(both) > 1:
        raise ValueError(f"Several judges have scored both runs; say which with --judge: {', '.join(both)}.")
    if a.judge(both[0])["identity"] != b.judge(both[0])["identity"]:
        raise ValueError("The judges have the same name, but other settings; have one of them score both runs.")
    return both[0]


_Found = tuple[dict[str, Difference], tuple[int, int], int]


def _scores(a: Folder, b: Folder, judge: str, both: Sequence[str]) -> _Found:
    found = [{one.item.id: one for one in results.of(folder, judge).items} for folder in (a, b)]
    pairs: dict[str, list[float]] = {}
    alone = [sum(one.counted is not None for name, one in told.items() if name not in both) for told in found]
    lacking = 0
    for name in both:
        before, after = (told[name].counted for told in found)
        if before is None or after is None:
            alone[0] += before is not None
            alone[1] += after is not None
            lacking += before is not None
            continue
        pairs.setdefault(found[1][name].item.category, []).append(after - before)
    if not pairs:
        raise ValueError("No item was scored in both runs; score them first.")
    own = {f"category {name}" if name == ALL else name: values for name, values in pairs.items()}
    by_category = {name: _difference({name: one}) for name, one in own.items()}
    return {ALL: _difference(pairs)} | by_category, tuple(alone), lacking


def _numbers(a: Folder, b: Folder, both: Sequence[str]) -> _Found:
    from .exact import METRICS as EXACT
    from .metrics import METRICS
    from .metrics.table import LESS

    known = [{name: one for name, one in folder.measured().items() if not one.error} for folder in (a, b)]
    if len({one.identity for told in known for name, one in told.items() if name in both}) > 1:
        raise ValueError("The runs were measured by other models or versions; measure both with the same settings.")
    better = {name: one.better for name, one in (METRICS | EXACT).items()}
    categories = {item.id: item.category for item in b.items}
    found: dict[str, dict[str, list[float]]] = {}
    alone, lacking = [sum(name not in both for name in told) for told in known], 0
    for item in both:
        if not all(item in told for told in known):
            alone = [count + (item in told) for count, told in zip(alone, known)]
            lacking += item in known[0]
            continue
        before, after = (told[item].values for told in known)
        for name, sign in better.items():
            if sign and before.get(name) is not None and after.get(name) is not None:
                change = (after[name] - before[name]) * (-1 if sign == LESS else 1)
                found.setdefault(name, {}).setdefault(categories[item], []).append(change)
    if not found:
        raise ValueError("Nothing was scored or measured in both runs; do that first.")
    return {name: _difference(groups) for name, groups in found.items()}, tuple(alone), lacking


def _difference(groups: dict[str, list[float]]) -> Difference:
    values = np.concatenate([np.asarray(one, float) for one in groups.values()])
    near = np.abs(values) < _NEAR
    return Difference(
        statistics.mean(groups), statistics.sign_flip(np.where(near, 0, values)),
        int((values[~near] > 0).sum()), int(near.sum()), int((values[~near] < 0).sum()),
    )  # fmt: skip
