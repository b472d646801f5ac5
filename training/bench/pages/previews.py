"""Small clips for a page: any browser plays them, source and edits at the same moments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kiwi_core import media
from kiwi_core.atomic import replacing
from kiwi_core.geometry import resize_frames

from ...refvie.frames import spread
from .. import clips
from ..folder import DONE, Edit, Folder
from ..items import Item

SIDE, MOST_FRAMES = 320, 97
_CRF = 24


def make(folders: Sequence[Folder], item: Item, out: Path) -> dict[str, str]:
    """Clips of an item in ``out``, and what they are: "source", "reference" and the runs' numbers, each with its path
    from ``out``'s parent. What is there and shows the same files is kept; what cannot be read is left out.

    All clips of an item are as long and as fast as each other: each frame is a moment of the source, at the source's
    rate or less. Where an edit has ended, it is black.
    """
    edits = {
        str(number): edit for number, folder in enumerate(folders)
        if (edit := folder.edit(item)) is not None and edit.status == DONE
    }  # fmt: skip
    shown = {"source": (item.source, ""), "reference": (item.reference, "")}
    shown |= {key: (edit.path, edit.align) for key, edit in edits.items()}
    key = {name: [str(path), align, *_stamp(path)] for name, (path, align) in shown.items() if path is not None}
    kept = out / f"{item.id}.json"
    if (found := _kept(kept, key, out.parent)) is not None:
        return found
    kept.unlink(missing_ok=True)  # before its clips go
    found = _clips(item, edits, out)
    if item.reference is not None:
        try:
            picture = media.load_image(item.reference)
            picture.thumbnail((SIDE, SIDE))
            _save(out / f"{item.id}-reference.jpg", picture)
            found["reference"] = f"{out.name}/{item.id}-reference.jpg"
        except (OSError, ValueError):
            pass
    if set(found) == set(key):
        with replacing(kept) as temporary:
            temporary.write_text(json.dumps({"shows": key, "found": found}) + "\n", encoding="utf-8")
    return found


def _clips(item: Item, edits: Mapping[str, Edit], out: Path) -> dict[str, str]:
    """Write source and edits, frame by frame at the same moments."""
    try:
        source = media.load_video(item.source)
    except (OSError, ValueError):
        return {}
    places: dict[str, np.ndarray] = {}
    for name, edit in edits.items():
        try:
            told = media.probe(edit.path)
        except (OSError, ValueError):
            continue
        places[name] = clips.matched(
            len(source.frames), source.frame_rate, told.frames, told.frame_rate, edit.align
        )  # fmt: skip
    last = max((of[-1] for of in places.values() if len(of)), default=len(source.frames) - 1)
    moments = spread(last + 1, MOST_FRAMES)
    rate = float(source.frame_rate) * len(moments) / (last + 1)
    found = {"source": _write(out / f"{item.id}-source.mp4", source.frames[moments], rate)}
    for name, of in places.items():
        try:
            frames = media.load_video(edits[name].path).frames[: len(of)]
        except (OSError, ValueError):
            continue
        if len(frames):
            found[name] = _write(out / f"{item.id}-{name}.mp4", _at(frames, of[: len(frames)], moments), rate)
    return found


def _at(frames: np.ndarray, places: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """The frames, ``places`` of which are the source's that they belong to, at moments of the source."""
    step = places[-1] - places[-2] if len(places) > 1 else 1  # as long as the last one stays
    found = frames[np.clip(np.searchsorted(places, moments, side="right") - 1, 0, None)]
    found[moments >= places[-1] + max(1, step)] = 0
    return found


def _stamp(path: Path) -> tuple[int, int] | tuple[()]:
    try:
        told = path.stat()
    except OSError:
        return ()
    return told.st_mtime_ns, told.st_size


def _kept(path: Path, key: Mapping[str, list], base: Path) -> dict[str, str] | None:
    """What is there of the same files; None if anything is another."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["shows"] != key or not all((base / one).is_file() for one in told["found"].values()):
            return None
        return told["found"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(path: Path, frames: np.ndarray, rate: float) -> str:
    """Returns the path from the page."""
    height, width = frames.shape[1:3]
    scale = SIDE / max(height, width)
    if scale > 1:  # a toy's pixels stay pixels
        whole = max(1, int(scale))
        frames = frames.repeat(whole, axis=1).repeat(whole, axis=2)
    else:
        frames = resize_frames(frames, *(max(2, round(side * scale / 2) * 2) for side in (height, width)))
    media.save_video(path, frames, max(1.0, min(rate, 60.0)), crf=_CRF)
    _save(path.with_suffix(".jpg"), Image.fromarray(frames[len(frames) // 2]))
    return f"{path.parent.name}/{path.name}"


def _save(path: Path, picture: Image.Image) -> None:
    with replacing(path) as temporary:
        picture.convert("RGB").save(temporary, "JPEG", quality=85)
