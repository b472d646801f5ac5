"""The command line, on a small model with random weights."""

import inspect
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from random_model import FILES
from safetensors.torch import save_file

from kiwi_core import KiwiEditPipeline, cli, geometry
from kiwi_core.media import load_video

RATE = Fraction(24000, 1001)
HEAVY = ("torch", "diffusers", "transformers", "av", "numpy", "PIL")


def write_clip(path, frames=9, height=64, width=96, rate=RATE, codec=None):
    """A bright bar that grows by the frame, with noise for sound if a codec is named."""
    with av.open(str(path), "w") as output:
        picture = output.add_stream("libx264", rate=rate)
        picture.height, picture.width, picture.pix_fmt = height, width, "yuv420p"
        sound = output.add_stream(codec, rate=44100, layout="stereo") if codec else None
        for index in range(frames):
            pixels = np.full((height, width, 3), 40, np.uint8)
            pixels[:, : (index + 1) * width // (frames + 1)] = 220
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index
            output.mux(picture.encode(frame))
        output.mux(picture.encode(None))
        if sound:
            count = round(44100 * frames / rate)
            noise = np.random.default_rng(0).normal(scale=0.2, size=(2, count)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
            codec = sound.codec_context
            fitted = av.AudioResampler(codec.format.name, "stereo", 44100, codec.frame_size)
            for piece in [*fitted.resample(frame), *fitted.resample(None)]:
                output.mux(sound.encode(piece))
            output.mux(sound.encode(None))
    return path


def sound_seconds(path) -> float | None:
    """Length of the decoded sound, None without any."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        return sum(frame.samples for frame in container.decode(audio=0)) / 44100


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "in.mp4", frames=10, codec="aac")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "in.png"
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(path)
    return path


@pytest.fixture
def run(random_model, clip, tmp_path):
    """``kiwi-edit edit`` with good arguments but for those given; a value of None leaves one out."""

    def run(**changes) -> int:
        given = {
            "video": clip,
            "prompt": "make it red",
            "model": random_model / "released",
            "output": tmp_path / "out.mp4",
            "steps": 2,
            "dtype": "fp32",
            "device": "cpu",
        }
        arguments = ["edit"]
        for name, value in {**given, **changes}.items():
            arguments.append("--" + name.replace("_", "-"))
            if value is not True:
                arguments += [str(item) for item in (value if isinstance(value, list) else [value])]
        return cli.main(arguments)

    return run


@pytest.fixture
def lora_file(tmp_path):
    """A LoRA that turns the small model's first block upside down."""
    pair = {"lora_A": torch.ones(4, 512), "lora_B": torch.ones(256, 4)}
    path = tmp_path / "lora.safetensors"
    save_file({f"diffusion_model.blocks.0.ffn.2.{half}.weight": tensor for half, tensor in pair.items()}, path)
    return path


@pytest.fixture
def unloaded(monkeypatch):
    """Loading the model fails the test."""

    def load(*args, **kwargs):
        pytest.fail("the model was loaded")

    monkeypatch.setattr("kiwi_core.KiwiEditPipeline.from_pretrained", load)


def one_sentence(capsys, *words) -> str:
    """The error on stderr: one line that says what to do."""
    text = capsys.readouterr().err
    assert text.startswith("kiwi-edit: ") and text.count("\n") == 1 and text.rstrip().endswith(".")
    assert all(word in text for word in words), text
    return text


def test_as_many_frames_come_out_with_their_rate_and_sound(run, clip, tmp_path, capsys):
    assert run(compare=True) == 0
    out, compared = tmp_path / "out.mp4", tmp_path / "out_compare.mp4"
    assert capsys.readouterr().out.split() == [str(out), str(compared)]
    assert sorted(tmp_path.iterdir()) == [out, compared]  # nothing half-written
    edited, both, source = load_video(out), load_video(compared), load_video(clip)
    assert edited.frames.shape == (10, 64, 96, 3)
    assert edited.frame_rate == both.frame_rate == RATE
    assert sound_seconds(out) == pytest.approx(10 / RATE, abs=0.05)
    assert sound_seconds(compared) == pytest.approx(10 / RATE, abs=0.05)
    left, right = both.frames[:, :, :96].astype(int), both.frames[:, :, 96:].astype(int)
    assert np.abs(left - source.frames).mean() < 10 < np.abs(left - edited.frames).mean()
    assert np.abs(right - edited.frames).mean() < 10


def test_a_long_clip_is_cut_at_the_cap(run, tmp_path, caplog):
    assert run(frames=6) == 0
    assert "longer than 6 frames" in caplog.text
    assert len(load_video(tmp_path / "out.mp4").frames) == 6
    assert sound_seconds(tmp_path / "out.mp4") == pytest.approx(6 / RATE, abs=0.05)


def test_a_clip_past_the_models_limit_is_edited_whole_in_windows_only(run, tmp_path, caplog):
    source = write_clip(tmp_path / "long.mp4", frames=83, height=32, width=32)
    assert run(video=source, steps=1) == 0
    assert "longer than 81 frames" in caplog.text
    assert len(load_video(tmp_path / "out.mp4").frames) == 81
    assert run(video=source, steps=1, window=41, window_overlap=8) == 0
    assert len(load_video(tmp_path / "out.mp4").frames) == 83


def test_frames_are_scaled_to_the_pixel_budget(run, tmp_path):
    assert run(frames=1, max_pixels=3000) == 0
    assert load_video(tmp_path / "out.mp4").frames.shape == (1, 32, 64, 3)
    assert run(frames=1, max_pixels=3000, original_size=True) == 0
    assert load_video(tmp_path / "out.mp4").frames.shape == (1, 64, 96, 3)


def test_a_picture_gives_a_picture_by_reference_and_seed(run, picture, tmp_path):
    def edit(name, **changes):
        assert run(video=picture, output=tmp_path / name, **changes) == 0
        return load_video(tmp_path / name).frames

    first = edit("a.png", seed=1, compare=True)
    assert first.shape == (1, 64, 96, 3)
    assert np.array_equal(load_video(tmp_path / "a_compare.png").frames[:, :, 96:], first)
    assert np.array_equal(edit("b.png", seed=1), first)
    assert not np.array_equal(edit("c.png", seed=2), first)
    assert not np.array_equal(edit("d.png", seed=1, reference=[picture]), first)
    assert edit("e.mp4", seed=1).shape == (1, 64, 96, 3)


def test_a_lora_changes_the_edit_by_its_strength(run, picture, tmp_path, lora_file):
    def edit(name, **changes):
        assert run(video=picture, output=tmp_path / name, **changes) == 0
        return load_video(tmp_path / name).frames

    plain = edit("a.png")
    assert np.array_equal(edit("b.png", lora=[lora_file], lora_strength=0), plain)
    assert not np.array_equal(edit("c.png", lora=[lora_file]), plain)


def test_a_file_that_is_no_lora_is_refused_before_the_model_is_read(run, random_model, unloaded, capsys):
    assert run(lora=[random_model / "comfyui" / FILES["vae"]]) == 2
    one_sentence(capsys, "is no LoRA")


def test_a_task_adds_its_guidance_to_the_prompt(run, picture, tmp_path, monkeypatch):
    seen = []

    def call(self, prompt, *args, **kwargs):
        seen.append(prompt)
        raise ValueError("Seen.")

    monkeypatch.setattr("kiwi_core.KiwiEditPipeline.__call__", call)
    assert run(video=picture, task="remove", prompt="Remove the bar") == 2
    assert run(video=picture, prompt="Remove the bar") == 2
    assert seen[0].startswith("Remove the bar. ") and len(seen[0]) > len("Remove the bar. ")
    assert seen[1] == "Remove the bar"


def test_options_reach_the_pipeline(run, picture, monkeypatch):
    given = {}

    def call(self, prompt, video, references, **kwargs):
        given.update(kwargs, references=len(references))
        raise ValueError("Seen.")

    monkeypatch.setattr("kiwi_core.KiwiEditPipeline.__call__", call)
    pictures = {"reference": [picture, picture], "mllm_references": "all"}
    assert run(shift=3, guidance=2, negative_prompt="Make it blue", rounding="none", **pictures) == 2
    wanted = dict(shift=3.0, negative_prompt="Make it blue", rounding="none", mllm_references="all", references=2)
    assert wanted.items() <= given.items()


def test_a_damaged_sound_track_does_not_cost_the_edit(run, tmp_path, caplog):
    source = write_clip(tmp_path / "in.avi", codec="mp2")
    with av.open(str(source)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    data = bytearray(source.read_bytes())
    for position, size in packets[1:]:
        data[position : position + size] = bytes(size)
    source.write_bytes(data)
    assert run(video=source) == 0
    assert "without sound" in caplog.text
    assert len(load_video(tmp_path / "out.mp4").frames) == 9
    assert sound_seconds(tmp_path / "out.mp4") is None


def test_an_edit_is_kept_where_its_file_cannot_take_its_name(run, tmp_path, monkeypatch, capsys, caplog):
    """As on Windows, while a player has the old one open."""
    replace = os.replace

    def locked(source, target):
        if Path(target) == tmp_path / "out.mp4":
            raise PermissionError(13, "it is being used by another process", str(target))
        replace(source, target)

    monkeypatch.setattr("os.replace", locked)
    assert run() == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "out_1.mp4")]
    assert len(load_video(tmp_path / "out_1.mp4").frames) == 10
    assert "it is being used by another process" in caplog.text


def test_a_source_that_is_gone_does_not_cost_the_edit(run, tmp_path, monkeypatch, caplog):
    source = write_clip(tmp_path / "in.mp4")
    call = KiwiEditPipeline.__call__

    def gone(*args, **kwargs):
        source.unlink()
        return call(*args, **kwargs)

    monkeypatch.setattr("kiwi_core.KiwiEditPipeline.__call__", gone)
    assert run(video=source) == 0
    assert load_video(tmp_path / "out.mp4").frames.size
    assert "without sound" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": " \n"}, "prompt is empty"),
        ({"frames": 0}, "--frames"),
        ({"max_pixels": 0}, "--max-pixels"),
        ({"steps": 0}, "--steps"),
        ({"steps": 1001}, "--steps is 1001; use 1 to 1000"),
        ({"negative_prompt": "blurry"}, "without --guidance"),
        ({"shift": -1}, "--shift"),
        ({"shift": math.nan}, "--shift"),
        ({"seed": -1}, "--seed"),
        ({"video": "missing.mp4"}, "missing.mp4 does not exist"),
        ({"video": "text.mp4"}, "cannot be read"),
        ({"video": "empty.mp4"}, "is empty"),
        ({"video": "thin.png"}, "too small"),
        ({"reference": ["missing.png"]}, "missing.png does not exist"),
        ({"reference": ["in.png", "text.mp4"]}, "cannot be read"),
        ({"output": "out.xyz"}, ".mp4"),
        ({"output": "out.png"}, "one picture"),
        ({"output": "."}, "is a folder"),
        ({"output": "text.mp4/out.mp4"}, "Cannot write"),
        ({"video": "in.png", "output": "in.png"}, "source itself"),
        ({"model": "missing"}, "is not a folder"),
        ({"model": "text.mp4"}, "is not a folder"),
        ({"offload": "model"}, "--offload"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_read(
    run, unloaded, changes, words, picture, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    Image.new("RGB", (40, 1)).save(tmp_path / "thin.png")
    shutil.copy(picture, tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run(**changes) == 2
    one_sentence(capsys, words)
    assert sorted(tmp_path.iterdir()) == before


def forget_references(folder):
    """Make it a folder of a model that was trained without them."""
    shutil.rmtree(folder / "ref_embedder")
    index = json.loads((folder / "model_index.json").read_text())
    del index["ref_embedder"]
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: shutil.rmtree(folder / "vae"), "lacks vae/"),
        (lambda folder: (folder / "processor/tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: truncate(folder / "transformer/diffusion_pytorch_model.safetensors"), "damaged"),
        (lambda folder: shutil.rmtree(folder / "ref_embedder"), "lacks ref_embedder/"),
        (lambda folder: forget_references(folder), "without reference pictures"),
    ],
)
def test_an_unfit_model_is_refused_before_it_is_read(
    run, unloaded, harm, words, random_model, picture, tmp_path, capsys
):
    shutil.copytree(random_model / "released", tmp_path / "model")
    harm(tmp_path / "model")
    assert run(model=tmp_path / "model", reference=[picture]) == 2
    one_sentence(capsys, words)
    assert not (tmp_path / "out.mp4").exists()


def truncate(path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def test_a_device_that_is_not_there_is_refused(run, unloaded, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run(device="cuda") == 2
    one_sentence(capsys, "--device auto")


def test_a_model_that_cannot_be_downloaded_is_one_sentence(run, monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert run(model="someone/some-model") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("kiwi-edit: someone/some-model is no folder")


@pytest.mark.parametrize("where", ["to", "_sample"])
def test_out_of_memory_names_the_options(run, where, monkeypatch, tmp_path, capsys):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(f"kiwi_core.KiwiEditPipeline.{where}", full)
    assert run() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("kiwi-edit: ") and "memory" in error and "--offload" in error
    assert not list(tmp_path.iterdir())


def test_inspect_prints_the_report(random_model, capsys):
    assert cli.main(["inspect", str(random_model / "released")]) == 0
    assert "released folder" in capsys.readouterr().out
    assert cli.main(["inspect", str(random_model / "missing")]) == 2
    one_sentence(capsys, "does not exist")


def test_download_hands_its_options_on(tmp_path, monkeypatch, capsys):
    given = []
    monkeypatch.setattr("kiwi_core.checkpoints.download.download", lambda *options: given.append(options) or tmp_path)
    options = ["--models", str(tmp_path), "--files", "vae/*", "processor/*", "--verify"]
    assert cli.main(["download", "instruct", *options]) == 0
    assert capsys.readouterr().out == f"{tmp_path}\n"
    assert cli.main(["download", "owner/name", "--models", str(tmp_path), "--revision", "v1"]) == 0
    assert given == [
        ("instruct", tmp_path, "main", ("vae/*", "processor/*"), True),
        ("owner/name", tmp_path, "v1", None, False),
    ]
    monkeypatch.undo()
    assert cli.main(["download", "no name", "--models", str(tmp_path)]) == 2
    one_sentence(capsys, "no model's name")


def test_a_stopped_conversion_says_how_to_go_on(random_model, tmp_path, monkeypatch, capsys, caplog):
    def stop(*args):
        raise KeyboardInterrupt

    arguments = ["convert", str(random_model / "released"), "--to", "comfyui", "--output", str(tmp_path / "out")]
    monkeypatch.setattr("kiwi_core.checkpoints.streaming.FileLayout.write", stop)
    assert cli.main(arguments) == 130
    assert "The same command goes on from here." in caplog.text
    assert not list(tmp_path.rglob("*.safetensors"))
    monkeypatch.undo()
    assert cli.main(arguments) == 0


def test_defaults_are_the_models_limits():
    options = inspect.signature(cli.edit).parameters
    assert options["max_pixels"].default == geometry.MAX_PIXELS


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from kiwi_core.cli import main\n"
        "try: main(['edit', '--help'])\n"
        f"finally: sys.stderr.write(' '.join(set(sys.modules) & set({HEAVY})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "--max-pixels" in done.stdout
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_ctrl_c_ends_quietly(random_model, picture, tmp_path):
    out = tmp_path / "out.png"
    # A job in the background is started with Ctrl-C ignored, and would hand that on.
    script = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    script += "from kiwi_core.cli import main; sys.exit(main())"
    model = random_model / "released"
    given = {"video": picture, "prompt": "x", "model": model, "output": out, "steps": 1000, "device": "cpu"}
    arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    with subprocess.Popen(
        [sys.executable, "-c", script, "edit", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        limit, seen = threading.Timer(120, process.kill), ""
        limit.start()
        try:
            while not re.search(r"[1-9]\d*/1000", seen):  # the progress bar
                more = process.stderr.read(1)
                assert more, f"it ended before it sampled: {seen}"
                seen += more
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
            process.wait()
        finally:
            limit.cancel()
            process.kill()
    assert process.returncode == 130
    assert rest.endswith("kiwi-edit: stopped.\n") and "Traceback" not in rest
    assert not list(tmp_path.iterdir())
