"""Clips and pictures in and out: frames are uint8 RGB arrays ``[T, H, W, 3]``, frame rates exact fractions.

FFmpeg's ``scale`` filter converts the colours, not PyAV's ``to_ndarray``: before PyAV 17 that one takes every
file for BT.601 and is up to 23 levels off for BT.709. Files without a colour tag are read as BT.601, which is
what FFmpeg and ComfyUI do. HDR is not tone-mapped.
"""

from __future__ import annotations

import heapq
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from av.stream import Disposition
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, ImageSequence

from .atomic import replacing
from .geometry import resize_frames

logger = logging.getLogger(__name__)

Packets = Iterator[av.Packet]

MIN_SIDE = 16
MAX_ASPECT = 200

# No playlists, which would open further files or addresses, and no text, which FFmpeg would draw.
_DEMUXERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mxf,dv,h264,hevc,wav,w64,aiff,mp3,flac,aac,ac3"
# Named, because Pillow would also take an MPEG stream for a picture.
_PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_ANIMATED = {"PNG", "WEBP", "GIF"}

_MUXERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
_MP4_AUDIO = {"aac", "mp3", "mp3float", "ac3", "eac3", "alac"}  # PyAV names the decoder, mp3float for MP3
_COPIED_AUDIO = {
    ".mp4": _MP4_AUDIO | {"opus"},
    ".mov": _MP4_AUDIO,
    ".mkv": _MP4_AUDIO | {"opus", "vorbis", "flac"},
}
_HDR = {16, 18}  # PQ and HLG
# How far the mean rate of the frames that are read may be from the whole file's.
_STEADY = 0.01
_AAC_RATES = {8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000}
_STILLS = {".png", ".jpg", ".jpeg", ".webp"}

# Without these a round trip darkens the picture by one level.
_SCALE_FLAGS = "flags=bicubic+accurate_rnd+full_chroma_int"


@dataclass(frozen=True, eq=False)
class Clip:
    """A decoded file: ``frames`` uint8 ``[T, H, W, 3]``, ``frame_rate`` in frames a second, ``path``."""

    frames: np.ndarray
    frame_rate: Fraction
    path: Path


@dataclass(frozen=True)
class Probe:
    """What :func:`load_video` gives of a file, without the pixels: sides in pixels, frames a second."""

    frames: int
    height: int
    width: int
    frame_rate: Fraction


def load_video(path: str | os.PathLike, max_frames: int | None = None, background: str = "white") -> Clip:
    """Decode a video or a picture: in presentation order, upright, at most the first ``max_frames`` frames.

    Transparency is composited on ``background``. A variable frame rate becomes its average. A picture is one frame at
    1 frame a second; an animated GIF, WebP or PNG is all its frames at their mean rate.

    Raises FileNotFoundError for a missing file, ValueError for one that cannot be read or has no frames.
    """
    path = _checked_file(path)
    frames, frame_rate = _read_picture(path, max_frames, background) or _read_stream(
        path, max_frames, background
    )
    return Clip(frames, frame_rate, path)


def probe(path: str | os.PathLike, decode: bool = False) -> Probe:
    """Number of frames, upright size and frame rate of a video or a picture.

    Only the first frame is decoded: the header says how many there are, or else the packets are counted. With
    ``decode`` every frame is decoded and counted, one at a time, which finds damage without holding the clip.

    Raises as :func:`load_video` does.
    """
    path = _checked_file(path)
    return _probe_picture(path, decode) or _probe_stream(path, decode)


def load_image(image: str | os.PathLike | Image.Image) -> Image.Image:
    """An RGB picture from a file or a PIL image of any mode: upright by its EXIF, transparency on white.

    Raises FileNotFoundError for a missing file, ValueError for anything that is not a picture.
    """
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    if not isinstance(image, (str, os.PathLike)):
        raise ValueError(f"An image must be a path or a PIL image, not {type(image).__name__}; convert it.")
    path = _checked_file(image)
    with _picture_errors(path), Image.open(path) as opened:
        return _to_rgb(opened)


def as_frames(
    video: np.ndarray | Image.Image | list[Image.Image] | str | os.PathLike,
    max_frames: int | None = None,
    background: str = "white",
) -> np.ndarray:
    """Frames uint8 ``[T, H, W, 3]``, at most the first ``max_frames``, of anything that is taken for a video.

    ``video``: uint8 ``[T, H, W, C]`` or ``[H, W, C]`` with 3 or 4 channels; PIL images of any mode and one
    size; or a path. Transparency is composited on ``background``. Raises as :func:`load_video` does.
    """
    if isinstance(video, (str, os.PathLike)):
        return load_video(video, max_frames, background).frames
    if isinstance(video, np.ndarray):
        return _array_frames(video, max_frames, background)
    images = [video] if isinstance(video, Image.Image) else video
    if not isinstance(images, (list, tuple)) or not all(isinstance(image, Image.Image) for image in images):
        raise ValueError("Give the video as a path, a uint8 array [T, H, W, 3] or a list of PIL images.")
    if not images:
        raise ValueError("The video has no frames; give at least one.")
    images = images[:max_frames]
    return _stack_images((_to_rgb(image, background) for image in images), len(images), "The images")


def check_frame_size(height: int, width: int) -> None:
    """Refuse frames too small to edit or too elongated for the vision model; raises ValueError."""
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"Frames of {width}x{height} pixels are too small; give at least {MIN_SIDE} a side.")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"Frames of {width}x{height} pixels are longer than {MAX_ASPECT}:1; crop them.")


def save_video(
    path: str | os.PathLike,
    frames: np.ndarray | list[Image.Image],
    frame_rate: Fraction | float,
    audio_from: str | os.PathLike | None = None,
    crf: int = 18,
) -> Path:
    """Write a clip and return its path; the file takes its name only once it is complete.

    The suffix decides: ``.mp4``, ``.mov``, ``.mkv`` are H.264 yuv420p in BT.709 (an odd side grows by its
    edge pixel), ``.gif`` is for a quick look, ``.png``, ``.jpg``, ``.webp`` take one frame. ``frames``: see
    :func:`as_frames`; ``crf`` is x264's quality from 0 (best) to 51. A missing folder is made.

    The first audio track of ``audio_from`` goes along into a video file, in time with the pictures and cut to
    the length of this clip: copied where the format holds its codec, else as AAC. It may have no audio.

    Raises ValueError for what cannot be written, FileNotFoundError for a missing ``audio_from``.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in {*_MUXERS, *_STILLS, ".gif"}:
        raise ValueError(f"{path.name} has no known suffix; end it in .mp4, .mov, .mkv, .gif, .png or .jpg.")
    frames = as_frames(frames)
    if not 0 < frame_rate <= 1000:
        raise ValueError(f"The frame rate is {frame_rate}; give frames a second, above 0 and up to 1000.")
    if not 0 <= crf <= 51:
        raise ValueError(f"The quality crf is {crf}; give 0 (best) to 51, 18 if unsure.")
    if suffix in _STILLS and len(frames) > 1:
        raise ValueError(f"{path.name} holds one picture, not {len(frames)} frames; save them as .mp4.")
    rate = Fraction(frame_rate).limit_denominator(1_000_000)  # makes 29.97002997... 30000/1001 again

    with ExitStack() as sources:
        audio = None
        if audio_from is not None and suffix in _MUXERS:
            audio = _open_audio(_checked_file(audio_from), sources)
        with replacing(path) as temporary:
            if suffix in _MUXERS:
                _encode(temporary, frames, rate, audio, crf)
            elif suffix == ".gif":
                # GIF counts in 10 ms: rounding the times, not the durations, keeps the length.
                times = [round(index * 100 / rate) * 10 for index in range(len(frames) + 1)]
                durations = [after - before for before, after in pairwise(times)]
                first, *rest = (Image.fromarray(frame) for frame in frames)
                first.save(temporary, save_all=True, append_images=rest, duration=durations, loop=0)
            else:
                Image.fromarray(frames[0]).save(temporary, quality=95)
    return path


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two clips next to each other, ``left`` resized to the size of ``right``, as long as the shorter one.

    Both uint8 ``[T, H, W, 3]``; returns uint8 ``[T, H, 2 * W, 3]`` in the size of ``right``.
    """
    count, height, width = min(len(left), len(right)), *right.shape[1:3]
    return np.concatenate([resize_frames(left[:count], height, width), right[:count]], axis=2)


def contact_sheet(
    rows: dict[str, np.ndarray], columns: int = 6, names: Sequence[str] | None = None, box: int = 240
) -> Image.Image:
    """One RGB picture with a labelled row of up to ``columns`` evenly spaced frames for each clip.

    ``rows`` maps labels to uint8 ``[T, H, W, 3]``; below each frame stands its name, or its number from 1.
    ``box`` is the longer side of a frame on the sheet, in pixels.
    """
    margin, gap, label_height, number_height = 24, 8, 30, 36
    font, small = ImageFont.load_default(16), ImageFont.load_default(12)
    shapes = [frames.shape[1:3] for frames in rows.values()]
    sizes = [[max(1, round(side * box / max(shape))) for side in shape] for shape in shapes]
    columns = min(columns, max(len(frames) for frames in rows.values()))
    pitch = max(width for _, width in sizes) + gap
    total = sum(label_height + height + number_height for height, _ in sizes) - number_height // 2
    sheet = Image.new("RGB", (2 * margin + columns * pitch - gap, 2 * margin + total), "white")
    draw, top = ImageDraw.Draw(sheet), margin
    for (label, frames), (height, width) in zip(rows.items(), sizes):
        draw.text((margin, top), label, fill=(30, 30, 30), font=font)
        top += label_height
        chosen = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
        for column, (index, frame) in enumerate(zip(chosen, resize_frames(frames[chosen], height, width))):
            left = margin + column * pitch
            sheet.paste(Image.fromarray(frame), (left, top))
            name = names[index] if names else str(index + 1)
            draw.text((left, top + height + 4), name, fill=(140, 140, 140), font=small)
        top += height + number_height
    return sheet


def _checked_file(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path.")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the path of one video or image.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); copy or export it again.")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} may not be read; change its permissions.")
    return path


@contextmanager
def _picture_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large a picture; scale it down first.") from error
    except (OSError, SyntaxError) as error:  # SyntaxError: a broken PNG
        raise ValueError(f"{path} cannot be read as an image; save it again as PNG or JPEG.") from error


def _to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    image.load()  # whose errors are the picture's, unlike those of a broken EXIF block, of every kind
    with suppress(Exception):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip it
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    page = Image.new("RGB", image.size, background)
    page.paste(image, mask=image.getchannel("A"))
    return page


def _stack_images(images: Iterable[Image.Image], count: int, name: str) -> np.ndarray:
    """RGB pictures as uint8 ``[count, H, W, 3]``."""
    frames = None
    for index, image in enumerate(images):
        pixels = np.asarray(image)
        if frames is None:
            frames = np.empty((count, *pixels.shape), dtype=np.uint8)
        if pixels.shape != frames.shape[1:]:
            raise ValueError(f"{name} differ in size from number {index + 1} on; resize them to one size.")
        frames[index] = pixels
    return frames


def _array_frames(array: np.ndarray, max_frames: int | None = None, background: str = "white") -> np.ndarray:
    if array.dtype != np.uint8:
        raise ValueError(f"Frames must be uint8 (0 to 255), not {array.dtype}; scale and round them first.")
    frames = array[None] if array.ndim == 3 else array
    if frames.ndim != 4 or frames.shape[3] not in (3, 4):
        raise ValueError(f"Frames must be [T, H, W, 3], not {list(array.shape)}; put the channels last.")
    if 0 in frames.shape:
        raise ValueError(f"The video of shape {list(array.shape)} has no frames; give at least one.")
    frames = frames[:max_frames]
    if frames.shape[3] == 3:
        return frames
    return _stack_images((_to_rgb(Image.fromarray(frame), background) for frame in frames), len(frames), "The frames")


def _read_picture(path: Path, max_frames: int | None, background: str) -> tuple[np.ndarray, Fraction] | None:
    """None if the file is not a picture."""
    if not _is_picture(path):
        return None
    with _picture_errors(path), Image.open(path) as opened:
        count = getattr(opened, "n_frames", 1) if opened.format in _ANIMATED else 1
        images, milliseconds = [], 0
        for image in islice(ImageSequence.Iterator(opened), min(count, max_frames or count)):
            images.append(_to_rgb(image, background))
            milliseconds += image.info.get("duration") or 100  # as browsers do where a GIF gives none
    frames = _stack_images(images, len(images), f"The frames of {path}")
    return frames, _picture_rate(count, len(images), milliseconds)


def _probe_picture(path: Path, decode: bool) -> Probe | None:
    """None if the file is not a picture."""
    if not _is_picture(path):
        return None
    with _picture_errors(path), Image.open(path) as opened:
        count = getattr(opened, "n_frames", 1) if opened.format in _ANIMATED else 1
        width, height = opened.size
        if opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # these turn the picture by a quarter
            width, height = height, width
        milliseconds = 0
        for image in islice(ImageSequence.Iterator(opened), count):
            if decode or count > 1:  # a WebP knows the duration of a frame only once that is decoded
                image.load()
            milliseconds += image.info.get("duration") or 100
    return Probe(count, height, width, _picture_rate(count, count, milliseconds))


def _picture_rate(frames_in_file: int, frames_read: int, milliseconds: float) -> Fraction:
    return Fraction(1000 * frames_read, round(milliseconds)) if frames_in_file > 1 else Fraction(1)


def _is_picture(path: Path) -> bool:
    with _picture_errors(path):
        try:
            with Image.open(path, formats=_PICTURES):
                return True
        except Image.UnidentifiedImageError:
            return False


def _read_stream(path: Path, max_frames: int | None, background: str) -> tuple[np.ndarray, Fraction]:
    with _open_media(path) as container:
        stream = _needed_stream(container, path)
        stream.thread_type = "AUTO"
        rate = _stream_rate(stream)
        frames, count = None, 0
        try:
            for frame in islice(container.decode(stream), max_frames):
                if count == 0:
                    size = (frame.width, frame.height)
                    has_alpha = any(component.is_alpha for component in frame.format.components)
                    _warn_of(stream, frame, path)
                    # Planar RGB takes FFmpeg half the time of packed RGB.
                    width, height = _square(frame, stream)
                    graph = _colour_graph(
                        {"template": stream}, "rgba" if has_alpha else "gbrp", f":w={width}:h={height}"
                    )
                    first = frame.pts
                    turns = round(frame.rotation / 90) % 4  # counter-clockwise like np.rot90
                elif (frame.width, frame.height) != size:
                    raise _size_change(path, count)
                graph.push(frame)
                pixels = graph.pull().to_ndarray()
                pixels = np.rot90(_array_frames(pixels, None, background)[0], turns)
                if frames is None:
                    room = min(stream.frames or 64, max_frames or 1024, 1024)
                    frames = np.empty((room, *pixels.shape), dtype=np.uint8)
                elif count == len(frames):
                    frames.resize((count + count // 2 + 1, *pixels.shape), refcheck=False)
                frames[count] = pixels
                last, count = frame.pts, count + 1
        except av.FFmpegError as error:
            raise _damage(path, count) from error
    if not count:
        raise _no_frames(path)
    frames.resize((count, *frames.shape[1:]), refcheck=False)  # in place, unlike a slice or a copy
    if count == max_frames and count > 1 and None not in (first, last) and last > first:
        own = Fraction(count - 1) / ((last - first) * stream.time_base)
        if abs(own / rate - 1) > _STEADY:  # the mean of what follows is none of theirs
            logger.warning(
                "%s changes its frame rate; its first %d frames have %.2f a second in the mean.", path, count, own
            )
            rate = own.limit_denominator(1001)
    return frames, rate


def _probe_stream(path: Path, decode: bool) -> Probe:
    with _open_media(path) as container:
        stream = _needed_stream(container, path)
        if decode:
            stream.thread_type = "AUTO"
        rate, known = _stream_rate(stream), _header_frames(stream)
        first, packets, decoded = None, 0, 0
        try:
            for packet in container.demux(stream):
                packets += packet.size > 0 and not packet.is_discard
                if decode or first is None:
                    for frame in packet.decode():
                        first = first or frame
                        if (frame.width, frame.height) != (first.width, first.height):
                            raise _size_change(path, decoded)
                        decoded += 1
                elif known:
                    break
        except av.FFmpegError as error:
            raise _damage(path, decoded) from error
        if first is None:
            raise _no_frames(path)
        width, height = _square(first, stream)
        if round(first.rotation / 90) % 2:
            height, width = width, height
    return Probe(decoded if decode else known or packets, height, width, rate)


def _square(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """Width and height of a frame in square pixels; anamorphic ones are made wider, or higher."""
    shape = stream.sample_aspect_ratio or Fraction(1)
    if shape <= 0 or shape == 1:
        return frame.width, frame.height
    return (round(frame.width * shape), frame.height) if shape > 1 else (frame.width, round(frame.height / shape))


def _warn_of(stream: av.VideoStream, frame: av.VideoFrame, path: Path) -> None:
    """Of what is not put right here."""
    if getattr(stream.codec_context, "color_trc", None) in _HDR:
        logger.warning("%s is HDR, which looks pale as it is taken; export it as SDR for its real colours.", path)
    if frame.interlaced_frame:
        logger.warning("%s is interlaced, so motion shows as combs; deinterlace it first.", path)


def _header_frames(stream: av.VideoStream) -> int:
    """The header's number of frames, 0 if there is none or it cannot be trusted.

    An edit list, as trimming without encoding writes it, hides frames: the number still counts them, the length
    does not.
    """
    if not stream.frames or not stream.duration:
        return 0
    shown = stream.duration * stream.time_base * _stream_rate(stream)
    return stream.frames if abs(shown - stream.frames) < 0.5 else 0


def _stream_rate(stream: av.VideoStream) -> Fraction:
    return Fraction(stream.average_rate or stream.guessed_rate or 1)


def _size_change(path: Path, count: int) -> ValueError:
    return ValueError(f"{path} changes its size at frame {count + 1}; export it in one size.")


def _damage(path: Path, count: int) -> ValueError:
    return ValueError(f"{path} is damaged after {count} frames; export it again.")


def _no_frames(path: Path) -> ValueError:
    return ValueError(f"{path} has no frames that can be decoded; export it again.")


def _open_media(path: Path) -> av.container.InputContainer:
    try:
        # "file:" keeps a colon in the name from being taken for a protocol.
        return av.open(f"file:{path}", options={"format_whitelist": _DEMUXERS})
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a video or image; export it as .mp4.") from error


def _needed_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    stream = _video_stream(container)
    if stream is None:
        raise ValueError(f"{path} has no video in it; give a video or an image.")
    return stream


def _video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first video stream that can be decoded and is not a cover picture."""
    for stream in container.streams.video:
        if stream.codec_context and not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def _colour_graph(buffer: dict, pixel_format: str, scale: str = "") -> Graph:
    """Frames in as ``buffer`` describes them, out in ``pixel_format``, with ``scale`` as further options."""
    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(**buffer),
        graph.add("scale", _SCALE_FLAGS + scale),
        graph.add("format", pixel_format),
        graph.add("buffersink"),
    ).configure()
    return graph


def _encode(path: Path, frames: np.ndarray, rate: Fraction, audio: _Audio | None, crf: int) -> None:
    suffix = path.suffix
    options = {} if suffix == ".mkv" else {"movflags": "+faststart"}
    with av.open(f"file:{path}", "w", format=_MUXERS[suffix], container_options=options) as output:
        stream = output.add_stream("libx264", rate=rate, options={"crf": str(crf)})
        stream.height, stream.width = (side + side % 2 for side in frames.shape[1:3])
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # limited
        packets = [_video_packets(stream, frames, rate)]
        if audio is not None:
            packets.append(audio.packets(output, _COPIED_AUDIO[suffix], len(frames) / rate))
        # Interleaved by time, so that players need not seek.
        output.mux(heapq.merge(*packets, key=lambda packet: packet.dts * packet.time_base))


def _video_packets(stream: av.VideoStream, frames: np.ndarray, rate: Fraction) -> Packets:
    buffer = {"width": stream.width, "height": stream.height, "format": "rgb24", "time_base": 1 / rate}
    graph = _colour_graph(buffer, stream.pix_fmt, ":out_color_matrix=bt709:out_range=tv")
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    for index, pixels in enumerate(frames):
        pixels = np.pad(pixels, (*odd, (0, 0)), mode="edge") if any(map(any, odd)) else pixels
        graph.push(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"))
        frame = graph.pull()
        frame.pts, frame.time_base = index, 1 / rate
        yield from stream.encode(frame)
    yield from stream.encode(None)


@dataclass
class _Audio:
    """The audio of an open file; ``start`` is when its pictures start, in seconds."""

    path: Path
    container: av.container.InputContainer
    stream: av.AudioStream
    start: Fraction

    def packets(self, output: av.container.OutputContainer, copied: set[str], duration: Fraction) -> Packets:
        """Add a stream to ``output``; the packets for it, from the start of the pictures on."""
        context = self.stream.codec_context
        if context.name in copied:
            return self._copy(output.add_stream_from_template(self.stream), duration)
        rate = context.sample_rate if context.sample_rate in _AAC_RATES else 48000
        layout = "mono" if context.channels == 1 else "stereo"
        return self._encode(output.add_stream("aac", rate=rate, layout=layout, bit_rate=192_000), duration)

    def _copy(self, target: av.AudioStream, duration: Fraction) -> Packets:
        for packet in self._readable(self.container.demux(self.stream)):
            if packet.pts is None:  # the end of the file
                continue
            time = packet.pts * packet.time_base - self.start
            if time >= duration:
                break
            # The packet that ends just where the pictures start stays: decoders warm up on it.
            if time + (packet.duration or 0) * packet.time_base < 0:
                continue
            shift = round(self.start / packet.time_base)
            packet.dts = (packet.pts if packet.dts is None else packet.dts) - shift
            packet.pts -= shift
            packet.stream = target
            yield packet

    def _encode(self, target: av.AudioStream, duration: Fraction) -> Packets:
        rate, layout = target.codec_context.sample_rate, target.codec_context.layout.name
        samples = self._samples(av.AudioResampler("fltp", layout, rate), round(duration * rate))
        for position in range(0, samples.shape[1], 1024):
            piece = np.ascontiguousarray(samples[:, position : position + 1024])
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, position, Fraction(1, rate)
            yield from target.encode(frame)
        yield from target.encode(None)

    def _samples(self, resampler: av.AudioResampler, length: int) -> np.ndarray:
        """Float32 ``[channels, at most length]`` from the start of the pictures on."""
        lead, pieces = 0, []
        for frame in self._readable(self.container.decode(self.stream)):
            if not pieces and frame.pts is not None:
                lead = round((frame.pts * frame.time_base - self.start) * resampler.rate)
            pieces += [piece.to_ndarray() for piece in resampler.resample(frame)]
            if lead + sum(piece.shape[1] for piece in pieces) >= length:
                break
        pieces += [piece.to_ndarray() for piece in resampler.resample(None)]
        silence = np.zeros((resampler.layout.nb_channels, max(lead, 0)), dtype=np.float32)
        return np.concatenate([silence, *pieces], axis=1)[:, max(-lead, 0) :][:, :length]

    def _readable(self, items: Iterator) -> Iterator:
        try:
            yield from items
        except av.FFmpegError as error:
            raise ValueError(f"The audio of {self.path} is damaged; save without it.") from error


def _open_audio(path: Path, sources: ExitStack) -> _Audio | None:
    """The first audio track of a media file, None if it has none; ``sources`` closes the file."""
    if _is_picture(path):
        return None
    container = sources.enter_context(_open_media(path))
    audio = next((stream for stream in container.streams.audio if stream.codec_context), None)
    if audio is None:
        return None
    clock = _video_stream(container) or audio
    return _Audio(path, container, audio, (clock.start_time or 0) * clock.time_base)
