"""Small editing pairs that can be learnt, as a folder or a table, and quick runs over them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from kiwi_core import media
from training import recipes
from training.config import Config

SIDE, FRAMES = 48, 5


def scene(number: int, frames: int = FRAMES, side: int = SIDE) -> np.ndarray:
    """Uint8 ``[T, H, W, 3]``: a coloured square that moves over a shaded ground; another one for each number."""
    draw = np.random.default_rng(number)
    ground, square = draw.integers(30, 120, 3), draw.integers(120, 240, 3)
    ramp = np.linspace(0, 60, side)[None, :, None]
    clip = np.empty((frames, side, side, 3), dtype=np.uint8)
    clip[:] = (ground + ramp).astype(np.uint8)
    top, left = draw.integers(2, side // 2, 2)
    for index, frame in enumerate(clip):
        frame[top : top + 16, left + index : left + index + 16] = square
    return clip


EDITS = {
    "Invert the colours.": lambda clip: 255 - clip,
    "Make it red.": lambda clip: np.stack([np.full_like(clip[..., 0], 230), clip[..., 1] // 4, clip[..., 2] // 4], -1),
}


def write_pair(folder: Path, name: str, number: int, frames: int = FRAMES, reference: bool = False) -> dict:
    """A source, its edit and perhaps a reference in files; returns its row."""
    folder.mkdir(parents=True, exist_ok=True)
    source = scene(number, frames)
    prompt = list(EDITS)[number % 2]
    target, row = EDITS[prompt](source), {"prompt": prompt}
    if reference:
        colour = np.random.default_rng(1000 + number).integers(0, 255, 3).astype(np.uint8)
        target = source.copy()
        target[:, 4:20, 4:20] = colour
        row["prompt"] = "Put this square into the corner."
        Image.fromarray(np.full((30, 30, 3), colour)).save(folder / f"{name}_ref.png")
        row["ref_image"] = f"{name}_ref.png"
    for key, clip, ending in (("src_video", source, ""), ("tgt_video", target, "_edit")):
        suffix = ".png" if frames == 1 else ".mkv"
        media.save_video(folder / f"{name}{ending}{suffix}", clip, 12, crf=1)
        row[key] = f"{name}{ending}{suffix}"
    return row


def cut(clip: Path) -> None:
    """Make a clip end a little early, which its header does not tell: only who decodes it finds out."""
    whole = media.save_video(clip.with_name("whole.mp4"), media.load_video(clip).frames, 12, crf=1).read_bytes()
    clip.write_bytes(whole[:-20])


def write_table(folder: Path, rows: list[dict], name: str = "rows.csv") -> Path:
    """A table in the official layout."""
    columns = ["src_video", "tgt_video", "prompt", "ref_image"]
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def write_all(folder: Path, count: int = 4) -> Path:
    """A table with pictures, clips, and clips with references, so many of each."""
    rows = [write_pair(folder, f"image{number}", number, frames=1) for number in range(count)]
    rows += [write_pair(folder, f"video{number}", 10 + number) for number in range(count)]
    rows += [write_pair(folder, f"ref{number}", 20 + number, reference=True) for number in range(count)]
    return write_table(folder, rows)


def config(recipe: str, model: Path, data: Path, output: Path, /, **changes) -> Config:
    """A recipe on the CPU, without trackers."""
    given = {"model": str(model), "data": (str(data),), "output": str(output), "device": "cpu", "trackers": ()}
    return recipes.get(recipe).replace(**given | changes)


def run_killed(settings: dict, victim: str, call: int) -> None:
    """Train in this process, which kills itself at some call of ``module:attribute.path``; for a child process."""
    import functools
    import importlib
    import os
    import signal

    import torch

    torch.set_num_threads(1)
    from training import trainer

    if victim:
        module, _, path = victim.partition(":")
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        original, calls = getattr(owner, name), iter(range(1, 10**9))

        @functools.wraps(original)
        def deadly(*args, **kwargs):
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, deadly)
    trainer.train(Config(**settings))
