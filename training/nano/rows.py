"""The world as rows for training: media in lossless files and tables in the layout of every other data set."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from ..metrics import read_lines
from . import edits, feed, world

ROWS_A_PART = 250
KINDS = ("image", "video", "ref", "ref-image")
"""Pictures, clips, and clips and pictures with a reference: a picture costs a third of a clip and teaches as much
about shapes."""
SHARES = {
    "global_style": 0.04, "background_change": 0.09, "local_change": 0.4, "local_remove": 0.1, "local_add": 0.37,
}  # fmt: skip
"""Of each category among rows without a reference: more of what changes few pixels, which is learned last."""
REFERENCE_SHARES = {"subject_reference": 0.75, "background_reference": 0.25}
TABLE = "rows.jsonl"
_RATE = 12


def write(folder: Path, counts: Sequence[int], seed: int = 0, workers: int = 0) -> str:
    """Write so many rows of each of :data:`KINDS`; what is there already stays, so that a kill loses one part at most.

    Returns:
        The pattern of the tables, for ``--data``.
    """
    parts = []
    for kind, count in zip(KINDS, counts, strict=True):
        for first in range(0, count, ROWS_A_PART):
            part, numbers = folder / f"{kind}-{first:06d}-{seed}", range(first, min(count, first + ROWS_A_PART))
            if len(read_lines(part / TABLE)) != len(numbers):
                parts.append((part, kind, numbers, seed))
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=context) as pool:
        for _ in tqdm(pool.map(_write_part, parts), total=len(parts), desc="rows", unit="part", mininterval=1):
            pass
    return str(folder / f"*-{seed}" / TABLE)


def row_edit(kind: str, number: int, seed: int) -> edits.Edit:
    """The edit of a training row."""
    shares = REFERENCE_SHARES if kind.startswith("ref") else SHARES
    drawn = feed.training_seed("row", seed, kind, number)
    category = np.random.default_rng(drawn).choice(list(shares), p=list(shares.values()))
    return edits.draw(str(category), drawn, frames=1 if kind.endswith("image") else world.FRAMES)


def write_row(folder: Path, name: str, edit: edits.Edit) -> dict:
    """Write an edit's media; returns its row."""
    suffix = ".webp" if edit.after.frames == 1 else ".mkv"
    row = {"src_video": f"{name}{suffix}", "tgt_video": f"{name}_edit{suffix}", "prompt": edit.prompt}
    save_exactly(folder / row["src_video"], world.render(edit.before))
    save_exactly(folder / row["tgt_video"], world.render(edit.after))
    picture = edit.reference_picture()
    if picture is not None:
        row["ref_image"] = f"{name}_ref.webp"
        save_exactly(folder / row["ref_image"], picture[None])
    return row | {"category": edit.category}


def save_exactly(path: Path, frames: np.ndarray, rate: Fraction | int = _RATE) -> None:
    """uint8 ``[T, H, W, 3]`` without loss: one frame as WebP, a clip as FFV1 in ``.mkv``.

    A clip in WebP (or PNG) would lose frames that are like the one before, and with them its length.
    """
    if path.suffix == ".webp":
        Image.fromarray(frames[0]).save(path, lossless=True, quality=0, method=0)
        return
    # Without the random number that Matroska gives a file, which would be another one to the cache each time.
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = *frames.shape[1:3], "bgr0", 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())


def _write_part(task) -> None:
    part, kind, numbers, seed = task
    temporary = part.with_name(f".{part.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    rows = [write_row(temporary, f"{number:06d}", row_edit(kind, number, seed)) for number in numbers]
    rows = [row | {"id": f"{kind}-{seed}-{number}"} for number, row in zip(numbers, rows)]
    (temporary / TABLE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.rmtree(part, ignore_errors=True)  # of another size
    os.replace(temporary, part)
