"""Reference pictures: a subject on white, a scene in the clip's shape."""

import numpy as np
import pytest

from kiwi_core.references import crop_to_aspect, cut_out


@pytest.fixture
def picture():
    """A red box of 20 rows and 30 columns on blue, and its mask."""
    image = np.full((60, 80, 3), (0, 0, 255), dtype=np.uint8)
    mask = np.zeros((60, 80), dtype=np.float32)
    image[10:30, 20:50] = (255, 0, 0)
    mask[10:30, 20:50] = 1
    return image, mask


def test_a_hard_cut_keeps_every_pixel_and_adds_the_margin(picture):
    image, mask = picture
    cut = cut_out(image, mask, margin=0.1, feather=0)
    assert cut.shape == (26, 36, 3)
    assert (cut[3:-3, 3:-3] == (255, 0, 0)).all()
    cut[3:-3, 3:-3] = 255
    assert (cut == 255).all()


@pytest.mark.parametrize("feather", [0, 1, 2, 5])
def test_nothing_of_the_old_background_shows_at_the_edge(picture, feather):
    cut = cut_out(*picture, margin=0.2, feather=feather).astype(int)
    assert (cut[..., 2] == cut[..., 1]).all()  # between red and white, blue and green are equal
    assert (cut[..., 0] == 255).all()
    assert (cut[cut.shape[0] // 2, cut.shape[1] // 2] == (255, 0, 0)).all()


def test_the_edge_is_soft_over_the_feather(picture):
    def steps(feather):
        row = cut_out(*picture, margin=0.2, feather=feather)[15, :, 1]
        return int(((row > 0) & (row < 255)).sum())

    assert steps(0) == 0
    assert 0 < steps(2) < steps(6)


def test_a_subject_cut_by_the_frame_stays_hard_there(picture):
    image, mask = picture
    mask[10:30, :20] = 1
    image[10:30, :20] = (255, 0, 0)
    cut = cut_out(image, mask, margin=0, feather=4)
    assert (cut[cut.shape[0] // 2, 0] == (255, 0, 0)).all()


def test_soft_masks_stay_soft(picture):
    image, mask = picture
    cut = cut_out(image, mask * 0.6, margin=0, feather=0)
    assert np.abs(cut.astype(int) - (255, 102, 102)).max() <= 1


def test_bad_masks_are_told(picture):
    image, mask = picture
    with pytest.raises(ValueError, match="mask is 40x60 but the picture 80x60; make a mask of its size"):
        cut_out(image, mask[:, :40])
    with pytest.raises(ValueError, match="no subject; paint it"):
        cut_out(image, mask * 0)
    with pytest.raises(ValueError, match="thinner than the soft edge of 90 pixels; lower"):
        cut_out(image, mask, feather=90)


@pytest.mark.parametrize("size", [(704, 1280), (1280, 704), (512, 512)])
def test_a_scene_is_cut_from_its_middle_to_the_shape(size):
    scene = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    part = crop_to_aspect(scene, *size)
    assert part.shape[0] == 90 or part.shape[1] == 120
    assert part.shape[1] / part.shape[0] == pytest.approx(size[1] / size[0], rel=0.02)
    top, left = (90 - part.shape[0]) // 2, (120 - part.shape[1]) // 2
    assert np.array_equal(part, scene[top : top + part.shape[0], left : left + part.shape[1]])
