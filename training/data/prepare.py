"""From a row to frames of the right shape: lengths, sizes, crops, references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kiwi_core import geometry

from .media import Probe
from .row import Row

REFERENCE_SCALES = (0.7, 1.0)


@dataclass(frozen=True)
class Shape:
    """Number of frames and size that a sample is brought to; samples of one shape can share a batch."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Rules:
    """How shapes are found; see the fields of the same names of :class:`training.config.Config`."""

    max_pixels: int
    max_frames: int
    multiple: int
    frame_rate: float = 0.0
    aspects: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()


def shape_of(probe: Probe, rules: Rules) -> Shape:
    """The shape of a clip's sample: its first 4k + 1 frames, sides floored to the multiple.

    ValueError for a clip that is too small or too short for the rules.
    """
    frames = probe.frames
    if rules.frame_rate and frames > 1:
        frames = math.ceil(frames * rules.frame_rate / probe.frame_rate)
    frames = (min(frames, rules.max_frames) - 1) // 4 * 4 + 1
    if rules.lengths and probe.frames > 1:
        fitting = [length for length in rules.lengths if length <= frames]
        if not fitting:
            raise ValueError(f"The clip has {probe.frames} frames, fewer than the shortest of lengths; leave it out.")
        frames = max(fitting)
    height, width = probe.height, probe.width
    if rules.aspects:
        height, width = _crop_size(height, width, rules.aspects)
    scale = min(1.0, math.sqrt(rules.max_pixels / (height * width)))
    height, width = (int(side * scale + 1e-6) // rules.multiple * rules.multiple for side in (height, width))
    if min(height, width) < rules.multiple:
        raise ValueError(
            f"The frames are {probe.width}x{probe.height} pixels; both sides must be {rules.multiple} or more."
        )
    return Shape(frames, height, width)


def _crop_size(height: int, width: int, aspects: Sequence[str]) -> tuple[int, int]:
    """Size of the largest part of a frame that has the nearest of the aspects."""
    ratios = [int(wide) / int(high) for wide, high in (aspect.split(":") for aspect in aspects)]
    ratio = min(ratios, key=lambda each: abs(math.log(each * height / width)))
    if width / height > ratio:
        return height, max(1, round(height * ratio))
    return max(1, round(width / ratio)), width


def fit(frames: np.ndarray, shape: Shape) -> np.ndarray:
    """Frames scaled to cover the shape, then cropped around the centre: uint8 ``[T, H, W, 3]`` to its size."""
    height, width = frames.shape[1:3]
    if (height, width) == (shape.height, shape.width):
        return frames
    scale = max(shape.height / height, shape.width / width)
    rows, columns = round(height * scale), round(width * scale)
    top, left = (rows - shape.height) // 2, (columns - shape.width) // 2
    fitted = np.empty((len(frames), shape.height, shape.width, 3), dtype=np.uint8)
    for target, frame in zip(fitted, frames):
        image = Image.fromarray(frame).resize((columns, rows), Image.Resampling.BILINEAR)
        target[:] = np.asarray(image)[top : top + shape.height, left : left + shape.width]
    return fitted


def read_pair(row: Row, shape: Shape, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """Source and target of a row, uint8 ``[T, H, W, 3]``; ValueError if they do not go together."""
    rate = rules.frame_rate or None
    source, target = (media.frames(shape.frames, rate) for media in (row.source, row.target))
    if source.shape != target.shape:
        sizes = " and ".join(f"{len(clip)} frames of {clip.shape[2]}x{clip.shape[1]}" for clip in (source, target))
        raise ValueError(f"{row.source.name} and {row.target.name} do not match ({sizes}); export them alike.")
    if len(target) < shape.frames:
        raise ValueError(f"{row.target.name} has {len(target)} frames, not {shape.frames} as it says; export it again.")
    return fit(source, shape), fit(target, shape)


def read_reference(row: Row) -> np.ndarray | None:
    """The reference as it is, uint8 ``[H, W, 3]``: so the language model sees it."""
    return None if row.reference is None else np.array(row.reference.picture())


def boxed_reference(picture: np.ndarray, height: int, width: int, scale: float) -> np.ndarray:
    """The reference as the VAE sees it in training: fitted into the frame, scaled, centred on white.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    boxed = geometry.letterbox(Image.fromarray(picture), height, width)
    if scale == 1:
        return np.array(boxed)
    rows, columns = picture.shape[:2]
    fitting = min(height / rows, width / columns) * scale
    size = max(1, round(columns * fitting)), max(1, round(rows * fitting))
    page = Image.new("RGB", (width, height), (255, 255, 255))
    small = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    page.paste(small, ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.array(page)


def reference_scales(count: int) -> list[float]:
    """So many scales, spread over the published range."""
    low, high = REFERENCE_SCALES
    return [low + (high - low) * (index + 0.5) / count for index in range(count)]
