"""Sizes and frame counts."""

import golden
import numpy as np
import pytest
from PIL import Image

from kiwi_core import geometry


@pytest.mark.parametrize(
    "height, width, max_pixels, multiple, wanted",
    [
        (720, 1280, 720 * 1280, 32, (704, 1280)),
        (1080, 1920, 720 * 1280, 32, (704, 1280)),
        (1920, 1080, 720 * 1280, 32, (1280, 704)),
        (480, 832, 720 * 1280, 16, (480, 832)),
        (600, 600, 600 * 600, 32, (576, 576)),
        (20, 2000, 720 * 1280, 32, (32, 1984)),
        (1, 1, 720 * 1280, 16, (16, 16)),
    ],
)
def test_sizes_fit_the_budget(height, width, max_pixels, multiple, wanted):
    assert geometry.fit_size(height, width, max_pixels, multiple) == wanted


@pytest.mark.parametrize("multiple", [16, 32])
def test_any_fitted_size_is_a_multiple_within_the_budget(multiple):
    generator = np.random.default_rng(0)
    for height, width in generator.integers(multiple, 5000, (300, 2)).tolist():
        fitted = geometry.fit_size(height, width, multiple=multiple)
        assert all(side % multiple == 0 and side >= multiple for side in fitted)
        assert fitted[0] <= height and fitted[1] <= width
        budget = geometry.MAX_PIXELS
        if min(fitted) > multiple:
            assert fitted[0] * fitted[1] <= budget
            assert (fitted[0] + multiple) * (fitted[1] + multiple) > min(budget, height * width)


def test_rounding_up():
    assert [geometry.round_up(value, 32) for value in (1, 31, 32, 33, 704, 720)] == [32, 32, 32, 64, 704, 736]


def test_frame_counts_are_padded_as_published():
    for count, wanted in golden.FACTS["e2e"]["check_resize_num_frames"].items():
        assert geometry.padded_frame_count(int(count)) == wanted
    assert [geometry.latent_frame_count(count) for count in (1, 5, 9, 81)] == [1, 2, 3, 21]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_padding_repeats_the_last_frame(count):
    frames = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) + np.zeros((3, 2, 2, 3), dtype=np.uint8)
    padded = geometry.pad_frames(frames, count)
    assert padded[:, 0, 0, 0].tolist() == [0, 1, 2, 2, 2][: max(3, count)]


def test_frames_of_the_right_size_are_not_touched():
    frames = np.zeros((2, 16, 32, 3), dtype=np.uint8)
    assert geometry.resize_frames(frames, 16, 32) is frames
    assert geometry.resize_frames(frames, 20, 7).shape == (2, 20, 7, 3)


@pytest.mark.parametrize("size", [(10, 40), (40, 10), (200, 100)])
def test_a_letterboxed_reference_keeps_its_shape_on_white(size):
    boxed = np.asarray(geometry.letterbox(Image.new("RGB", size, "black"), 64, 96))
    assert boxed.shape == (64, 96, 3)
    rows, columns = (boxed.min(axis=(2, 1 - axis)) < 128 for axis in (0, 1))
    assert columns.sum() / rows.sum() == pytest.approx(size[0] / size[1], rel=0.1)
    assert (boxed[~rows] == 255).all()
    assert (boxed[:, ~columns] == 255).all()
    for inside in (rows, columns):
        before, after = inside.argmax(), inside[::-1].argmax()
        assert abs(int(before) - int(after)) <= 1
