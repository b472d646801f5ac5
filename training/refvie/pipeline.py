"""From tables of pairs to a ledger in which every stage is done."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from . import config, engine, select, stages
from .ledger import INGEST, Ledger
from .pairs import ingest
from .pairs.pair import Pair

logger = logging.getLogger(__name__)

CONFIG = "config"
"""The ledger's note of the config that it was last run with."""


def run(
    tables: Sequence[str | Path],
    folder: str | Path,
    given: config.Config,
    root: str | Path | None = None,
    layout: str = "auto",
    origin: str = "",
    retry: bool = False,
    ray: str | None = None,
    only: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
) -> Ledger:
    """Run every stage for every pair that waits for it. What was done before is not done again.

    Args:
        tables: of pairs, see :func:`training.refvie.pairs.ingest.read`; none for those that the folder knows already.
        root: where the clips lie. retry: also what failed, had no readable answer or is gone from the folder. ray:
            address of a Ray cluster, "local" to start one here. Its machines must see the folder and the clips under
            the same paths.
        only: names of stages, all without. columns: see :func:`training.refvie.pairs.ingest.read`.

    Returns the ledger, open for writing. Raises ValueError or FileNotFoundError for what cannot be run,
    :class:`engine.Stopped` where no sample is at fault, :class:`ledger.Busy` if another run works in the folder.
    """
    plan = stages.plan(given)
    for name in only:
        if name not in plan:
            raise ValueError(f"There is no stage {name!r}; there are {', '.join(plan)}.")
    if not tables and not (Path(folder) / engine.ledger.FILE).is_file():
        raise FileNotFoundError(f"There is no run in {folder}; give tables of pairs to start one.")
    book = Ledger(folder, writing=True)
    try:
        with engine.stopping():
            engine.fold(book)
            if tables:
                count = book.take(_known(book, ingest.read(tables, root, layout, origin, columns)))
                logger.info("%d pairs in %s", count, ", ".join(map(str, tables)))
            book.note(CONFIG, json.dumps(config.plain(given)))
            book.restore_content(plan[INGEST])
            _start(ray)
            chosen = [stage for name, stage in plan.items() if not only or name in only]
            if retry:
                book.look(plan.values())
            for _ in plan:  # a stage may find that what an earlier one has made is lost, and so on
                for stage in chosen:
                    for status, number in sorted(engine.run(book, stage, given, retry, ray is not None).items()):
                        logger.info("%s: %d %s", stage.name, number, status)
                if not (lost := book.lost(plan.values())):
                    break
            else:
                logger.warning("%d artefacts are lost or damaged; run all stages to make them again.", lost)
            engine.clear(book)
    except BaseException:
        book.close()
        raise
    return book


def _start(ray: str | None) -> None:
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")  # the run shows its own
    import daft

    if ray is not None:
        daft.set_runner_ray(None if ray == "local" else ray, noop_if_initialized=True)


def _known(book: Ledger, pairs: Iterable[Pair]) -> Iterator[tuple[Pair, str]]:
    """Each pair with a text that changes when its files do. One whose files are out of reach now, as when a disk is
    not mounted, stays as it was taken in."""
    for pair in pairs:
        stamps = [_stamp(path) for path in (pair.source, pair.target)]
        if pair.problem and None in stamps and (before := book.taken(pair.id)):
            earlier, known_by = before
            if (earlier.source, earlier.target) == (pair.source, pair.target) and not earlier.problem:
                yield dataclasses.replace(pair, problem=""), known_by
                continue
        known = json.dumps([pair.source, pair.target, stamps, pair.prompt, pair.category])
        yield pair, hashlib.blake2b(known.encode(), digest_size=16).hexdigest()


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return None
        raise
    return found.st_size, found.st_mtime_ns


def opened(folder: str | Path, given: config.Config | None = None) -> tuple[Ledger, config.Config]:
    """A folder's ledger for reading, with what is kept worked out; by the config of its last run, or another."""
    book = Ledger(folder)
    try:
        if given is None:
            text = book.fact(CONFIG)
            if not text:
                raise ValueError(f"No run in {folder} has begun; start one with: python -m training.refvie run.")
            given = config.parse(json.loads(text))
        select.select(book, given)
    except BaseException:
        book.close()
        raise
    return book, given


def summary(book: Ledger) -> str:
    """How many samples there are, were kept and were not, in a few lines; of a ledger that :func:`opened` gave."""
    total, kept, instruct = book.db.execute(
        "SELECT count(*), coalesce(sum(kept), 0), coalesce(sum(instruct), 0) FROM verdicts"
    ).fetchone()
    lines = [f"{total} pairs: {kept} kept with a reference, {instruct} good enough by their instruction."]
    rows = book.db.execute(
        "SELECT stage, reason, count(*) FROM verdicts WHERE NOT kept GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 12"
    )
    return "\n".join(lines + [f"  {count:>8} {stage}: {reason}" for stage, reason, count in rows])
