"""How much of a reference is a copy of the target: high for what is pasted in any size and light, low for new views."""

import cv2
import numpy as np
import pytest
import refvie_photos
from PIL import Image

from training.nano import world
from training.nano.world import Ground, Thing
from training.refvie import backends, leak
from training.refvie.backends import Painting
from training.refvie.pairs.pair import BACKGROUND, SCENE, SUBJECT


@pytest.fixture(scope="module")
def paint():
    model = backends.load("synthesise", "classical", {})

    def paint(kind, photo, seed=0, words=""):
        return model.paint([Painting(kind, "", photo.target, photo.masks, seed, words)])[0]

    return paint


@pytest.fixture(scope="module")
def things():
    return [refvie_photos.pair("local_add", seed) for seed in (921, 922, 923)]


@pytest.fixture(scope="module")
def grounds():
    return [refvie_photos.pair(BACKGROUND, seed) for seed in (931, 932, 933)]


def resized(picture, share):
    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(picture).resize((round(width * share), round(height * share))))


def brighter(picture, gain):
    return np.clip(picture * gain, 0, 255).astype(np.uint8)


def subject(reference, photo):
    return leak.of_subject(reference, photo.target, photo.masks)


def scene(reference, photo):
    return leak.of_scene(reference, photo.target, photo.masks)


def test_a_pasted_thing_is_found_in_any_size_and_light(paint, things):
    for photo in things:
        pasted = paint(SUBJECT, photo)
        for copy in (pasted, resized(pasted, 0.6), resized(pasted, 1.7), brighter(pasted, 0.8), pasted[:, ::-1]):
            assert subject(np.ascontiguousarray(copy), photo) > 0.85


def test_a_varied_copy_is_still_a_copy(paint, things, grounds):
    for seed, (photo, ground) in enumerate(zip(things, grounds)):
        assert subject(paint(SUBJECT, photo, seed, "varied"), photo) > 0.8
        assert scene(paint(SCENE, ground, seed, "varied"), ground) > 0.85


def test_another_view_is_no_copy(things):
    """The same outline with the surface turned away, and the thing on its head."""
    for photo in things:
        frame, mask = photo.target[2], photo.masks[2]
        upside_down = cv2.flip(np.where(mask[..., None], frame, 255).astype(np.uint8), 0)
        rows, columns = np.nonzero(mask)
        middle = frame[
            rows.min() + np.ptp(rows) // 3 : rows.max() - np.ptp(rows) // 8,
            columns.min() + np.ptp(columns) // 3 : columns.max() - np.ptp(columns) // 8,
        ]
        nearer = cv2.resize(np.ascontiguousarray(middle), mask.shape[::-1])
        turned = np.where(mask[..., None], nearer, 255).astype(np.uint8)
        assert subject(upside_down, photo) < 0.6
        assert subject(turned, photo) < 0.5


def test_another_thing_is_no_copy(paint, things):
    for photo, other in zip(things, (*things[1:], things[0])):
        assert subject(paint(SUBJECT, other), photo) < 0.5


def test_a_copied_ground_is_found_and_another_is_not(paint, grounds):
    for number, photo in enumerate(grounds):
        pasted = paint(SCENE, photo)
        for copy in (pasted, resized(pasted, 0.5), brighter(pasted, 0.8), pasted[20:230, 15:225], pasted[:, ::-1]):
            assert scene(np.ascontiguousarray(copy), photo) > 0.85
        rng = np.random.default_rng(number)
        alike = refvie_photos.rough(rng, 256, tuple(pasted.mean(axis=(0, 1)))).astype(np.uint8)
        assert scene(alike, photo) < 0.6
        assert scene(paint(SCENE, grounds[number - 1]), photo) < 0.6


def plain(shape, texture="plain"):
    return world.portrait(Thing(shape, "red", texture, 38.0, 56.0, 56.0, 0.0, 0.0))


def test_without_structure_the_outline_decides():
    thing = Thing("cross", "red", "plain", 13.0, 32.0, 32.0, 0.5, 0.0)
    shown = world.Scene(Ground("green", "checked"), (thing,))
    frames, masks = world.render(shown), world.covered(thing, shown) > 0.5
    assert leak.of_subject(plain("cross"), frames, masks) > 0.85
    assert leak.of_subject(plain("triangle"), frames, masks) < 0.7
    assert leak.of_subject(plain("cross", "banded"), frames, masks) < 0.5  # one has structure, the other none


def test_a_bare_wall_counts_as_copied_and_a_pattern_by_its_pattern():
    frames = world.render(world.Scene(Ground("green", "plain"), ()))
    nothing = np.zeros(frames.shape[:3], bool)
    assert leak.of_scene(world.backdrop(Ground("blue", "plain")), frames, nothing) == 1
    assert leak.of_scene(world.backdrop(Ground("green", "dotted")), frames, nothing) < 0.2
    dotted = world.render(world.Scene(Ground("green", "dotted"), ()))
    assert leak.of_scene(world.backdrop(Ground("green", "dotted")), dotted, nothing) > 0.9
    assert leak.of_scene(world.backdrop(Ground("green", "wavy")), dotted, nothing) < 0.6


def test_where_nothing_is_shown_nothing_leaks(things):
    blank = np.full((64, 64, 3), 255, np.uint8)
    assert subject(blank, things[0]) == 0
    assert leak.of_subject(things[0].target[0], things[0].target, np.zeros_like(things[0].masks)) == 0
    assert leak.of_scene(blank, things[0].target, np.ones_like(things[0].masks)) == 0
