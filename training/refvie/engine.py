"""Runs a stage over the samples that wait for it, on Daft: in this process, in several, or on a Ray cluster.

What a worker has found out it writes down itself, in its own file of the folder's ``spool``, before it takes the next
batch; the run moves it from there into the ledger. So a kill of either loses what was in hand, and nothing else. What a
worker has in hand stands in ``at-hand``: after the death of one, its samples are given out again one by one, so that
the one which kills is found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from kiwi_core.atomic import replacing

from . import backends, config, ledger, stages
from .ledger import FAILED, Job, Ledger, Result
from .stages import Outcome, Stage

logger = logging.getLogger(__name__)

SPOOL, HAND, JOBS = "spool", "at-hand", "jobs"
STOP = "The pipeline stops: "
_ROWS = 1024
"""Jobs in a file; what Daft reads at once."""
_FOLD_SECONDS = 0.5
FULL = "The disk of the folder is full or cannot be written; make room, then run again."
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Stopped(RuntimeError):
    """The run cannot go on, by no sample's fault; one sentence that says what to do."""


class Worker:
    """One copy of a stage at work: what Daft makes and calls."""

    def __init__(self, folder: str, stage: str, key: str, settings: str, repeated: str = ""):
        self.folder, self.key = Path(folder), key
        # Ray starts a dead worker anew and gives it what it had, from the beginning.
        self.others = _Others(self.folder, stage, self.key) if repeated else None
        self.name = f"{stage}-{uuid.uuid4().hex}"
        self.spool = self.folder / SPOOL / f"{self.name}.jsonl"
        self.hand = self.folder / HAND / f"{self.name}.json"
        self.lock = threading.Lock()  # Daft has threads, a model is used by one
        with stopping(STOP):
            try:
                self.stage = stages.CLASSES[stage](self.folder, key, config.parse(json.loads(settings)))
            except (ValueError, FileNotFoundError) as error:  # of the model, no sample was seen yet
                raise backends.Unavailable(str(error)) from error

    def work(self, texts: Sequence[str]) -> list[int]:
        """Do jobs, given as text; returns their samples' numbers."""
        jobs = [Job.parse(text) for text in texts]
        numbers = [job.number for job in jobs]
        with self.lock, stopping(STOP):
            if self.others:
                jobs = self.others.left(jobs)
                if not jobs:
                    return numbers
            with replacing(self.hand) as temporary:
                temporary.write_text(json.dumps([job.number for job in jobs]))
            lines = [json.dumps(line) + "\n" for line in self._lines(jobs)]
            self.spool.parent.mkdir(exist_ok=True)
            with self.spool.open("a", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            self.hand.unlink(missing_ok=True)
        return numbers

    def _lines(self, jobs: Sequence[Job]) -> Iterator[dict]:
        started = time.perf_counter()
        found = outcomes(self.stage, jobs)
        seconds = (time.perf_counter() - started) / len(jobs)
        for job, one in zip(jobs, found):
            yield {
                "sample": job.number, "stage": self.stage.name, "key": self.key, "content": job.content,
                "status": one.status, "values": one.values, "artefact": one.artefact, "vector": one.vector.hex(),
                "model": self.model, "seconds": seconds, "attempts": one.attempts, "error": one.error,
                "at": time.time(),
            }  # fmt: skip

    @property
    def model(self) -> str:
        """What answered, for people."""
        if self.stage.name not in config.MODEL_STAGES:
            return ""
        given = getattr(self.stage.config, self.stage.name)
        return f"{given.backend}:{given.options['model']}" if "model" in given.options else given.backend


class _Others:
    """What the other workers of a stage have done, and what one died of."""

    def __init__(self, folder: Path, stage: str, key: str):
        self.folder, self.stage, self.key = folder, stage, key
        self.read: dict[Path, int] = {}
        self.done: set[int] = set()

    def left(self, jobs: Sequence[Job]) -> list[Job]:
        """Those of the jobs that are not done and that no other worker has in hand: it died of them, for no job is
        given to two, and the run will see to that."""
        for path in (self.folder / SPOOL).glob(f"{self.stage}-*.jsonl"):
            with path.open("rb") as file:
                file.seek(self.read.get(path, 0))
                data = file.read()
            end = data.rfind(b"\n") + 1
            self.read[path] = self.read.get(path, 0) + end
            lines = map(json.loads, data[:end].splitlines())
            self.done.update(line["sample"] for line in lines if line["key"] == self.key)
        held = {*_held(self.folder, self.stage)}
        return [job for job in jobs if job.number not in self.done and job.number not in held]


def _held(folder: Path, stage: str) -> list[int]:
    """What the workers of a stage have in hand, those that are no more included."""
    numbers = []
    for path in (folder / HAND).glob(f"{stage}-*.json"):
        with contextlib.suppress(FileNotFoundError):  # it was done meanwhile
            numbers += json.loads(path.read_text())
    return numbers


def outcomes(stage: Stage, jobs: Sequence[Job]) -> list[Outcome]:
    """A stage's outcomes, where one sample that it fails on does not spoil the others of its batch."""
    try:
        return [_told(one) for one in stage.run(jobs)]
    except backends.Unavailable:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        if len(jobs) > 1:
            return [outcome for job in jobs for outcome in outcomes(stage, [job])]
        if not isinstance(error, (ValueError, OSError)):
            logger.exception("%s failed on %s", stage.name, jobs[0].id)
        text = " ".join(str(error).split()) or type(error).__name__
        expected = isinstance(error, (ValueError, OSError))
        return [Outcome(FAILED, error=text if expected else f"{type(error).__name__}: {text}")]


def _told(one: Outcome) -> Outcome:
    """An outcome that the ledger can hold and compare: not one with NaN."""
    try:
        json.dumps(one.values, allow_nan=False)
    except ValueError:
        return Outcome(FAILED, attempts=one.attempts, error="The model told a value that is no number.")
    return one


@contextlib.contextmanager
def stopping(mark: str = "") -> Iterator[None]:
    """Turns what no sample is to blame for into :class:`Stopped`; behind Daft it is known by a mark in its text."""
    try:
        yield
    except backends.Unavailable as error:
        raise Stopped(f"{mark}{error}") from error
    except OSError as error:
        if error.errno in _FULL:
            raise Stopped(f"{mark}{FULL}") from error
        raise
    except sqlite3.OperationalError as error:
        if "full" in str(error) or "readonly" in str(error):
            raise Stopped(f"{mark}{FULL}") from error
        raise


def run(
    book: Ledger, stage: ledger.Stage, given: config.Config, retry: bool = False, ray: bool = False
) -> Counter[str]:
    """Do a stage for all samples that wait for it; returns how many got which status.

    Args:
        book: open for writing. retry: also those that failed or are missing. ray: Daft's runner is Ray's.

    Raises Stopped where no sample is at fault.
    """
    fold(book)
    _forget(book.folder / HAND)
    total = book.count(stage, given.keep, retry)
    before = Counter(book.statuses(stage))
    if not total:
        return Counter()
    strikes: Counter[int] = Counter()
    started = time.time()
    with tqdm(total=total, desc=stage.name, unit="sample", mininterval=1, dynamic_ncols=True) as bar:
        while True:
            suspects = sorted(strikes)
            alone = bool(suspects)
            if not _round(book, stage, given, retry, ray, started, bar, suspects or None):
                if alone:  # the suspects are done; on with the rest
                    strikes.clear()
                    continue
                break
            _strike(book, stage, given, strikes, started)
    return Counter(book.statuses(stage)) - before


def _round(
    book: Ledger, stage: ledger.Stage, given: config.Config, retry: bool, ray: bool, started: float, bar: tqdm,
    only: Sequence[int] | None,
) -> bool:  # fmt: skip
    """Give out what waits; True if a worker died of it."""
    folder = book.folder / JOBS
    if not _write_jobs(book, stage, given, retry, started, folder, only):
        return False
    failure: list[BaseException] = []

    def query() -> None:
        try:
            _query(folder, book.folder, stage, given, ray, alone=only is not None)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=query, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_FOLD_SECONDS)
        bar.update(fold(book))
    bar.update(fold(book))
    _workers.clear()  # and with them the model
    _forget(folder)
    text = str(failure[0]) if failure else ""
    if STOP in text:
        raise Stopped(text[text.rindex(STOP) + len(STOP) :].splitlines()[0]) from failure[0]
    died = bool(_held(book.folder, stage.name))
    if failure and not died:
        raise failure[0]
    if died:
        logger.warning("%s: a worker died; what it had in hand is given out again. %s", stage.name, text[:300])
    return died


def _strike(
    book: Ledger, stage: ledger.Stage, given: config.Config, strikes: Counter[int], started: float
) -> None:
    """Count who was in the hand of a worker that died; whom too many died of has failed."""
    held = _held(book.folder, stage.name)
    _forget(book.folder / HAND)
    strikes.update(held)
    content = "given" if stage.name == ledger.INGEST else "content"
    for number in held:
        if strikes[number] >= given.attempts:
            known = book.db.execute(f"SELECT {content} FROM samples WHERE number = ?", (number,)).fetchone()[0]
            result = Result(number, stage.name, stage.key, known, FAILED, {}, attempts=given.attempts)
            book.record([dataclasses.replace(result, error=f"A worker died of it {given.attempts} times.")])
            del strikes[number]


def _write_jobs(
    book: Ledger, stage: ledger.Stage, given: config.Config, retry: bool, started: float, folder: Path,
    only: Sequence[int] | None,
) -> int:  # fmt: skip
    """What waits, in files that Daft reads one after another, so that memory stays flat; returns how many."""
    import pyarrow
    import pyarrow.parquet

    _forget(folder)
    folder.mkdir(exist_ok=True)
    # What was tried again in this run is not tried once more.
    tried = set() if not retry else {
        row[0] for row in book.db.execute(
            "SELECT sample FROM results WHERE stage = ? AND key = ? AND at >= ?", (stage.name, stage.key, started)
        )
    }  # fmt: skip
    count, texts = 0, []

    def flush() -> None:
        if texts:
            path = folder / f"{count:09d}.parquet"
            pyarrow.parquet.write_table(pyarrow.table({"job": texts}), path)
            texts.clear()

    for job in book.pending(stage, given.keep, retry, only):
        if job.number not in tried:
            count += 1
            texts.append(job.text())
            if len(texts) == _ROWS:
                flush()
    flush()
    return count


def _query(jobs: Path, folder: Path, stage: ledger.Stage, given: config.Config, ray: bool, alone: bool) -> None:
    import daft

    how = getattr(given, stage.name, None)
    if not isinstance(how, config.ModelConfig):
        how = config.ModelConfig()
    worker = _daft_worker(daft, how, ray, alone)
    settings = json.dumps(config.plain(given))
    made = worker(str(folder.resolve()), stage.name, stage.key, settings, "repeated" if ray else "")
    frame = daft.read_parquet(str(jobs / "*.parquet"))
    if ray:
        frame = frame.into_partitions(max(1, 2 * how.workers))
    for _ in frame.select(made.work(frame["job"]).alias("sample")).iter_partitions():
        pass


def _daft_worker(daft, how: config.ModelConfig, ray: bool, alone: bool):
    """:class:`Worker` as a Daft class, with the resources of a stage."""

    class Placed:
        def __init__(self, *given: str):
            self.worker = _shared(given)

        @daft.method.batch(return_dtype=daft.DataType.int64(), batch_size=1 if alone else how.batch_size)
        def work(self, jobs):
            return self.worker.work(jobs.to_pylist())

    if ray:
        options = {"max_concurrency": how.workers}
    elif how.workers > 1:
        options = {"max_concurrency": how.workers, "use_process": True}
    else:
        options = {"use_process": False}
    return daft.cls(Placed, gpus=how.gpus, **options)


_workers: dict[tuple[str, ...], Worker] = {}
_making = threading.Lock()


def _shared(given: tuple[str, ...]) -> Worker:
    """The worker of this process: Daft's threads would each make their own, and load the model as often."""
    with _making:
        if given not in _workers:
            _workers[given] = Worker(*given)
        return _workers[given]


def fold(book: Ledger) -> int:
    """Move what workers have written into the ledger; returns how many results that were."""
    count = 0
    for path in sorted((book.folder / SPOOL).glob("*.jsonl")):
        row = book.db.execute("SELECT read FROM spools WHERE name = ?", (path.name,)).fetchone()
        start = row[0] if row else 0
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
        end = data.rfind(b"\n") + 1  # the rest is half a line
        if not end:
            continue
        results = [_result(json.loads(line)) for line in data[:end].splitlines()]
        book.db.execute("BEGIN")
        book.record(results)
        book.db.execute("INSERT OR REPLACE INTO spools VALUES (?, ?)", (path.name, start + end))
        book.db.execute("COMMIT")
        count += len(results)
    return count


def _result(line: dict) -> Result:
    return Result(**line | {"vector": bytes.fromhex(line["vector"])})


def clear(book: Ledger) -> None:
    """Remove the workers' files once all of them is safe in the ledger; no worker may be at work."""
    fold(book)
    book.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    _forget(book.folder / SPOOL)
    book.db.execute("DELETE FROM spools")
    _forget(book.folder / HAND)
    _forget(book.folder / JOBS)


def _forget(folder: Path) -> None:
    for path in folder.glob("*"):
        path.unlink(missing_ok=True)
