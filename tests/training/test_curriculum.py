"""Stages that follow each other: each starts where the last one ended, and teaches."""

from pathlib import Path

import pytest
import training_data

from training import metrics, trainer

STEPS = 40
# How far the loss on the rows falls at least, from fixed seeds: half of what it was seen to do.
SHARES = {"tiny_stage1": 0.3, "tiny_stage2": 0.07, "tiny_stage3": 0.07}


@pytest.fixture(scope="module")
def stages(tiny_model, pairs, cached, tmp_path_factory):
    """Losses by kind before and after each stage; the last one also without the stages before it."""
    folder, found, start = tmp_path_factory.mktemp("stages"), {}, ""
    for recipe in (*SHARES, "cold"):
        config = training_data.config(
            "tiny_stage3" if recipe == "cold" else recipe, tiny_model / "released", pairs, folder / recipe,
            cache=str(cached), steps=STEPS, validation_data=(str(pairs),), validate_every=STEPS, save_every=STEPS,
            start="" if recipe == "cold" else start,
        )  # fmt: skip
        trainer.train(config)
        start = config.output
        found[recipe] = [line for line in metrics.read(Path(config.output)) if "validation/loss" in line]
    return found


@pytest.mark.parametrize("recipe", SHARES)
def test_the_loss_of_each_stage_falls(stages, recipe):
    before, after = (line["validation/loss"] for line in stages[recipe])
    assert after < (1 - SHARES[recipe]) * before


@pytest.mark.parametrize("earlier, later, kind", [
    ("tiny_stage1", "tiny_stage2", "image"), ("tiny_stage2", "tiny_stage3", "image"),
    ("tiny_stage2", "tiny_stage3", "video"),
])  # fmt: skip
def test_a_stage_starts_where_the_last_one_ended(stages, earlier, later, kind):
    name = f"validation/kind/{kind}"
    # The checkpoint between them is bfloat16; stage 2 adds the source, whose embedder is the base's.
    assert stages[later][0][name] == pytest.approx(stages[earlier][-1][name], rel=0.05)


def test_the_last_stage_gains_from_those_before_it(stages):
    assert stages["tiny_stage3"][-1]["validation/loss"] < 0.7 * stages["cold"][-1]["validation/loss"]
