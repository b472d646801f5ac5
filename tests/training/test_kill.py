"""Runs that are killed, anywhere and often, end as those that were left alone."""

import dataclasses
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import training_data
from safetensors.torch import load_file

from training import metrics

CHECKPOINT = "training.checkpoint"
# Where a run kills itself: the function, and which of its calls (counted anew in every start).
POINTS = [
    ("training.parallel:Parallel.backward", 2),  # in the middle of the first update
    (f"{CHECKPOINT}:save", 1),
    ("kiwi_core.checkpoints.streaming:FileLayout.write", 3),  # in the middle of the file of weights
    (f"{CHECKPOINT}:_flush", 2),  # between the files of a checkpoint
    (f"{CHECKPOINT}:_flush", 5),  # all is written, nothing renamed
    (f"{CHECKPOINT}:_flush", 6),  # renamed: the first that leaves a checkpoint
    (f"{CHECKPOINT}:prune", 1),
    ("training.metrics:Metrics.add", 1),
    ("training.ema:EMA.update", 2),
    ("training.trainer:_Run._validate", 1),
    ("training.parallel:Parallel.backward", 5),
    ("training.export:write", 1),
]


@pytest.fixture(scope="module")
def start():
    """Start a run in a fresh process that has imported everything; returns its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.trainer", "training_data", "peft", "matplotlib.pyplot"])

    def start(config, victim="", call=0, kill=None):
        """``kill``: SIGKILL after so many updates have been logged, and so many seconds more."""
        process = context.Process(target=training_data.run_killed, args=(dataclasses.asdict(config), victim, call))
        process.start()
        if kill is not None:
            updates, seconds = kill
            wanted = len(metrics.read(Path(config.output))) + updates
            while process.is_alive() and len(metrics.read(Path(config.output))) < wanted:
                time.sleep(0.02)
            process.join(seconds)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        process.join(240)
        if process.exitcode is None:
            process.kill()
            process.join()
        return process.exitcode

    return start


@pytest.fixture
def long_run(quick):
    def long_run(output):
        return quick(
            output=output, steps=8, save_every=2, ema_decay=0.9, dropout=0.1, validation_rows=1, validate_every=3,
            workers=2, exports=("training", "comfyui"),
        )  # fmt: skip

    return long_run


def assert_same(one: Path, other: Path):
    steps = metrics.read(one)[-1]["step"]
    for name in ("exports/training.safetensors", f"exports/{one.name}.safetensors"):
        twin = name.replace(one.name, other.name)
        ours, theirs = load_file(one / name), load_file(other / twin)
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours)
    for part in ("model", "optimizer", "ema"):
        files = [next((folder / "checkpoints").glob(f"*{steps}")) / f"{part}.safetensors" for folder in (one, other)]
        assert files[0].read_bytes() == files[1].read_bytes(), part
    logs = [[{**line, "seconds": 0} for line in metrics.read(folder)] for folder in (one, other)]
    assert logs[0] == logs[1]
    assert not list((other / "checkpoints").glob(".*"))


def test_killed_at_every_point_a_run_ends_as_if_left_alone(long_run, start):
    alone, killed = long_run("alone"), long_run("killed")
    assert start(alone) == 0
    for victim, call in POINTS:
        assert start(killed, victim, call) == -signal.SIGKILL, victim
    assert start(killed) == 0
    assert_same(Path(alone.output), Path(killed.output))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_ends_a_run_with_a_checkpoint(quick, number):
    """Ctrl-C and schedulers send theirs to those that decode clips too."""
    config = quick(steps=1000, workers=2, cache="", save_every=500)
    command = [
        *(sys.executable, "-m", "training", "train", config.recipe, "--model", config.model, "--data", *config.data),
        *("--output", config.output, "--steps", "1000", "--workers", "2", "--save-every", "500", "--device", "cpu"),
        "--trackers",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 120
            while process.poll() is None and not metrics.read(Path(config.output)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.killpg(process.pid, number)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said and "Traceback" not in said
    (checkpoint,) = Path(config.output).glob("checkpoints/*")
    assert int(checkpoint.name.rpartition("-")[2]) == metrics.read(Path(config.output))[-1]["step"]


def test_killed_at_any_moment_a_run_ends_as_if_left_alone(long_run, start):
    """Set KIWI_EDIT_KILLS for more than CI has time for."""
    wanted = int(os.environ.get("KIWI_EDIT_KILLS", "3"))
    alone, killed = (long_run(name).replace(steps=6 * wanted) for name in ("alone", "killed"))
    assert start(alone) == 0
    update = statistics.median(line["seconds"] for line in metrics.read(Path(alone.output)) if "seconds" in line)
    draw, kills = random.Random(0), 0  # noqa: S311
    while kills < wanted:
        code = start(killed, kill=(draw.randrange(4), draw.uniform(0, 2) * update))
        assert code == -signal.SIGKILL, f"it ended after {kills} kills"
        kills += 1
    assert start(killed) == 0
    assert_same(Path(alone.output), Path(killed.output))
