"""What a run came to: scores with and without failures, and numbers without a judge."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from . import statistics
from .folder import DONE, FAILED, Folder, Verdict
from .items import LOWEST, Item
from .statistics import Mean, Steadiness

SCORED, EDIT_FAILED, JUDGE_FAILED = "scored", "edit failed", "judge failed"
NOT_MADE, NOT_JUDGED = "not made yet", "not judged yet"
FAILURES, MISSING = (EDIT_FAILED, JUDGE_FAILED), (NOT_MADE, NOT_JUDGED)
STATUSES = (SCORED, *FAILURES, *MISSING)


@dataclass(frozen=True)
class Scored:
    """What became of one item."""

    item: Item
    status: str
    """Of :data:`STATUSES`."""
    scores: dict[str, float] = field(default_factory=dict)
    """By criterion, the mean of the repeats."""
    repeats: tuple[float, ...] = ()
    """Of each repeat, the mean of the criteria."""
    reason: str = ""
    """The judge's words, or why there is no score."""

    @property
    def overall(self) -> float | None:
        """Mean of the criteria."""
        return float(np.mean(list(self.scores.values()))) if self.scores else None

    @property
    def counted(self) -> float | None:
        """The same, where a failure is the lowest score; None for what is missing."""
        return float(LOWEST) if self.status in FAILURES else self.overall


@dataclass(frozen=True)
class Summary:
    """Of some items."""

    without: Mean
    """Without failures."""
    counting: Mean
    """With each failure as the lowest score."""
    counts: dict[str, int]
    """By status, of all items."""
    criteria: dict[str, Mean]
    """By criterion, without failures."""

    @property
    def failed(self) -> int:
        return sum(self.counts[status] for status in FAILURES)

    @property
    def missing(self) -> int:
        return sum(self.counts[status] for status in MISSING)


@dataclass(frozen=True)
class Results:
    """Of a run and a judge."""

    bench: str
    system: str
    judge: str
    """The model."""
    identity: str
    audit: dict | None
    items: list[Scored]
    overall: Summary
    """Over all items; each counts once."""
    by_category: dict[str, Summary]
    macro: Mean
    """The mean of the categories' means, with failures."""
    steadiness: Steadiness | None

    @property
    def complete(self) -> bool:
        return not self.overall.missing

    def as_json(self) -> dict:
        """All of it, for other programs."""
        told = dataclasses.asdict(self)
        told["items"] = [
            {"id": one.item.id, "category": one.item.category, "status": one.status, "scores": one.scores,
             "overall": one.overall, "repeats": one.repeats, "reason": one.reason}
            for one in self.items
        ]  # fmt: skip
        return told | {"complete": self.complete}

    def text(self) -> str:
        """The means as a table in Markdown, with the failures."""
        lines = [
            "| category | items | failed | missing | mean | failures as 1 |", "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for name, one in [*self.by_category.items(), ("all", self.overall)]:
            cells = (sum(one.counts.values()), one.failed, one.missing, one.without.text(), one.counting.text())
            lines.append("| " + " | ".join(map(str, (name, *cells))) + " |")
        if not self.complete:
            lines += ["", f"{self.overall.missing} items are not made or not judged yet: this is not the whole run."]
        if self.steadiness:
            lines += ["", f"The judge's repeats deviate by {self.steadiness.deviation:.2f} an item."]
        failed = [one for one in self.items if one.status in FAILURES]
        if failed:
            lines += ["", "Failed:", *(f"- {one.item.id} ({one.status}): {one.reason}" for one in failed)]
        return "\n".join(lines)


def of(folder: Folder, judge: str) -> Results:
    """A run as a judge has scored it. ValueError for a judge that has not."""
    if judge not in folder.judges():
        known = ", ".join(folder.judges()) or "none"
        raise ValueError(f"{folder.path} has no scores by {judge}; there are {known}.")
    told, verdicts = folder.judge(judge), folder.verdicts(judge)
    items = [_scored(folder, item, verdicts.get(item.id, [])) for item in folder.items]
    categories = list(dict.fromkeys(item.category for item in folder.items))
    return Results(
        folder.run["bench"], folder.run["system"]["name"], told["model"], told["identity"], told["audit"], items,
        _summary(items), {name: _summary([one for one in items if one.item.category == name]) for name in categories},
        statistics.mean(_groups(items, "counted"), macro=True), statistics.steadiness([one.repeats for one in items]),
    )  # fmt: skip


def _scored(folder: Folder, item: Item, verdicts: Sequence[Verdict]) -> Scored:
    edit = folder.edit(item)
    if edit is None:
        return Scored(item, NOT_MADE)
    if edit.status == FAILED:
        return Scored(item, EDIT_FAILED, reason=edit.error)
    done = [one for one in verdicts if one.status == DONE]
    if not done:
        return Scored(item, JUDGE_FAILED, reason=verdicts[0].error) if verdicts else Scored(item, NOT_JUDGED)
    scores = {name: float(np.mean([one.scores[name] for one in done])) for name in item.criteria}
    repeats = tuple(float(np.mean([one.scores[name] for name in item.criteria])) for one in done)
    return Scored(item, SCORED, scores, repeats, done[0].reason)


def _groups(items: Sequence[Scored], value: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for one in items:
        if (told := getattr(one, value)) is not None:
            found.setdefault(one.item.category, []).append(told)
    return found


def _summary(items: Sequence[Scored]) -> Summary:
    counts = Counter(one.status for one in items)
    criteria: dict[str, dict[str, list[float]]] = {}
    for one in items:
        for name, value in one.scores.items():
            criteria.setdefault(name, {}).setdefault(one.item.category, []).append(value)
    return Summary(
        statistics.mean(_groups(items, "overall")), statistics.mean(_groups(items, "counted")),
        {status: counts[status] for status in STATUSES},
        {name: statistics.mean(groups) for name, groups in criteria.items()},
    )  # fmt: skip


# Numbers without a judge


@dataclass(frozen=True)
class Number:
    """One metric over a run."""

    mean: Mean
    by_category: dict[str, Mean]
    absent: int
    """Items that were measured, and to which it does not apply."""


@dataclass(frozen=True)
class Numbers:
    """All metrics of a run."""

    numbers: dict[str, Number]
    """By metric, those that any item has."""
    measured: int
    failed: dict[str, str]
    """By item that could not be measured, why."""
    missing: int
    """Items without an edit, or not measured yet."""
    identities: tuple[str, ...]
    """What was measured is known by: more than one do not compare."""


def numbers(folder: Folder) -> Numbers:
    """What was measured of a run without a judge."""
    known = folder.measured()
    good = {item.id: item for item in folder.items if item.id in known and not known[item.id].error}
    names = list(dict.fromkeys(name for item in good for name in known[item].values))
    found = {}
    for name in names:
        groups: dict[str, list[float]] = {}
        for item in good.values():
            value = known[item.id].values.get(name)
            if value is not None:
                groups.setdefault(item.category, []).append(value)
        if groups:
            by_category = {category: statistics.mean({category: values}) for category, values in groups.items()}
            absent = len(good) - sum(map(len, groups.values()))
            found[name] = Number(statistics.mean(groups), by_category, absent)
    failed = {item.id: known[item.id].error for item in folder.items if item.id in known and known[item.id].error}
    identities = tuple(sorted({known[item].identity for item in good}))
    return Numbers(found, len(good), failed, len(folder.items) - len(good) - len(failed), identities)


def text_of_numbers(folder: Folder) -> str:
    """The metrics as a table in Markdown."""
    found = numbers(folder)
    lines = ["| metric | mean (95% interval) | items | does not apply |", "|---|---|---|---|"]
    for name, one in found.numbers.items():
        lines.append(f"| {name} | {one.mean.text(3)} | {one.mean.count} | {one.absent} |")
    if found.missing:
        lines += ["", f"{found.missing} items have no edit or are not measured."]
    if found.failed:
        lines += ["", "Failed:", *(f"- {item}: {why}" for item, why in found.failed.items())]
    return "\n".join(lines)
