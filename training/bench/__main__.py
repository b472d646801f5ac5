"""``python -m training.bench``: make edits of a benchmark, score and measure them, report, compare."""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .. import fingerprint
from ..asking import Unavailable
from . import audit, clips, making, pairwise, scoring, suites
from .folder import DONE, FAILED, Folder
from .judges import CLASSICAL, TRANSFORMERS, Options, open_judge

PROGRAM = "python -m training.bench"


@dataclass(frozen=True)
class Run:
    """Make the edits of a benchmark, or take them as others have made them; the same command goes on after a kill, and
    several at once share the work."""

    bench: str
    """"refvie", "openve", "nano", or a folder of one's own."""
    out: Path
    """Folder of the run."""
    model: str = ""
    """Released folder of a model, its name on the hub, or "copy" to change nothing."""
    edits: Path | None = None
    """Folder of edits that are made already, each named by its item's id or its source."""
    name: str = ""
    """What reports call the system; the model's or folder's name without."""
    data: Path | None = None
    """Folder in which RefVIE-Bench or OpenVE-Bench lies."""
    seed: int = 0
    """Items' seeds count from it (nano-bench has its own)."""
    share: float = 1.0
    """Of nano-bench's items, for a quick look."""
    align: Literal["auto", "frames", "time"] = clips.AUTO
    """How given edits belong to their sources: frame by frame from the first, or by seconds."""
    retry_failed: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    offload: Literal["none", "model", "group"] = "none"
    settings: making.Settings = field(default_factory=making.Settings)


@dataclass(frozen=True)
class Score:
    """Have a judge score the edits of a run."""

    out: Path
    judge: str
    """An OpenAI-compatible server's address, "google-genai[:MODEL]", "transformers:MODEL", or "classical"."""
    repeats: int = 1
    """How often each edit is judged, to see how steady a judge behind a server is."""
    attempts: int = scoring.ATTEMPTS
    """For an answer that can be read."""
    audit: Path | None = None
    """Folder in which the audit of this judge lies."""
    cache: Path | None = None
    """File in which answers are kept; one in OUT without."""
    retry_failed: bool = False
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Audit:
    """Find out whether a judge is any good, on edits whose truth is known."""

    judge: str
    out: Path
    """Folder of the audit."""
    items: int = audit.ITEMS
    """Of each of seven categories; each is judged four times."""
    attempts: int = scoring.ATTEMPTS
    cache: Path | None = None
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Pairwise:
    """Have a judge say of two runs which edits are better."""

    a: tyro.conf.Positional[Path]
    b: tyro.conf.Positional[Path]
    judge: str
    attempts: int = scoring.ATTEMPTS
    cache: Path | None = None
    retry_failed: bool = False
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Measure:
    """Measure the edits of a run without a judge."""

    out: Path
    images: str = ""
    """Model that compares pictures, such as facebook/dinov2-base; colours and edges are compared without."""
    texts: str = ""
    """Model that compares pictures and texts, such as openai/clip-vit-large-patch14; no text alignment without."""
    device: str = ""
    again: bool = False
    """Also what was measured before."""


@dataclass(frozen=True)
class Report:
    """Write one page of one or several runs of a benchmark."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    page: Path | None = None
    """Folder of the page; the first run's without."""
    title: str = ""
    shown: int = 60
    """Items whose clips are shown."""


@dataclass(frozen=True)
class Compare:
    """Compare two runs, item by item; fails if the second is worse by more than is allowed."""

    a: tyro.conf.Positional[Path]
    b: tyro.conf.Positional[Path]
    judge: str = ""
    """Name of its folder in OUT/scores, where there are several."""
    max_drop: float | None = None
    """By how much the mean may fall."""
    per_category: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Whether it also counts for each category."""


COMMANDS = {
    "run": Run, "measure": Measure, "audit": Audit, "score": Score, "pairwise": Pairwise, "report": Report,
    "compare": Compare,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for a quality that fell, 2 for bad input, 130 for a stop."""
    logging.basicConfig(format="%(message)s")
    for name in ("training", "kiwi_core"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        options = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, args=argv, prog=PROGRAM, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)
        )
        return _do(options)
    except sqlite3.Error as error:
        print(f"{PROGRAM}: Kept answers cannot be read or written ({error}); free the disk, or name another --cache.",
              file=sys.stderr)  # fmt: skip
        return 2
    except (ValueError, OSError, Unavailable, MemoryError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; the same command goes on.", file=sys.stderr)
        return 130


def _do(options) -> int:
    if isinstance(options, Run):
        return _run(options)
    if isinstance(options, Measure):
        return _measure(options)
    if isinstance(options, Audit):
        cache = options.cache or scoring.default_cache(options.out)
        judge = open_judge(options.judge, options.options, cache)
        print(audit.text(audit.run(judge, options.out, options.items, options.attempts)))
    elif isinstance(options, Score):
        if options.repeats > 1 and options.judge.partition(":")[0] in (CLASSICAL, TRANSFORMERS):
            raise ValueError(f"{options.judge} gives the same answer again when it runs here; leave --repeats out.")
        folder = Folder(options.out)
        checked = None if options.audit is None else audit.read(options.audit)
        judge = open_judge(options.judge, options.options, options.cache or scoring.default_cache(options.out))
        count = scoring.run(folder, judge, options.repeats, options.attempts, checked, options.retry_failed)
        print(f"{count.scored} edits scored, {count.failed} failed, {count.before} known before.")
        print(_summary(folder, scoring.name_of(judge)))
    elif isinstance(options, Pairwise):
        a, b = Folder(options.a), Folder(options.b)
        judge = open_judge(options.judge, options.options, options.cache or scoring.default_cache(options.b))
        found = pairwise.run(a, b, judge, options.attempts, options.retry_failed)
        print(pairwise.text(found, options.a.name, options.b.name))
    elif isinstance(options, Report):
        from .pages import report

        folders = [Folder(path) for path in options.runs]
        if not folders:
            raise ValueError("Give at least one folder of a run.")
        print(report.write(folders, options.page or options.runs[0] / "report", options.title, options.shown))
    else:
        from . import compare

        found = compare.compare(
            Folder(options.a), Folder(options.b), options.judge or None, options.max_drop, options.per_category
        )
        print(found.text())
        return 0 if found.passed else 1
    return 0


def _run(options: Run) -> int:
    if bool(options.model) == (options.edits is not None):
        raise ValueError("Give either --model or --edits.")
    if options.bench == suites.NANO:
        items = suites.nano(options.out, options.share)
    else:
        items = suites.read(options.bench, options.data, options.seed)
    if options.edits is None:
        making.check(options.model, items)
    elif not options.edits.is_dir():
        raise FileNotFoundError(f"There is no folder {options.edits}; give one with the edited clips.")
    bench = options.bench if options.bench in suites.NAMES else f"folder {Path(options.bench).resolve().name}"
    folder = Folder.begin(options.out, {"bench": bench, "system": _system(options), "seed": options.seed}, items)
    if options.edits is not None:
        making.adopt(folder, options.edits, options.align)
    elif options.model == making.COPY:
        making.run(folder, lambda: making.copy(options.settings), options.retry_failed)
    else:
        making.run(
            folder, lambda: making.kiwi(options.model, options.settings, options.device, options.offload),
            options.retry_failed,
        )  # fmt: skip
    edits = [folder.edit(item) for item in items]
    done = sum(edit is not None and edit.status == DONE for edit in edits)
    failed = [edit for edit in edits if edit is not None and edit.status == FAILED]
    print(f"{done} of {len(items)} edits are there, {len(failed)} failed.")
    for edit in failed[:10]:
        print(f"  {edit.item}: {edit.error}")
    return 0


def _system(options: Run) -> dict:
    """What made the edits, as the run's folder remembers it."""
    if options.edits is not None:
        return {"name": options.name or options.edits.resolve().name, "edits": str(options.edits.resolve())}
    made = options.settings
    named = options.name or (options.model if options.model == making.COPY else Path(options.model).name)
    settings = {name: getattr(made, name) for name in ("steps", "shift", "frames", "max_pixels", "dtype")}
    loras = {"lora": [str(path.resolve()) for path in made.lora], "lora_strength": made.lora_strength}
    # A folder that was trained on is another model.
    weights = [path for path in (Path(options.model), *made.lora) if path.exists()]
    told = {"weights": [fingerprint.weights(path) for path in weights]} if weights else {}
    return {"name": named, "model": options.model, **settings, **(loras if made.lora else {}), **told}


def _measure(options: Measure) -> int:
    from tqdm import tqdm

    from . import exact
    from .metrics import Meter

    folder = Folder(options.out)
    meter = Meter(options.images, options.texts, options.device or None)
    # What was measured by other models would not compare with the rest.
    known = {name for name, one in folder.measured().items() if one.identity == meter.identity and not options.again}
    waiting = [
        item for item in folder.items
        if item.id not in known and (edit := folder.edit(item)) is not None and edit.status == DONE
    ]  # fmt: skip
    for item in tqdm(waiting, desc="measured", unit="edit", mininterval=2, dynamic_ncols=True):
        edit = folder.edit(item)
        found = meter.measure(item, edit)
        if folder.run["bench"] == suites.NANO and not found.error:
            try:
                found = dataclasses.replace(found, values=found.values | exact.measure_exactly(item, edit))
            except ValueError as error:
                found = dataclasses.replace(found, error=str(error))
        folder.note_measured(found)
    print(_metrics_summary(folder))
    return 0


def _summary(folder: Folder, judge: str) -> str:
    from . import results

    return results.of(folder, judge).text()


def _metrics_summary(folder: Folder) -> str:
    from . import results

    return results.text_of_numbers(folder)


if __name__ == "__main__":
    sys.exit(main())
