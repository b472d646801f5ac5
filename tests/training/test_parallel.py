"""Processes that train together learn what one process learns, and go on from each other's checkpoints."""

import dataclasses
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training import trainer

ROOT = Path(__file__).parents[2]
RUN = """
import json, sys, torch
torch.set_num_threads(1)
from training import trainer
from training.config import Config
settings = json.loads(sys.argv[1])
trainer.train(Config(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}))
"""
# Samples and validation lie between the updates, and must leave them alone.
MODES = {"ddp": {}, "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}}
if importlib.util.find_spec("deepspeed"):  # no wheel for it, so not in CI
    MODES["zero2"] = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}


def train_together(config, processes=2, env=None):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(processes):
        own = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
        }  # fmt: skip
        started.append(subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(dataclasses.asdict(config))],
            env=os.environ | {name: str(value) for name, value in own.items()} | (env or {}),
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ))  # fmt: skip
    try:
        for process in started:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
    finally:
        for process in started:  # one whose partner failed would wait for it
            process.kill()
            process.wait()


def trained(config, step, part="model"):
    return load_file(Path(config.output) / "checkpoints" / f"step-{step:08d}" / f"{part}.safetensors")


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.fixture
def run(quick):
    """Two processes with batches of one sample see what one process with batches of two does not: so both take
    single samples, and one process takes twice as many an update."""

    def run(output, **changes):
        given = {"batch_size": 1, "kinds": ("video", "ref"), "steps": 3, "save_every": 1, "lr": 1e-3, "ema_decay": 0.9}
        given |= {"validation_rows": 1, "validate_every": 1, "sample_every": 2, "sample_rows": 1, "sample_steps": 2}
        return quick(output=output, **given | {"accumulation": 2, "keep_checkpoints": 5} | changes)

    return run


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_learn_what_one_does_through_stops_and_in_either_number(run, mode, tmp_path):
    whole, parted, alone = run("whole"), run("parted"), run("alone", accumulation=4)
    train_together(whole, env=MODES[mode])
    trainer.train(alone)
    # The samples of an update are the same: places 0 and 1 of each kind's stream.
    for step in (1, 3):
        assert_close(trained(whole, step), trained(alone, step))
    exports = [load_file(Path(config.output) / "exports" / "training.safetensors") for config in (whole, alone)]
    assert exports[0].keys() == exports[1].keys()

    train_together(parted.replace(steps=1), env=MODES[mode])
    shutil.copytree(parted.output, tmp_path / "onwards")
    train_together(parted, env=MODES[mode])
    for part in ("model", "optimizer", "ema"):
        one, other = (trained(config, 3, part) for config in (whole, parted))
        assert all(one[name].equal(other[name]) for name in one), part
    onwards = parted.replace(output=str(tmp_path / "onwards"), accumulation=4)
    trainer.train(onwards)
    assert_close(trained(whole, 3), trained(onwards, 3))


def test_an_optimizer_that_cannot_share_weights_is_refused_at_the_start(run):
    config = run("refused", optimizer="adafactor")
    with pytest.raises(AssertionError, match="adafactor cannot work on the parts of weights"):
        train_together(config, env=MODES["fsdp2"])


def test_frozen_float8_weights_stay_out_of_the_exchange(run):
    together = run("fp8", steps=1, base_dtype="fp8", precision="bf16", dit="lora", sample_every=0)
    train_together(together)
    assert all(tensor.isfinite().all() for tensor in trained(together, 1).values())
