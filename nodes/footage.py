"""Frames of a VIDEO, without decoding more of it than is asked for: a minute of full HD is 45 GB as an IMAGE."""

import av
from comfy_api.latest import Input, InputImpl, Types


def first_frames(video: Input.Video, count: int) -> Types.VideoComponents:
    """The first ``count`` frames, or all there are, with at least their time of the sound; transparency is white.

    Raises ValueError where the video cannot be read or has no frames.
    """
    try:
        components = _first_components(video, count)
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise ValueError(f"The video cannot be read ({error}); load another file, or convert it to mp4.") from None
    if len(components.images) == 0:
        raise ValueError("The video has no frames; load another file, or convert it to mp4.")
    images, alpha = components.images[:count], getattr(components, "alpha", None)  # ComfyUI 0.18 has none
    if alpha is not None:
        images = images * alpha[:count] + (1 - alpha[:count])
    return Types.VideoComponents(images=images, audio=components.audio, frame_rate=components.frame_rate)


def _first_components(video: Input.Video, count: int) -> Types.VideoComponents:
    if isinstance(video, InputImpl.VideoFromFile):  # others have theirs in memory, and would encode them to trim them
        seconds, whole = (count + 0.5) / float(video.get_frame_rate()), video.get_duration()
        while seconds < whole:
            part = video.as_trimmed(0, seconds, strict_duration=False).get_components()
            if len(part.images) >= count:
                return part
            seconds *= 2  # the rate is a mean: these come slower, or begin late
    return video.get_components()
