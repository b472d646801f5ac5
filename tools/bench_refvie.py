"""Measures RefVIE's pipeline on pairs of the toy world: samples a second by stage at one, four and sixteen times the
input, what ledger and engine cost over the bare stage functions, and memory. Fails above the bounds that it states.

    python tools/bench_refvie.py [--pairs 48] [--output output/bench-refvie]
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from training.refvie import config, engine, pipeline, stages
from training.refvie.ledger import INGEST, Ledger

TIMES = (1, 4, 16)
MAX_OVERHEAD = 0.10
"""Of wall time over that of the bare stage functions, at the largest size."""
MAX_GROWTH = 1.25
"""Of the cost of a sample from the smallest size but one to the largest, and of memory likewise."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--output", type=Path, default=Path("output/bench-refvie"))
    parser.add_argument("--run", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(options.output, options.run)))
        return 0
    shutil.rmtree(options.output, ignore_errors=True)
    write_pairs(options.output / "pairs", options.pairs)
    found = []
    for times in TIMES:
        command = [sys.executable, __file__, "--output", str(options.output), "--run", str(times)]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found.append(json.loads(told.splitlines()[-1]))
    return report(found)


def write_pairs(folder: Path, count: int) -> None:
    from training.nano import edits, rows

    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        edit = edits.draw(edits.CATEGORIES[number % 5], number)
        lines.append(rows.write_row(folder, f"pair{number}", edit))
    (folder / "pairs.json").write_text(json.dumps(lines))


def measure(output: Path, times: int) -> dict:
    """One size in a process of its own: the same clips under as many names."""
    folder = output / f"run{times}"
    rows = json.loads((output / "pairs" / "pairs.json").read_text())
    table = output / "pairs" / f"times{times}.jsonl"
    with table.open("w") as file:
        for again in range(times):
            for number, row in enumerate(rows):
                file.write(json.dumps(row | {"id": f"{again}-{number}"}) + "\n")
    given = config.Config(lossless=True, duplicates=2)
    seconds, run = {}, engine.run

    def timed(book, stage, *arguments):
        started = time.perf_counter()
        done = run(book, stage, *arguments)
        seconds[stage.name] = time.perf_counter() - started, sum(done.values())
        return done

    engine.run = timed
    book = pipeline.run([table], folder, given)
    engine.run = run
    book.close()
    return {
        "times": times, "samples": times * len(rows), "seconds": seconds, "bare": bare(folder, given),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def bare(folder: Path, given: config.Config) -> float:
    """Seconds of the stage functions alone for the same samples, in the same batches."""
    plan, total = stages.plan(given), 0.0
    aside = folder.parent / f"{folder.name}-bare"
    with Ledger(folder) as book:
        for name, stage in plan.items():
            # All that waited for the stage before the run did it.
            jobs = list(book.pending(stage.__class__(**stage.__dict__ | {"key": "none"}), given.keep))
            (aside / stages.ARTEFACTS).mkdir(parents=True, exist_ok=True)
            made = stages.CLASSES[name](folder, "bare" + stage.key, given)
            size = 8 if name == INGEST else getattr(given, name).batch_size
            started = time.perf_counter()
            for first in range(0, len(jobs), size):
                engine.outcomes(made, jobs[first : first + size])
            total += time.perf_counter() - started
    return total


def report(found: list[dict]) -> int:
    print("| stage | " + " | ".join(f"{one['samples']} samples" for one in found) + " |")
    print("|---" * (len(found) + 1) + "|")
    for name in stages.CLASSES:
        rates = [one["seconds"][name][1] / one["seconds"][name][0] for one in found]
        print(f"| {name}, samples a second | " + " | ".join(f"{rate:.1f}" for rate in rates) + " |")
    totals = [sum(seconds for seconds, _ in one["seconds"].values()) for one in found]
    costs = [1000 * total / one["samples"] for total, one in zip(totals, found)]
    overheads = [total / one["bare"] - 1 for total, one in zip(totals, found)]
    print("| all, ms a sample | " + " | ".join(f"{cost:.1f}" for cost in costs) + " |")
    print("| over the bare functions | " + " | ".join(f"{100 * one:.1f}%" for one in overheads) + " |")
    print("| memory, MiB | " + " | ".join(f"{one['memory']:.0f}" for one in found) + " |")
    failures = []
    if overheads[-1] > MAX_OVERHEAD:
        failures.append(f"ledger and engine cost {100 * overheads[-1]:.1f}%, more than {100 * MAX_OVERHEAD:.0f}%")
    if costs[-1] > MAX_GROWTH * costs[-2]:
        failures.append(f"of more samples each costs {costs[-1] / costs[-2]:.2f} times as much")
    if found[-1]["memory"] > MAX_GROWTH * found[-2]["memory"]:
        failures.append("memory grows with the input")
    print("\n".join(failures) or "Within the bounds.")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
