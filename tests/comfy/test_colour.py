"""Match Colours in the graph."""

import logging

import edit_graph
import numpy as np
import pytest
import torch

CLIP = edit_graph.clip(12)


@pytest.fixture(scope="module")
def match(pack):
    images = pack.nodes.images

    def match(frames, source, strength=1.0, mask=None):
        node = pack.nodes.colour.KiwiEditMatchColours
        return node.execute(frames, images.from_uint8(source), strength, mask)[0]

    return match


@pytest.fixture(scope="module")
def source():
    return torch.from_numpy(CLIP).float() / 255 * 0.6 + 0.15  # with room to both sides


@pytest.fixture
def clip(source):
    return (source * 255).round().to(torch.uint8).numpy()


def drifted(frames):
    share = torch.linspace(0, 1, len(frames)).view(-1, 1, 1, 1)
    return frames * (1 + share * torch.tensor([0.1, 0.0, -0.1])) + share * 0.04


def test_a_drift_is_taken_back(match, source, clip):
    edited = source.clone()
    edited[:, 10:40, 60:] = torch.tensor([0.8, 0.3, 0.5])
    found = match(drifted(edited), clip)
    mean = found.mean(dim=(1, 2)) - edited.mean(dim=(1, 2))
    assert mean.abs().max() < 1.5 / 255 < (drifted(edited) - edited).mean(dim=(1, 2)).abs().max()
    assert found.dtype == torch.float32 and found.min() >= 0 and found.max() <= 1


def test_a_mask_says_where_the_edit_is(match, source, clip):
    """Here it is most of the picture, and would not be told from a drift of it all."""
    edited = (source + 0.1).clamp(0, 1)
    edited[:, :, :20] = source[:, :, :20]
    mask = torch.zeros(64, 96)
    mask[:, 20:] = 1
    assert (match(edited, clip) - edited).abs().max() > 0.05
    assert (match(edited, clip, mask=mask) - edited).abs().max() < 1 / 255


def test_an_edit_of_the_whole_picture_is_left_alone(match, source, clip, caplog):
    edited = 1 - source
    with caplog.at_level(logging.WARNING):
        assert match(edited, clip) is edited
    assert "left as they are" in caplog.text


def test_strength_zero_changes_nothing(match, source, clip):
    torch.testing.assert_close(match(drifted(source), clip, strength=0.0), drifted(source))


def test_a_shorter_or_larger_source_serves(match, source, clip):
    large = np.repeat(np.repeat(clip, 2, axis=1), 2, axis=2)[:11]
    found = match(drifted(source), large)
    assert (found[:11] - source[:11]).mean(dim=(1, 2)).abs().max() < 1.5 / 255


def test_a_mask_that_does_not_fit_is_refused(match, source, clip):
    with pytest.raises(ValueError, match="5 frames and the clip 12"):
        match(source, clip, mask=torch.ones(5, 64, 96))
