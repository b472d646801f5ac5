"""An edit's frames beside its source's: what a judge sees and what is measured are the same moments of both."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from kiwi_core import media
from kiwi_core.atomic import replacing
from kiwi_core.geometry import resize_frames

from ..refvie.frames import spread
from .folder import FRAMES, TIME

AUTO = "auto"
ALIGNMENTS = (AUTO, FRAMES, TIME)


@dataclass(frozen=True, eq=False)
class Both:
    """Frames that belong together: uint8 ``[T, H, W, 3]`` each, of the edit's size."""

    source: np.ndarray
    edit: np.ndarray
    rate: Fraction
    """Frames of the edit a second."""
    moments: np.ndarray
    """Where each frame stands on the source's clock, in seconds."""

    def some(self, most: int) -> Both:
        """At most so many, evenly from the first to the last."""
        return self.at(spread(len(self.edit), most))

    def at(self, places: np.ndarray) -> Both:
        """The frames at these places."""
        return Both(self.source[places], self.edit[places], self.rate, self.moments[places])


def together(one: Both, other: Both, most: int) -> tuple[Both, Both]:
    """At most so many moments that two edits of one source share, evenly from the first to the last."""
    end = min(one.moments[-1], other.moments[-1])
    count = min(most, *(int((both.moments <= end + 1e-9).sum()) for both in (one, other)))
    wanted = np.linspace(0, end, count)
    return tuple(both.at(abs(both.moments[:, None] - wanted).argmin(axis=0)) for both in (one, other))


def read(source: Path, edit: Path, align: str) -> Both:
    """Two clips as far as both go. Raises FileNotFoundError or ValueError for one that cannot be read.

    Args:
        align: "frames" if the edit's frames are the source's first ones, as those of Kiwi-Edit are at whatever rate
            they are saved; "time" if both are to be played side by side.
    """
    before, after = media.load_video(source), media.load_video(edit)
    places = matched(len(before.frames), before.frame_rate, len(after.frames), after.frame_rate, align)
    height, width = after.frames.shape[1:3]
    frames = before.frames[places]
    if frames.shape[1:3] != (height, width):
        frames = resize_frames(frames, height, width)
    clock = before.frame_rate if align == FRAMES else after.frame_rate
    return Both(frames, after.frames[: len(places)], after.frame_rate, np.arange(len(places)) / float(clock))


def matched(count: int, rate: Fraction, edited: int, edited_rate: Fraction, align: str) -> np.ndarray:
    """For each frame of the edit that has one, the source's frame at the same moment.

    Args:
        count, rate: frames of the source, and how many of them a second. edited, edited_rate: the edit's.
    """
    if align == TIME:
        places = np.array([round(place * rate / edited_rate) for place in range(edited)], dtype=int)
        return places[places < count]
    return np.arange(min(count, edited))


def save_exactly(path: Path, frames: np.ndarray, rate: Fraction | float) -> Path:
    """Write a clip, uint8 ``[T, H, W, 3]``, as .mkv from which it is read back to the bit; no browser plays it."""
    from ..nano import rows

    with replacing(path) as temporary:
        rows.save_exactly(temporary, frames, Fraction(rate).limit_denominator(1000))
    return path


def alignment(source: Path, edit: Path, given: str = AUTO) -> str:
    """How two clips belong together: as given, or for "auto" by frames if there are as many or they follow each other
    as fast, else by time."""
    if given != AUTO:
        return given
    before, after = media.probe(source), media.probe(edit)
    alike = before.frames == after.frames or before.frame_rate == after.frame_rate
    return FRAMES if alike or 1 in (before.frames, after.frames) else TIME
