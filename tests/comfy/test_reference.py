"""Reference pictures out of a frame."""

import numpy as np
import pytest
import torch

from kiwi_core.references import crop_to_aspect, cut_out


@pytest.fixture(scope="module")
def make(pack):
    node = pack.nodes.reference.KiwiEditMakeReference

    def make(image, kind="subject", frame=0, margin=0.1, feather=2.0, **inputs):
        made = node.execute(image, kind, frame, margin, feather, **inputs)[0]
        return (made * 255).round().to(torch.uint8).numpy()

    return make


@pytest.fixture(scope="module")
def clip():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)) / 255


@pytest.fixture(scope="module")
def masks():
    masks = torch.zeros(3, 48, 64)
    for index, mask in enumerate(masks):
        mask[10:30, 10 + 10 * index : 30 + 10 * index] = 1
    return masks


def frame(clip, index):
    return (clip[index] * 255).round().to(torch.uint8).numpy()


def test_a_subject_is_cut_from_its_frame_by_the_mask_of_the_frame(make, clip, masks):
    made = make(clip, frame=2, mask=masks)
    assert np.array_equal(made[0], cut_out(frame(clip, 2), masks[2].numpy()))
    single = make(clip, frame=2, mask=masks[1:2])
    assert np.array_equal(single[0], cut_out(frame(clip, 2), masks[1].numpy()))


def test_a_background_is_the_frame_in_the_shape_of_the_clip(make, clip):
    assert np.array_equal(make(clip, "background", 1)[0], frame(clip, 1))
    other = torch.zeros(5, 40, 20, 3)
    assert np.array_equal(make(clip, "background", 1, clip=other)[0], crop_to_aspect(frame(clip, 1), 40, 20))


def test_wrong_inputs_are_told(make, clip, masks):
    with pytest.raises(ValueError, match="cut out by a mask; connect one"):
        make(clip)
    with pytest.raises(ValueError, match="without holes; disconnect the mask"):
        make(clip, "background", mask=masks)
    with pytest.raises(ValueError, match="no frame 3; the clip has 3, counted from 0"):
        make(clip, frame=3, mask=masks)
    with pytest.raises(ValueError, match="mask is 64x64 but the picture 64x48"):
        make(clip, mask=torch.zeros(1, 64, 64))
