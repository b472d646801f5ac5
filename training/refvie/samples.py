"""Samples with their verdicts and all that the stages told of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from . import stages
from .config import Config
from .ledger import Ledger


@dataclass(frozen=True)
class Sample:
    """One sample of a run."""

    number: int
    id: str
    origin: str
    category: str
    prompt: str
    source: str
    """Absolute path of the clip."""
    target: str
    kept: bool
    instruct: bool
    stage: str
    """The first that it did not pass, "" if it is kept."""
    reason: str
    accepted: bool | None
    """A person's word."""
    values: dict[str, dict]
    """By stage, what it told."""
    artefacts: dict[str, str]
    """By stage, the path in the run's folder of what it made."""

    def scores(self) -> dict[str, float]:
        """By "stage.value", the numbers that can have a bound."""
        return {
            f"{stage}.{name}": told[name]
            for stage, told in self.values.items()
            for name in stages.CLASSES[stage].tells
            if isinstance(told.get(name), (int, float))
        }


def read(
    book: Ledger, given: Config, where: str = "1", arguments: Mapping[str, object] | None = None,
    order: str = "v.number", limit: int = -1,
) -> Iterator[Sample]:  # fmt: skip
    """Samples, one after another, of a ledger that :func:`training.refvie.pipeline.opened` gave.

    Args:
        where: a condition in SQL on the verdicts ``v``, the samples ``s``, the choices ``c`` and each stage's result
            under the stage's name, with ``arguments``. order: the same, to sort by. limit: -1 for all.
    """
    known: dict = {**(arguments or {}), "limit": limit}
    names = list(stages.CLASSES)
    columns = ", ".join(f'"{name}"."values", "{name}".artefact' for name in names)
    rows = book.db.execute(
        "SELECT v.number, v.id, v.origin, v.category, s.prompt, s.source, s.target, v.kept, v.instruct, v.stage,"
        f" v.reason, c.accepted, {columns} FROM {joined(book, given, known)}"
        f" WHERE {where} ORDER BY {order} LIMIT :limit",
        known,
    )
    for row in rows:
        kept, instruct, stage, reason, accepted = row[7:12]
        told, made = row[12::2], row[13::2]
        yield Sample(
            *row[:7], bool(kept), bool(instruct), stage, reason, None if accepted is None else bool(accepted),
            {name: json.loads(text) for name, text in zip(names, told) if text},
            {name: path for name, path in zip(names, made) if path},
        )  # fmt: skip


def joined(book: Ledger, given: Config, arguments: dict) -> str:
    """What :func:`read` asks, as SQL behind a FROM; its arguments are added."""
    joins = [book.join(stage, arguments) for stage in stages.plan(given).values()]
    return (
        f"verdicts v CROSS JOIN samples s ON s.number = v.number {' '.join(joins)}"
        " LEFT JOIN choices c ON c.sample = v.number"
    )


def broken(given: Config, scores: Mapping[str, float]) -> set[str]:
    """Names of those scores that are out of their bounds."""
    return {
        name
        for name, bound in given.keep.items()
        if name in scores
        and (
            (bound.min is not None and scores[name] < bound.min) or (bound.max is not None and scores[name] > bound.max)
        )
    }
