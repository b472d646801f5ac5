"""A cancel stops every phase where it is and leaves ComfyUI able to work."""

import importlib
import shutil

import comfy.model_management
import comfyui
import numpy as np
import pytest
import random_model
import sample_graph
import torch

from kiwi_core import media

STEPS = 1000


@pytest.fixture(scope="module")
def ready(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cancel")
    random_model.write(folder)
    shutil.copytree(folder / "released", server.models_dir / "diffusers" / "random", dirs_exist_ok=True)
    media.save_video(folder / "small_clip.mp4", sample_graph.draw_clip()[:6, ::2, ::2], 12)
    media.save_video(folder / "cancel_clip.mp4", np.tile(sample_graph.draw_clip()[:17], (1, 2, 2, 1)), 12)
    for path in folder.glob("*_clip.mp4"):
        server.put_input(path)
    return server


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def short(steps, seed):
    """A whole edit of a few small frames."""
    return {
        "1": node("LoadVideo", file="small_clip.mp4"),
        "2": node("KiwiEditLoadAll", model_name="random/", weight_dtype="default"),
        "3": node(
            "KiwiEditEditVideo", model=["2", 0], vae=["2", 1], mllm=["2", 2], connector=["2", 3], video=["1", 0],
            prompt="Snow.", seed=seed, steps=steps, max_pixels=921600, max_frames=81,
        ),
        "4": node("SaveVideo", video=["3", 0], filename_prefix="after", format="auto", codec="auto"),
    }  # fmt: skip


def single(steps):
    """Single nodes on a clip that keeps each phase busy for a while."""
    return {
        "1": node("LoadVideo", file="cancel_clip.mp4"),
        "2": node("KiwiEditLoadAll", model_name="random/", weight_dtype="default"),
        "3": node("KiwiEditPrepareVideo", video=["1", 0], max_pixels=921600, max_frames=17, multiple=32),
        "4": node("KiwiEditEncodeInstruction", mllm=["2", 2], connector=["2", 3], prompt="Snow.", source=["3", 1]),
        "5": node("KiwiEditSourceVideo", conditioning=["4", 0], vae=["2", 1], frames=["3", 0]),
        "6": node(
            "KiwiEditSampler", model=["2", 0], conditioning=["5", 0], latent=["5", 1], seed=1, steps=steps,
            shift=5.0, denoise=1.0,
        ),
        "7": node("KiwiEditDecode", latent=["6", 0], vae=["2", 1], tile=256),
        "8": node("PreviewImage", images=["7", 0]),
    }  # fmt: skip


def cancel_in(server, prompt, name):
    """Run a prompt, cancel it when that node begins to report or work, and return what it said."""
    sent, reports = [], 0

    def follow(kind, data):
        nonlocal reports
        reports += kind == "progress" and data["node"] == name
        if kind == "executing" and data["node"] == name and not sent:
            sent.append(server.interrupt())

    with pytest.raises(comfyui.Interrupted) as cancelled:
        server.run(prompt, follow)
    assert reports < 20  # it stops within a step, not after the last one
    return str(cancelled.value)


@pytest.mark.parametrize(
    "name, class_type, steps",
    [
        ("4", "KiwiEditEncodeInstruction", 1),
        ("5", "KiwiEditSourceVideo", 1),
        ("6", "KiwiEditSampler", STEPS),
        ("7", "KiwiEditDecode", 1),
    ],
)
def test_a_cancel_stops_in_the_phase_and_the_next_prompt_runs(ready, name, class_type, steps):
    said = cancel_in(ready, single(steps), name)
    assert said == f"node {name} ({class_type}): interrupted"
    (path,) = ready.output_files(ready.run(short(steps=1, seed=int(name))))
    assert len(media.load_video(path).frames) == 6


def test_preparing_a_clip_stops_too(pack):
    video = importlib.import_module(f"{pack.__name__}.nodes.video")
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        video.KiwiEditPrepareVideo.execute(torch.zeros(5, 64, 64, 3), 4096, 81, 32)
    assert video.KiwiEditPrepareVideo.execute(torch.zeros(5, 64, 64, 3), 4096, 81, 32)[0].shape == (5, 64, 64, 3)


def test_a_cancel_stops_the_whole_edit_node(ready):
    graph = short(steps=STEPS, seed=99)
    done = []

    def follow(kind, data):
        if kind == "progress_state":
            inner = [state for name, state in data["nodes"].items() if name.startswith("3.") and state["max"] == STEPS]
            if inner and inner[0]["value"] >= 3 and not done:
                done.append(inner[0]["value"])
                ready.interrupt()

    with pytest.raises(comfyui.Interrupted, match=r"node 3 \(KiwiEditEditVideo\): interrupted"):
        ready.run(graph, follow)
    assert done
    graph["3"]["inputs"]["steps"] = 1
    (path,) = ready.output_files(ready.run(graph))
    assert len(media.load_video(path).frames) == 6
