"""Conversions that are killed, go on and stay small in memory."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import random_model as random_models
import torch
from safetensors.torch import load_file, save_file

from kiwi_core.checkpoints import files, released, resumable, streaming
from kiwi_core.checkpoints.convert import convert

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_a_process(action, patience=60.0):
    """Run it in a process of its own, which is killed after ``patience`` seconds; its exit status."""
    pid = os.fork()
    if not pid:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_before(step, action, count=None):
    """Run it in a process that kills itself before its disk operation number ``step``; its exit status.

    How many there were goes into the file ``count``, if it got to its end.
    """

    def run():
        done = 0

        def counting(function):
            def counted(*args, **kwargs):
                nonlocal done
                if done == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                done += 1
                return function(*args, **kwargs)

            return counted

        streaming.write_all = resumable.write_all = counting(streaming.write_all)
        os.replace, Path.unlink, Path.write_text = map(counting, (os.replace, Path.unlink, Path.write_text))
        streaming.FileLayout.digest = counting(streaming.FileLayout.digest)
        streaming._CHUNK = 100_000
        action()
        if count:
            with open(count, "w") as file:
                file.write(str(done))

    return in_a_process(run)


CASES = [("released", "comfyui", {"dtype": "fp8", "name": "x"}), ("released", "diffusers", {}), ("one", "comfyui", {})]


@pytest.mark.parametrize("source, to, options", CASES, ids=["comfyui fp8", "diffusers", "one file"])
def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_bytes(random_model, tmp_path, source, to, options):
    path = random_model / "released" if source == "released" else random_model / "comfyui" / random_models.FILES["mllm"]
    assert killed_before(-1, lambda: convert(path, to, tmp_path / "whole", **options), tmp_path / "count") == 0
    wanted, steps = contents(tmp_path / "whole"), int((tmp_path / "count").read_text())
    chance = np.random.default_rng(0)
    # Anywhere, and in particular where files take their names.
    moments = [*chance.integers(0, steps, 8), *chance.integers(steps - 30, steps, 5), *range(steps - 3, steps)]
    for number, moment in enumerate(moments):
        out = tmp_path / f"killed{number % 3}"
        killed = killed_before(moment, lambda out=out: convert(path, to, out, **options))
        assert killed == -signal.SIGKILL or (number > 2 and contents(out) == wanted)
        for name, data in contents(out).items():  # what has its name is whole
            assert name.name.startswith(".") or wanted[name] == data
        if (out / "model_index.json").exists():
            assert contents(out).keys() >= wanted.keys()
        if killed == 0:
            shutil.rmtree(out)
    for number in range(3):
        out = tmp_path / f"killed{number}"
        if out.exists() and contents(out) != wanted:
            convert(path, to, out, **options)
            assert contents(out) == wanted


def test_runs_killed_from_outside_at_random_times_end_in_the_same_bytes(random_model, tmp_path):
    def converting(name):
        return lambda: convert(random_model / "released", "comfyui", tmp_path / name, name="x")

    converting("whole")()
    start = time.monotonic()
    assert in_a_process(converting("warm")) == 0  # how long one takes that nothing kills
    seconds, chance, kills = time.monotonic() - start, np.random.default_rng(0), 0
    for share in (0.1, *chance.uniform(0, 1, 9)):
        status = in_a_process(converting("killed"), share * seconds)
        assert status in (0, -signal.SIGKILL)
        if status == 0:
            break
        kills += 1
    assert kills
    if status:
        converting("killed")()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.fixture
def stopped(random_model, tmp_path):
    """A copy of the source, and a conversion of it to ``out`` that was killed half way."""
    shutil.copytree(random_model / "released", tmp_path / "source")
    status = killed_before(100, lambda: convert(tmp_path / "source", "comfyui", tmp_path / "out", name="x"))
    assert status == -signal.SIGKILL
    growing = [path for path in (tmp_path / "out").rglob("*.partial")]
    assert growing and not list((tmp_path / "out").rglob("*.safetensors"))
    return tmp_path


def written(monkeypatch):
    """Names of the tensors that are written from now on."""
    names = []
    write = streaming.FileLayout.write

    def noting(layout, file, name, progress):
        names.append(name)
        return write(layout, file, name, progress)

    monkeypatch.setattr(streaming.FileLayout, "write", noting)
    return names


def finish(stopped, **options):
    convert(stopped / "source", "comfyui", stopped / "out", **{"name": "x", **options})
    convert(stopped / "source", "comfyui", stopped / "fresh", **{"name": "x", **options})
    assert contents(stopped / "out") == contents(stopped / "fresh")


def test_what_was_written_is_not_written_again(stopped, monkeypatch, caplog):
    caplog.set_level("INFO", "kiwi_core")
    names = written(monkeypatch)
    convert(stopped / "source", "comfyui", stopped / "out", name="x")
    again = len(names)
    names.clear()
    convert(stopped / "source", "comfyui", stopped / "fresh", name="x")
    assert 0 < again < len(names) and "Going on" in caplog.text
    assert contents(stopped / "out") == contents(stopped / "fresh")


@pytest.mark.parametrize("change", ["touched", "other weights", "other precision"])
def test_what_is_left_of_another_run_is_never_taken(stopped, monkeypatch, change):
    options = {}
    path = stopped / "source" / "transformer" / f"{released.WEIGHTS}.safetensors"
    if change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "other weights":
        save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    else:
        options = {"dtype": "bf16"}
    names = written(monkeypatch)
    convert(stopped / "source", "comfyui", stopped / "out", name="x", **options)
    again = len(names)
    names.clear()
    convert(stopped / "source", "comfyui", stopped / "fresh", name="x", **options)
    assert again == len(names)
    assert contents(stopped / "out") == contents(stopped / "fresh")


def test_a_changed_text_is_another_source(random_model, tmp_path):
    shutil.copytree(random_model / "training", tmp_path / "source")
    others = {"mllm": tmp_path / "source/qwen", "vae": tmp_path / "source/vae.safetensors", "name": "x"}
    checkpoint = tmp_path / "source/checkpoint.safetensors"
    assert killed_before(100, lambda: convert(checkpoint, "comfyui", tmp_path / "out", **others)) == -signal.SIGKILL
    config = files.read_json(tmp_path / "source/qwen/config.json")
    config["text_config"]["rms_norm_eps"] = 1e-5
    files.save_json(config, tmp_path / "source/qwen/config.json")
    convert(checkpoint, "comfyui", tmp_path / "out", **others)
    convert(checkpoint, "comfyui", tmp_path / "fresh", **others)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_bytes_that_the_disk_lost_are_found_and_written_again(stopped):
    [growing, *_] = (stopped / "out" / "diffusion_models").glob("*.partial")
    header = int.from_bytes(growing.read_bytes()[:8], "little")
    with growing.open("r+b") as file:
        file.seek(8 + header + 100)
        file.write(b"lost")
    with pytest.raises(OSError, match="does not read back as it was written; check the disk and run this again"):
        convert(stopped / "source", "comfyui", stopped / "out", name="x")
    assert not list((stopped / "out").rglob("*.safetensors"))
    finish(stopped)


@pytest.mark.parametrize("left", [b"", bytes(64), b"\xff\xfe"], ids=["nothing", "zeros", "no text"])
def test_a_journal_that_the_disk_lost_is_as_none(stopped, left):
    [journal] = (stopped / "out").glob(".*.journal")
    journal.write_bytes(left)
    finish(stopped)


def test_a_torn_journal_is_read_to_its_last_whole_line(stopped, monkeypatch):
    [journal] = (stopped / "out").glob(".*.journal")
    journal.write_bytes(journal.read_bytes()[:-20])
    finish(stopped)
    assert not journal.exists()


def test_a_full_disk_is_noticed_before_writing(random_model, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=19_000_000))
    with pytest.raises(ValueError, match=r"19.\d MB are needed under .* and 19.0 MB are free; make room"):
        convert(random_model / "released", "comfyui", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_each_disk_needs_room_for_its_own_files_only(random_model, tmp_path, monkeypatch):
    memory = Path("/dev/shm")  # noqa: S108
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second disk")
    usage, full = shutil.disk_usage(tmp_path), {tmp_path.stat().st_dev}
    free = lambda path: 0 if path.stat().st_dev in full else 10**9  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free(path)))
    with tempfile.TemporaryDirectory(dir=memory) as other:
        for name in ("diffusion_models", "vae", "text_encoders"):
            (tmp_path / "models" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "models" / name).symlink_to(other, target_is_directory=True)
        assert len(convert(random_model / "released", "comfyui", tmp_path / "models")) == 4
        full.add(memory.stat().st_dev)
        with pytest.raises(ValueError, match=r"MB are needed under .*models.* and 0.0 MB are free"):
            convert(random_model / "released", "comfyui", tmp_path / "models", name="again")


def test_what_is_written_needs_no_more_room(stopped, monkeypatch):
    usage, whole = shutil.disk_usage(stopped), 19_700_000
    taken = sum(512 * path.stat().st_blocks for path in (stopped / "out").rglob("*.partial"))
    assert taken > 3_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=whole - taken))
    convert(stopped / "source", "comfyui", stopped / "out", name="x")


# Memory

MEMORY = """
import resource, sys
from kiwi_core.checkpoints.convert import convert
import torch, tqdm
from kiwi_core.checkpoints import released
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
convert(sys.argv[1], sys.argv[2], sys.argv[3], dtype=sys.argv[4])
print(peak() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A released folder of 150 MB, its DiT in four shards, and the size of the largest file."""
    folder, parts = tmp_path_factory.mktemp("large"), random_models.random_parts()
    config = {**parts.transformer_config, "ffn_dim": 8192, "num_layers": 8}
    from kiwi_core.transformer import KiwiTransformer3DModel

    with torch.device("meta"):
        model = KiwiTransformer3DModel(**config)
        model.condition_embedder.text_embedder = None
    tensors = {name: torch.full(tensor.shape, 0.5) for name, tensor in model.state_dict().items()}
    parts = dataclasses.replace(parts, transformer=tensors, transformer_config=config)
    released.write(parts, folder)
    (folder / "transformer" / f"{released.WEIGHTS}.safetensors").unlink()
    names = sorted(tensors)
    for index in range(4):
        shard = {name: tensors[name] for name in names[index * len(names) // 4 : (index + 1) * len(names) // 4]}
        save_file(shard, folder / "transformer" / f"{released.WEIGHTS}-{index + 1:05}-of-00004.safetensors")
    sizes = [path.stat().st_size for path in folder.rglob("*.safetensors")]
    assert sum(sizes) > 4 * max(sizes) - 1e7
    return folder, sum(sizes), max(sizes)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in another unit elsewhere")
@pytest.mark.parametrize("to, dtype", [("comfyui", "fp8"), ("diffusers", "keep"), ("training", "fp16")])
def test_memory_stays_below_twice_the_largest_shard(large, tmp_path, to, dtype):
    folder, whole, largest = large
    command = [sys.executable, "-c", MEMORY, str(folder), to, str(tmp_path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert whole > 3 * largest and int(done.stdout) < 2 * largest
