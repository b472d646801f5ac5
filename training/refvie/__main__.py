"""``python -m training.refvie``: make quadruplets of pairs, look at them, choose, export."""

from __future__ import annotations

import logging
import sqlite3
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from . import config, engine, estimate, ledger, pipeline
from .exports import export
from .pages import report, review

PROGRAM = "python -m training.refvie"


@dataclass(frozen=True)
class Run:
    """Run every stage for every pair that waits for it; the same command goes on after a kill."""

    out: Path
    """Folder of the run: its ledger and all that it makes."""
    pairs: tuple[str, ...] = ()
    """Tables of pairs (CSV, JSON, JSONL, Parquet), folders or patterns of them; none for those that OUT knows."""
    config: str = "classical"
    """A YAML file, or the name of one that comes with the project."""
    root: Path | None = None
    """Folder that the tables' paths begin at, if not each table's own."""
    layout: str = "auto"
    """Whose columns the tables have; found out by itself."""
    origin: str = ""
    """Name of the set that the pairs are from, if not the layout's or the table's."""
    columns: dict[str, str] = field(default_factory=dict)
    """By role (source, target, prompt, id, category), the table's column for it, where no layout knows it."""
    retry_failed: bool = False
    """Try again what failed or had no answer that could be read, and make again what is gone from the folder."""
    ray: str | None = None
    """Address of a Ray cluster to run on, or "local" to start one here."""
    stages: tuple[str, ...] = ()
    """Stages to run, if not all."""


@dataclass(frozen=True)
class Report:
    """Write one HTML page of what was kept, what was not, and why."""

    out: Path
    config: str = ""
    """Other bounds to judge by than those of the last run."""
    page: Path | None = None
    """Where to, if not OUT/report.html."""


@dataclass(frozen=True)
class Review:
    """Look at samples in the browser and accept or reject them; the choices enter the ledger."""

    out: Path
    config: str = ""
    port: int = 0


@dataclass(frozen=True)
class Export:
    """Write what is kept as data to train on."""

    out: Path
    folder: Path
    """Where to."""
    config: str = ""
    formats: tuple[str, ...] = export.FORMATS
    options: export.Export = field(default_factory=export.Export)


@dataclass(frozen=True)
class Estimate:
    """Write what a larger run would cost, by what this one did."""

    out: Path
    pairs: int = 3_700_000
    gpus: tuple[int, ...] = (1, 8, 64)


def main() -> int:
    """Run what the arguments say; returns the exit status: 0, 2 for bad input or a stop, 130 for an interrupt."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("training").setLevel(logging.INFO)  # Daft tells its own through the same door
    commands = {"run": Run, "report": Report, "review": Review, "export": Export, "estimate": Estimate}
    options = tyro.extras.subcommand_cli_from_dict(commands, prog=PROGRAM, config=(tyro.conf.OmitArgPrefixes,))
    try:
        _do(options)
    except sqlite3.Error as error:
        print(f"{PROGRAM}: The ledger cannot be used ({error}); see that the disk has room and works.", file=sys.stderr)
        return 2
    except (ValueError, OSError, engine.Stopped, ledger.Busy) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; the same command goes on.", file=sys.stderr)
        return 130
    return 0


def _do(options: Run | Report | Review | Export | Estimate) -> None:
    given = config.read(options.config) if getattr(options, "config", "") else None
    if isinstance(options, Run):
        book = pipeline.run(
            options.pairs, options.out, given, options.root, options.layout, options.origin,
            options.retry_failed, options.ray, options.stages, options.columns,
        )  # fmt: skip
        book.close()
        book, given = pipeline.opened(options.out)
        print(pipeline.summary(book))
    elif isinstance(options, Review):
        return review.serve(options.out, options.port, given)
    else:
        book, given = pipeline.opened(options.out, given)
        if isinstance(options, Report):
            print(report.report(book, given, options.page or options.out / "report.html"))
        elif isinstance(options, Export):
            print(export.export(book, given, options.folder, options.formats, options.options))
        else:
            print(estimate.estimate(book, given, options.pairs, options.gpus))
    book.close()
    return None


if __name__ == "__main__":
    sys.exit(main())
