"""Frames of a VIDEO, without decoding more of it than is asked for: a minute of full HD is 45 GB as an IMAGE."""

from collections.abc import Sequence
from contextlib import contextmanager

import av
import comfy.model_management
import torch
from comfy_api.latest import Input, InputImpl, Types


@contextmanager
def _reading():
    try:
        yield
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise ValueError(f"The video cannot be read ({error}); load another file, or convert it to mp4.") from None


def _of_file(video: Input.Video) -> bool:
    """Whether it is to be decoded; others have their frames in memory, and encode themselves in order to be trimmed."""
    return isinstance(video, InputImpl.VideoFromFile)


def first_frames(video: Input.Video, count: int) -> Types.VideoComponents:
    """The first ``count`` frames, or all there are, with at least their time of the sound.

    Raises ValueError where the video cannot be read or has no frames.
    """
    with _reading():
        components = _first_components(video, count)
    if len(components.images) == 0:
        raise ValueError("The video has no frames; load another file, or convert it to mp4.")
    return Types.VideoComponents(
        images=components.images[:count], audio=components.audio, frame_rate=components.frame_rate
    )


def _first_components(video: Input.Video, count: int) -> Types.VideoComponents:
    if _of_file(video):
        seconds, whole = (count + 0.5) / float(video.get_frame_rate()), video.get_duration()
        while seconds < whole:
            part = video.as_trimmed(0, seconds, strict_duration=False).get_components()
            if len(part.images) >= count:
                return part
            seconds *= 2  # the rate is a mean: these come slower, or begin late
    return video.get_components()


def frame_count(video: Input.Video) -> int:
    """How many frames a video has; of a file by its duration and rate, which may be a few more."""
    if not _of_file(video):
        return len(video.get_components().images)
    with _reading():  # get_frame_count is wrong for some containers (1 for Matroska)
        return max(1, round(video.get_duration() * float(video.get_frame_rate())))


def frames_at(video: Input.Video, numbers: Sequence[int]) -> torch.Tensor:
    """IMAGE of the frames that are on the screen when those of these numbers are due.

    Raises ValueError where the video cannot be read or has no frames.
    """
    if not _of_file(video):
        return video.get_components().images[list(numbers)]
    frames = []
    for number in numbers:
        comfy.model_management.throw_exception_if_processing_interrupted()
        with _reading():
            frames.append(_frame_at(video, number))
    return torch.cat(frames)


def _frame_at(video: Input.Video, number: int) -> torch.Tensor:
    rate, back = float(video.get_frame_rate()), 0.5
    while back < number:  # the last one before, where none begins in this frame's time
        part = video.as_trimmed((number - back) / rate, (back + 0.5) / rate, strict_duration=False).get_components()
        if len(part.images):
            return part.images[-1:].clone()
        back *= 2
    return first_frames(video, number + 1).images[-1:].clone()
