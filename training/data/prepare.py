"""From a row to frames of the right shape: lengths, sizes, crops, references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image

from kiwi_core import geometry

from .media import Probe, frames_at
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
    count = frames_at(probe, rules.frame_rate) if rules.frame_rate else probe.frames
    frames = (min(count, rules.max_frames) - 1) // 4 * 4 + 1
    if rules.lengths and probe.frames > 1:
        fitting = [length for length in rules.lengths if length <= frames]
        if not fitting:
            at = f" at {rules.frame_rate:g} a second" if rules.frame_rate else ""
            raise ValueError(f"The clip has {count} frames{at}, fewer than the shortest of lengths; leave it out.")
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


def same_rate(source: Probe, target: Probe) -> bool:
    """Whether two clips have as many frames a second, but for one in a hundred."""
    return abs(source.frame_rate - target.frame_rate) <= source.frame_rate / 100


def same_length(source: Probe, target: Probe) -> bool:
    """Whether two clips of different rates last as long, but for a frame."""
    shorter, longer = sorted(found.frames / found.frame_rate for found in (source, target))
    return longer - shorter <= 1 / min(source.frame_rate, target.frame_rate)


def pair_shape(row: Row, source: Probe, target: Probe, rules: Rules) -> Shape:
    """The shape of a pair's sample; ValueError for a pair that does not go together, and as :func:`shape_of`.

    Frames go together by their number; of clips of one rate, those that both have. Clips of other rates and numbers of
    frames go together by their times, which needs a ``frame_rate`` that both are brought to.
    """
    sizes = [(found.frames, found.height, found.width) for found in (source, target)]
    if sizes[0] == sizes[1]:
        return shape_of(target, rules)
    alike = same_rate(source, target) or (rules.frame_rate and same_length(source, target))
    if sizes[0][1:] == sizes[1][1:] and min(source.frames, target.frames) > 1 and alike:
        return min(shape_of(source, rules), shape_of(target, rules), key=lambda shape: shape.frames)
    raise _mismatch(row, *sizes)


def source_rate(source: Probe, target: Probe, rules: Rules) -> Fraction | None:
    """The rate that a source is taken to have, where its header is not to be asked for it.

    Two clips with as many frames go together frame by frame, even if the header of one says another rate, as that
    of an edit does which a tool saved at a rate of its own.
    """
    differ = source.frame_rate != target.frame_rate
    return target.frame_rate if rules.frame_rate and differ and source.frames == target.frames else None


def read_pair(row: Row, shape: Shape, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """Source and target of a row, uint8 ``[T, H, W, 3]``; ValueError if they do not go together."""
    rate, own_rate = rules.frame_rate or None, None
    if rate:
        own_rate = source_rate(row.source.probe(), row.target.probe(), rules)
    source, target = row.source.frames(shape.frames, rate, own_rate=own_rate), row.target.frames(shape.frames, rate)
    if source.shape != target.shape:
        raise _mismatch(row, source.shape, target.shape)
    if len(target) < shape.frames:
        raise ValueError(f"{row.target.name} has {len(target)} frames, not {shape.frames} as it says; export it again.")
    return fit(source, shape), fit(target, shape)


def _mismatch(row: Row, *sizes: Sequence[int]) -> ValueError:
    """Of clips of so many frames, height and width."""
    text = " and ".join(f"{frames} frames of {width}x{height}" for frames, height, width, *_ in sizes)
    return ValueError(f"{row.source.name} and {row.target.name} do not match ({text}); export them alike.")


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
