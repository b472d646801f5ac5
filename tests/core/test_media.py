"""Clips and pictures in and out."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from kiwi_core import media
from kiwi_core.media import (
    as_frames,
    check_frame_size,
    contact_sheet,
    load_image,
    load_video,
    probe,
    save_video,
    side_by_side,
)

NTSC = Fraction(30000, 1001)
PRIMARIES = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]
COLOURS = [*PRIMARIES, (200, 100, 50), (30, 60, 90), (128, 128, 128)]
ORIENTATION = 0x0112


def solid(colours, height=32, width=48) -> np.ndarray:
    return np.tile(np.array(colours, np.uint8)[:, None, None], (1, height, width, 1))


def quadrants(height=32, width=48) -> np.ndarray:
    """Red, green / blue, white: every turn and flip of it looks different."""
    frame = np.full((height, width, 3), 255, np.uint8)
    frame[: height // 2, : width // 2] = (255, 0, 0)
    frame[: height // 2, width // 2 :] = (0, 255, 0)
    frame[height // 2 :, : width // 2] = (0, 0, 255)
    return frame


def corners(frame: np.ndarray) -> list[tuple]:
    """Colours near the corners, clockwise from the top left, to the nearest of 0 and 255."""
    picked = (frame[4, 4], frame[4, -5], frame[-5, -5], frame[-5, 4])
    return [tuple(int(value > 127) * 255 for value in pixel) for pixel in picked]


def difference(a, b) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


def chirp(rate: int, seconds: float) -> np.ndarray:
    """A rising tone: it matches itself at one shift only."""
    time = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * 300 * time * (1 + time))).astype(np.float32)


def write_source(path, audio_codec, *, rate=44100, seconds=2.0, audio_late=0.0, video=True):
    """25 frames a second and a rising tone that starts ``audio_late`` seconds after the pictures."""
    fps = 25
    with av.open(str(path), "w") as output:
        picture = output.add_stream("libx264", rate=fps) if video else None
        sound = output.add_stream(audio_codec, rate=rate, layout="stereo")
        if picture:
            picture.width, picture.height, picture.pix_fmt = 48, 32, "yuv420p"
            for index in range(int(fps * seconds)):
                frame = av.VideoFrame.from_ndarray(solid([(index * 4 % 256, 90, 90)])[0], format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, fps)
                output.mux(picture.encode(frame))
            output.mux(picture.encode(None))
        samples = chirp(rate, seconds)
        for start in range(0, len(samples), 1024):
            channels = np.stack([samples[start : start + 1024]] * 2)
            frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout="stereo")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = start + round(audio_late * rate)
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return path


def read_audio(path) -> tuple[str, int, np.ndarray]:
    """Codec, rate and mono samples of a file, from the time of its first picture on."""
    with av.open(str(path)) as container:
        sound, start = container.streams.audio[0], 0
        if container.streams.video:
            start = container.streams.video[0].start_time * container.streams.video[0].time_base
        rate = sound.codec_context.sample_rate
        resampler, pieces, lead = av.AudioResampler("fltp", "mono", rate), [], None
        for frame in container.decode(sound):
            lead = round((frame.pts * frame.time_base - start) * rate) if lead is None else lead
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
        pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
        samples = np.concatenate([np.zeros(max(lead, 0), np.float32), *pieces])[max(-lead, 0) :]
        return sound.codec_context.name, rate, samples


def shift_between(sound: np.ndarray, expected: np.ndarray, reach: int = 1500) -> int:
    """Samples by which ``sound`` is late against ``expected``."""
    length = min(len(sound), len(expected)) - 2 * reach
    middle = expected[reach : reach + length]
    return max(range(-reach, reach + 1), key=lambda s: float(middle @ sound[reach + s : reach + s + length]))


def assert_probed(path) -> None:
    """A probe, with and without decoding, says what loading the file gives."""
    clip = load_video(path)
    for decode in (False, True):
        found = probe(path, decode)
        assert (found.frames, found.height, found.width) == clip.frames.shape[:3]
        assert found.frame_rate == clip.frame_rate


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("rate", [NTSC, Fraction(15), Fraction(24000, 1001), Fraction(25, 2)])
def test_video_round_trip_keeps_count_rate_order_and_colour(tmp_path, suffix, rate):
    frames = solid(COLOURS)
    path = save_video(tmp_path / "made" / f"clip{suffix}", frames, rate)
    clip = load_video(path)
    assert (clip.frame_rate, clip.path) == (rate, path)
    assert clip.frames.shape == frames.shape and clip.frames.dtype == np.uint8
    assert difference(clip.frames, frames) <= 3
    assert [left.name for left in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("count", [1, 2])
def test_very_short_videos_keep_count_and_rate(tmp_path, count):
    clip = load_video(save_video(tmp_path / "short.mp4", solid(COLOURS[:count]), NTSC))
    assert (len(clip.frames), clip.frame_rate) == (count, NTSC)


def test_float_rates_become_the_fraction_that_they_stand_for(tmp_path):
    assert load_video(save_video(tmp_path / "a.mp4", solid(COLOURS), float(NTSC))).frame_rate == NTSC


def test_saved_video_is_tagged_bt709_limited_range(tmp_path):
    with av.open(str(save_video(tmp_path / "a.mp4", solid(COLOURS), 15))) as container:
        context = container.streams.video[0].codec_context
        tags = context.colorspace, context.color_primaries, context.color_trc, context.color_range
        assert tuple(map(int, tags)) == (1, 1, 1, 1)
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize(("tag", "matrix"), [(5, "bt601"), (2, "bt601"), (1, "bt709"), (9, "bt2020")])
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_follow_the_tags_of_the_file(tmp_path, tag, matrix, full_range):
    frames, span = solid(COLOURS), "pc" if full_range else "tv"
    with av.open(str(tmp_path / "tagged.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.colorspace = tag
        stream.codec_context.color_range = 2 if full_range else 1
        graph = av.filter.Graph()
        graph.link_nodes(
            graph.add_buffer(width=48, height=32, format="rgb24", time_base=Fraction(1, 10)),
            graph.add("scale", f"out_color_matrix={matrix}:out_range={span}:flags=accurate_rnd"),
            graph.add("format", "yuv420p"),
            graph.add("buffersink"),
        ).configure()
        for index, pixels in enumerate(frames):
            graph.push(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
            frame = graph.pull()
            frame.pts, frame.time_base = index, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert difference(load_video(tmp_path / "tagged.mp4").frames, frames) <= 3


def test_odd_sizes_grow_by_their_edge_pixel(tmp_path):
    frames = solid(COLOURS, height=33, width=47)
    read = load_video(save_video(tmp_path / "odd.mp4", frames, 10)).frames
    assert read.shape[1:3] == (34, 48)
    assert difference(read[:, :33, :47], frames) <= 3 and difference(read[:, -1, -1], frames[:, -1, -1]) <= 3


def test_max_frames_takes_the_first_frames(tmp_path):
    frames = solid([(index * 8, 100, 100) for index in range(30)])
    path = save_video(tmp_path / "long.mkv", frames, 10)
    assert load_video(path, max_frames=7).frames.shape[0] == 7
    assert difference(as_frames(path, max_frames=7), frames[:7]) <= 3
    assert len(as_frames(frames, max_frames=7)) == 7


def test_clips_longer_than_the_first_guess_are_read_whole(tmp_path):
    frames = solid([(index % 256, 0, 255 - index % 256) for index in range(150)], 16, 16)
    assert difference(load_video(save_video(tmp_path / "many.mkv", frames, 30)).frames, frames) <= 4


@pytest.mark.parametrize(
    ("turn", "matrix"),
    [(1, (0, -1, 1, 0)), (2, (-1, 0, 0, -1)), (3, (0, 1, -1, 0))],
)
def test_rotated_phone_videos_come_out_upright(tmp_path, turn, matrix):
    path = save_video(tmp_path / "phone.mp4", quadrants()[None].repeat(3, axis=0), 10)
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # the track's display matrix, 16.16 fixed point
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    read = load_video(path).frames
    # A matrix (0, 1, -1, 0) asks players to turn the picture clockwise by a quarter.
    assert corners(read[0]) == corners(np.rot90(quadrants(), turn))
    assert read.shape[1:3] == ((48, 32) if turn % 2 else (32, 48))
    assert_probed(path)


def test_videos_with_transparency_are_composited_on_white(tmp_path):
    pixels = np.zeros((32, 48, 4), np.uint8)
    pixels[:, :24] = (255, 0, 0, 255)
    with av.open(str(tmp_path / "overlay.mov"), "w") as output:
        stream = output.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "rgba"
        frame = av.VideoFrame.from_ndarray(pixels, format="rgba")
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    (read,) = load_video(tmp_path / "overlay.mov").frames
    assert (read[:, :24] == (255, 0, 0)).all() and (read[:, 24:] == 255).all()


def test_variable_frame_rate_becomes_its_average(tmp_path):
    times = [0, 1, 2, 3, 10, 11, 12, 13, 20, 21]
    with av.open(str(tmp_path / "vfr.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=30, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for time, pixels in zip(times, solid([(20 * index, 0, 0) for index in range(10)])):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 30)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert_probed(tmp_path / "vfr.mp4")
    clip = load_video(tmp_path / "vfr.mp4")
    assert len(clip.frames) == 10 and clip.frame_rate == Fraction(10 * 30, 22)


def write_stream(path, times, size=(48, 32), options=None, **settings):
    """A clip whose frames come at these times, in thirtieths of a second; ``settings`` of the codec's context."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=30, options={"bf": "0"} | (options or {}))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((*size[::-1], 3), 2 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 30)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def test_the_first_frames_have_their_own_rate(tmp_path, caplog):
    """A screen that moves and then rests: the file's mean would be slow motion for what is read."""
    path = write_stream(tmp_path / "screen.mp4", [*range(40), *range(40, 1240, 30)])
    clip = load_video(path, max_frames=21)
    assert clip.frame_rate == pytest.approx(30, rel=0.01)
    assert "screen.mp4 changes its frame rate" in caplog.text
    assert load_video(path).frame_rate < 3
    caplog.clear()
    steady = write_stream(tmp_path / "steady.mp4", range(40))
    assert load_video(steady, max_frames=21).frame_rate == load_video(steady).frame_rate == 30
    assert not caplog.records


@pytest.mark.parametrize(
    ("shape", "size"), [(Fraction(2), (96, 32)), (Fraction(1, 2), (48, 64)), (Fraction(1), (48, 32))]
)
def test_pixels_that_are_not_square_are_made_so(tmp_path, shape, size):
    path = write_stream(tmp_path / "wide.mp4", range(5), sample_aspect_ratio=Fraction(shape))
    assert load_video(path).frames.shape == (5, size[1], size[0], 3)
    assert_probed(path)


def test_hdr_and_interlaced_clips_are_warned_of(tmp_path, caplog):
    load_video(write_stream(tmp_path / "hdr.mp4", range(3), color_trc=18))
    assert "hdr.mp4 is HDR" in caplog.text
    load_video(write_stream(tmp_path / "fields.mp4", range(3), (64, 64), {"flags": "+ildct+ilme"}))
    assert "fields.mp4 is interlaced" in caplog.text


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_one_frame_is_saved_and_read_as_a_picture(tmp_path, suffix):
    frame = quadrants(64, 96)[None]
    clip = load_video(save_video(tmp_path / f"still{suffix}", frame, 15))
    assert (clip.frames.shape, clip.frame_rate) == ((1, 64, 96, 3), 1)
    assert corners(clip.frames[0]) == corners(frame[0])
    if suffix == ".png":
        assert np.array_equal(clip.frames, frame)


def test_gif_keeps_count_and_length(tmp_path):
    frames = solid(COLOURS)
    clip = load_video(save_video(tmp_path / "look.gif", frames, 15))
    assert len(clip.frames) == 8 and abs(len(frames) / 15 - 8 / clip.frame_rate) <= 0.01
    assert difference(clip.frames, frames) == 0
    assert len(load_video(tmp_path / "look.gif", max_frames=3).frames) == 3


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.gif", "a.png", "a.jpg", "a.webp"])
def test_probes_tell_what_loading_gives(tmp_path, name):
    frames = solid(COLOURS)[: 1 if name[-3:] in ("png", "jpg", "ebp") else None]
    assert_probed(save_video(tmp_path / name, frames, NTSC))


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif"])
def test_probes_know_the_lengths_of_moving_pictures(tmp_path, name):
    first, *rest = map(Image.fromarray, solid(COLOURS))
    first.save(tmp_path / name, save_all=True, append_images=rest, duration=[40, 200] * 4)
    assert probe(tmp_path / name).frame_rate == Fraction(8000, 960)
    assert_probed(tmp_path / name)


def test_probes_do_not_count_what_an_edit_list_hides(tmp_path):
    whole = save_video(tmp_path / "whole.mp4", solid(COLOURS * 2), 10)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                shift = round(Fraction(7, 10) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                output.mux(packet)
    assert probe(tmp_path / "cut.mp4").frames == 9
    assert_probed(tmp_path / "cut.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.jpg"])
def test_probes_decode_everything_only_when_told_to(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), np.uint8)
    path = save_video(tmp_path / name, noise[: 1 if name == "a.jpg" else None], 10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert (probe(path).frames, probe(path).width) == (1 if name == "a.jpg" else 12, 64)
    try:
        assert probe(path, decode=True).frames < 12 and name == "a.mp4"
    except ValueError as error:
        assert name in str(error)


def transparent(mode: str) -> Image.Image:
    """Left half red and opaque, right half fully transparent black."""
    image = Image.new("RGBA", (48, 32), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 24, 32))
    if mode == "P":
        image = Image.new("P", (48, 32), 1)
        image.putpalette([255, 0, 0, 0, 0, 0])
        image.paste(0, (0, 0, 24, 32))
        image.info["transparency"] = 1
    elif mode == "RGB":  # one colour that counts as transparent, as PNG files have it
        image = image.convert("RGB")
        image.info["transparency"] = (0, 0, 0)
    return image


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB"])
@pytest.mark.parametrize("from_file", [False, True])
def test_transparent_pictures_are_composited_on_white(tmp_path, mode, from_file):
    image = transparent(mode)
    if from_file:
        image.save(tmp_path / "logo.png")
        image = tmp_path / "logo.png"
    for pixels in (np.asarray(load_image(image)), as_frames(image)[0]):
        assert (pixels[:, :24] == (255, 0, 0)).all() and (pixels[:, 24:] == 255).all()


def test_half_transparent_arrays_are_mixed_with_white():
    frames = np.full((2, 16, 16, 4), 100, np.uint8)
    frames[..., 3] = 51  # a fifth
    assert difference(as_frames(frames), np.full((2, 16, 16, 3), 224)) <= 1


@pytest.mark.parametrize("mode", ["L", "1", "LA", "CMYK", "I;16", "P"])
def test_any_picture_mode_becomes_rgb(mode):
    whites = {"I;16": 65535, "LA": (255, 255), "CMYK": 0, "1": 1, "P": 0}
    white = Image.new(mode, (20, 16), whites.get(mode, 255))
    if mode == "P":
        white.putpalette([255] * 3)
    image = load_image(white)
    assert image.mode == "RGB" and (np.asarray(image) == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((16, 16), 128 * 256, np.uint16)).save(tmp_path / "depth.png")
    assert (np.asarray(load_image(tmp_path / "depth.png")) == 128).all()


def test_exif_orientation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # turn clockwise by a quarter to see it upright
    Image.fromarray(quadrants()).save(tmp_path / "phone.jpg", exif=exif, quality=95, subsampling=0)
    upright = corners(np.rot90(quadrants(), -1))
    assert_probed(tmp_path / "phone.jpg")
    assert load_image(tmp_path / "phone.jpg").size == (32, 48)
    assert corners(np.asarray(load_image(tmp_path / "phone.jpg"))) == upright
    assert corners(load_video(tmp_path / "phone.jpg").frames[0]) == upright
    with Image.open(tmp_path / "phone.jpg") as opened:
        assert corners(as_frames([opened])[0]) == upright


def test_a_picture_with_a_broken_exif_block_is_read_as_it_stands(tmp_path):
    path = tmp_path / "junk.jpg"
    Image.fromarray(quadrants()).save(path, exif=b"Exif\0\0garbage-here", quality=95, subsampling=0)
    assert_probed(path)
    assert corners(np.asarray(load_image(path))) == corners(quadrants())
    assert corners(load_video(path).frames[0]) == corners(quadrants())
    with Image.open(path) as opened:
        opened.load()
        assert corners(as_frames([opened.copy()])[0]) == corners(quadrants())


def test_as_frames_takes_arrays_and_lists_of_pictures():
    frames = solid(COLOURS)
    assert np.shares_memory(as_frames(frames), frames)
    assert np.array_equal(as_frames(frames[0]), frames[:1])
    assert np.array_equal(as_frames([Image.fromarray(frame) for frame in frames]), frames)
    assert np.array_equal(as_frames([Image.fromarray(frame) for frame in frames], max_frames=2), frames[:2])


@pytest.mark.parametrize(
    ("source", "codec", "rate", "suffix", "expected"),
    [
        ("a.mp4", "aac", 44100, ".mp4", "aac"),
        ("a.mp4", "aac", 44100, ".mov", "aac"),
        ("a.mp4", "aac", 44100, ".mkv", "aac"),
        ("a.ts", "aac", 48000, ".mp4", "aac"),
        ("a.mp4", "libmp3lame", 44100, ".mp4", "mp3float"),
        ("a.mkv", "ac3", 48000, ".mp4", "ac3"),
        ("a.mkv", "libopus", 48000, ".mp4", "opus"),
        ("a.mkv", "libopus", 48000, ".mov", "aac"),
        ("a.mkv", "flac", 44100, ".mkv", "flac"),
        ("a.mkv", "flac", 44100, ".mp4", "aac"),
        ("a.mkv", "pcm_s16le", 44100, ".mp4", "aac"),
        ("a.mov", "pcm_s16le", 48000, ".mp4", "aac"),
    ],
)
def test_audio_goes_along_in_time_and_is_cut(tmp_path, source, codec, rate, suffix, expected):
    source = write_source(tmp_path / source, codec, rate=rate)
    frames = solid(COLOURS * 4)  # 32 frames at 25 a second: 1.28 s of the source's 2 s
    path = save_video(tmp_path / f"out{suffix}", frames, 25, audio_from=source)
    name, rate_read, sound = read_audio(path)
    assert (name, rate_read) == (expected, rate)
    assert 1.28 - 0.005 <= len(sound) / rate <= 1.28 + 0.11  # whole audio frames
    assert abs(shift_between(sound, read_audio(source)[2])) <= 0.001 * rate  # .mkv counts in milliseconds
    clip = load_video(path)
    assert (len(clip.frames), clip.frame_rate) == (32, 25)


def test_copied_audio_is_the_same_from_its_first_sample_on(tmp_path):
    source = write_source(tmp_path / "a.mp4", "aac")
    copy = read_audio(save_video(tmp_path / "out.mp4", solid(COLOURS * 4), 25, audio_from=source))[2]
    assert np.array_equal(copy[:50000], read_audio(source)[2][:50000])


def test_pictures_and_audio_of_long_clips_are_interleaved(tmp_path):
    source = write_source(tmp_path / "long.mkv", "aac", rate=8000, seconds=30, video=False)
    path = save_video(tmp_path / "out.mp4", solid(COLOURS * 4), 1, audio_from=source)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux() if packet.size]
        times = [float(packet.dts * packet.time_base) for packet in sorted(packets, key=lambda p: p.pos)]
    assert len(times) > 200 and np.abs(np.diff(times)).max() < 3


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_audio_shorter_than_the_clip_keeps_its_length(tmp_path, codec):
    source = write_source(tmp_path / "short.mov", codec, seconds=1.0)
    path = save_video(tmp_path / "out.mp4", solid(COLOURS * 6), 25, audio_from=source)
    assert 0.99 <= len(read_audio(path)[2]) / 44100 <= 1.06


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize("late", [0.3, -0.3])
def test_audio_that_starts_beside_the_pictures_stays_in_time(tmp_path, codec, late):
    source = write_source(tmp_path / "late.mkv", codec, audio_late=late)
    path = save_video(tmp_path / "out.mp4", solid(COLOURS * 5), 25, audio_from=source)
    start = round(late * 44100)
    expected = np.concatenate([np.zeros(max(start, 0), np.float32), chirp(44100, 2.0)])[max(-start, 0) :]
    assert abs(shift_between(read_audio(path)[2], expected)) <= 0.002 * 44100


@pytest.mark.parametrize("layout", ["mono", "5.1"])
def test_reencoded_audio_is_mono_or_stereo(tmp_path, layout):
    source, rate = tmp_path / "pcm.mkv", 44100
    with av.open(str(source), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=rate, layout=layout)
        channels = 1 if layout == "mono" else 6
        silence = np.zeros((1, channels * rate), np.int16)
        frame = av.AudioFrame.from_ndarray(silence, format="s16", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    path = save_video(tmp_path / "out.mp4", solid(COLOURS), 8, audio_from=source)
    with av.open(str(path)) as container:
        context = container.streams.audio[0].codec_context
        assert (context.name, context.sample_rate, context.channels) == ("aac", rate, min(channels, 2))


def test_rates_that_aac_lacks_are_resampled(tmp_path):
    source = write_source(tmp_path / "fast.wav", "pcm_s16le", rate=192000, video=False)
    path = save_video(tmp_path / "out.mp4", solid(COLOURS * 4), 25, audio_from=source)
    name, rate, sound = read_audio(path)
    assert (name, rate) == ("aac", 48000)
    assert abs(shift_between(sound, chirp(48000, 2.0))) <= 48


def test_sources_without_audio_are_fine(tmp_path):
    silent = save_video(tmp_path / "silent.mp4", solid(COLOURS), 8)
    picture = save_video(tmp_path / "picture.png", solid(COLOURS[:1]), 8)
    for source in (silent, picture):
        path = save_video(tmp_path / "out.mp4", solid(COLOURS), 8, audio_from=source)
        with av.open(str(path)) as container:
            assert len(container.streams.video) == 1 and not container.streams.audio


def test_a_clip_can_be_saved_over_its_own_source(tmp_path):
    path = write_source(tmp_path / "own.mp4", "aac")
    save_video(path, solid(COLOURS * 4), 25, audio_from=path)
    assert len(load_video(path).frames) == 32 and len(read_audio(path)[2]) / 44100 > 1.2


def sentence(error) -> str:
    """The message, checked to be one sentence that ends."""
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and 20 < len(text) < 400
    return text


@pytest.mark.parametrize("read", [load_video, as_frames, load_image, probe])
def test_missing_files_are_named(tmp_path, read):
    with pytest.raises(FileNotFoundError) as error:
        read(tmp_path / "gone.mp4")
    assert "gone.mp4" in sentence(error) and "does not exist" in sentence(error)


@pytest.mark.parametrize("read", [load_video, load_image, probe])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.png"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is a shopping list\n" * 40,
        b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
        b"\0\0\0\x18ftypisom" + b"\0" * 200,
        b"\xff\xd8\xff\xe0 broken",
    ],
    ids=["empty", "text", "png-header", "mp4-header", "jpeg-header"],
)
def test_files_that_are_no_media_are_refused(tmp_path, read, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read(path)
    assert name in sentence(error)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nother.ts\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile other.ts\n"),
        ("notes.txt", "FFmpeg would draw this text as a video\n" * 40),
    ],
)
def test_text_files_that_ffmpeg_would_play_are_refused(tmp_path, name, text):
    write_source(tmp_path / "other.ts", "aac")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as error:
        load_video(tmp_path / name)
    assert name in sentence(error)


def test_truncated_files_are_refused(tmp_path):
    video = save_video(tmp_path / "cut.mp4", solid(COLOURS), 8)
    video.write_bytes(video.read_bytes()[:600])
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    picture = tmp_path / "cut.jpg"
    picture.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    for path in (video, picture):
        with pytest.raises(ValueError) as error:
            as_frames(path)
        assert path.name in sentence(error)


def test_sound_alone_and_folders_are_no_video(tmp_path):
    sound = write_source(tmp_path / "song.wav", "pcm_s16le", video=False)
    with pytest.raises(ValueError, match=r"song.wav has no video") as error:
        load_video(sound)
    sentence(error)
    with pytest.raises(ValueError, match=r"not a file") as error:
        load_video(tmp_path)
    sentence(error)


@pytest.mark.parametrize(
    "video",
    [
        np.zeros((0, 16, 16, 3), np.uint8),
        [],
        np.zeros((2, 16, 16, 3), np.float32),
        np.zeros((2, 3, 16, 16), np.uint8),
        np.zeros((16, 16), np.uint8),
        [Image.new("RGB", (16, 16)), Image.new("RGB", (16, 18))],
        [np.zeros((16, 16, 3), np.uint8)],
        3,
    ],
    ids=["no-frames", "empty-list", "float", "channels-first", "2d", "two-sizes", "arrays", "number"],
)
def test_what_is_no_video_is_refused(video):
    with pytest.raises(ValueError) as error:
        as_frames(video)
    sentence(error)


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError) as error:
        load_image(np.zeros((16, 16, 3), np.uint8))
    sentence(error)


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15), (16, 3216), (3216, 16)])
def test_tiny_and_elongated_frames_are_refused(size):
    with pytest.raises(ValueError) as error:
        check_frame_size(*size)
    assert f"{size[1]}x{size[0]}" in sentence(error)


@pytest.mark.parametrize("size", [(16, 16), (16, 3200), (720, 1280)])
def test_usable_frames_pass(size):
    check_frame_size(*size)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("out.txt", {}),
        ("out", {}),
        ("out.png", {}),  # one picture for eight frames
        ("out.mp4", {"frame_rate": 0}),
        ("out.mp4", {"frame_rate": float("nan")}),
        ("out.mp4", {"crf": 99}),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, name, options):
    with pytest.raises(ValueError) as error:
        save_video(tmp_path / "new" / name, solid(COLOURS), **{"frame_rate": 15, **options})
    sentence(error)
    assert not list(tmp_path.iterdir())


def test_bad_audio_sources_are_refused_before_encoding(tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video " * 50)
    for source, kind in (("gone.mp4", FileNotFoundError), ("notes.mp4", ValueError)):
        with pytest.raises(kind) as error:
            save_video(tmp_path / "out.mp4", solid(COLOURS), 8, audio_from=tmp_path / source)
        assert source in sentence(error)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.mp4"]


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.gif", "out.png"])
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, name, kind):
    path = tmp_path / name
    path.write_bytes(b"what was there before")
    frames = solid(COLOURS * 20)[: 1 if name == "out.png" else None]
    made = []

    def fail_late(*args, **kwargs):
        made.append(1)
        if len(made) == len(frames):
            raise kind("the disk is full")
        return original(*args, **kwargs)

    owner, attribute = (media.np, "ascontiguousarray") if name[-3] == "m" else (Image, "fromarray")
    original = getattr(owner, attribute)
    monkeypatch.setattr(owner, attribute, fail_late)
    with pytest.raises(kind, match="the disk is full"):
        save_video(path, frames, 15)
    assert path.read_bytes() == b"what was there before"
    assert [left.name for left in tmp_path.iterdir()] == [name]


def test_side_by_side_takes_the_size_of_the_right(tmp_path):
    left, right = solid(COLOURS, 64, 80), solid(COLOURS[::-1][:5], 32, 48)
    both = side_by_side(left, right)
    assert both.shape == (5, 32, 96, 3) and both.dtype == np.uint8
    assert np.array_equal(both[:, :, 48:], right)
    assert difference(both[:, :, :48], solid(COLOURS[:5])) == 0


def test_contact_sheet_shows_evenly_spaced_frames():
    frames = solid([(index * 20, 0, 0) for index in range(11)], 120, 240)
    sheet = contact_sheet({"source": frames, "edited": 255 - frames}, columns=3)
    assert sheet.mode == "RGB"
    colours = {colour for _, colour in sheet.getcolors(1 << 16)}
    assert {(0, 0, 0), (100, 0, 0), (200, 0, 0), (255, 255, 255), (155, 255, 255), (55, 255, 255)} <= colours
    assert (20, 0, 0) not in colours


def test_contact_sheet_takes_clips_of_any_length_and_shape():
    sheet = contact_sheet({"one": solid(COLOURS[:1], 64, 64), "tall": solid(COLOURS, 160, 16)}, columns=20)
    assert (255, 0, 0) in {colour for _, colour in sheet.getcolors(1 << 16)}
