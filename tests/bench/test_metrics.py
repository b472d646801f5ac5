"""What is measured of an edit without a judge: each number goes where it should for what is wrong, and stays for what
is not. Clips of the toy world, in lossless files."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
import refvie_photos
from PIL import Image

from kiwi_core import media
from training.bench.folder import FAILED, TIME, Edit
from training.bench.items import Item
from training.bench.metrics import METRICS, Meter, colours, motion, preservation
from training.bench.metrics.region import category_of
from training.nano import edits, world
from training.nano import measure as truth
from training.nano.rows import save_exactly
from training.nano.world import Ground, Scene, Thing
from training.refvie import backends
from training.refvie.backends import Painting

CLIPS = ("local_change", "local_remove", "local_add", "background_change")


@pytest.fixture(scope="module")
def meter():
    return Meter()


@pytest.fixture
def values(meter, tmp_path):
    """Measures an edit whose frames are given, and gives its values."""

    def values(source, frames, category="local_change", prompt="", region=None, reference=None):
        suffix = ".webp" if len(source) == 1 else ".mkv"
        paths = {name: tmp_path / f"{name}{suffix}" for name in ("source", "edit", "region")}
        save_exactly(paths["source"], source)
        save_exactly(paths["edit"], frames)
        if region is not None:
            save_exactly(paths["region"], np.repeat(region[..., None] * np.uint8(255), 3, axis=-1))
        if reference is not None:
            Image.fromarray(reference).save(tmp_path / "reference.png")
        item = Item(
            "one", category, prompt, paths["source"], None if reference is None else tmp_path / "reference.png",
            None if region is None else paths["region"],
        )  # fmt: skip
        found = meter.measure(item, Edit("one", "done", paths["edit"]))
        assert not found.error and found.item == "one"
        return found.values

    return values


def drawn(category, seed, **more):
    """An edit of the toy world, its source and its target."""
    edit = edits.draw(category, seed, **more)
    return edit, world.render(edit.before), world.render(edit.after)


def moved(frames, by):
    """Other colours by so many levels."""
    return np.clip(frames + np.asarray(by), 0, 255).astype(np.uint8)


def noisy(frames, sigma, seed=0):
    return moved(frames, np.random.default_rng(seed).normal(0, sigma, frames.shape))


# All values


@pytest.mark.parametrize("category", edits.CATEGORIES + edits.REFERENCE_CATEGORIES)
def test_every_number_has_a_name_and_goes_through_json(values, category):
    edit, source, target = drawn(category, 7)
    found = values(source, target, category, edit.prompt, reference=edit.reference_picture())
    assert list(found) == list(METRICS)
    json.dumps(found, allow_nan=False)
    assert {metric.better for metric in METRICS.values()} == {"more", "less", ""}
    assert found["text_alignment"] is None and found["text_gain"] is None  # nothing honest without weights
    with_reference = category in edits.REFERENCE_CATEGORIES
    for name in ("reference_similarity", "copy_paste", "reference_fidelity"):
        assert (found[name] is not None) == with_reference


def test_the_same_files_give_the_same_numbers(values):
    edit, source, target = drawn("subject_reference", 3)
    one, other = (
        values(source, target, "subject", edit.prompt, reference=edit.reference_picture()) for _ in range(2)
    )
    assert one == other


@pytest.mark.parametrize("category", CLIPS)
def test_true_targets_are_preserved_steady_and_free_of_drift(values, category):
    for seed in (1, 2, 3):
        edit, source, target = drawn(category, seed)
        found = values(source, target, category, edit.prompt)
        assert found["preservation_psnr"] > 35 and found["preservation_ssim"] > 0.98
        assert found["colour_shift"] < 1 and found["colour_drift"] < 0.5
        assert not found["frozen"] and not found["duplicated"]
        assert found["flicker"] < 0.01 and abs(found["warp_error_gain"]) < 2 and abs(found["consistency_gain"]) < 0.02


def test_a_source_given_back_is_perfectly_preserved(values):
    _, source, _ = drawn("local_change", 1)
    for category in ("local_change", "background_change"):
        found = values(source, source, category)
        assert found["preservation_psnr"] == preservation.HIGHEST_PSNR and found["region_area"] == 0
        assert found["preservation_ssim"] == pytest.approx(1, abs=1e-5)
        assert found["colour_shift"] == found["warp_error_gain"] == found["consistency_gain"] == 0


# Preservation


def test_damage_outside_a_given_region_tells_and_within_it_does_not(values):
    edit, source, target = drawn("local_change", 3)
    region = truth.region_of(edit)
    corner = np.zeros(region.shape, bool)
    corner[:, :14, :14] = True
    assert not (corner & region).any()
    good = values(source, target, region=region)
    within, without = target.copy(), target.copy()
    within[region] = 255 - within[region]
    without[corner] = 255 - without[corner]
    assert good["region_known"] == 1 and good["region_area"] == pytest.approx(region.mean(), abs=1e-6)
    same = values(source, within, region=region)
    assert same["preservation_psnr"] == good["preservation_psnr"] > 50
    assert same["preservation_ssim"] == good["preservation_ssim"]
    bad = values(source, without, region=region)
    assert bad["preservation_psnr"] < 25 and bad["preservation_ssim"] < good["preservation_ssim"] - 0.03


def test_a_region_may_be_a_picture_and_of_another_size(values):
    edit, source, target = drawn("local_change", 3)
    everywhere = truth.region_of(edit).any(axis=0)
    large = cv2.resize(everywhere.astype(np.uint8), (160, 160), interpolation=cv2.INTER_NEAREST) > 0
    found = values(source, target, region=np.repeat(large[None], len(source), axis=0))
    assert found["region_area"] == pytest.approx(everywhere.mean(), abs=0.01)
    assert found["preservation_psnr"] > 50


@pytest.mark.parametrize("category", ["local_change", "local_remove", "local_add"])
def test_a_region_that_is_not_given_is_found(values, category):
    for seed in (3, 4):
        edit, source, target = drawn(category, seed)
        found = values(source, target, category, edit.prompt)
        assert found["region_known"] == 0
        assert 0.02 < found["region_area"] <= truth.region_of(edit).mean() + 0.01
        spoilt = target.copy()
        away = ~truth.region_of(edit).any(axis=0)
        away = cv2.erode(away.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
        row, column = np.argwhere(away)[0]
        spot = spoilt[:, max(0, row - 3) : row + 3, max(0, column - 3) : column + 3]
        spot[:] = 255 - spot
        bad = values(source, spoilt, category, edit.prompt)
        assert bad["preservation_psnr"] < found["preservation_psnr"] - 10


@pytest.mark.parametrize("category", CLIPS)
def test_noise_spoils_preservation_the_more_the_stronger_it_is(values, category):
    edit, source, target = drawn(category, 5)
    clean, weak, strong = (
        values(source, noisy(target, sigma), category, edit.prompt) for sigma in (0, 6, 20)
    )
    for name in ("preservation_psnr", "preservation_ssim"):
        assert clean[name] > weak[name] > strong[name]
    assert 20 < strong["preservation_psnr"] < 27  # 20 log10(255 / 20) is 22


def test_nothing_is_preserved_of_a_style_and_of_a_background_what_stands_before_it(values):
    edit, source, target = drawn("global_style", 1)
    found = values(source, target, "global_style", edit.prompt)
    none = ("preservation_psnr", "preservation_ssim", "preservation_lpips", "colour_shift", "colour_drift")
    assert found["region_area"] == 1 and all(found[name] is None for name in none)
    edit, source, target = drawn("background_change", 1)
    before = world.cover(edit.after) > 0.5
    found = values(source, target, "background_change", edit.prompt)
    assert found["region_area"] == pytest.approx(1 - before.mean(), abs=0.05)
    repainted = np.where(before[..., None], moved(target, 18), target)
    bad = values(source, repainted, "background_change", edit.prompt, region=~before)
    assert bad["preservation_psnr"] < 25 and bad["colour_shift"] > 4


def test_categories_of_benchmarks_are_understood():
    def of(category, prompt="", reference=None):
        return category_of(Item("one", category, prompt, "", reference))

    assert [of(name) for name in edits.CATEGORIES] == list(edits.CATEGORIES)
    assert of("background_reference", reference="x") == of("background") == "background_change"
    assert of("subject", "Add the thing of the picture on the left.", "x") == "local_add"
    assert of("subject_reference", "Replace the dog with the thing of the picture.", "x") == "local_change"
    assert of("subject", "Turn it upside down or so.", "x") == of("subtitles", "") == "local_change"
    assert of("instruction", "Remove the dog.") == "local_remove"


# Structural similarity


def plainly(one, other, mask):
    """SSIM by loops over windows of eleven pixels, of which only what is masked counts."""
    one, other = (picture @ np.array([0.299, 0.587, 0.114]) for picture in (one, other))
    steps = np.arange(-5, 6)
    window = np.exp(-(steps**2) / (2 * 1.5**2))
    window = np.outer(window, window)
    padded = [np.pad(array, 5, mode="reflect") for array in (one, other, mask.astype(float))]
    total = []
    for row, column in np.argwhere(mask):
        x, y, shown = (array[row : row + 11, column : column + 11] for array in padded)
        weights = window * shown / (window * shown).sum()
        mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
        var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
        shared = (weights * (x - mean_x) * (y - mean_y)).sum()
        low, high = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        total.append(
            (2 * mean_x * mean_y + low) * (2 * shared + high)
            / ((mean_x**2 + mean_y**2 + low) * (var_x + var_y + high))
        )  # fmt: skip
    return np.mean(total)


def test_ssim_is_what_its_formula_says():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (2, 24, 31, 3), dtype=np.uint8)
    other = noisy(one, 40, seed=1)
    whole = np.ones((2, 24, 31), bool)
    part = rng.random((2, 24, 31)) < 0.6
    part[0, :10] = False
    for mask in (whole, part):
        wanted = np.average([plainly(*each) for each in zip(one, other, mask)], weights=mask.sum(axis=(1, 2)))
        assert preservation.ssim(one, other, mask) == pytest.approx(wanted, abs=1e-4)
        assert preservation.ssim(other, one, mask) == pytest.approx(wanted, abs=1e-4)
        assert preservation.ssim(one, one, mask) == pytest.approx(1, abs=1e-5)


def test_no_difference_is_so_small_that_it_passes_the_highest_value():
    source = np.zeros((4, 128, 128, 3), np.uint8)
    edit, outside = source.copy(), np.ones((4, 128, 128), bool)
    edit[0, 0, 0, 0] = 1  # one level in one place of so many would be 101 dB
    assert preservation.psnr(source, edit, outside) == preservation.HIGHEST_PSNR
    edit[0, 0] = 1
    assert preservation.psnr(source, edit, outside) < 80


def test_what_is_not_outside_does_not_change_anything():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    other, outside = noisy(one, 25), np.ones((3, 40, 40), bool)
    outside[:, 10:25, 5:30] = False
    spoilt = np.where(outside[..., None], other, 255 - other)
    for measure in (preservation.psnr, preservation.ssim, colours.shift_and_drift):
        assert measure(one, spoilt, outside) == measure(one, other, outside)
    error = np.square(one[outside].astype(float) - other[outside]).mean()
    assert preservation.psnr(one, other, outside) == pytest.approx(10 * np.log10(255**2 / error))


# Colours


def test_a_cast_is_a_shift_and_not_a_drift(values):
    _, source, target = drawn("local_change", 3)
    good = values(source, target)
    cast = values(source, moved(target, (12, 0, -12)))
    assert cast["colour_shift"] > good["colour_shift"] + 4 and cast["colour_drift"] < 0.5
    along = np.linspace(0, 1, len(target))[:, None, None, None]
    drifting = values(source, moved(target, along * (24, 0, -24)))
    assert drifting["colour_drift"] > 8
    slower = values(source, moved(target, along * (8, 0, -8)))
    assert 2 < slower["colour_drift"] < drifting["colour_drift"]


def test_light_that_changes_in_the_source_too_is_no_drift():
    edit, source, target = drawn("local_change", 3)
    outside = ~truth.region_of(edit)
    dusk = np.linspace(1, 0.6, len(source))[:, None, None, None]
    source, target = ((clip * dusk).astype(np.uint8) for clip in (source, target))
    shift, drift = colours.shift_and_drift(source, target, outside)
    assert shift < 0.2 and drift < 0.2
    steady = (world.render(edit.after)).astype(np.uint8)
    assert colours.shift_and_drift(source, steady, outside)[1] > 10


# Frame to frame


def test_flicker_boiling_and_noise_are_not_steady(values):
    _, source, target = drawn("local_change", 3)
    good = values(source, target)
    flash = moved(target, np.where(np.arange(len(target)) % 2, 15, -15)[:, None, None, None])
    rng = np.random.default_rng(0)
    blots = [cv2.resize(blot, (64, 64), interpolation=cv2.INTER_CUBIC) for blot in rng.normal(0, 12, (9, 9, 9, 3))]
    for spoilt in (flash, moved(target, np.stack(blots)), noisy(target, 15)):
        bad = values(source, spoilt)
        assert bad["flicker"] > good["flicker"] + 0.01
        assert bad["warp_error"] > good["warp_error"] + 4 and bad["warp_error_gain"] > good["warp_error_gain"] + 4
        assert bad["consistency"] < good["consistency"] and bad["consistency_gain"] < -0.002
    same = values(flash, flash)  # no worse than a source that flickers itself
    assert same["flicker"] == same["warp_error_gain"] == same["consistency_gain"] == 0


def test_movement_alone_is_no_warp_error():
    """A rough plane that moves by some pixels a frame, where a plain difference is large."""
    rng = np.random.default_rng(0)
    plane = refvie_photos.rough(rng, 260, (120, 110, 90)).astype(np.uint8)
    clip = np.stack([plane[4 * time : 4 * time + 120, 3 * time : 3 * time + 160] for time in range(6)])
    plain = np.abs(np.diff(clip.astype(int), axis=0)).mean()
    assert motion.warp_error(clip) < 0.35 * plain
    shuffled = clip[[0, 5, 1, 4, 2, 3]]
    torn = np.stack([np.roll(frame, 37 * (time % 2), axis=0) for time, frame in enumerate(clip)])
    assert motion.warp_error(torn) > 2 * motion.warp_error(clip)
    assert motion.warp_error(shuffled) > motion.warp_error(clip)


def test_what_a_thing_hides_on_its_way_is_no_warp_error():
    rng = np.random.default_rng(0)
    ground, thing = refvie_photos.rough(rng, 200, (60, 130, 60)), refvie_photos.rough(rng, 60, (200, 60, 50))
    clip = np.repeat(ground[None], 5, axis=0)
    for time, frame in enumerate(clip):
        frame[70:130, 20 + 12 * time : 80 + 12 * time] = thing
    hidden = 60 * 12 / 200**2 * np.abs(ground.mean(axis=(0, 1)) - thing.mean(axis=(0, 1))).mean()
    assert motion.warp_error(clip.astype(np.uint8)) < 0.45 < 0.5 * hidden


def test_what_is_torn_is_not_taken_for_hidden():
    """Scenes that change in each frame beside a strip that stays: the strip alone would pass for a steady clip."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        clip = np.stack([refvie_photos.rough(rng, 128, (120, 110, 90)) for _ in range(4)]).astype(np.uint8)
        clip[:, :, :40] = clip[0, :, :40]
        plain = np.abs(np.diff(clip.astype(int), axis=0)).mean()
        assert motion.warp_error(clip) > 0.6 * plain


def test_a_frozen_edit_of_a_moving_source_is_told_and_nothing_else(values):
    for seed in (3, 4, 6):
        _, source, target = drawn("local_change", seed)
        held = target.copy()
        held[3:] = target[3]
        assert values(source, target)["frozen"] == 0
        stopped = values(source, held)
        assert 0.5 < stopped["frozen"] < 0.75 and stopped["duplicated"] == 0
        stutter = values(source, target[[0, 0, 2, 2, 4, 4, 6, 6, 8]])
        assert 0.4 < stutter["frozen"] < 0.6
        assert values(source, np.repeat(target[:1], len(target), axis=0))["frozen"] == 1
    slight = noisy(np.repeat(target[:1], len(target), axis=0), 0.3)  # as a codec leaves it
    assert values(source, slight)["frozen"] == 1


def test_frames_in_which_the_source_rests_are_not_frozen():
    thing = Thing("star", "red", "banded", 13.0, 32.0, 32.0, 2.0, 0.0)
    source = world.render(Scene(Ground("green", "checked"), (thing,), (0.5, 0.5)))
    rests = source[[0, 0, 0, 0, 0, 1, 2, 3, 4]]
    assert motion.repeats(rests, rests)[0] == 0
    assert motion.repeats(rests, np.repeat(source[:1], 9, axis=0))[0] == 1
    assert motion.repeats(rests, source[[0, 1, 2, 3, 4, 4, 4, 4, 4]])[0] == 1  # it moved when the source did not
    assert motion.repeats(rests, source[[0, 1, 2, 3, 4, 5, 6, 6, 6]])[0] == 0.5


def test_a_still_source_says_nothing_of_freezing(values):
    scene = Scene(Ground("green", "checked"), (Thing("circle", "red", "plain", 13.0, 32.0, 32.0, 0.0, 0.0),))
    source = world.render(scene)
    found = values(source, world.render(dataclasses.replace(scene, ground=Ground("blue", "dotted"))), "background")
    assert found["frozen"] is None and found["duplicated"] is None


def test_a_clip_from_which_the_only_thing_that_moved_is_gone_is_not_frozen(values):
    thing = Thing("circle", "red", "plain", 13.0, 32.0, 32.0, 1.5, 0.0)
    scene = Scene(Ground("green", "checked"), (thing,))
    source, empty = world.render(scene), world.render(dataclasses.replace(scene, things=()))
    assert not values(source, empty, "local_remove", "Remove the red circle.")["frozen"]
    assert values(source, empty, "local_change")["frozen"] == 1


def test_moments_that_come_again_are_told_unless_they_do_in_the_source():
    thing = Thing("star", "red", "banded", 13.0, 32.0, 32.0, 2.0, 0.0)
    source = world.render(Scene(Ground("green", "checked"), (thing,), (0.5, 0.5), frames=12))
    loop = source[[0, 1, 2, 3] * 3]
    assert motion.repeats(source, source) == (0, 0)
    frozen, again = motion.repeats(source, loop)
    assert frozen == 0 and again == pytest.approx(0.8)  # eight of the ten that have an earlier one
    assert motion.repeats(loop, loop)[1] == 0
    there_and_back = source[[0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0]]
    assert 0.3 < motion.repeats(source, there_and_back)[1] < 0.7
    held = np.concatenate([source[:4], np.repeat(source[3:4], 8, axis=0)])
    assert motion.repeats(source, held)[1] == 0  # frozen, and no more than that


# References


@pytest.mark.parametrize("category", edits.REFERENCE_CATEGORIES)
def test_the_right_reference_is_nearer_than_a_wrong_one(values, category):
    wins = {"reference_similarity": 0, "reference_fidelity": 0}
    for seed in range(20, 27):
        edit, source, target = drawn(category, seed)
        wrong = edits.draw(category, seed + 100).reference_picture()
        right = values(source, target, category, edit.prompt, reference=edit.reference_picture())
        other = values(source, target, category, edit.prompt, reference=wrong)
        for name in wins:
            assert 0 <= right[name] <= 1
            wins[name] += right[name] > other[name] + 0.02
    assert min(wins.values()) >= 6


def test_where_nothing_appears_nothing_is_like_the_reference(values):
    edit, source, _ = drawn("subject_reference", 20)
    found = values(source, source, "subject", edit.prompt, reference=edit.reference_picture())
    assert found["reference_similarity"] == found["reference_fidelity"] == 0


@pytest.fixture(scope="module")
def paint():
    model = backends.load("synthesise", "classical", {})
    return lambda kind, photo: model.paint([Painting(kind, "", photo.target, photo.masks, 0)])[0]


def test_a_pasted_thing_loses_to_one_seen_anew_but_not_to_another_thing(values, paint):
    prompt = "Add the thing of the picture."
    for seed in (921, 922):
        photo = refvie_photos.pair("local_add", seed)
        reference = paint("subject", photo)
        pasted = values(photo.source, photo.target, "subject", prompt, reference=reference)
        assert pasted["reference_similarity"] > 0.95 and pasted["copy_paste"] > 0.85
        assert pasted["reference_fidelity"] < 0.8 * pasted["reference_similarity"]
        anew = values(photo.source, photo.target, "subject", prompt, reference=np.ascontiguousarray(reference[::-1]))
        assert anew["copy_paste"] < 0.6 and anew["reference_fidelity"] == anew["reference_similarity"]
        other = paint("subject", refvie_photos.pair("local_add", seed + 10))
        wrong = values(photo.source, photo.target, "subject", prompt, reference=other)
        assert wrong["reference_fidelity"] < pasted["reference_fidelity"]


def test_a_reference_pasted_with_its_page_is_told(values, paint):
    photo = refvie_photos.pair("local_add", 921)
    reference = paint("subject", photo)
    sticker, small = photo.source.copy(), cv2.resize(reference, (90, 90), interpolation=cv2.INTER_AREA)
    for time, frame in enumerate(sticker):
        frame[120:210, 130 + 2 * time : 220 + 2 * time] = small
    found = values(photo.source, sticker, "subject", "Add the thing of the picture.", reference=reference)
    assert found["copy_paste"] > 0.9
    assert found["reference_fidelity"] < 0.75 * found["reference_similarity"]


def test_a_still_picture_behind_a_moving_camera_is_a_paste(values, paint):
    photo = refvie_photos.pair("background_change", 931)
    reference = paint("background", photo)
    good = values(photo.source, photo.target, "background", "", reference=reference)
    assert good["copy_paste"] > 0.9 and good["reference_fidelity"] == good["reference_similarity"] > 0.9
    picture = cv2.resize(reference, photo.source.shape[2:0:-1])
    still = np.where(photo.masks[..., None], photo.target, picture)
    bad = values(photo.source, still, "background", "", reference=reference)
    assert bad["reference_fidelity"] < 0.8 * bad["reference_similarity"]


# Files


def test_a_picture_has_no_movement(values):
    _, source, target = drawn("local_change", 3, frames=1)
    found = values(source, target)
    none = ("consistency", "consistency_gain", "warp_error", "warp_error_gain", "frozen", "duplicated", "flicker",
            "colour_drift")  # fmt: skip
    assert all(found[name] is None for name in none)
    assert found["preservation_psnr"] > 50 and found["colour_shift"] < 0.5


def test_what_cannot_be_measured_says_why_in_a_sentence(meter, tmp_path):
    _, source, _ = drawn("local_change", 3)
    good, short, torn = tmp_path / "good.mkv", tmp_path / "short.mkv", tmp_path / "torn.mp4"
    save_exactly(good, source)
    save_exactly(short, source[:3])
    torn.write_bytes(b"no video")
    done = Edit("one", "done", good)
    item = Item("one", "local_change", "", good)
    change = dataclasses.replace
    cases = {
        "does not exist": (item, change(done, path=tmp_path / "none.mp4")),
        "torn.mp4": (item, change(done, path=torn)),
        "cannot be read": (change(item, source=torn), done),
        "ends after 3 of the edit's 9 frames": (change(item, region=short), done),
        "torn.mp4 ": (change(item, reference=torn), done),
        "The model gave up": (item, Edit("one", FAILED, error="The model gave up.")),
    }
    for pattern, given in cases.items():
        found = meter.measure(*given)
        assert found.values == {} and found.item == "one"
        assert found.error.endswith(".") and "\n" not in found.error
        assert pattern in found.error


def test_what_goes_wrong_in_an_unforeseen_way_is_told_too(meter, tmp_path, monkeypatch):
    _, source, _ = drawn("local_change", 3)
    save_exactly(tmp_path / "clip.mkv", source)

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(preservation, "psnr", broken)
    found = meter.measure(Item("one", "x", "", tmp_path / "clip.mkv"), Edit("one", "done", tmp_path / "clip.mkv"))
    assert found.values == {} and "ZeroDivisionError" in found.error


def test_clips_are_compared_at_the_same_moments(meter, tmp_path):
    thing = Thing("star", "red", "banded", 13.0, 32.0, 32.0, 1.0, 0.0)
    source = world.render(Scene(Ground("green", "checked"), (thing,), (1.0, 0.5), frames=12))
    media.save_video(tmp_path / "source.mkv", source, 16, crf=1)
    media.save_video(tmp_path / "edit.mkv", source[::2], 8, crf=1)
    item, edit = Item("one", "local_change", "", tmp_path / "source.mkv"), Edit("one", "done", tmp_path / "edit.mkv")
    by_time, by_frames = (
        meter.measure(item, dataclasses.replace(edit, align=align)).values for align in (TIME, "frames")
    )
    assert by_time["preservation_psnr"] > 35 and by_time["region_area"] < 0.02
    assert by_frames["preservation_psnr"] < by_time["preservation_psnr"] - 5 or by_frames["region_area"] > 0.1
