"""Edit a small clip in a real ComfyUI, with the small model that comes with the project.

    make demo

asks for five edits of one clip of the toy world and leaves their videos, and sheets of source, reference, edit and
target, in output/demo/.
"""

import json
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import comfyui
import numpy as np
import random_model
from PIL import Image, ImageDraw
from tqdm import tqdm

from kiwi_core import media
from training.nano import measure, world
from training.nano.edits import Edit

NANO = "kiwi-edit-nano/"
FOLDER = comfyui.REPO / "output" / "demo"
FRAMES, HEIGHT, WIDTH, RATE = 33, 128, 192, Fraction(24000, 1001)
NAMES = {
    "model_name": "model",
    "vae_name": "vae",
    "mllm_name": "mllm",
    "connector_name": "connector",
}


def draw_clip() -> np.ndarray:
    """A ball that bounces before hills at dusk: uint8 ``[33, 128, 192, 3]``."""
    scale = 4
    height, width = HEIGHT * scale, WIDTH * scale
    dusk = np.linspace((250, 190, 130), (70, 80, 140), height)[::-1]
    backdrop = Image.fromarray(np.repeat(dusk[:, None], width, axis=1).astype(np.uint8))
    x = np.linspace(0, 1, 129)
    frames = []
    for time_ in np.linspace(0, 1, FRAMES):
        frame = backdrop.copy()
        draw = ImageDraw.Draw(frame)
        for depth, colour in ((0.55, (90, 95, 120)), (0.7, (60, 80, 80)), (0.85, (35, 60, 45))):
            hills = depth + 0.06 * np.sin(9 * x / depth + 4 * depth + depth * time_)
            points = [(width * a, height * b) for a, b in zip(x, hills)]
            draw.polygon([*points, (width, height), (0, height)], fill=colour)
        centre = width * (0.12 + 0.76 * time_), height * (0.72 - 0.5 * abs(np.sin(3 * np.pi * time_)))
        draw.circle(centre, height * 0.11, fill=(215, 70, 50))
        draw.circle([side - height * 0.03 for side in centre], height * 0.035, fill=(245, 150, 120))
        frames.append(np.asarray(frame.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)))
    return np.stack(frames)


def write_tone(path: Path, seconds: float, rate: int = 48000) -> None:
    """A soft chord, so that there is sound to keep."""
    import wave

    t = np.arange(int(seconds * rate)) / rate
    sound = sum(np.sin(2 * np.pi * pitch * t) for pitch in (220.0, 277.2, 329.6)) * np.exp(-t) / 6
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((sound * 32767).astype("<i2").tobytes())


def workflow(name: str, inputs: dict[str, str]) -> dict:
    """A shipped workflow with the random model's files and these inputs (widget name -> value)."""
    prompt = json.loads((comfyui.REPO / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    values = {widget: Path(random_model.FILES[part]).name for widget, part in NAMES.items()} | inputs
    for node in prompt.values():
        node["inputs"] |= {widget: value for widget, value in values.items() if widget in node["inputs"]}
    return prompt


class Progress:
    """ComfyUI's messages as one progress bar and as seconds a node."""

    def __init__(self, prompt: dict):
        self.prompt, self.seconds, self.node, self.started = prompt, {}, None, time.perf_counter()
        self.bar = tqdm(total=len(prompt), unit="node", bar_format="{desc:<34} {bar:30} {n:.0f}/{total} [{elapsed}]")

    def __call__(self, kind: str, data) -> None:
        if kind == "executing":
            now = time.perf_counter()
            if self.node is not None:
                self.seconds[self.node] = now - self.started
                self.bar.update()
            self.node, self.started = data["node"], now
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
        world.Thing("circle", "red", "shaded", 12.0, 20.0, 22.0, 0.6, 0.2),
        world.Thing("star", "yellow", "plain", 12.5, 44.0, 44.0, -0.5, -0.4),
    )
    return world.Scene(world.Ground("blue", "wavy", (5.0, 9.0)), things, (0.5, 0.0))


def asked() -> dict[str, Edit]:
    """What is asked of it, by name."""
    before = scene()
    circle, star = before.things

    def edit(category: str, task: str, prompt: str, thing=None, reference=None, **after) -> Edit:
        return Edit(category, "seen", task, prompt, before, replace(before, **after), thing, reference)

    cross = replace(star, shape="cross", colour="purple", texture="banded")
    shown = replace(cross, radius=38.0, x=56.0, y=56.0, dx=0.0, dy=0.0)
    diamond = replace(circle, shape="diamond", colour="green")
    return {
        "change": edit(
            "local_change", "replace", "Turn the red circle into a green diamond.", 0, things=(diamond, star)
        ),
        "remove": edit("local_remove", "remove", "Remove the yellow star.", 1, things=(circle,)),
        "reference": edit(
            "subject_reference", "reference_replace",
            "Replace the yellow star with the object of the reference picture.", 1, shown, things=(circle, cross),
        ),
        "background": edit(
            "background_change", "background", "Replace the background with a green checked background.",
            ground=world.Ground("green", "checked"),
        ),
        "style": edit("global_style", "style", "Make the video black and white.", style="black and white"),
    }  # fmt: skip


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
    try:
        for name, edit in asked().items():
            inputs = {"file": server.put_input(clip), "prompt": edit.prompt, "steps": 30}
            inputs |= {widget: NANO for widget in NAMES}
            picture = edit.reference_picture()
            if picture is not None:
                Image.fromarray(picture).save(FOLDER / "reference.png")
                inputs["image"] = server.put_input(FOLDER / "reference.png")
            prompt = workflow("instruct_video_edit" if picture is None else "reference_video_edit", inputs)
            print(f"{name}: {edit.prompt}")
            with timed(table, name):
                (made,) = server.output_files(server.run(prompt, Progress(prompt)))
            made = media.load_video(shutil.copyfile(made, FOLDER / f"{name}.mp4"))
            rows = {"source": source, f"edit: {edit.prompt}": made.frames, "target": world.render(edit.after)}
            if picture is not None:
                rows = {"source": source, "reference": picture[None]} | rows
            media.contact_sheet(rows, columns=5, box=160).save(FOLDER / f"{name}.png")
            score = measure.score(edit, made.frames)
            print(f"  {'right' if score.success else 'not right: looks most like ' + score.nearest}\n")
    finally:
        server.stop()
    print("Where the time went")
    for name, seconds in table.items():
        print(f"  {name:<34} {seconds:6.1f} s")
    print("\nVideos, with sound, and sheets:")
    for path in sorted(FOLDER.iterdir()):
        print(f"  {path.relative_to(comfyui.REPO)}")


if __name__ == "__main__":
    main()
