"""What a run came to, in numbers: worked out by SQLite, so that memory stays flat whatever the number of samples."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .. import select, stages
from ..config import Bound, Config
from ..ledger import DONE, Ledger

PAIRS, REVIEW, DOUBLES = "pairs", "review", "deduplicate"
STEPS = (PAIRS, REVIEW, *stages.CLASSES, DOUBLES)
"""In the order in which samples drop out: a person's word goes before every bound."""
BROKEN, BOUNDED, NO_REFERENCE, DOUBLED, PERSON, WAITS = "failed", "bound", "pair", "double", "person", "waits"
"""Sorts of reasons: it failed or has no answer; a value is out of its bound; no reference shows such an edit, so it is
a pair at most; it is there twice; a person said so; it is not known yet."""
BINS = 32
_SCALES = {"score": 10.0, "locate": 1.0, "segment": 1.0, "verify": 10.0, "verify.leak": 1.0}
"""Where values end that begin at 0, by value or stage."""

_BOUND = re.compile(r"[a-z]+\.[a-z_]+ \([^)]*\)")
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][^\s\\/:;,]+)+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LONGEST = 160


@functools.lru_cache(maxsize=1 << 14)
def kind(reason: str) -> str:
    """A reason without what differs from sample to sample: paths, numbers, other samples' ids."""
    if _BOUND.fullmatch(reason):
        return reason
    for begin in ("looks like ", "the same files as "):
        if reason.startswith(begin):
            return f"{begin}another"
    told = _NUMBER.sub("#", _PATH.sub("…", reason)).strip()
    return (told if len(told) <= _LONGEST else f"{told[:_LONGEST]}…") or "no message"


def sort(stage: str, reason: str) -> str:
    """Of a reason of a sample that is not kept."""
    if reason == select.WAITING:
        return WAITS
    if reason == select.NO_REFERENCE:
        return NO_REFERENCE
    if stage in (REVIEW, DOUBLES):
        return PERSON if stage == REVIEW else DOUBLED
    return BOUNDED if _BOUND.fullmatch(reason) else BROKEN


def prepare(book: Ledger, seed: int = 0) -> None:
    """Fill the temporary table ``fates``, which the other functions ask: the verdicts, with the ``sort`` and the
    ``kind`` of each reason, both "" for what is kept, and a ``lot`` that looks random."""
    book.db.create_function("kind_of", 1, kind, deterministic=True)
    book.db.create_function("sort_of", 2, sort, deterministic=True)
    book.db.executescript(
        "DROP TABLE IF EXISTS temp.fates;"
        "CREATE TEMP TABLE fates (number INTEGER PRIMARY KEY, origin, category, kept, instruct, stage, sort, kind, lot)"
    )
    book.db.execute(
        "INSERT INTO fates SELECT number, origin, category, kept, instruct, stage,"
        " CASE WHEN kept THEN '' ELSE sort_of(stage, reason) END AS sort,"
        " CASE WHEN kept THEN '' ELSE kind_of(reason) END AS kind,"
        " ((number + ?) * 2654435761) % 4294967296 AS lot FROM verdicts ORDER BY number",
        (seed % 1_000_003,),
    )


@dataclass(frozen=True)
class Totals:
    """Of the whole run."""

    pairs: int
    kept: int
    instruct: int
    """Good enough by their instruction, those that are kept among them."""
    accepted: int
    rejected: int
    """By a person."""


def totals(book: Ledger) -> Totals:
    counts = book.db.execute("SELECT count(*), coalesce(sum(kept), 0), coalesce(sum(instruct), 0) FROM fates")
    chosen = book.db.execute(
        "SELECT coalesce(sum(accepted), 0), coalesce(sum(NOT accepted), 0) FROM choices"
        " WHERE sample IN (SELECT number FROM fates)"
    )
    return Totals(*counts.fetchone(), *chosen.fetchone())


@dataclass(frozen=True)
class Step:
    """What became of the samples that came to a stage."""

    name: str
    entered: int
    lost: dict[str, int]
    """By sort of reason."""

    @property
    def passed(self) -> int:
        return self.entered - sum(self.lost.values())


def funnel(book: Ledger) -> list[Step]:
    """The steps, from all pairs to those that are kept."""
    rows = book.db.execute("SELECT stage, sort, count(*) FROM fates WHERE NOT kept GROUP BY 1, 2 ORDER BY 1, 2")
    lost: dict[str, dict[str, int]] = {}
    for stage, why, count in rows:
        lost.setdefault(stage, {})[why] = count
    left = book.db.execute("SELECT count(*) FROM fates").fetchone()[0]
    steps = []
    for name in STEPS:
        steps.append(Step(name, left, lost.get(name, {})))
        left = steps[-1].passed
    return steps


@dataclass(frozen=True)
class Group:
    """The samples of one origin or category."""

    name: str
    pairs: int
    kept: int
    instruct: int
    left: tuple[int, ...]
    """How many are left after each step."""


def groups(book: Ledger, column: str, most: int = 30) -> list[Group]:
    """The largest groups by "origin" or "category"."""
    sums = ", ".join(f"sum(NOT kept AND stage = '{name}')" for name in STEPS)
    rows = book.db.execute(
        f"SELECT {column}, count(*), sum(kept), sum(instruct), {sums} FROM fates GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?",
        (most,),
    )
    found = []
    for name, pairs, kept, instruct, *lost in rows:
        left = tuple(pairs - sum(lost[: place + 1]) for place in range(len(lost)))
        found.append(Group(name, pairs, kept, instruct, left))
    return found


@dataclass(frozen=True)
class Reason:
    """Why samples are not kept, or failed."""

    stage: str
    sort: str
    kind: str
    count: int
    examples: tuple[str, ...]
    """Ids of one or two of them."""


def reasons(book: Ledger, where: str = "1", most: int = 40) -> list[Reason]:
    """The most frequent ones. ``where``: a condition in SQL on ``fates``."""
    rows = book.db.execute(
        f"SELECT stage, sort, kind, count(*), min(number), max(number) FROM fates WHERE NOT kept AND {where}"
        " GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 3 LIMIT ?",
        (most,),
    ).fetchall()
    return [Reason(*row[:4], _ids(book, row[4:])) for row in rows]


def _ids(book: Ledger, numbers: Sequence[int]) -> tuple[str, ...]:
    found = dict.fromkeys(numbers)
    query = "SELECT id FROM samples WHERE number = ?"
    return tuple(book.db.execute(query, (number,)).fetchone()[0] for number in found)


@dataclass(frozen=True)
class Histogram:
    """How a value is spread over the samples that have it."""

    name: str
    """"stage.value"."""
    low: float
    """Where it begins and ends."""
    high: float
    least: float
    most: float
    mean: float
    kept: tuple[int, ...]
    """Samples that are kept, by bin; the bins are equally wide from ``low`` to ``high``."""
    others: tuple[int, ...]
    bound: Bound | None
    broken: int
    """How many are out of the bound, those among them that dropped out before."""


@dataclass(frozen=True)
class Work:
    """What a stage did and what it cost. Results of earlier versions and models are not counted."""

    stage: str
    model: str
    done: int
    failed: int
    missing: int
    seconds: float
    """Together, of one copy of the model."""
    attempts: int
    errors: tuple[Reason, ...]
    """The most frequent ones, with "failed" or "missing" as their sort."""
    histograms: tuple[Histogram, ...]

    @property
    def results(self) -> int:
        return self.done + self.failed + self.missing


def work(book: Ledger, given: Config, name: str, most: int = 12) -> Work:
    """Of one stage."""
    plan, tells = stages.plan(given)[name], stages.CLASSES[name].tells
    arguments: dict = {}
    values = "".join(f", json_extract(r.\"values\", '$.{one}') AS {_column(one)}" for one in tells)
    join = book.join(plan, arguments).replace("LEFT JOIN", "JOIN", 1).replace(f'"{name}"', "r")
    book.db.executescript("DROP TABLE IF EXISTS temp.told")
    book.db.execute(
        "CREATE TEMP TABLE told AS SELECT s.number AS number, f.kept AS kept, r.status AS status, r.seconds AS seconds,"
        f" r.attempts AS attempts, r.model AS model, CASE WHEN r.status <> '{DONE}' THEN kind_of(r.error) END AS error"
        f"{values} FROM fates f CROSS JOIN samples s ON s.number = f.number {join}",
        arguments,
    )
    sums = book.db.execute(
        "SELECT coalesce(max(model), ''), coalesce(sum(status = 'done'), 0), coalesce(sum(status = 'failed'), 0),"
        " coalesce(sum(status = 'missing'), 0), coalesce(sum(seconds), 0), coalesce(sum(attempts), 0) FROM told"
    ).fetchone()
    errors = book.db.execute(
        "SELECT status, error, count(*), min(number), max(number) FROM told WHERE error IS NOT NULL"
        " GROUP BY 1, 2 ORDER BY 3 DESC, 2 LIMIT ?",
        (most,),
    ).fetchall()
    found = [Reason(name, *row[:3], _ids(book, row[3:])) for row in errors]
    made = [_histogram(book, name, one, given) for one in tells]
    book.db.executescript("DROP TABLE temp.told")
    return Work(name, *sums, tuple(found), tuple(one for one in made if one))


def _column(value: str) -> str:
    return f'"told_{value}"'


def _histogram(book: Ledger, stage: str, value: str, given: Config) -> Histogram | None:
    column, name = _column(value), f"{stage}.{value}"
    bound = given.keep.get(name)
    below, above = (getattr(bound, end, None) for end in ("min", "max"))
    least, most, mean, broken = book.db.execute(
        f"SELECT min({column}), max({column}), avg({column}), sum({column} < ?1 OR {column} > ?2) FROM told"
        f" WHERE typeof({column}) IN ('real', 'integer')",
        (float("-inf") if below is None else below, float("inf") if above is None else above),
    ).fetchone()
    if least is None:
        return None
    low, high = _range(name, float(least), float(most), [end for end in (below, above) if end is not None])
    rows = book.db.execute(
        f"SELECT min(?1, CAST(({column} - ?2) * ?3 AS INTEGER)), sum(kept), sum(NOT kept) FROM told"
        f" WHERE typeof({column}) IN ('real', 'integer') GROUP BY 1",
        (BINS - 1, low, BINS / (high - low)),
    )
    kept, others = [0] * BINS, [0] * BINS
    for place, with_reference, without in rows:
        kept[place], others[place] = with_reference, without
    return Histogram(
        name, low, high, float(least), float(most), float(mean), tuple(kept), tuple(others), bound, int(broken)
    )


def _range(name: str, low: float, high: float, bounds: Sequence[float]) -> tuple[float, float]:
    """Where a histogram begins and ends, so that all values and bounds are in it."""
    scale = _SCALES.get(name, _SCALES.get(name.partition(".")[0]))
    low, high = min(low, *bounds, high), max(high, *bounds, low)
    if scale and low >= 0 and high <= scale:
        return 0.0, scale
    if 0 <= low < high / 10:
        low = 0.0
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def sheet(book: Ledger, where: str, by: str, most: int) -> list[int]:
    """Numbers of samples, by turns from each group, and from each in the order of their lots.

    Args:
        where: a condition in SQL on ``fates``. by: columns that make a group.
    """
    rows = book.db.execute(
        f"SELECT number FROM (SELECT number, lot, row_number() OVER (PARTITION BY {by} ORDER BY lot) AS turn FROM fates"
        f" WHERE {where}) ORDER BY turn, lot LIMIT ?",
        (most,),
    )
    return [row[0] for row in rows]
