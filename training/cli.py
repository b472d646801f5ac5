"""The command line: ``python -m training COMMAND``.

Results go to stdout, everything else to stderr. Heavy imports wait until the input has been looked at.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import tyro

from . import recipes
from .config import EXPORTS, Config

PROGRAM = "python -m training"
COMMANDS = {
    "train": "train a recipe; the same command goes on after a kill",
    "describe": "print a recipe's whole configuration, what it trains, and the memory that it takes",
    "cache": "encode the data of a recipe once, so that training need not",
    "check-data": "find all problems of the data before training",
    "export": "write the exports of a run from its newest checkpoint, whether it has ended or not",
    "plot": "draw the losses of a run",
    "recipes": "list the recipes",
}
# For errors that torch raises as RuntimeError, by words in them.
_ADVICE = {
    "out of memory": "Out of memory; run cache first, set --base-dtype fp8, or lower --max-frames, --max-pixels or "
    "--batch-size, with another --output where this run has checkpoints already.",
    "DataLoader worker": "A process that decodes clips has died, mostly for want of memory; lower --workers. The same "
    "command goes on from the last checkpoint.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for bad input, 130 after a stop on request."""
    logging.basicConfig(format="%(message)s")
    for name in ("training", "kiwi_core"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        for words, advice in _ADVICE.items():
            if words in str(error):
                print(f"{PROGRAM}: {advice}", file=sys.stderr)
                return 2
        raise
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped.", file=sys.stderr)
        return 130


def _run(argv: list[str]) -> int:
    listed = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {PROGRAM} COMMAND ...\n\n{listed}\n\n{PROGRAM} COMMAND --help says more.")
        return 0
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        raise ValueError(f"There is no command {command!r}; use one of {', '.join(COMMANDS)}.")
    if command == "recipes":
        for name, build in recipes.RECIPES.items():
            print(f"{name:<22}{build.__doc__}")
        return 0
    if command == "plot":
        return _plot(rest)
    if command == "check-data":
        return _check_data(rest)
    if command == "export":
        return _export(rest)
    config = parse(command, rest)
    if command == "describe":
        from .describe import describe

        print(describe(config))
        return 0
    if command == "cache":
        from .cache_data import cache_data

        print(cache_data(config))
        return 0
    from . import trainer

    try:
        made = trainer.train(config)
    except trainer.Stopped as stopped:
        print(f"{PROGRAM}: {stopped}", file=sys.stderr)
        return 130
    for path in made:
        print(path)
    return 0


def parse(command: str, argv: list[str]) -> Config:
    """A recipe's configuration with the command line's values in place of its own."""
    if not argv or argv[0].startswith("-"):
        if argv[:1] in (["-h"], ["--help"]):
            print(f"usage: {PROGRAM} {command} RECIPE [--official] [--FIELD VALUE ...]\n\n{COMMANDS[command]}\n")
            print(f"Recipes: {', '.join(recipes.RECIPES)}\n\n{PROGRAM} {command} RECIPE --help lists the fields.")
            raise SystemExit(0)
        raise ValueError(f"Name a recipe after {command}; use one of {', '.join(recipes.RECIPES)}.")
    name, *rest = argv
    official = "--official" in rest
    config = recipes.get(name, official)
    rest = [flag for flag in rest if flag != "--official"]
    about = f"{recipes.RECIPES[name].__doc__} With --official it behaves as published wherever ours differs."
    return tyro.cli(
        Config, default=config, args=rest, prog=f"{PROGRAM} {command} {name}", description=about,
        config=(tyro.conf.SuppressFixed, tyro.conf.FlagConversionOff),
    )  # fmt: skip


def _export(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} export", description=COMMANDS["export"])
    parser.add_argument("output", help="folder of the run")
    parser.add_argument("--exports", nargs="+", choices=EXPORTS, default=[], help="by default those of the run")
    arguments = parser.parse_args(argv)
    from pathlib import Path

    from . import trainer

    for path in trainer.export_run(Path(arguments.output), arguments.exports):
        print(path)
    return 0


def _plot(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} plot", description=COMMANDS["plot"])
    parser.add_argument("output", help="folder of the run")
    from pathlib import Path

    from . import metrics

    folder = Path(parser.parse_args(argv).output)
    made = metrics.plot(folder)
    if not made:
        raise ValueError(f"{folder} holds no losses ({metrics.FILE}); give the output folder of a run.")
    for path in made:
        print(path)
    return 0


def _check_data(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} check-data", description=COMMANDS["check-data"])
    parser.add_argument("data", nargs="+", help="tables, parquet files, shards, folders of clips")
    parser.add_argument("--data-root", default=None, help="folder that the paths in tables start from")
    parser.add_argument("--quick", action="store_true", help="look at headers only, do not decode every frame")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (2)")
    parser.add_argument("--report", default=None, help="file for all problems as JSON lines")
    arguments = parser.parse_args(argv)
    from .data.check import check_rows
    from .data.rows import read_rows

    rows = read_rows(arguments.data, arguments.data_root)
    from tqdm import tqdm

    with tqdm(total=len(rows), desc="check-data", unit="row") as bar:
        report = check_rows(
            rows, decode=not arguments.quick, workers=arguments.workers,
            progress=lambda done, total: bar.update(done - bar.n),
        )  # fmt: skip
    print(report)
    if arguments.report:
        report.write(arguments.report)
    return 1 if any(problem.severity == "error" for problem in report.problems) else 0
