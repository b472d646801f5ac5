"""All that is wrong with the rows, found before the training starts."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial

from kiwi_core.media import MAX_ASPECT, Probe, load_video, probe

from .faults import problem
from .media import Media
from .prepare import same_length, same_rate
from .report import Problem, Report
from .rows import Row, kind_of

__all__ = ["MIN_SIDE", "Problem", "Report", "check_rows"]

MIN_SIDE = 32

_RESERVED = re.compile(r"<\|\w+\|>")


@dataclass
class _Finding:
    """What is known of one row: ``digests`` are of its media, None unless source and target could be read."""

    problems: list[Problem] = field(default_factory=list)
    target: Probe | None = None
    digests: tuple | None = None


def check_rows(
    rows: Sequence[Row],
    decode: bool = True,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Look at every row and report all problems; bad media are a problem, never an error.

    With ``decode`` every frame is decoded and the bytes are compared. Without, only headers and first frames
    are read, and only media in the same place count as identical. ``workers`` processes share the work, 0 for
    this one alone; ``progress`` is called with the number of rows done and of all.

    Raises ValueError for no rows or negative ``workers``, RuntimeError if a worker dies.
    """
    if not rows:
        raise ValueError("There are no rows to check; read some first.")
    if workers < 0:
        raise ValueError(f"workers is {workers}; give a number of processes, 0 for none.")
    report, seen = Report(rows=len(rows)), {}
    for number, (row, finding) in enumerate(zip(rows, _findings(rows, decode, workers)), start=1):
        report.problems += finding.problems
        if finding.target:
            report.kinds[kind_of(row, finding.target)] += 1
            report.sizes[finding.target.height, finding.target.width] += 1
            report.frames[finding.target.frames] += 1
        if finding.digests:
            first = seen.setdefault((finding.digests, row.prompt.strip()), row.id)
            if first != row.id:
                message = f"Row {first} has the same media and prompt; remove one."
                report.problems.append(Problem(row.id, row.target.name, message, "warning"))
        if progress:
            progress(number, len(rows))
    return report


def _findings(rows: Sequence[Row], decode: bool, workers: int) -> Iterator[_Finding]:
    check = partial(_check_row, decode=decode)
    if not workers:
        yield from map(check, rows)
        return
    # Forked, a child could inherit a lock that a thread of FFmpeg or PyTorch holds.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(check, rows, chunksize=max(1, min(16, len(rows) // (4 * workers))))
        except BrokenProcessPool as error:
            raise RuntimeError("A worker died, perhaps of too little memory; check with fewer workers.") from error


def _check_row(row: Row, decode: bool) -> _Finding:
    finding = _Finding()

    def report(media: str, message: str, severity: str = "error") -> None:
        finding.problems.append(Problem(row.id, media, message, severity))

    for message in _prompt_problems(row.prompt):
        report("", message)
    probes = []
    for media in (row.source, row.target):
        try:
            found, header = _probe(media, decode)
        except Exception as error:
            report(media.name, problem(error))
            probes.append(None)
            continue
        probes.append(found)
        for message in _size_problems(found.height, found.width, MIN_SIDE):
            report(media.name, message)
        if header.frames > found.frames:
            message = f"Only {found.frames} of {header.frames} frames can be decoded; copy or export it again."
            report(media.name, message, "warning")
    shown: tuple = ()
    if row.reference is not None:
        faults = list(_reference_problems(row.reference, decode))
        for message in faults:
            report(row.reference.name, message)
        shown = (row.reference.digest() if decode and not faults else row.reference,)
    source, finding.target = probes
    if source and finding.target:
        for message, severity in _pair_problems(source, finding.target):
            report(row.target.name, message, severity)
        try:
            digests = (row.source.digest(), row.target.digest()) if decode else (row.source, row.target)
        except Exception as error:
            report(row.target.name, problem(error))
            return finding
        finding.digests = digests + shown
        if digests[0] == digests[1]:
            report(row.target.name, "The target is identical to the source; give the edited clip.", "warning")
    return finding


def _probe(media: Media, decode: bool) -> tuple[Probe, Probe]:
    """By decoding, the first frame as training does, and by the header; the same without ``decode``."""
    with media.open_path() as path:
        header = probe(path)
        if not decode:
            return header, header
        load_video(path, 1)
        return probe(path, decode=True), header


def _prompt_problems(prompt: str) -> Iterator[str]:
    if not prompt.strip():
        yield "The prompt is empty; say in a sentence what was changed."
    for token in sorted({*_RESERVED.findall(prompt)}):
        yield f"The prompt contains the reserved token {token}; write it in plain words."


def _size_problems(height: int, width: int, min_side: int = 1) -> Iterator[str]:
    if min(height, width) < min_side:
        yield f"Frames of {width}x{height} pixels are too small; give at least {min_side} a side."
    if max(height, width) > MAX_ASPECT * min(height, width):
        yield f"Frames of {width}x{height} pixels are longer than {MAX_ASPECT}:1; crop them."


def _reference_problems(media: Media, decode: bool) -> Iterator[str]:
    try:
        if decode:
            width, height = media.picture().size
        else:
            found = media.probe()
            width, height = found.width, found.height
    except Exception as error:
        yield problem(error)
    else:
        yield from _size_problems(height, width)


def _pair_problems(source: Probe, target: Probe) -> Iterator[tuple[str, str]]:
    if (source.height, source.width) != (target.height, target.width):
        sizes = [f"{found.width}x{found.height}" for found in (source, target)]
        yield f"The source is {sizes[0]} and the target {sizes[1]} pixels; export both in one size.", "error"
    moving = min(source.frames, target.frames) > 1
    if source.frames != target.frames:
        way, severity = "cut them to one length", "error"
        if moving and same_rate(source, target):
            way, severity = "the first that both have are used", "warning"
        elif moving and same_length(source, target):
            way += ", or bring both to one rate with --frame-rate"
        yield f"The source has {source.frames} frames and the target {target.frames}; {way}.", severity
    if moving and not same_rate(source, target):
        rates = [f"{float(found.frame_rate):.4g}" for found in (source, target)]
        yield f"The source has {rates[0]} and the target {rates[1]} frames a second; export both alike.", "warning"
