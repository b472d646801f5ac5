"""Runs a stage over the samples that wait for it, on Daft: in this process, in several, or on a Ray cluster.

What a worker has found out it writes down itself, in its own file of the folder's ``spool``, before it takes the next
batch; the run moves it from there into the ledger. So a kill of either loses what was in hand, and nothing else. What a
worker has in hand stands in ``at-hand``, and stays there only if it dies. What one died with is given out again first,
one by one and to one worker, also by the next run if the death was the run's own: so the sample that kills is found.
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
from .ledger import FAILED, LOST, Job, Ledger, Result
from .stages import Outcome, Stage

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

logger = logging.getLogger(__name__)

SPOOL, HAND, JOBS = "spool", "at-hand", "jobs"
STOP = "The pipeline stops: "
_ROWS = 1024
"""Jobs in a file; what Daft reads at once."""
_FOLD_SECONDS = 0.5
_BROKEN = 16
"""Samples in a row that may fail by what no stage should."""
FULL = "The disk of the folder is full or cannot be written; make room, then run again."
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Stopped(RuntimeError):
    """The run cannot go on, by no sample's fault; one sentence that says what to do."""


class Worker:
    """One copy of a stage at work: what Daft makes and calls.

    Args:
        alone: "alone" if it is given one sample at a time, and no other works beside it.
        repeated: "repeated" if it may be given what another has done or died of: Ray starts a dead worker anew, and
            gives it what it had, from the beginning.
    """

    def __init__(self, folder: str, stage: str, key: str, settings: str, alone: str = "", repeated: str = ""):
        self.folder, self.key, self.alone = Path(folder), key, bool(alone)
        self.others = _Others(self.folder, stage, self.key) if repeated else None
        name = f"{stage}-{uuid.uuid4().hex}"
        self.spool = self.folder / SPOOL / f"{name}.jsonl"
        self.hand = self.folder / HAND / f"{name}.json"
        self.lock = threading.Lock()  # Daft has threads, a model is used by one
        self.broken, self.closed = 0, False
        with stopping(STOP):
            with _bookkeeping():
                for path in (self.spool, self.hand):
                    path.parent.mkdir(parents=True, exist_ok=True)
                self._life = _life(self.hand).open("w")
                if fcntl:  # the system takes it back when the worker dies
                    fcntl.lockf(self._life, fcntl.LOCK_EX)
            try:
                self.stage = stages.CLASSES[stage](self.folder, key, config.parse(json.loads(settings)))
            except (ValueError, FileNotFoundError) as error:  # of the model, no sample was seen yet
                raise backends.Unavailable(str(error)) from error

    def work(self, texts: Sequence[str]) -> list[int]:
        """Do jobs, given as text; returns their samples' numbers."""
        jobs = [Job.parse(text) for text in texts]
        numbers = [job.number for job in jobs]
        with self.lock, stopping(STOP):
            if self.closed:
                return []
            if self.others:
                jobs = self.others.left(jobs)
            if jobs:
                with self._in_hand(jobs):
                    self._write(list(self._lines(jobs)))
        return numbers

    def close(self) -> None:
        """Take no more work, once what is in hand is done: a thread of Daft's may go on after the query has failed."""
        with self.lock:
            self.closed = True

    @contextlib.contextmanager
    def _in_hand(self, jobs: Sequence[Job]) -> Iterator[None]:
        with _bookkeeping(), replacing(self.hand) as temporary:
            temporary.write_text(json.dumps({"samples": [job.number for job in jobs], "alone": self.alone}))
        try:
            yield
        finally:  # of whatever else it fails, it lives
            self.hand.unlink(missing_ok=True)

    def _write(self, lines: Sequence[dict]) -> None:
        """Put results into the spool, all or none, after what they tell of is safe."""
        with _bookkeeping():
            for line in lines:
                if line["artefact"] and line["status"] != LOST:
                    with (self.folder / line["artefact"]).open("rb") as file:
                        os.fsync(file.fileno())
            with self.spool.open("ab") as file:
                size = file.tell()
                try:
                    file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
                    file.flush()
                    os.fsync(file.fileno())
                except BaseException:
                    os.truncate(self.spool, size)
                    raise

    def _lines(self, jobs: Sequence[Job]) -> Iterator[dict]:
        started = time.perf_counter()
        found = outcomes(self.stage, jobs)
        seconds = (time.perf_counter() - started) / len(jobs)
        self.broken = self.broken + len(found) if all(one.unforeseen for one in found) else 0
        if self.broken >= _BROKEN:
            raise backends.Unavailable(
                f"{self.stage.name} failed on {self.broken} samples in a row, at last by {found[-1].error}; mend that, "
                "then run again with --retry-failed."
            )
        for job, one in zip(jobs, found, strict=True):
            if one.status == LOST:  # this stage waits until what it needs is made again
                needed = job.results[one.lost]
                logger.warning("%s is lost or damaged; it is made again.", needed["artefact"])
                yield dataclasses.asdict(
                    Result(job.number, one.lost, needed["key"], "", LOST, {}, needed["artefact"])
                ) | {"vector": ""}  # fmt: skip
                continue
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
            found = (one for one in map(_result, data[:end].splitlines()) if one)
            self.done.update(one.sample for one in found if one.key == self.key)
        notes = (_note(path) for path in _hands(self.folder, self.stage))
        held = {sample for note in notes if note for sample in note["samples"]}
        return [job for job in jobs if job.number not in self.done and job.number not in held]


def _hands(folder: Path, stage: str) -> list[Path]:
    return sorted((folder / HAND).glob(f"{stage}-*.json"))


def _life(hand: Path) -> Path:
    """The file that a worker has locked for as long as it lives."""
    return hand.with_suffix(".life")


def _lives(hand: Path) -> bool:
    """Whether the worker of a note still works, in another process."""
    if not fcntl:
        return False
    try:
        with _life(hand).open("a") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _note(hand: Path) -> dict | None:
    """What a worker has in hand; None if it is done meanwhile."""
    try:
        return json.loads(hand.read_text())
    except FileNotFoundError:
        return None


def outcomes(stage: Stage, jobs: Sequence[Job]) -> list[Outcome]:
    """A stage's outcomes, where one sample that it fails on does not spoil the others of its batch."""
    try:
        return [_told(one) for one in stage.run(jobs)]
    except backends.Unavailable:
        raise
    except stages.Lost as error:
        if len(jobs) > 1:
            return _halves(stage, jobs)
        return [Outcome(LOST, lost=error.stage)]
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        if len(jobs) > 1:
            return _halves(stage, jobs)
        text = _plain(" ".join(str(error).split())) or type(error).__name__
        if isinstance(error, (ValueError, OSError)):
            return [Outcome(FAILED, error=text)]
        logger.exception("%s failed on %s", stage.name, jobs[0].id)
        return [Outcome(FAILED, error=f"{type(error).__name__}: {text}", unforeseen=True)]


def _halves(stage: Stage, jobs: Sequence[Job]) -> list[Outcome]:
    middle = len(jobs) // 2
    return outcomes(stage, jobs[:middle]) + outcomes(stage, jobs[middle:])


def _told(one: Outcome) -> Outcome:
    """An outcome that the ledger can hold and compare: without NaN, and without half characters."""
    try:
        json.dumps(one.values, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return Outcome(FAILED, attempts=one.attempts, error="The model told a value that is no number or no text.")
    return dataclasses.replace(one, error=_plain(one.error))


def _plain(text: str) -> str:
    """Without half characters, which no database takes."""
    return text.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def _bookkeeping() -> Iterator[None]:
    """An error of the folder is no sample's fault."""
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        told = FULL if full else f"The folder of the run cannot be written ({error}); mend that, then run again."
        raise backends.Unavailable(told) from error


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
    _bury(book, stage, given)  # of a run that was killed
    before = Counter(book.statuses(stage))
    total = book.count(stage, given.keep, retry)
    if not total:
        return Counter()
    if retry:
        book.absolve(stage, [sample for sample, alone in book.suspects(stage).items() if alone >= given.attempts])
    started = time.time()
    with tqdm(total=total, desc=stage.name, unit="sample", mininterval=1, dynamic_ncols=True) as bar:
        while True:
            suspects = [sample for sample, alone in book.suspects(stage).items() if alone < given.attempts]
            failure = _round(book, stage, given, retry, ray, started, bar, suspects or None)
            died = _bury(book, stage, given)
            if failure and not died:
                raise failure
            if died:
                logger.warning("%s: a worker died; what it had in hand is given out again.", stage.name)
            elif suspects:  # none of them kills
                book.absolve(stage, suspects)
            else:
                break
    return Counter(book.statuses(stage)) - before


def _round(
    book: Ledger, stage: ledger.Stage, given: config.Config, retry: bool, ray: bool, started: float, bar: tqdm,
    only: Sequence[int] | None,
) -> BaseException | None:  # fmt: skip
    """Give out what waits; what Daft failed of, if it did.

    Args:
        only: samples that are given out one by one.
    """
    folder = book.folder / JOBS
    if not _write_jobs(book, stage, given, retry, started, folder, only):
        return None
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
    for worker in _workers.values():
        worker.close()
    _workers.clear()  # and with them the model
    bar.update(fold(book))
    _forget(folder)
    text = str(failure[0]) if failure else ""
    if STOP in text:
        raise Stopped(text[text.rindex(STOP) + len(STOP) :].splitlines()[0]) from failure[0]
    return failure[0] if failure else None


def _bury(book: Ledger, stage: ledger.Stage, given: config.Config) -> bool:
    """Count what dead workers had in hand, whether there were any. What one died of alone too often has failed."""
    found = False
    for path in _hands(book.folder, stage.name):
        while path.exists() and _lives(path):  # left behind by Daft with a batch that it goes on with
            time.sleep(0.1)
        if note := _note(path):
            found = True
            book.died(stage, note["samples"], note["alone"])
        path.unlink(missing_ok=True)
        _life(path).unlink(missing_ok=True)
    fold(book)
    content = "given" if stage.name == ledger.INGEST else "content"
    for sample, alone in book.suspects(stage).items():
        if alone >= given.attempts:
            known, status = book.db.execute(
                f"SELECT s.{content}, r.status FROM samples s LEFT JOIN results r ON r.stage = ? AND r.key = ?"
                f" AND r.sample = s.number AND r.content = s.{content} WHERE s.number = ?",
                (stage.name, stage.key, sample),
            ).fetchone()
            if status is None:
                error = f"A worker died of it {alone} times."
                book.record([
                    Result(sample, stage.name, stage.key, known, FAILED, {}, attempts=alone, error=error)
                ])  # fmt: skip
    return found


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

    how = getattr(given, stage.name)
    worker = _daft_worker(daft, how, ray, alone)
    settings = json.dumps(config.plain(given))
    flags = ("alone" if alone else "", "repeated" if ray else "")
    made = worker(str(folder.resolve()), stage.name, stage.key, settings, *flags)
    frame = daft.read_parquet(str(jobs / "*.parquet"))
    if ray:
        frame = frame.into_partitions(max(1, 2 * how.workers))
    for _ in frame.select(made.work(frame["job"]).alias("sample")).iter_partitions():
        pass


def _daft_worker(daft, how: config.Workers, ray: bool, alone: bool):
    """:class:`Worker` as a Daft class, with the resources of a stage."""

    class Placed:
        def __init__(self, *given: str):
            self.worker = _shared(given)

        @daft.method.batch(return_dtype=daft.DataType.int64(), batch_size=1 if alone else how.batch_size)
        def work(self, jobs):
            return self.worker.work(jobs.to_pylist())

    count = 1 if alone else how.workers
    if ray:
        options = {"max_concurrency": count}
    elif how.workers > 1:
        options = {"max_concurrency": count, "use_process": True}
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
        results = [one for one in map(_result, data[:end].splitlines()) if one]
        book.db.execute("BEGIN")
        book.record(results)
        book.db.execute("INSERT OR REPLACE INTO spools VALUES (?, ?)", (path.name, start + end))
        book.db.execute("COMMIT")
        count += len(results)
    return count


def _result(line: bytes) -> Result | None:
    """What a line tells; None for a broken one, whose sample is then done again."""
    try:
        told = json.loads(line)
        return Result(**told | {"vector": bytes.fromhex(told["vector"])})
    except (ValueError, TypeError, KeyError):
        logger.warning("A line of the spool is broken; what it told of is done again.")
        return None


def clear(book: Ledger) -> None:
    """Remove the workers' files once all of them is safe in the ledger; no worker may be at work."""
    fold(book)
    _forget(book.folder / HAND)
    _forget(book.folder / JOBS)
    busy, *_ = book.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if not busy:  # else someone reads, and the next run does it
        _forget(book.folder / SPOOL)
        book.db.execute("DELETE FROM spools")


def _forget(folder: Path) -> None:
    for path in folder.glob("*"):
        path.unlink(missing_ok=True)
