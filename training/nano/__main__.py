"""``python -m training.nano``: make the toy world's data, train the small model, measure it, take it apart."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from kiwi_core.checkpoints import released
from kiwi_core.pipeline import KiwiEditPipeline

from .. import fingerprint
from ..trainer import Stopped
from . import ablations, bench, build

SYSTEMS = ("ceiling", "copy", "random weights", "model", "wrong reference")


@dataclass(frozen=True)
class Bench:
    """Measure a model on nano-bench, beside what bounds it."""

    model: Path
    """Released folder."""
    output: Path
    """Folder of the results and the report; what it holds is not measured again."""
    steps: int = bench.STEPS
    share: float = 1.0
    """Share of the items, for a quick look."""
    systems: tuple[str, ...] = SYSTEMS


def main() -> None:
    """Run what the first argument says."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    commands = ("train", "bench", "ablate", *build.STEPS)
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(f"Say what to do: python -m training.nano {{{','.join(commands)}}} --help")
    command, *arguments = sys.argv[1:]
    kind = {"bench": Bench, "ablate": ablations.Plan}.get(command, build.Plan)
    options = tyro.cli(kind, args=arguments, prog=f"python -m training.nano {command}")
    if command == "bench":
        print(measure(options))
    elif command == "train":
        print(build.train(options))
    elif command == "ablate":
        print(ablations.run(options))
    else:
        build.do(options, command)


def measure(options: Bench) -> str:
    """Run the benchmark; returns the report."""
    for name in options.systems:
        if name not in SYSTEMS:
            sys.exit(f"There is no system {name!r}; use {', '.join(SYSTEMS)}.")
    bench.keep_settings(options.output, fingerprint.weights(options.model), options.steps)
    chosen = bench.items({split: max(1, round(count * options.share)) for split, count in bench.COUNTS.items()})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = released.read(options.model)
    pipe = KiwiEditPipeline.from_parts(parts, torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    for name in options.systems:
        some = chosen
        if name == "ceiling":
            system = bench.ceiling(pipe)
        elif name == "copy":
            system = bench.copy
        elif name == "random weights":
            other = KiwiEditPipeline.from_parts(bench.shuffled(parts), torch.float32).to(device)
            other.set_progress_bar_config(disable=True)
            system = bench.model(other, options.steps)
            some = [item for item in chosen if item.edit.split == "seen"]
        elif name == "model":
            system = bench.model(pipe, options.steps)
        else:
            some = [item for item in chosen if item.edit.reference is not None]
            system = bench.model(pipe, options.steps, bench.wrong_references(bench.items()))
        bench.run(options.output, name, system, some)
    return bench.report(options.output)


if __name__ == "__main__":
    try:
        main()
    except (Stopped, KeyboardInterrupt) as stopped:
        print(str(stopped) or "Stopped; the same command goes on.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, FileNotFoundError, build.Failed) as error:
        sys.exit(str(error))
