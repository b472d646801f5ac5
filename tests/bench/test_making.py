"""Edits are made once each, by one process or several, whatever fails in between; others' edits are found."""

import dataclasses
import multiprocessing
import shutil
import subprocess
import sys
import time
from fractions import Fraction

import comfyui
import numpy as np
import pytest
import refvie_runs

from kiwi_core import media
from training.asking import Unavailable
from training.bench import clips, making, suites
from training.bench.__main__ import main
from training.bench.folder import DONE, FAILED, FRAMES, TIME, Folder


@pytest.fixture
def folder(refvie_bench, tmp_path):
    items = suites.read("refvie", refvie_bench)
    return Folder.begin(tmp_path / "run", {"bench": "refvie", "system": {"name": "x"}}, items)


def system(item):
    return media.load_video(item.source).frames[:, ::-1], Fraction(8)


def made(folder):
    return {item.id: folder.edit(item) for item in folder.items}


def test_every_item_is_made_once(folder):
    calls = []

    def counting():
        calls.append("load")
        return lambda item: calls.append(item.id) or system(item)

    making.run(folder, counting)
    assert calls == ["load", *(item.id for item in folder.items)]
    making.run(folder, counting)
    assert len(calls) == 5
    for item in folder.items:
        edit = folder.edit(item)
        assert (edit.status, edit.align, edit.error) == (DONE, FRAMES, "") and edit.seconds > 0
        assert np.array_equal(media.load_video(edit.path).frames, system(item)[0])  # small ones are kept to the bit
    assert not (folder.path / "claims").exists()


def test_a_failure_is_told_and_tried_again_only_on_request(folder):
    bad = folder.items[1].id

    def failing(error):
        def make(item):
            if item.id == bad:
                raise error
            return system(item)

        return make

    making.run(folder, lambda: failing(RuntimeError("CUDA error:\nno kernel")))
    assert {edit.status for name, edit in made(folder).items() if name != bad} == {DONE}
    assert (made(folder)[bad].status, made(folder)[bad].error) == (FAILED, "RuntimeError: CUDA error: no kernel")
    making.run(folder, lambda: system)
    assert made(folder)[bad].status == FAILED
    making.run(folder, lambda: failing(ValueError("Too long.")), retry=True)
    assert made(folder)[bad].error == "Too long."
    making.run(folder, lambda: system, retry=True)
    assert made(folder)[bad].status == DONE


def test_a_full_disk_stops_the_run_and_is_no_items_fault(folder):
    def full(item):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        making.run(folder, lambda: full)
    assert set(made(folder).values()) == {None}


def test_a_machine_that_breaks_is_no_items_fault(refvie_bench, tmp_path):
    first = suites.read("refvie", refvie_bench)[0]
    items = [dataclasses.replace(first, id=f"i{number}") for number in range(9)]
    folder = Folder.begin(tmp_path / "run", {"bench": "refvie", "system": {"name": "x"}}, items)

    def breaks(item):
        if item.id != "i0":
            raise RuntimeError("CUDA error: device-side assert")
        return system(item)

    with pytest.raises(Unavailable, match=r"5 edits in a row broke, at last so: RuntimeError: CUDA error.* goes on\."):
        making.run(folder, lambda: breaks)
    assert [name for name, edit in made(folder).items() if edit is not None] == ["i0"]

    def odd(item):
        if item.id in ("i2", "i3", "i8"):
            raise RuntimeError("A bug.")
        return system(item)

    making.run(folder, lambda: odd)
    assert [name for name, edit in made(folder).items() if edit.status == FAILED] == ["i2", "i3", "i8"]


def slow(path, name):
    def make(item):
        time.sleep(0.1)
        with (path / "calls.txt").open("a") as file:
            file.write(f"{name} {item.id}\n")
        return system(item)

    making.run(Folder(path), lambda: make)


def test_several_processes_share_the_work(folder):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=slow, args=(folder.path, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    calls = (folder.path / "calls.txt").read_text().split("\n")[:-1]
    assert sorted(call.split()[1] for call in calls) == sorted(item.id for item in folder.items)
    assert len({call.split()[0] for call in calls}) > 1
    assert all(edit.status == DONE for edit in made(folder).values())


_KILLED = """
import sys, time
from pathlib import Path
from kiwi_core import media
from training.bench import making
from training.bench.folder import Folder
def make(item):
    Path(sys.argv[1], "started").write_text(item.id)
    time.sleep(60 if item.id.startswith("0002") else 0)
    return media.load_video(item.source).frames[:, ::-1], 8
making.run(Folder(sys.argv[1]), lambda: make)
"""


def test_a_killed_process_loses_what_it_had_in_hand(folder):
    env = refvie_runs.environment()
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(folder.path)], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder.path / "started").exists() or not (folder.path / "started").read_text().startswith("0002"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = {name: edit.path.stat().st_mtime_ns for name, edit in made(folder).items() if edit}
    assert len(kept) == 2
    making.run(folder, lambda: system)
    assert all(edit.status == DONE for edit in made(folder).values())
    assert all(made(folder)[name].path.stat().st_mtime_ns == stamp for name, stamp in kept.items())


def test_edits_of_others_are_found_by_id_or_source(folder, tmp_path):
    first, second, third, fourth = folder.items
    theirs = tmp_path / "theirs"
    media.save_video(theirs / "deep" / f"{first.id}.mp4", system(first)[0], 8)
    media.save_video(theirs / f"{second.source.stem}.mp4", system(second)[0], 24)
    for number in range(2):
        media.save_video(theirs / f"{number}" / f"{third.id}.mp4", system(third)[0], 8)
    making.adopt(folder, theirs)
    found = made(folder)
    assert found[first.id].path == theirs / "deep" / f"{first.id}.mp4" and found[second.id].status == DONE
    assert "several clips" in found[third.id].error and "There is no clip" in found[fourth.id].error
    (theirs / f"{fourth.id}.mp4").write_bytes(b"no clip")
    making.adopt(folder, theirs)
    assert made(folder)[fourth.id].status == FAILED
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        making.adopt(folder, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no clip of any item; name them by id, such as 0000-clip0\.mp4"):
        making.adopt(folder, tmp_path / "empty")


def test_frames_belong_together_by_number_or_by_time(tmp_path):
    frames = np.arange(24, dtype=np.uint8)[:, None, None, None] * np.ones((32, 48, 3), np.uint8) * 10
    source, prefix, slower = tmp_path / "s.mkv", tmp_path / "p.mkv", tmp_path / "h.mkv"
    clips.save_exactly(source, frames, 24)
    clips.save_exactly(prefix, frames[:9], 15)
    clips.save_exactly(slower, frames[::2, ::2, ::2], 12)
    both = clips.read(source, prefix, FRAMES)
    assert np.array_equal(both.source, both.edit) and len(both.edit) == 9 and both.rate == 15
    assert clips.alignment(source, slower) == TIME and clips.alignment(source, source) == FRAMES
    both = clips.read(source, slower, TIME)
    assert both.source.shape == both.edit.shape == (12, 16, 24, 3) and np.array_equal(both.source, both.edit)
    some = both.some(4)
    assert some.edit[:, 0, 0, 0].tolist() == [0, 80, 140, 220] and np.array_equal(some.source, some.edit)
    assert len(clips.matched(10, Fraction(10), 30, Fraction(10), TIME)) == 10


def test_a_model_edits_a_benchmark(refvie_bench, tmp_path, capsys):
    """The toy model, through the command."""
    shutil.copytree(refvie_bench, tmp_path / "bench")
    model = tmp_path / "kiwi-edit-nano"
    shutil.copytree(comfyui.REPO / "models" / "diffusers" / "kiwi-edit-nano", model)
    given = ["run", "--bench", "refvie", "--data", str(tmp_path / "bench"), "--out", str(tmp_path / "run")]
    given += ["--model", str(model), "--steps", "4", "--dtype", "fp32", "--frames", "5", "--device", "cpu"]
    assert main(given) == 0
    assert "4 of 4 edits are there, 0 failed." in capsys.readouterr().out
    folder = Folder(tmp_path / "run")
    assert folder.run["system"]["steps"] == 4 and folder.run["system"]["name"] == "kiwi-edit-nano"
    for item in folder.items:
        clip = media.load_video(folder.edit(item).path)
        assert clip.frames.shape == (5, 64, 64, 3) and clip.frame_rate == 8
        assert np.abs(clip.frames - media.load_video(item.source).frames[:5].astype(float)).mean() > 1
    assert main([*given, "--steps", "8"]) == 2  # other settings are another run
    assert "give another folder" in capsys.readouterr().err
    assert main(given) == 0
    weights = model / "ref_embedder" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main(given) == 2  # it was trained on
    assert "give another folder" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "sentence"), [
    (["--bench", "refvie", "--model", "copy"], "--data FOLDER"),
    (["--bench", "nano"], "either --model or --edits"),
    (["--bench", "nano", "--model", "nowhere/at all/x"], ""),
    (["--bench", "nano", "--model", "copy", "--steps", "0"], "--steps is 0"),
    (["--bench", "nano", "--edits", "no-such-folder"], "There is no folder no-such-folder"),
    (["--bench", "nano", "--model", "copy", "--lora", "none.safetensors"], "There is no LoRA"),
])  # fmt: skip
def test_what_cannot_be_run_is_said_in_a_sentence(tmp_path, capsys, given, sentence):
    try:
        assert main(["run", "--out", str(tmp_path / "run"), "--share", "0.01", *given]) == 2
    except SystemExit as stop:  # of what the parser refuses
        assert stop.code == 2
    told = capsys.readouterr().err
    assert sentence in told and "Traceback" not in told
    assert not (tmp_path / "run" / "run.json").exists()
