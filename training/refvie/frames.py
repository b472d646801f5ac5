"""The frames of a pair that the models see: read from the clips once, then from one small file."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kiwi_core import media
from kiwi_core.atomic import replacing

from ..data.media import Media

QUALITY = 95


@dataclass(frozen=True)
class Taken:
    """What was read of a pair."""

    source: np.ndarray
    """Sampled frames, uint8 ``[T, H, W, 3]``; the target's are of the same times and the same size."""
    target: np.ndarray
    facts: dict
    """frames, width, height, rate (per second), flicker and the digests of both files."""


def take(source: str, target: str, count: int, side: int) -> Taken:
    """Read a pair's clips whole, and sample them.

    Args:
        count: frames, spread evenly from the first to the last. side: longest side in pixels; never enlarged.

    Raises ValueError or FileNotFoundError for clips that cannot be read or do not match, with a sentence.
    """
    clips = []
    for name, path in (("source", source), ("target", target)):
        try:
            clips.append(media.load_video(path))
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"The {name} cannot be read: {error}") from error
    before, after = (clip.frames for clip in clips)
    if len(before) != len(after):
        raise ValueError(f"The source has {len(before)} frames and the target {len(after)}; give clips of one length.")
    if before.shape != after.shape:
        sizes = " and ".join(f"{frames.shape[2]}x{frames.shape[1]}" for frames in (before, after))
        raise ValueError(f"Source and target have different sizes, {sizes}; give clips of one size.")
    places = spread(len(before), count)
    facts = {
        "frames": len(before),
        "width": before.shape[2],
        "height": before.shape[1],
        "rate": float(clips[0].frame_rate),
        "flicker": flicker(before, after),
        "source_digest": Media(source).digest(),
        "target_digest": Media(target).digest(),
    }
    return Taken(_scaled(before[places], side), _scaled(after[places], side), facts)


def flicker(source: np.ndarray, target: np.ndarray) -> float:
    """How much more the target flickers than its source: 0 for no more, 1 for black and white by turns.

    A frame is compared with the mean of its neighbours, which a steady movement leaves alone and a flash does not.
    """
    if len(source) < 3:
        return 0.0
    return max(0.0, _unsteady(target) - _unsteady(source))


def _unsteady(frames: np.ndarray) -> float:
    total = 0.0
    for before, now, after in zip(frames, frames[1:], frames[2:]):  # not all at once: clips are large
        total += float(np.abs(now - (before.astype(np.float32) + after) / 2).mean())
    return total / (len(frames) - 2) / 255


def spread(count: int, most: int) -> np.ndarray:
    """At most ``most`` places out of ``count``, from the first to the last, evenly."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))


def _scaled(frames: np.ndarray, side: int) -> np.ndarray:
    height, width = frames.shape[1:3]
    scale = side / max(height, width)
    if scale >= 1:
        return frames
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def save(path: Path, source: np.ndarray, target: np.ndarray, lossless: bool) -> None:
    """Keep sampled frames as pictures in one file."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for name, frames in (("source", source), ("target", target)):
            for number, frame in enumerate(frames):
                data = io.BytesIO()
                if lossless:
                    Image.fromarray(frame).save(data, "PNG", compress_level=1)
                else:
                    Image.fromarray(frame).save(data, "JPEG", quality=QUALITY, subsampling=0)
                file.writestr(zipfile.ZipInfo(f"{name}-{number:03d}"), data.getvalue())  # no date: same bytes


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Source's and target's sampled frames, uint8 ``[T, H, W, 3]``."""
    found: dict[str, list] = {"source": [], "target": []}
    with zipfile.ZipFile(path) as file:
        for name in sorted(file.namelist()):
            picture = Image.open(io.BytesIO(file.read(name))).convert("RGB")
            found[name.partition("-")[0]].append(np.asarray(picture))
    return np.stack(found["source"]), np.stack(found["target"])


def save_masks(path: Path, masks: np.ndarray) -> None:
    """Keep masks, bool ``[T, H, W]``, at one bit a pixel."""
    with replacing(path) as temporary:
        np.savez_compressed(temporary, shape=np.array(masks.shape), bits=np.packbits(masks))


def load_masks(path: Path) -> np.ndarray:
    """Bool ``[T, H, W]``."""
    with np.load(path, allow_pickle=False) as file:
        shape = tuple(file["shape"])
        return np.unpackbits(file["bits"], count=int(np.prod(shape))).reshape(shape).astype(bool)
