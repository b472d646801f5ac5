"""A clip or picture of a row: where it lies, and how to read it."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from kiwi_core.media import Probe, load_image, load_video, probe

from .places import ParquetCell, TarMember, file_chunks

__all__ = ["PICTURE_SUFFIXES", "VIDEO_SUFFIXES", "Media", "ParquetCell", "Probe", "TarMember"]

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".m2ts", ".flv", ".wmv", ".ogv", ".mxf")
)
PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"))


@dataclass(frozen=True)
class Media:
    """One clip or picture: the file ``path``, or what lies at ``place`` in it. Nothing is opened until it is read."""

    path: str
    place: TarMember | ParquetCell | None = None

    @property
    def name(self) -> str:
        """What messages and reports call it."""
        return f"{self.path}:{self.place.name}" if self.place else self.path

    @contextmanager
    def open_path(self) -> Iterator[Path]:
        """A file with its bytes: its own, or a temporary one that goes when the block ends.

        Raises FileNotFoundError for a missing tar or Parquet file, ValueError for a damaged one. Errors of
        these kinds from inside the block that speak of the temporary file name this media instead.
        """
        if self.place is None:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory(prefix="kiwi-edit-") as folder:
            path = Path(folder, f"media{self.place.suffix}")
            with path.open("wb") as file:
                file.writelines(self._chunks())
            try:
                yield path
            except (ValueError, FileNotFoundError) as error:
                if str(path) not in str(error):
                    raise
                kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
                raise kind(str(error).replace(str(path), self.name)) from error

    def digest(self) -> str:
        """Hexadecimal 16-byte BLAKE2b of its bytes; raises as :meth:`open_path` does."""
        digest = hashlib.blake2b(digest_size=16)
        for chunk in self._chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def probe(self, decode: bool = False) -> Probe:
        """Frames, size and rate: see :func:`kiwi_core.media.probe`."""
        with self.open_path() as path:
            return probe(path, decode)

    def frames(
        self, max_frames: int | None = None, frame_rate: Fraction | float | None = None, start: int = 0
    ) -> np.ndarray:
        """Frames ``start`` to ``start + max_frames`` as uint8 ``[T, H, W, 3]``, fewer where the clip ends.

        With ``frame_rate``, in frames a second, the clip is first brought to that rate: each moment shows the
        frame nearest in time, the earlier of two, and a slower clip repeats frames. One frame stays one.

        Raises FileNotFoundError for missing media, ValueError for damaged ones, a ``start`` past the end and
        numbers out of range.
        """
        if (max_frames is not None and max_frames < 1) or start < 0:
            raise ValueError(f"max_frames is {max_frames}, start {start}; give at least 1 frame from 0 on.")
        if frame_rate is not None and not 0 < frame_rate < math.inf:
            raise ValueError(f"The frame rate is {frame_rate}; give frames a second, above 0.")
        stop = None if max_frames is None else start + max_frames
        with self.open_path() as path:
            if frame_rate is None:
                frames = load_video(path, stop).frames[start:]
            else:
                indices = _nearest(probe(path), Fraction(frame_rate).limit_denominator(1_000_000))[start:stop]
                frames = load_video(path, int(indices[-1]) + 1).frames if len(indices) else indices
                frames = frames[indices[indices < len(frames)]]
        if not len(frames):
            raise ValueError(f"{self.name} has no frame {start}; start earlier.")
        return frames

    def picture(self) -> Image.Image:
        """An upright RGB picture; raises as :func:`kiwi_core.media.load_image` does."""
        with self.open_path() as path:
            return load_image(path)

    def _chunks(self) -> Iterator[bytes]:
        return self.place.chunks(self.path) if self.place else file_chunks(self.path)


def _nearest(found: Probe, rate: Fraction) -> np.ndarray:
    """Indices of the frames that are shown at 0, 1 / rate, 2 / rate, ... seconds, until the clip ends."""
    if found.frames == 1:
        return np.zeros(1, dtype=int)
    step = found.frame_rate / rate
    half = Fraction(1, 2)
    places = [math.ceil(index * step - half) for index in range(math.ceil(found.frames / step))]
    return np.array(places, dtype=int).clip(0, found.frames - 1)
