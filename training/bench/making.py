"""Edits of all items, by a model that runs here or as somebody else has made them.

Any number of processes may do the same run: each claims an item before it makes it, and a claim ends with the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from kiwi_core import geometry, media

from ..asking import Unavailable
from ..data.media import VIDEO_SUFFIXES
from . import clips
from .folder import DONE, FAILED, FRAMES, Edit, Folder
from .items import Item

try:
    import fcntl
except ImportError:  # Windows has no such locks: one process
    fcntl = None

logger = logging.getLogger(__name__)

COPY = "copy"
"""The system that changes nothing."""
CRF = 8
"""Of edits that are written: what is measured is the model, not the encoder."""
SMALL = 128 * 128
"""Pixels of a frame up to which an edit is kept to the bit: in the toy world a colour's edge is much of a thing."""
CLAIMS = "claims"

System = Callable[[Item], tuple[np.ndarray, Fraction]]
"""Makes an edit: frames uint8 ``[T, H, W, 3]`` and their rate a second."""


@dataclass(frozen=True)
class Settings:
    """How a model edits; the model's own defaults are as it was published."""

    steps: int = 50
    """Model evaluations of an edit."""
    shift: float = 5.0
    frames: int = geometry.MAX_FRAMES
    """Of the source, at most so many from its start."""
    max_pixels: int = 720 * 1280
    """A frame's largest area."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    lora: tuple[Path, ...] = ()
    lora_strength: float = 1.0

    def __post_init__(self):
        for name in ("steps", "frames", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give at least 1.")
        for path in self.lora:
            if not path.is_file():
                raise FileNotFoundError(f"There is no LoRA {path}; give a file.")


def check(model: str, items: list[Item]) -> None:
    """Refuse a model that is not whole, or cannot take references, before anything is loaded."""
    from kiwi_core.cli.edit import check_model

    if model != COPY:
        check_model(model, with_reference=any(item.reference for item in items))


def copy(settings: Settings) -> System:
    """Changes nothing."""

    def make(item: Item) -> tuple[np.ndarray, Fraction]:
        clip = media.load_video(item.source, max_frames=settings.frames)
        return clip.frames, clip.frame_rate

    return make


def kiwi(model: str, settings: Settings, device: str = "auto", offload: str = "none") -> System:
    """Kiwi-Edit, from a released folder or by its name on the hub; loaded at once."""
    import torch

    from kiwi_core.cli.edit import device_for, load

    where = device_for(device, offload)
    if where == "cuda" and torch.cuda.device_count() > 1:
        where = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[settings.dtype]
    pipe = load(model, dtype, where, offload, settings.lora, settings.lora_strength)
    pipe.set_progress_bar_config(disable=True)

    def make(item: Item) -> tuple[np.ndarray, Fraction]:
        clip = media.load_video(item.source, max_frames=settings.frames)
        height, width = geometry.fit_size(*clip.frames.shape[1:3], settings.max_pixels, pipe.multiple)
        frames = pipe(
            item.prompt, clip.frames, item.reference and media.load_image(item.reference),
            height=height, width=width, num_frames=len(clip.frames), num_inference_steps=settings.steps,
            shift=settings.shift, generator=torch.Generator("cpu").manual_seed(item.seed),
        ).frames  # fmt: skip
        return frames, clip.frame_rate

    return make


class _Broken(Exception):
    """What no input explains: a bug, or a machine that is broken."""


_MOST_BROKEN = 5
"""Edits that break in a row: then none of them is at fault."""


def run(folder: Folder, load: Callable[[], System], retry: bool = False) -> None:
    """Make what is not made yet. A failure is noted, and the run goes on.

    Args:
        load: called once, if there is anything to do. retry: also what has failed.
    """
    waiting = [item for item in folder.items if _waits(folder, item, retry)]
    if not waiting:
        return
    system = load()
    broken: list[tuple[Item, Edit]] = []  # not noted before one goes well: then it was theirs
    for item in tqdm(waiting, desc="edits", unit="item", mininterval=2, dynamic_ncols=True):
        with _claimed(folder.path / CLAIMS / f"{item.id}.lock") as mine:
            if mine and _waits(folder, item, retry):
                try:
                    folder.note_edit(_made(folder, item, system))
                except _Broken as error:
                    broken.append((item, _failed(item, error)))
                    if len(broken) == _MOST_BROKEN:
                        raise Unavailable(
                            f"{len(broken)} edits in a row broke, at last so: {broken[-1][1].error} Mend that; the "
                            "same command goes on."
                        ) from error
                else:
                    _note(folder, broken, retry)
    _note(folder, broken, retry)
    with contextlib.suppress(OSError):  # others may still hold some
        (folder.path / CLAIMS).rmdir()


def _note(folder: Folder, broken: list[tuple[Item, Edit]], retry: bool) -> None:
    for item, edit in broken:
        if _waits(folder, item, retry):  # no other process has made it meanwhile
            folder.note_edit(edit)
    broken.clear()


def _waits(folder: Folder, item: Item, retry: bool) -> bool:
    known = folder.edit(item)
    return known is None or (retry and known.status == FAILED)


def _made(folder: Folder, item: Item, system: System) -> Edit:
    started = time.perf_counter()
    try:
        frames, rate = system(item)
        seconds = time.perf_counter() - started
        path = _saved(folder.edit_path(item), frames, rate)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            return _failed(item, error)
        raise  # a full disk is no item's fault
    except (ValueError, MemoryError) as error:
        return _failed(item, error)
    except Exception as error:
        logger.exception("%s failed.", item.id)
        raise _Broken(f"{type(error).__name__}: {error}") from error
    return Edit(item.id, DONE, path, seconds, FRAMES)


def _saved(path: Path, frames: np.ndarray, rate: Fraction) -> Path:
    if frames.shape[1] * frames.shape[2] <= SMALL:
        return clips.save_exactly(path.with_suffix(".mkv"), frames, rate)
    return media.save_video(path, frames, rate, crf=CRF)


def _failed(item: Item, error: object) -> Edit:
    return Edit(item.id, FAILED, error=" ".join(str(error).split())[:500] or type(error).__name__)


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Whether an item is this process's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if fcntl:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def adopt(folder: Folder, edits: Path, align: str = clips.AUTO) -> None:
    """Take edits that somebody else has made: for each item a clip in ``edits`` that has its id or its source's name.

    Clips stay where they are. An item without one has failed. Raises FileNotFoundError where there is no such folder,
    ValueError where it has clips, but none for any item.
    """
    if not edits.is_dir():
        raise FileNotFoundError(f"There is no folder {edits}; give one with the edited clips.")
    found: dict[str, list[Path]] = {}
    for path in sorted(edits.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            found.setdefault(path.stem, []).append(path.resolve())
    sources = [item.source.stem for item in folder.items]
    matched = []
    for item in folder.items:
        names = [item.id, *([item.source.stem] if sources.count(item.source.stem) == 1 else [])]
        matched.append((item, names, next((found[name] for name in names if name in found), [])))
    if not any(paths for *_, paths in matched):
        first = folder.items[0]
        raise ValueError(f"{edits} has no clip of any item; name them by id, such as {first.id}.mp4.")
    for item, names, paths in matched:
        if len(paths) == 1:
            folder.note_edit(_adopted(item, paths[0], align))
        elif paths:
            folder.note_edit(_failed(item, f"There are several clips for it: {', '.join(map(str, paths))}."))
        else:
            folder.note_edit(_failed(item, f"There is no clip {' or '.join(names)} in {edits}."))


def _adopted(item: Item, path: Path, align: str) -> Edit:
    try:
        return Edit(item.id, DONE, path, align=clips.alignment(item.source, path, align))
    except (ValueError, FileNotFoundError) as error:
        return _failed(item, error)
