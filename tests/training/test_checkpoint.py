"""Checkpoints of a run on disk: whole or not at all."""

import json
import os

import pytest
import torch

from kiwi_core.checkpoints import files
from training import checkpoint

STATE = {"taken": {"video": [3, 4]}, "processes": 2, "broken": {}}


def tensors(step):
    values = torch.full((2, 3), float(step))
    return {"model": {"a.weight": values, "b": values[0]}, "optimizer": {"a.weight|exp_avg": values * 2}, "ema": {}}


def save(folder, *steps):
    return [checkpoint.save(folder, step, tensors(step), STATE) for step in steps]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    (path,) = save(folder, 500)
    assert path == folder / "step-00000500"
    assert names(folder) == ["step-00000500"]
    assert names(path) == ["model.safetensors", "optimizer.safetensors", "state.json"]  # nothing for empty parts
    found = checkpoint.newest(folder)
    assert (found.path, found.step) == (path, 500)
    assert STATE.items() <= found.state.items()
    for part, expected in tensors(500).items():
        loaded = found.tensors(part)
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert found.tensors("nothing") == {}


def test_there_is_none_at_first(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "missing") is None


def test_the_newest_is_that_of_the_highest_step(tmp_path):
    save(tmp_path, 1000, 999, 20)
    (tmp_path / "step-last").mkdir()
    (tmp_path / "notes").mkdir()
    assert checkpoint.newest(tmp_path).step == 1000


@pytest.mark.parametrize("fails_at", ["first file", "second file", "state", "rename"])
def test_a_kill_within_saving_leaves_the_one_before(tmp_path, monkeypatch, fails_at):
    save(tmp_path, 10)
    save_tensors, calls = files.save_tensors, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == (1 if fails_at == "first file" else 2):
            raise KeyboardInterrupt
        return save_tensors(*arguments)

    def refuse(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if fails_at == "state":
            patch.setattr(files, "save_json", refuse)
        elif fails_at == "rename":
            replace = os.replace
            patch.setattr(os, "replace", lambda one, two: refuse() if "step-" in str(two) else replace(one, two))
        else:
            patch.setattr(files, "save_tensors", failing)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 20)
    assert checkpoint.newest(tmp_path).step == 10
    checkpoint.prune(tmp_path, 5)
    assert names(tmp_path) == ["step-00000010"]


def test_what_a_kill_left_is_removed_and_never_taken_for_a_checkpoint(tmp_path):
    save(tmp_path, 10)
    (tmp_path / ".0123abcd.tmp").mkdir()
    (tmp_path / ".0123abcd.tmp" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path).step == 10
    checkpoint.prune(tmp_path, 1)
    assert names(tmp_path) == ["step-00000010"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-4])


DAMAGES = {
    "truncated": lambda path: truncate(path / "model.safetensors"),
    "emptied": lambda path: (path / "optimizer.safetensors").write_bytes(b""),
    "of two halves": lambda path: files.save_tensors({"a": torch.ones(1)}, path / "model.safetensors"),
    "file is missing": lambda path: (path / "model.safetensors").unlink(),
    "state is missing": lambda path: (path / "state.json").unlink(),
    "state is torn": lambda path: truncate(path / "state.json"),
    "state is of something else": lambda path: (path / "state.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, damage):
    one, two = save(tmp_path, 10, 20)
    DAMAGES[damage](two)
    with caplog.at_level("WARNING"):
        assert checkpoint.newest(tmp_path).step == 10
    assert [record.getMessage().split(" is passed over: ")[0] for record in caplog.records] == [str(two)]
    DAMAGES[damage](one)
    assert checkpoint.newest(tmp_path) is None


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [
        (1, 0, [70]),
        (2, 0, [60, 70]),
        (9, 0, [10, 20, 30, 40, 50, 60, 70]),
        (1, 30, [30, 60, 70]),
        (2, 20, [20, 40, 60, 70]),
    ],
)
def test_pruning_keeps_the_newest_and_every_so_many(tmp_path, keep, keep_every, left):
    save(tmp_path, *range(10, 80, 10))
    (tmp_path / "notes").mkdir()
    checkpoint.prune(tmp_path, keep, keep_every)
    assert names(tmp_path) == ["notes", *(f"step-{step:08d}" for step in left)]
    assert checkpoint.newest(tmp_path).step == 70


def test_a_step_that_is_there_is_replaced(tmp_path):
    (path,) = save(tmp_path, 10)
    (path / "ema.safetensors").write_bytes(b"old")
    checkpoint.save(tmp_path, 10, {"model": {"a": torch.ones(3)}}, {"again": True})
    assert names(tmp_path) == ["step-00000010"]
    assert names(path) == ["model.safetensors", "state.json"]
    found = checkpoint.newest(tmp_path)
    assert found.state["again"] is True
    assert torch.equal(found.tensors("model")["a"], torch.ones(3))


def test_the_state_is_readable_json(tmp_path):
    (path,) = save(tmp_path, 7)
    state = json.loads((path / "state.json").read_text())
    assert state["step"] == 7
    assert state["files"] == {
        name: (path / name).stat().st_size for name in ("model.safetensors", "optimizer.safetensors")
    }
