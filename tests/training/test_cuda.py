"""Training on a GPU; skipped where there is none."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training import metrics, trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
BF16 = {"device": "", "precision": "bf16", "base_dtype": "bf16", "checkpointing": True, "deterministic": True}


def weights(config, name="training"):
    return load_file(Path(config.output) / "exports" / f"{name}.safetensors")


def test_a_stopped_run_goes_on_to_the_same_bits(quick):
    whole, parted = (quick(output=name, ema_decay=0.9, cache="", **BF16) for name in ("whole", "parted"))
    trainer.train(whole)
    trainer.train(parted.replace(steps=2))
    trainer.train(parted)
    one, other = weights(whole), weights(parted)
    assert all(one[name].equal(other[name]) for name in one)
    assert all(tensor.isfinite().all() for tensor in one.values())


def test_losses_are_those_of_the_cpu(quick):
    runs = []
    for name, given in (("cpu", {}), ("gpu", {"device": ""})):
        config = quick(output=name, steps=2, lr=1e-5, cache="", **given)
        trainer.train(config)
        runs.append([line["loss"] for line in metrics.read(Path(config.output))])
    assert runs[1] == pytest.approx(runs[0], rel=1e-2)


@pytest.mark.parametrize("changes", [
    {"base_dtype": "fp8"}, {"adapter": "dora"}, {"optimizer": "adamw8bit"}, {"optimizer": "prodigy", "lr": 1.0},
    {"dit": "full", "checkpointing": False},
], ids=str)  # fmt: skip
def test_every_way_to_save_memory_runs(quick, changes):
    if changes.get("optimizer") == "adamw8bit":
        pytest.importorskip("torchao")
    config = quick("tiny_style_lora", kinds=("video", "ref"), cache="", sample_every=4, sample_steps=2,
                   **BF16 | changes)  # fmt: skip
    trainer.train(config)
    assert all(tensor.isfinite().all() for tensor in weights(config, "run").values())


def test_a_cached_run_leaves_the_encoders_out(quick):
    """The vision tower and the VAE stay on the CPU."""
    config = quick(**BF16)
    trainer.train(config)
    assert all(tensor.isfinite().all() for tensor in weights(config).values())


def test_a_distilled_model_runs(quick):
    config = quick("tiny_distill", kinds=("video",), cache="", **BF16)
    trainer.train(config)
    assert len(metrics.read(Path(config.output))) == config.steps
