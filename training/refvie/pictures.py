"""Small pictures of samples, for people to look at and for telling pictures apart."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from . import frames

_TINT = np.array((255, 40, 90), np.float32)
_GAP = 4


def count(path: Path) -> int:
    """How many frames of a pair were kept."""
    with zipfile.ZipFile(path) as file:
        return sum(name.startswith("source-") for name in file.namelist())


def frame(path: Path, role: str, place: int | None = None, side: int | None = None) -> Image.Image:
    """One of the frames that were kept of a pair, RGB.

    Args:
        role: "source" or "target". place: the middle one without. side: longest side in pixels, if it is larger.

    Raises FileNotFoundError where the file is gone, ValueError where it has no such frame.
    """
    with zipfile.ZipFile(path) as file:
        names = sorted(name for name in file.namelist() if name.startswith(f"{role}-"))
        place = len(names) // 2 if place is None else place
        if not 0 <= place < len(names):
            raise ValueError(f"{path} has no {role} frame {place}; it has {len(names)}.")
        data = file.read(names[place])
    return opened(data, side)


def opened(file: bytes | Path, side: int | None = None) -> Image.Image:
    """A picture, RGB, with its longest side no longer than ``side``."""
    picture = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    if side:
        picture.draft("RGB", (side, side))  # a JPEG is decoded no larger than it must
    return _within(picture.convert("RGB"), side)


def overlay(path: Path, masks: Path, place: int | None = None, side: int | None = None) -> Image.Image:
    """A frame of the target with what is masked in it tinted."""
    found = frames.load_masks(masks)
    place = len(found) // 2 if place is None else place
    picture = np.asarray(frame(path, "target", place), np.float32)
    mask = Image.fromarray(found[place]).resize((picture.shape[1], picture.shape[0]))
    shown = np.where(np.asarray(mask)[..., None], 0.45 * picture + 0.55 * _TINT, 0.7 * picture)
    return _within(Image.fromarray(shown.astype(np.uint8)), side)


def strip(shown: Sequence[Image.Image], height: int) -> Image.Image:
    """Pictures beside each other, each as high."""
    sized = [one.resize((max(1, round(one.width * height / one.height)), height), Image.LANCZOS) for one in shown]
    whole = Image.new("RGB", (sum(one.width + _GAP for one in sized) - _GAP, height), "white")
    left = 0
    for one in sized:
        whole.paste(one, (left, 0))
        left += one.width + _GAP
    return whole


def jpeg(picture: Image.Image, quality: int = 82) -> bytes:
    """The same bytes for the same picture."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return data.getvalue()


def _within(picture: Image.Image, side: int | None) -> Image.Image:
    if side and max(picture.size) > side:
        picture.thumbnail((side, side), Image.LANCZOS)
    return picture
