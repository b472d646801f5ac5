"""A clip or picture of a row: where it lies, and how to read it."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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

    @property
    def identity(self) -> str:
        """The same for the same bytes, however the path to them is written."""
        path = os.path.realpath(self.path)
        return f"{path}:{self.place.name}" if self.place else path

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
        self,
        max_frames: int | None = None,
        frame_rate: Fraction | float | None = None,
        start: int = 0,
        own_rate: Fraction | None = None,
    ) -> np.ndarray:
        """Frames ``start`` to ``start + max_frames`` as uint8 ``[T, H, W, 3]``, fewer where the clip ends.

        With ``frame_rate``, in frames a second, the clip is first brought to that rate: each moment shows the
        frame nearest in time, the earlier of two, and a slower clip repeats frames. One frame stays one.
        ``own_rate`` is the clip's rate where its header is not to be asked.

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
                found = probe(path)
                indices = _nearest(found, own_rate or found.frame_rate, exact_rate(frame_rate))[start:stop]
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


def exact_rate(rate: Fraction | float) -> Fraction:
    """The frames a second that a number stands for: 29.97002997... is 30000/1001."""
    return Fraction(rate).limit_denominator(1_000_000)


def frames_at(found: Probe, rate: Fraction | float) -> int:
    """Number of frames that a clip has once it is brought to ``rate`` frames a second."""
    return 1 if found.frames == 1 else math.ceil(found.frames * exact_rate(rate) / found.frame_rate)


def _nearest(found: Probe, own_rate: Fraction, rate: Fraction) -> np.ndarray:
    """Indices of the frames that are shown at 0, 1 / rate, 2 / rate, ... seconds, until the clip ends."""
    count = frames_at(replace(found, frame_rate=own_rate), rate)
    half = Fraction(1, 2)
    places = [math.ceil(index * own_rate / rate - half) for index in range(count)]
    return np.array(places, dtype=int).clip(0, found.frames - 1)
