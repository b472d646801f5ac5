"""``python -m training.nano``: make the toy world's data, train the small model, measure it."""

from __future__ import annotations

import logging
import sys

import tyro

from . import build


def main() -> None:
    """Run a step, or all of them with ``train``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    commands = ("train", *build.STEPS)
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(f"Say what to do: python -m training.nano {{{','.join(commands)}}} --output FOLDER")
    command, *arguments = sys.argv[1:]
    plan = tyro.cli(build.Plan, args=arguments, prog=f"python -m training.nano {command}")
    if command == "train":
        print(build.train(plan))
    else:
        build.do(plan, command)


if __name__ == "__main__":
    main()
