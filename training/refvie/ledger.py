"""What is known of every sample, in one SQLite file that a kill cannot spoil.

A result is known by its stage, the stage's key (which stands for the stage's version, its model and the stages that it
needs) and the content of the sample. So nothing is computed twice, a new version of a stage leaves the others alone,
and going back to an old one finds what it had. Rows are never deleted: what is kept is a question to the ledger.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import Bound
from .pairs.pair import Pair

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

FILE, LOCK = "ledger.sqlite", "lock"
DONE, FAILED, MISSING = "done", "failed", "missing"
LOST = "lost"
"""What was done, but whose artefact is no longer in the folder, or damaged: it waits for its stage again."""
INGEST = "ingest"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS samples (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, source TEXT NOT NULL, target TEXT NOT NULL,
    prompt TEXT NOT NULL, origin TEXT NOT NULL, category TEXT NOT NULL, problem TEXT NOT NULL,
    given TEXT NOT NULL, content TEXT NOT NULL DEFAULT '', listed INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS results (
    stage TEXT NOT NULL, key TEXT NOT NULL, sample INTEGER NOT NULL, content TEXT NOT NULL, status TEXT NOT NULL,
    "values" TEXT NOT NULL, artefact TEXT NOT NULL, model TEXT NOT NULL, seconds REAL NOT NULL,
    attempts INTEGER NOT NULL, error TEXT NOT NULL, at REAL NOT NULL, vector BLOB,
    PRIMARY KEY (stage, key, sample, content)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS choices (sample INTEGER PRIMARY KEY, accepted INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS deaths (
    stage TEXT NOT NULL, key TEXT NOT NULL, sample INTEGER NOT NULL, alone INTEGER NOT NULL,
    PRIMARY KEY (stage, key, sample)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spools (name TEXT PRIMARY KEY, read INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Stage:
    """A stage as the ledger knows it."""

    name: str
    key: str
    needs: tuple[Stage, ...] = ()
    """Stages whose results it reads; all must be done."""
    after: tuple[Stage, ...] = ()
    """Stages whose bounds a sample must pass first."""
    where: str = ""
    """A condition more, in SQL, on the values of the needed stages, such as ``locate.kind <> ''``."""


@dataclass(frozen=True)
class Job:
    """A sample that waits for a stage, with what it needs."""

    number: int
    id: str
    content: str
    source: str
    target: str
    prompt: str
    category: str
    results: dict[str, dict]
    """By stage, ``{"key": ..., "values": {...}, "artefact": "path in the folder"}``."""

    def text(self) -> str:
        return json.dumps(self.__dict__)

    @classmethod
    def parse(cls, text: str) -> Job:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Result:
    """What a stage found out about a sample."""

    sample: int
    stage: str
    key: str
    content: str
    status: str
    """"done", "failed" (``error`` says why), "missing" (no answer that could be read), or "lost" of a result that is
    known and whose artefact is not there any more."""
    values: dict
    artefact: str = ""
    vector: bytes = b""
    model: str = ""
    seconds: float = 0.0
    attempts: int = 1
    error: str = ""
    at: float = 0.0


class Busy(RuntimeError):
    """Another process works in the folder."""


class Ledger:
    """The ledger of a folder.

    Args:
        writing: take the folder's lock. Busy if another process has it.
    """

    def __init__(self, folder: str | Path, writing: bool = False):
        self.folder = Path(folder)
        path = self.folder / FILE
        self._lock = None
        if writing:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / LOCK).open("w")
            try:
                if fcntl:
                    fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which workers would hold on to
            except OSError as error:
                self._lock.close()
                raise Busy(f"Another run works in {folder}; wait for it or end it.") from error
        elif not path.is_file():
            raise FileNotFoundError(f"There is no run in {folder}; start one with: python -m training.refvie run.")
        # The reviewer's server answers from threads of its own, one at a time.
        self.db = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")  # what a crash of the machine takes is still in the spools
        self.db.execute("PRAGMA cache_size = -200000")
        self.db.executescript(_SCHEMA)
        self.run = int(self.fact("run", "0"))

    def close(self) -> None:
        self.db.close()
        if self._lock:
            self._lock.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def fact(self, name: str, default: str = "") -> str:
        """A note about the whole run."""
        row = self.db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else default

    def note(self, name: str, value: str) -> None:
        self.db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    # Samples

    def take(self, pairs: Iterable[tuple[Pair, str]]) -> int:
        """Make these the samples of the run, each with a text that changes when its files do; returns their number.

        Samples of earlier runs stay, but are not worked on. A file that cannot be reached now, but could be when it was
        taken in, is taken as it was.
        """
        run, count = self.run + 1, 0
        self.db.execute("BEGIN")
        try:
            for pair, given in pairs:
                count += 1
                self.db.execute(
                    "INSERT INTO samples (id, source, target, prompt, origin, category, problem, given, listed)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (id) DO UPDATE SET listed = excluded.listed, origin = excluded.origin,"
                    " category = excluded.category, prompt = excluded.prompt, source = excluded.source,"
                    " target = excluded.target, problem = excluded.problem, given = excluded.given,"
                    " content = CASE WHEN given = excluded.given THEN content ELSE '' END",
                    (pair.id, pair.source, pair.target, pair.prompt, pair.origin, pair.category, pair.problem, given,
                     run),
                )  # fmt: skip
            self.note("run", str(run))
            self.db.execute("COMMIT")
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.run = run
        return count

    def taken(self, sample: str) -> tuple[Pair, str] | None:
        """A pair as it was taken in, and its text; None for one that is not known."""
        row = self.db.execute(
            "SELECT id, source, target, prompt, origin, category, problem, given FROM samples WHERE id = ?", (sample,)
        ).fetchone()
        return (Pair(*row[:7]), row[7]) if row else None

    def restore_content(self, ingest: Stage) -> None:
        """What earlier readings of the same files found: a sample whose files are as they once were has its content,
        also if they were read with other settings then."""
        self.db.execute(
            'UPDATE samples SET content = coalesce((SELECT json_extract(r."values", \'$.content\') FROM results r'
            " WHERE r.stage = ? AND r.sample = number AND r.content = given AND r.status = ?"
            " ORDER BY r.key = ? DESC, r.at DESC LIMIT 1), '') WHERE listed = ?",
            (ingest.name, DONE, ingest.key, self.run),
        )

    # Results

    def pending(
        self, stage: Stage, keep: Mapping[str, Bound], retry: bool = False, only: Sequence[int] | None = None
    ) -> Iterator[Job]:
        """Samples that wait for a stage: all that it needs is done, no result is there, and earlier bounds are passed
        or a person has accepted it; none that a person rejected.

        Args:
            keep: bounds by "stage.value". retry: also those that failed or are missing. only: numbers of samples.
        """
        query, arguments = self._pending(stage, keep, retry)
        wanted = None if only is None else set(only)
        for row in self.db.execute(query, arguments):
            if wanted is None or row[0] in wanted:
                found = row[7:]
                results = {
                    need.name: {"key": need.key, "values": json.loads(found[2 * i]), "artefact": found[2 * i + 1]}
                    for i, need in enumerate(stage.needs)
                }
                yield Job(*row[:7], results)

    def count(self, stage: Stage, keep: Mapping[str, Bound], retry: bool = False) -> int:
        """How many samples wait for a stage."""
        query, arguments = self._pending(stage, keep, retry)
        return self.db.execute(f"SELECT count(*) FROM ({query})", arguments).fetchone()[0]

    def _pending(self, stage: Stage, keep: Mapping[str, Bound], retry: bool) -> tuple[str, dict]:
        content = "given" if stage.name == INGEST else "content"
        columns = [f"s.{name}" for name in ("number", "id", content, "source", "target", "prompt", "category")]
        joins = ["LEFT JOIN choices c ON c.sample = s.number"]
        arguments = {"run": self.run, "stage": stage.name, "key": stage.key, "done": DONE}
        conditions = ["s.listed = :run", "s.problem = ''", "c.accepted IS NOT 0"]
        for other in {one.name: one for one in (*stage.needs, *stage.after)}.values():
            joins.append(self.join(other, arguments))
            bounds = {name: bound for name, bound in keep.items() if name.partition(".")[0] == other.name}
            conditions.append(f'"{other.name}".status = :done')
            broken = broken_bounds(bounds, arguments).values()
            conditions += [f"(c.accepted OR NOT ({one}))" for one in broken]
        for need in stage.needs:
            columns += [f'"{need.name}"."values"', f'"{need.name}".artefact']
        if stage.where:
            conditions.append(stage.where)
        again = (LOST, FAILED, MISSING) if retry else (LOST,)
        query = (
            f"SELECT {', '.join(columns)}"
            f" FROM samples s {' '.join(joins)}"
            " LEFT JOIN results r ON r.stage = :stage AND r.key = :key AND r.sample = s.number"
            f" AND r.content = s.{content}"
            f" WHERE {' AND '.join(conditions)} AND (r.status IS NULL OR r.status IN ({', '.join(map(repr, again))}))"
            " ORDER BY s.number"
        )
        return query, arguments

    def join(self, stage: Stage, arguments: dict) -> str:
        """SQL that joins a stage's current result to ``samples s`` under the stage's name, absent or not."""
        content = "given" if stage.name == INGEST else "content"
        arguments[f"{stage.name}_key"] = stage.key
        return (
            f'LEFT JOIN results "{stage.name}" ON "{stage.name}".stage = \'{stage.name}\''
            f' AND "{stage.name}".key = :{stage.name}_key AND "{stage.name}".sample = s.number'
            f' AND "{stage.name}".content = s.{content}'
        )

    def record(self, results: Iterable[Result]) -> None:
        """Write results, in the transaction that is open or their own."""
        for one in results:
            if one.status == LOST:
                self.db.execute(
                    "UPDATE results SET status = ? WHERE stage = ? AND key = ? AND sample = ? AND artefact = ?",
                    (LOST, one.stage, one.key, one.sample, one.artefact),
                )
                continue
            self.db.execute(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (one.stage, one.key, one.sample, one.content, one.status, json.dumps(one.values, allow_nan=False),
                 one.artefact, one.model, one.seconds, one.attempts, one.error, one.at or time.time(),
                 one.vector or None),
            )  # fmt: skip
            if one.stage == INGEST and one.status == DONE:
                self.db.execute(
                    "UPDATE samples SET content = ? WHERE number = ? AND given = ?",
                    (one.values["content"], one.sample, one.content),
                )

    def statuses(self, stage: Stage) -> dict[str, int]:
        """How many of the run's samples have which status at a stage."""
        arguments: dict = {"run": self.run}
        join = self.join(stage, arguments)
        rows = self.db.execute(
            f'SELECT "{stage.name}".status, count(*) FROM samples s {join} WHERE s.listed = :run GROUP BY 1',
            arguments,
        )
        return {status or "": count for status, count in rows}

    def lost(self, plan: Iterable[Stage]) -> int:
        """How many results of the run's samples are lost."""
        return sum(self.statuses(stage).get(LOST, 0) for stage in plan)

    def look(self, plan: Iterable[Stage]) -> None:
        """Note which results of the run's samples are lost, by whether there is a file."""
        for stage in plan:
            arguments: dict = {"run": self.run, "done": DONE}
            name = stage.name
            rows = self.db.execute(
                f'SELECT s.number, "{name}".content, "{name}".artefact FROM samples s {self.join(stage, arguments)}'
                f" WHERE s.listed = :run AND \"{name}\".status = :done AND \"{name}\".artefact <> ''",
                arguments,
            )
            gone = [row for row in rows if not (self.folder / row[2]).is_file()]
            self.record(Result(sample, name, stage.key, content, LOST, {}, path) for sample, content, path in gone)

    # Deaths of workers

    def died(self, stage: Stage, samples: Sequence[int], alone: bool) -> None:
        """Note that a worker died with these in hand; ``alone`` if it had nothing else to die of."""
        self.db.executemany(
            "INSERT INTO deaths VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET alone = alone + excluded.alone",
            [(stage.name, stage.key, sample, int(alone)) for sample in samples],
        )

    def suspects(self, stage: Stage) -> dict[int, int]:
        """Samples that workers died with, and how often of them alone."""
        known = (stage.name, stage.key)
        return dict(self.db.execute("SELECT sample, alone FROM deaths WHERE stage = ? AND key = ?", known))

    def absolve(self, stage: Stage, samples: Iterable[int]) -> None:
        """Forget the deaths."""
        self.db.executemany(
            "DELETE FROM deaths WHERE stage = ? AND key = ? AND sample = ?",
            [(stage.name, stage.key, sample) for sample in samples],
        )

    # Choices

    def choose(self, sample: str, accepted: bool | None) -> None:
        """A person's word on a sample, which goes before every bound; None takes it back. ValueError for no sample."""
        row = self.db.execute("SELECT number FROM samples WHERE id = ?", (sample,)).fetchone()
        if row is None:
            raise ValueError(f"There is no sample {sample!r} in {self.folder}.")
        if accepted is None:
            self.db.execute("DELETE FROM choices WHERE sample = ?", row)
        else:
            self.db.execute("INSERT OR REPLACE INTO choices VALUES (?, ?, ?)", (*row, int(accepted), time.time()))


def broken_bounds(keep: Mapping[str, Bound], arguments: dict) -> dict[str, str]:
    """For each bound's "stage.value", SQL that is true where the value is absent or out of it."""
    found = {}
    for number, (name, bound) in enumerate(keep.items()):
        stage, _, value = name.partition(".")
        column, tests = f"json_extract(\"{stage}\".\"values\", '$.{value}')", []
        for end, sign in (("min", "<"), ("max", ">")):
            if (limit := getattr(bound, end)) is not None:
                arguments[f"{end}_{stage}_{number}"] = float(limit)
                tests.append(f"{column} {sign} :{end}_{stage}_{number}")
        found[name] = f"{column} IS NULL OR {' OR '.join(tests)}"
    return found
