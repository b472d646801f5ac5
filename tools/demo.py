"""Edit a small clip in a real ComfyUI, with a small model of random weights: shows the path, not a picture.

    make demo

leaves the edited video, a side-by-side video and a contact sheet in output/demo/.
"""

import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import comfyui
import numpy as np
import random_model
import sample_graph
from tqdm import tqdm

from kiwi_core import media

FOLDER = comfyui.REPO / "output" / "demo"


def write_tone(path: Path, seconds: float, rate: int = 48000) -> None:
    """A soft chord, so that there is sound to keep."""
    import wave

    t = np.arange(int(seconds * rate)) / rate
    sound = sum(np.sin(2 * np.pi * pitch * t) for pitch in (220.0, 277.2, 329.6)) * np.exp(-t) / 6
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((sound * 32767).astype("<i2").tobytes())


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


def main() -> None:
    print("Kiwi-Edit demo: a small model with random weights. It shows the path, not a picture.\n")
    table: dict[str, float] = {}
    shutil.rmtree(FOLDER, ignore_errors=True)
    clip = FOLDER / "source.mp4"
    with timed(table, "fetch ComfyUI"):
        comfyui.fetch()
    base = comfyui.REPO / ".cache" / "demo"
    with timed(table, "write random model"):
        if not (base / "models" / random_model.FILES["connector"]).is_file():
            shutil.rmtree(base, ignore_errors=True)
            random_model.write(base / "layouts")
            (base / "layouts" / "comfyui").rename(base / "models")
    with timed(table, "draw clip"):
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_tone(FOLDER / "source.wav", sample_graph.FRAMES / sample_graph.RATE)
        media.save_video(clip, sample_graph.draw_clip(), sample_graph.RATE, audio_from=FOLDER / "source.wav")
        (FOLDER / "source.wav").unlink()

    server = comfyui.Server(comfyui.DEFAULT_VERSION, base)
    with timed(table, "start ComfyUI"):
        server.__enter__()
    try:
        prompt = sample_graph.workflow("instruct_video_edit", {"file": server.put_input(clip)})
        progress = Progress(prompt)
        with timed(table, "run workflow"):
            history = server.run(prompt, progress)
        (edited,) = server.output_files(history)
        edited = shutil.copyfile(edited, FOLDER / "edited.mp4")
    finally:
        server.stop()
    with timed(table, "compare"):
        before, after = media.load_video(clip), media.load_video(edited)
        assert len(after.frames) == len(before.frames)
        assert abs(after.frame_rate - before.frame_rate) < 0.001  # ComfyUI rounds to thousandths
        beside = FOLDER / "side_by_side.mp4"
        media.save_video(beside, media.side_by_side(before.frames, after.frames), before.frame_rate, audio_from=clip)
        sheet = FOLDER / "contact_sheet.png"
        media.contact_sheet({"source": before.frames, "edited": after.frames}).save(sheet)

    print("\nWhere the time went")
    for name, seconds in table.items():
        print(f"  {name:<34} {seconds:6.1f} s")
        if name == "run workflow":
            for node, part in progress.seconds.items():
                print(f"    {progress.title(node):<32} {part:6.1f} s")
    print(f"\n{len(after.frames)} frames at {float(after.frame_rate):.3f} a second, with sound:")
    for path in (edited, beside, sheet):
        print(f"  {path.relative_to(comfyui.REPO)}")


if __name__ == "__main__":
    main()
