"""Small clips for a page: any browser plays them, source and edits at the same moments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kiwi_core import media
from kiwi_core.atomic import replacing
from kiwi_core.geometry import resize_frames

from .. import clips
from ..folder import DONE, Folder
from ..items import Item

SIDE, MOST_FRAMES = 320, 97
_CRF = 24


def make(folders: Sequence[Folder], item: Item, out: Path) -> dict[str, str]:
    """Clips of an item in ``out``, and what they are: "source", "reference" and the runs' numbers, each with its path
    from ``out``'s parent. What is there and newer than what it shows is kept; what cannot be read is left out."""
    found: dict[str, str] = {}
    for number, folder in enumerate(folders):
        edit = folder.edit(item)
        if edit is None or edit.status != DONE:
            continue
        names = {"source": f"{item.id}-source.mp4", str(number): f"{item.id}-{number}.mp4"}
        wanted = {key: name for key, name in names.items() if key not in found}
        try:
            stamp = max(path.stat().st_mtime for path in (edit.path, item.source))
            if not all(_newer(out / name, stamp) for name in wanted.values()):
                both = clips.read(item.source, edit.path, edit.align).some(MOST_FRAMES)
                for key, name in wanted.items():
                    _write(out / name, both.source if key == "source" else both.edit, float(both.rate))
        except (OSError, ValueError):
            continue
        found |= {key: f"{out.name}/{name}" for key, name in wanted.items()}
    if item.reference is not None:
        path = out / f"{item.id}-reference.jpg"
        try:
            if not _newer(path, item.reference.stat().st_mtime):
                picture = media.load_image(item.reference)
                picture.thumbnail((SIDE, SIDE))
                _save(path, picture)
            found["reference"] = f"{out.name}/{path.name}"
        except (OSError, ValueError):
            pass
    return found


def _newer(path: Path, stamp: float) -> bool:
    return path.is_file() and path.stat().st_mtime >= stamp


def _write(path: Path, frames: np.ndarray, rate: float) -> None:
    height, width = frames.shape[1:3]
    scale = SIDE / max(height, width)
    if scale > 1:  # a toy's pixels stay pixels
        whole = max(1, int(scale))
        frames = frames.repeat(whole, axis=1).repeat(whole, axis=2)
    else:
        frames = resize_frames(frames, *(max(2, round(side * scale / 2) * 2) for side in (height, width)))
    media.save_video(path, frames, max(1.0, min(rate, 60.0)), crf=_CRF)
    _save(path.with_suffix(".jpg"), Image.fromarray(frames[len(frames) // 2]))


def _save(path: Path, picture: Image.Image) -> None:
    with replacing(path) as temporary:
        picture.convert("RGB").save(temporary, "JPEG", quality=85)
