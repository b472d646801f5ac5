"""Colour drift is taken back where the source shows it, and nothing else is."""

import logging

import numpy as np
import pytest
import torch

from kiwi_core import colour

HEIGHT, WIDTH = 72, 128


def scene(count, seed=0):
    """A smooth, coloured picture with some texture that moves slowly; uint8 ``[count, H, W, 3]``, not clipped."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    phases, speeds = rng.uniform(0, 6, (3, 4)), rng.uniform(0.005, 0.02, (3, 4))
    texture = rng.normal(scale=6, size=(HEIGHT, WIDTH)).astype(np.float32)
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    for index, frame in enumerate(frames):
        for channel in range(3):
            a, b, c, d = phases[channel] + speeds[channel] * index
            waves = np.sin(columns / 20 + a) + np.sin(rows / 13 + b) + np.sin((rows + columns) / 33 + c) * np.cos(d)
            frame[..., channel] = (125 + 25 * waves + texture).clip(20, 225)
    return frames


def with_object(frames, left=40, width=40):
    """An edited object over a quarter of the picture, with colours of its own."""
    edited = frames.copy()
    edited[:, 16:60, left : left + width] = 255 - edited[:, 16:60, left : left + width] // 2
    edited[:, 16:60, left : left + width, 0] = 240
    return edited


def drifted(frames, gains, offsets, noise=3.0):
    rng = np.random.default_rng(5)
    result = np.empty_like(frames)
    for target, frame, gain, offset in zip(result, frames, gains, offsets):
        pixels = frame * gain + offset + rng.normal(scale=noise, size=frame.shape)
        target[:] = np.rint(pixels).clip(0, 255)
    return result


def ramp(count, gain=(1.12, 1.04, 0.9), offset=(-6.0, 4.0, 12.0)):
    share = np.linspace(0, 1, count)[:, None]
    return 1 + share * (np.array(gain) - 1), share * np.array(offset)


def levels(a, b):
    """Largest difference over frames and channels of their mean colours."""
    return np.abs(a.mean(axis=(1, 2), dtype=float) - b.mean(axis=(1, 2), dtype=float)).max()


@pytest.mark.parametrize("masked", [False, True])
def test_a_ramp_over_401_frames_is_taken_back(masked):
    """To 1.5 levels in every frame's mean colour, from up to 17; object and noise are known here."""
    source = scene(401)
    wanted = with_object(source)
    edited = drifted(wanted, *ramp(401))
    mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, 16:60, 40:80] = True
    found = colour.match_colours(edited, source, mask if masked else None)
    assert levels(edited, wanted) > 8
    assert levels(found, wanted) < 1.5
    gain, offset = colour.drift(401, lambda index: (edited[index], source[index]), mask if masked else None)
    gains, offsets = ramp(401)
    assert np.abs(gain * gains - 1).max() < 0.03
    assert np.abs((gain * (128 * gains + offsets) + offset) - 128).max() < 1.5  # mid grey comes back


def test_an_undrifted_edit_comes_back_as_it_was():
    source = scene(40)
    edited = drifted(with_object(source), *ramp(40, (1, 1, 1), (0, 0, 0)))
    found = colour.match_colours(edited, source)
    assert np.abs(found.astype(int) - edited).max() <= 1


def test_an_undrifted_copy_comes_back_to_the_byte():
    source = scene(12)
    assert np.array_equal(colour.match_colours(source, source), source)


STYLES = {
    "inverted": lambda frames: 255 - frames,
    "another picture": lambda frames: scene(len(frames), seed=9),
    "channels turned": lambda frames: frames[..., [2, 0, 1]],
    "night": lambda frames: (frames * 0.35).astype(np.uint8),
    "flat": lambda frames: np.full_like(frames, 130),
    "coarse": lambda frames: frames // 96 * 96,
}


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
def test_an_edit_of_the_whole_picture_is_left_alone_and_said_so(style, caplog):
    source = scene(12)
    edited = style(source)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(colour.match_colours(edited, source), edited)
    assert "left as they are" in caplog.text


def test_strength_is_a_share_of_the_correction():
    source = scene(20)
    edited = drifted(source, *ramp(20, (1, 1, 1), (20, 20, 20)), noise=0)
    half = colour.match_colours(edited, source, strength=0.5)
    assert half[-1].mean() == pytest.approx((edited[-1].mean() + source[-1].mean()) / 2, abs=1)
    assert np.array_equal(colour.match_colours(edited, source, strength=0.0), edited)


def test_frames_without_an_untouched_place_follow_their_neighbours():
    source = scene(60)
    edited = drifted(source, *ramp(60, (1, 1, 1), (10, 10, 10)), noise=0)
    wanted = source.copy()
    edited[20:35] = wanted[20:35] = 255 - scene(15, seed=3)
    edited[20:35] += 5  # unknown there: between 3.4 and 5.9
    found = colour.match_colours(edited, source)
    assert levels(found, wanted) < 2.5


def test_a_source_of_another_size_or_length_serves_too():
    from kiwi_core import geometry

    source = scene(9)
    edited = drifted(with_object(source), *ramp(9, (1, 1, 1), (15, 15, 15)))
    large = geometry.resize_frames(source, 2 * HEIGHT, 2 * WIDTH)
    assert levels(colour.match_colours(edited, large[:8]), with_object(source)) < 2


def test_the_pipeline_matches_colours_when_asked(random_pipe, monkeypatch):
    video = scene(5)
    drift = drifted(video[:, :64, :128], *ramp(5, (1, 1, 1), (20, 20, 20)), noise=0)
    monkeypatch.setattr(random_pipe, "_decode", lambda latents: drift)
    arguments = dict(num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    plain = random_pipe("Make it red.", video[:, :64], **arguments).frames
    matched = random_pipe("Make it red.", video[:, :64], match_colours=True, **arguments).frames
    assert np.array_equal(plain, drift)
    assert levels(matched, video[:, :64]) < 1
