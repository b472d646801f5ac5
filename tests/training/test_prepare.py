"""From rows to frames: lengths, sizes, crops, references."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from kiwi_core import geometry, media
from training.data import prepare
from training.data.media import Media, Probe
from training.data.prepare import Rules, Shape
from training.data.row import Row

P480, P720 = 600 * 600, 720 * 1280


def shape(frames, width, height, rate=24, max_pixels=P720, max_frames=81, multiple=32, **rules):
    found = prepare.shape_of(
        Probe(frames, height, width, Fraction(rate)), Rules(max_pixels, max_frames, multiple, **rules)
    )
    return found.frames, found.width, found.height


@pytest.mark.parametrize(
    ("frames", "expected"),
    [(1, 1), (2, 1), (4, 1), (5, 5), (8, 5), (9, 9), (80, 77), (81, 81), (84, 81), (85, 81), (1000, 81)],
)
def test_a_clip_is_its_first_4k_plus_1_frames(frames, expected):
    assert shape(frames, 64, 64)[0] == expected


@pytest.mark.parametrize(("longest", "expected"), [(1, 1), (5, 5), (49, 49), (81, 81)])
def test_longer_clips_are_cut(longest, expected):
    assert shape(200, 64, 64, max_frames=longest)[0] == expected


@pytest.mark.parametrize(
    ("size", "multiple", "expected"),
    [
        *(((1280, 720), 32, (1280, 704)), ((1280, 720), 16, (1280, 720)), ((720, 1280), 32, (704, 1280))),
        *(((640, 480), 32, (640, 480)), ((650, 490), 32, (640, 480)), ((650, 490), 16, (640, 480))),
        *(((100, 50), 32, (96, 32)), ((100, 50), 16, (96, 48)), ((33, 63), 32, (32, 32))),
    ],
)
def test_sides_are_floored(size, multiple, expected):
    assert shape(9, *size, multiple=multiple)[1:] == expected


@pytest.mark.parametrize(
    ("size", "budget", "expected"),
    [
        *(((1920, 1080), P720, (1280, 704)), ((3840, 2160), P720, (1280, 704)), ((1080, 1920), P720, (704, 1280))),
        ((1280, 720), P480, (800, 448)),  # 800 x 450
        ((600, 600), P480, (576, 576)),
        ((2048, 2048), 1024 * 1024, (1024, 1024)),
        ((2000, 1000), 500_000, (992, 480)),  # 1000 x 500
    ],
)
def test_large_frames_are_scaled_to_the_budget(size, budget, expected):
    assert shape(9, *size, max_pixels=budget)[1:] == expected


def test_small_frames_are_never_enlarged():
    assert shape(9, 320, 256, max_pixels=P720)[1:] == (320, 256)


@pytest.mark.parametrize(
    ("size", "aspects", "expected"),
    [
        ((1000, 500), ("1:1",), (480, 480)),
        ((500, 1000), ("1:1",), (480, 480)),
        ((640, 480), ("16:9", "4:3", "1:1"), (640, 480)),
        ((640, 360), ("16:9", "4:3", "1:1"), (640, 352)),
        ((640, 400), ("16:9", "4:3", "1:1"), (640, 352)),  # 640 x 360: 8:5 is nearer to 16:9
        ((640, 440), ("16:9", "4:3", "1:1"), (576, 416)),  # 587 x 440
        ((360, 640), ("16:9", "9:16"), (352, 640)),
    ],
)
def test_frames_get_the_nearest_aspect(size, aspects, expected):
    assert shape(9, *size, aspects=aspects)[1:] == expected


@pytest.mark.parametrize(("frames", "expected"), [(9, 9), (16, 9), (17, 17), (48, 17), (49, 49), (500, 49)])
def test_clips_get_the_longest_length_that_fits(frames, expected):
    assert shape(frames, 64, 64, lengths=(17, 9, 49))[0] == expected


def test_a_picture_needs_no_length():
    assert shape(1, 64, 64, lengths=(17,))[0] == 1


def test_a_longest_length_keeps_to_the_frames_of_the_recipe():
    assert shape(500, 64, 64, max_frames=33, lengths=(17, 49))[0] == 17


@pytest.mark.parametrize(
    ("frames", "rate", "wanted", "expected"),
    [
        (100, 30, 15.0, 49),  # 50 frames
        (98, 30, 15.0, 49),
        (96, 30, 15.0, 45),  # 48 frames
        (20, 10, 20.0, 37),  # 40 frames: each is shown twice
        (1, 30, 15.0, 1),
        (1, 15, 30.0, 1),
    ],
)
def test_a_frame_rate_changes_the_length(frames, rate, wanted, expected):
    assert shape(frames, 64, 64, rate, frame_rate=wanted)[0] == expected


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(25), Fraction(12), Fraction(60000, 1001)])
def test_a_clip_has_as_many_frames_as_its_shape_says(rate, tmp_path):
    clip = np.zeros((21, 32, 32, 3), np.uint8)
    media.save_video(tmp_path / "clip.mkv", clip, rate)
    one = Media(str(tmp_path / "clip.mkv"))
    for wanted in (8.0, 12.5, 15.0, 23.976, 30.0):
        found = prepare.shape_of(one.probe(), Rules(64 * 64, 81, 16, wanted))
        count = len(one.frames(None, wanted))
        assert found.frames <= count < found.frames + 4


def test_a_rate_that_came_as_a_float_asks_for_no_frame_that_is_not_there():
    for rate in (Fraction(30000, 1001), Fraction(24000, 1001)):
        for frames in range(1, 242, 4):
            assert shape(frames, 64, 64, rate, max_frames=997, frame_rate=float(rate))[0] == frames


def test_what_no_rule_fits_is_one_sentence():
    with pytest.raises(ValueError, match=r"^The frames are 31x500 pixels; both sides must be 32 or more\.$"):
        shape(9, 31, 500)
    with pytest.raises(ValueError, match=r"^The clip has 8 frames, fewer than the shortest of lengths"):
        shape(8, 64, 64, lengths=(9, 17))
    with pytest.raises(ValueError, match=r"^The clip has 8 frames at 8 a second, fewer than the shortest of lengths"):
        shape(30, 64, 64, 30, frame_rate=8.0, lengths=(17,))
    with pytest.raises(ValueError, match="both sides must be 32"):
        shape(9, 4000, 40, max_pixels=32 * 100)  # scaled to 17 pixels


# Frames


def marked(height, width, frames=2):
    """Black with a white mark of 8 x 8 in the centre, and red edges."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    clip[:, :2], clip[:, -2:], clip[:, :, :2], clip[:, :, -2:] = ((200, 0, 0),) * 4
    top, left = height // 2 - 4, width // 2 - 4
    clip[:, top : top + 8, left : left + 8] = 255
    return clip


@pytest.mark.parametrize("size", [(96, 160), (160, 96), (70, 64), (64, 90), (200, 300)])
def test_a_crop_is_around_the_centre(size):
    fitted = prepare.fit(marked(*size), Shape(2, 64, 64))
    assert fitted.shape == (2, 64, 64, 3)
    assert fitted.dtype == np.uint8
    rows, columns = np.nonzero(fitted[0, ..., 1] > 128)
    assert abs(rows.mean() - 31.5) <= 0.6
    assert abs(columns.mean() - 31.5) <= 0.6
    scale = 64 / min(size)  # to cover
    assert abs(np.ptp(rows) + 1 - 8 * scale) <= 1
    assert abs(np.ptp(columns) + 1 - 8 * scale) <= 1


def test_only_the_longer_side_is_cropped():
    fitted = prepare.fit(marked(128, 256), Shape(2, 64, 64))
    red = fitted[0, ..., 0] > 90
    assert red[0].all()
    assert red[-1].all()
    assert not red[8:24, 0].any()
    assert not red[8:24, -1].any()


def test_frames_of_the_right_size_are_left_alone():
    clip = marked(64, 64)
    assert prepare.fit(clip, Shape(2, 64, 64)) is clip


def write(folder, name, clip, rate=12):
    media.save_video(folder / name, clip, rate, crf=1)
    return Media(str(folder / name))


def noise(frames, height, width):
    return np.random.default_rng(frames).integers(0, 255, (frames, height, width, 3), np.uint8)


def test_a_pair_is_read_to_its_shape(tmp_path):
    one, two = (write(tmp_path, f"{name}.mkv", marked(48, 64, 7)) for name in ("one", "two"))
    rules = Rules(64 * 64, 81, 16)
    source, target = prepare.read_pair(Row("a", one, two, ""), prepare.shape_of(two.probe(), rules), rules)
    assert source.shape == target.shape == (5, 48, 64, 3)
    again = prepare.read_pair(Row("a", one, two, ""), Shape(5, 32, 32), rules)
    assert [clip.shape for clip in again] == [(5, 32, 32, 3)] * 2


def test_a_pair_is_read_at_the_frame_rate(tmp_path):
    clip = np.repeat(np.arange(10, 220, 10, dtype=np.uint8), 32 * 32 * 3).reshape(21, 32, 32, 3)
    fast, slow = write(tmp_path, "fast.mkv", clip, 24), write(tmp_path, "slow.mkv", clip[::2], 12)
    source, target = prepare.read_pair(Row("a", fast, slow, ""), Shape(9, 32, 32), Rules(64 * 64, 81, 16, 12.0))
    levels = source.mean(axis=(1, 2, 3))
    assert np.abs(levels - np.arange(10, 190, 20)).max() < 3
    assert np.abs(target.mean(axis=(1, 2, 3)) - levels).max() < 3


def numbered(count):
    """Frame n is grey at level 4 n."""
    return np.repeat(np.arange(0, 4 * count, 4, dtype=np.uint8), 32 * 32 * 3).reshape(count, 32, 32, 3)


def test_as_many_frames_go_together_by_number_whatever_the_headers_say(tmp_path):
    source, target = write(tmp_path, "s.mkv", numbered(60), 30), write(tmp_path, "t.mkv", numbered(60), 15)
    row, rules = Row("a", source, target, ""), Rules(64 * 64, 25, 16, 10.0)
    shape = prepare.pair_shape(row, source.probe(), target.probe(), rules)
    found = [clip.mean(axis=(1, 2, 3)) / 4 for clip in prepare.read_pair(row, shape, rules)]
    assert shape.frames == 25
    assert np.abs(found[0] - found[1]).max() < 0.5
    assert found[1].round().astype(int)[:5].tolist() == [0, 1, 3, 4, 6]


def test_other_numbers_of_frames_go_together_at_one_rate_only():
    long, short = Probe(61, 32, 32, Fraction(30)), Probe(30, 32, 32, Fraction(15))
    row, still = Row("a", Media("s.mp4"), Media("t.mp4"), ""), Probe(1, 32, 32, Fraction(1))
    for pair in ((long, short), (short, long)):
        with pytest.raises(ValueError, match=r"^s\.mp4 and t\.mp4 do not match \(\d+ frames of 32x32 and \d+ frames"):
            prepare.pair_shape(row, *pair, Rules(64 * 64, 81, 16))
        assert prepare.pair_shape(row, *pair, Rules(64 * 64, 81, 16, 32.0)).frames == 61  # not the 65 of the longer
    rules = Rules(64 * 64, 81, 16)
    assert prepare.pair_shape(row, Probe(40, 32, 32, Fraction(15)), short, rules).frames == 29
    assert prepare.pair_shape(row, Probe(26, 32, 32, Fraction(15)), short, rules).frames == 25
    for pair in ((Probe(70, 32, 32, Fraction(30)), short), (Probe(2, 32, 32, Fraction(1)), still)):
        with pytest.raises(ValueError, match="do not match"):
            prepare.pair_shape(row, *pair, Rules(64 * 64, 81, 16, 30.0))


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ((5, 32, 32), (5, 48, 32), "5 frames of 32x32 and 5 frames of 32x48"),
        ((3, 32, 32), (5, 32, 32), "3 frames of 32x32 and 5 frames of 32x32"),
    ],
)
def test_a_pair_that_does_not_match_is_one_sentence(tmp_path, source, target, said):
    one, two = write(tmp_path, "one.mkv", noise(*source)), write(tmp_path, "two.mkv", noise(*target))
    with pytest.raises(ValueError, match=r"one\.mkv and .+two\.mkv do not match") as caught:
        prepare.read_pair(Row("a", one, two, ""), Shape(5, 32, 32), Rules(64 * 64, 9, 16))
    assert said in str(caught.value)
    assert str(caught.value).endswith("; export them alike.")


def test_a_clip_that_is_shorter_than_it_said_is_one_sentence(tmp_path):
    one, two = (write(tmp_path, f"{name}.mkv", noise(5, 32, 32)) for name in ("one", "two"))
    with pytest.raises(ValueError, match=r"two\.mkv has 5 frames, not 9 as it says"):
        prepare.read_pair(Row("a", one, two, ""), Shape(9, 32, 32), Rules(64 * 64, 9, 16))


# References


def boxed(size, page, scale, colour=(10, 60, 200)):
    """Rows and columns that a plain reference covers on its page, and the page."""
    picture = np.full((*size, 3), colour, np.uint8)
    found = prepare.boxed_reference(picture, *page, scale)
    assert found.shape == (*page, 3)
    assert found.dtype == np.uint8
    covered = np.abs(found.astype(int) - colour).max(-1) < 3
    assert (found[~covered] == 255).all()
    rows, columns = np.nonzero(covered.any(1))[0], np.nonzero(covered.any(0))[0]
    assert covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    return (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)


@pytest.mark.parametrize("scale", [0.7, 0.85, 0.99])
@pytest.mark.parametrize("size", [(40, 80), (80, 40), (10, 10), (300, 500), (37, 91)])
def test_a_reference_fits_scaled_and_centred_on_white(size, scale):
    page = (64, 96)
    (top, bottom), (left, right) = boxed(size, page, scale)
    fit = min(page[0] / size[0], page[1] / size[1])
    assert abs(bottom - top - size[0] * fit * scale) <= 0.5
    assert abs(right - left - size[1] * fit * scale) <= 0.5
    assert abs(top - (page[0] - bottom)) <= 1
    assert abs(left - (page[1] - right)) <= 1


@pytest.mark.parametrize("size", [(40, 80), (80, 40), (33, 47), (64, 96), (200, 301)])
def test_in_full_size_a_reference_is_what_it_is_at_inference(size):
    picture = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    expected = np.array(geometry.letterbox(Image.fromarray(picture), 64, 96))
    assert np.array_equal(prepare.boxed_reference(picture, 64, 96, 1.0), expected)


def test_a_reference_is_scaled_bicubically():
    picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    found = prepare.boxed_reference(picture, 80, 80, 0.75)
    expected = np.array(Image.fromarray(picture).resize((60, 60), Image.Resampling.BICUBIC))
    assert np.array_equal(found[10:70, 10:70], expected)


def test_the_language_model_sees_the_reference_as_it_is(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "ref.png")
    one = Media(str(tmp_path / "ref.png"))
    assert np.array_equal(prepare.read_reference(Row("a", one, one, "", one)), picture)
    assert prepare.read_reference(Row("a", one, one, "")) is None


@pytest.mark.parametrize("count", [1, 2, 8, 30])
def test_scales_are_spread_over_the_published_range(count):
    scales = prepare.reference_scales(count)
    assert len(scales) == count
    assert all(0.7 < scale < 1 for scale in scales)
    assert math.isclose(sum(scales) / count, 0.85)  # the mean of the published draw
    steps = [0.7, *((low + high) / 2 for low, high in itertools.pairwise(scales)), 1.0]
    assert all(math.isclose(high - low, 0.3 / count, abs_tol=1e-9) for low, high in itertools.pairwise(steps))
