"""Edit a small clip in a real ComfyUI, with the small model that comes with the project.

    make demo

asks for five edits of one clip of the toy world and leaves their videos, and sheets of source, reference, edit and
target, in output/demo/.
"""

import os
import shutil
import time
import wave
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import comfyui
import numpy as np
import sample_graph
from PIL import Image
from tqdm import tqdm

from kiwi_core import media
from training.nano import measure, world
from training.nano.edits import Edit

NANO = "kiwi-edit-nano/"
FOLDER = comfyui.REPO / "output" / "demo"
RATE = 8


def write_tone(path: Path, seconds: float, rate: int = 48000) -> None:
    """A soft chord, so that there is sound to keep."""
    t = np.arange(int(seconds * rate)) / rate
    sound = sum(np.sin(2 * np.pi * pitch * t) for pitch in (220.0, 277.2, 329.6)) * np.exp(-t) / 6
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((sound * 32767).astype("<i2").tobytes())


class Progress:
    """ComfyUI's messages as one progress bar."""

    def __init__(self, prompt: dict):
        self.prompt, self.node = prompt, None
        self.bar = tqdm(total=len(prompt), unit="node", bar_format="{desc:<34} {bar:30} {n:.0f}/{total} [{elapsed}]")

    def __call__(self, kind: str, data) -> None:
        if kind == "executing":
            if self.node is not None:
                self.bar.update()
            self.node = data["node"]
            if self.node is None:
                self.bar.close()
            else:
                self.bar.set_description(self.title(self.node))
        elif kind == "progress":
            self.bar.set_description(f"{self.title(self.node)} {data['value']}/{data['max']}")

    def title(self, node: str) -> str:
        return self.prompt[node]["_meta"]["title"]


@contextmanager
def timed(table: dict[str, float], name: str):
    started = time.perf_counter()
    yield
    table[name] = time.perf_counter() - started


def scene() -> world.Scene:
    """The clip of the demo."""
    things = (
        world.Thing("circle", "orange", "shaded", world.RADIUS, 16.0, 24.0, 0.5, 0.5),
        world.Thing("star", "yellow", "plain", world.RADIUS, 48.0, 40.0, 0.0, 0.0),
    )
    return world.Scene(world.Ground("blue", "wavy", (8.0, 16.0)), things, (0.5, 0.0))


def asked() -> dict[str, Edit]:
    """What is asked of it, by name."""
    before = scene()
    circle, star = before.things

    def edit(category: str, task: str, prompt: str, thing=None, reference=None, **after) -> Edit:
        return Edit(category, "seen", task, prompt, before, replace(before, **after), thing, reference)

    ring = replace(star, shape="ring", colour="red", texture="shaded")
    shown = replace(ring, radius=38.0, x=56.0, y=56.0, dx=0.0, dy=0.0)
    square = replace(circle, shape="square", colour="green")
    return {
        "change": edit(
            "local_change", "replace", "Turn the orange circle into a green square.", 0, things=(square, star)
        ),
        "remove": edit("local_remove", "remove", "Remove the yellow star.", 1, things=(circle,)),
        "reference": edit(
            "subject_reference", "reference_replace",
            "Replace the yellow star with the object of the reference picture.", 1, shown, things=(circle, ring),
        ),
        "background": edit(
            "background_change", "background", "Replace the background with a green dotted background.",
            ground=world.Ground("green", "dotted"),
        ),
        "style": edit("global_style", "style", "Give the video a night look.", style="night"),
    }  # fmt: skip


COLUMNS = ("source", "reference", "edit, first frame", "edit, middle", "edit, last", "target, middle")


def in_a_row(source: np.ndarray, reference: np.ndarray | None, made: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What :data:`COLUMNS` says."""
    if reference is None:
        shown = np.full_like(source[0], 255)
    else:
        shown = np.asarray(Image.fromarray(reference).resize((world.SIZE, world.SIZE), Image.Resampling.LANCZOS))
    middle = len(source) // 2
    return np.stack([source[middle], shown, made[0], made[middle], made[-1], target[middle]])


def main() -> None:
    print("Kiwi-Edit demo: a toy model in a toy world of 64 x 64 pixels, through a real ComfyUI.\n")
    table: dict[str, float] = {}
    shutil.rmtree(FOLDER, ignore_errors=True)
    with timed(table, "fetch ComfyUI"):
        comfyui.fetch()
    with timed(table, "draw clip"):
        FOLDER.mkdir(parents=True, exist_ok=True)
        source, clip = world.render(scene()), FOLDER / "source.mp4"
        write_tone(FOLDER / "source.wav", len(source) / RATE)
        media.save_video(clip, source, RATE, crf=4, audio_from=FOLDER / "source.wav")
        (FOLDER / "source.wav").unlink()
    server = comfyui.Server(comfyui.DEFAULT_VERSION, comfyui.REPO / ".cache" / "demo")
    with timed(table, "start ComfyUI"):
        server.__enter__()
    overview: dict[str, np.ndarray] = {}
    try:
        for name, edit in asked().items():
            inputs = {"file": server.put_input(clip), "prompt": edit.prompt, "steps": 30}
            inputs |= {widget: NANO for widget in sample_graph.NAMES}
            picture = edit.reference_picture()
            if picture is not None:
                Image.fromarray(picture).save(FOLDER / "reference.png")
                inputs["image"] = server.put_input(FOLDER / "reference.png")
            prompt = sample_graph.workflow("instruct_video_edit" if picture is None else "reference_video_edit", inputs)
            print(f"{name}: {edit.prompt}")
            with timed(table, name):
                (made,) = server.output_files(server.run(prompt, Progress(prompt)))
            made = media.load_video(shutil.copyfile(made, FOLDER / f"{name}.mp4"))
            rows = {"source": source, f"edit: {edit.prompt}": made.frames, "target": world.render(edit.after)}
            if picture is not None:
                rows = {"source": source, "reference": picture[None]} | rows
            media.contact_sheet(rows, columns=5, box=160).save(FOLDER / f"{name}.png")
            overview[edit.prompt] = in_a_row(source, picture, made.frames, world.render(edit.after))
            score = measure.score(edit, made.frames)
            print(f"  {'right' if score.success else 'not right: looks most like ' + score.nearest}\n")
    finally:
        server.stop()
    media.contact_sheet(overview, len(COLUMNS), COLUMNS, box=128).save(FOLDER / "overview.png")
    print("Where the time went")
    for name, seconds in table.items():
        print(f"  {name:<34} {seconds:6.1f} s")
    print("\nVideos, with sound, and sheets:")
    for path in sorted(FOLDER.iterdir()):
        print(f"  {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
