"""Pairs whose truth is known: what is written is true, what is broken is broken as told, and comparisons tell apart."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from kiwi_core import media
from training.nano import world
from training.nano.world import Ground, Thing
from training.refvie import frames as frame_files
from training.refvie import likeness, truth
from training.refvie.pairs.pair import ADD, BACKGROUND, CATEGORIES, CHANGE, STYLE
from training.refvie.truth import Truth

COUNT, SHARE = 50, 0.6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    truth.make(folder, COUNT, seed=3, broken=SHARE)
    return folder


@pytest.fixture(scope="module")
def truths(folder):
    return truth.read(folder)


def frames(folder, path):
    return media.load_video(folder / path).frames.astype(float)


def test_every_kind_of_fault_is_there_as_often(truths):
    assert Counter(one.broken or one.copied for one in truths.values()) == {"": 20} | {
        fault: 3 for fault in (*truth.BROKEN, *truth.COPIES)
    }
    assert {one.category for one in truths.values() if not one.broken} == {*CATEGORIES}


def test_the_table_tells_no_truth(folder, truths):
    rows = [json.loads(line) for line in (folder / truth.PAIRS).read_text().splitlines()]
    assert [row["id"] for row in rows] == [*truths]
    for row in rows:
        assert set(row) == {"id", "src_video", "tgt_video", "prompt", "category"}
        one = truths[row["id"]]
        assert (folder / row["src_video"]).is_file() and (folder / row["tgt_video"]).is_file()
        assert (row["prompt"] == "") == (one.broken == "empty prompt")


def test_the_same_arguments_give_the_same_pairs(folder, truths, tmp_path):
    truth.make(tmp_path, COUNT, seed=3, broken=SHARE)
    assert truth.read(tmp_path) == truths
    assert (tmp_path / truth.PAIRS).read_text() == (folder / truth.PAIRS).read_text()
    for one in truths.values():
        assert np.array_equal(truth.region(tmp_path, one), truth.region(folder, one))
        if not one.broken and one.copied != "recompressed":
            assert np.array_equal(frames(tmp_path, one.target), frames(folder, one.target))
    truth.make(tmp_path / "other", 5, seed=4)
    assert [one.prompt for one in truth.read(tmp_path / "other").values()] != [
        one.prompt for one in list(truths.values())[:5]
    ]


def test_masks_are_where_the_edit_is(folder, truths):
    for one in truths.values():
        if one.broken or one.copy_of:
            continue
        masks = truth.region(folder, one)
        apart = np.abs(frames(folder, one.source) - frames(folder, one.target)).max(axis=-1)
        assert masks.shape == apart.shape
        if one.category == STYLE:
            assert masks.all()
        elif one.category == BACKGROUND:
            assert apart[masks].mean() < 12 < apart[~masks].mean()
        else:
            assert apart[masks].mean() > 4 * apart[~masks].mean()
        for mask, box in zip(masks, one.boxes):
            rows, columns = np.nonzero(mask)
            edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert box == pytest.approx([edge / 64 for edge in edges])


def test_faults_are_as_told(folder, truths):
    for one in truths.values():
        if one.broken == "truncated":
            with pytest.raises(ValueError, match=r"damaged|frames and the target"):
                frame_files.take(str(folder / one.source), str(folder / one.target), 8, 448)
            continue
        source, target = frames(folder, one.source), frames(folder, one.target)
        apart = np.abs(source - target).mean()
        if one.broken == "no edit":
            assert apart < 2
        elif one.broken == "noise":
            assert np.abs(target - np.roll(target, 1, axis=2)).mean() > 12
        elif one.broken == "flicker":
            light = target.mean(axis=(1, 2, 3))
            assert np.abs(np.diff(light)).max() > 8 > np.abs(np.diff(source.mean(axis=(1, 2, 3)))).max()
        elif one.broken != "":
            assert apart > 0


def test_copies_are_of_whole_pairs(folder, truths):
    for one in truths.values():
        if one.copy_of:
            first = truths[one.copy_of]
            assert not first.broken and not first.copy_of
            assert (one.prompt, one.category, one.shows) == (first.prompt, first.category, first.shows)
            same = (folder / one.target).read_bytes() == (folder / first.target).read_bytes()
            assert same == (one.copied == "copy")
            assert np.abs(frames(folder, one.target) - frames(folder, first.target)).mean() < 8


def test_clips_can_be_larger(tmp_path):
    truth.make(tmp_path, 2, seed=3, broken=0, size=96)
    one = truth.read(tmp_path)["000001"]
    assert frames(tmp_path, one.target).shape[1:3] == (96, 96)
    assert truth.region(tmp_path, one).shape[1:] == (96, 96)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"broken": 1.5}, {"size": 8}, {"size": 65}])
def test_senseless_arguments_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="Give a count"):
        truth.make(tmp_path, **{"count": 4} | wrong)
    assert not any(tmp_path.iterdir())


def test_regions_are_compared():
    true = np.zeros((9, 8, 8), bool)
    true[:, 2:6, 2:6] = True
    assert truth.region_iou(true, true) == 1
    assert truth.region_iou(true[[0, 4, 8]], true) == 1
    assert truth.region_iou(np.zeros((3, 8, 8), bool), true) == 0
    assert truth.region_iou(np.roll(true, 2, axis=2), true) == pytest.approx(1 / 3)
    boxes = [(0.25, 0.25, 0.75, 0.75), None]
    assert truth.box_iou(boxes, boxes) == 1
    assert truth.box_iou([(0.5, 0.25, 1.0, 0.75), (0, 0, 1, 1)], boxes) == pytest.approx(1 / 6)


def shows(category, **fields):
    return Truth("a", category, "", "", "", shows=fields)


def test_references_match_what_they_show():
    for number, (colour, shape) in enumerate(zip(world.COLOURS, (*world.SHAPES, *world.SHAPES))):
        if colour == "white":
            continue
        texture = world.TEXTURES[number % 3]
        picture = world.portrait(Thing(shape, colour, texture, 33.0, 60.0, 53.0, 0.0, 0.0))
        truthful = shows(CHANGE, shape=shape, colour=colour, texture=texture)
        assert truth.reference_match(picture, truthful)
        others = {"shape": world.SHAPES[world.SHAPES.index(shape) - 1], "colour": "white"}
        for field, other in others.items():
            assert not truth.reference_match(picture, shows(ADD, **truthful.shows | {field: other}))
    for number, colour in enumerate(world.GROUNDS):
        for pattern in world.PATTERNS[number % 2 :: 2]:
            picture = world.backdrop(Ground(colour, pattern, (5.0, 11.0)))[:56, :56]
            assert likeness.ground(picture) == {"colour": colour, "pattern": pattern}
            assert truth.reference_match(picture, shows(BACKGROUND, colour=colour, pattern=pattern))
    assert not truth.reference_match(picture, shows(STYLE))
    assert not truth.reference_match(np.full((64, 64, 3), 255, np.uint8), truthful)


def test_selections_are_counted():
    def one(name, **fields):
        return Truth(name, CHANGE, "", "", "", **{"shows": {"colour": "red"}} | fields)

    rows = (one("a"), one("b"), one("c", copy_of="a", copied="copy"), one("d", broken="noise"), one("e", shows={}))
    truths = {row.id: row for row in rows}
    assert truth.selection(["a", "b"], truths) == (1, 1)
    assert truth.selection(["c"], truths) == (1, 0.5)
    assert truth.selection(["a", "c"], truths) == (0.5, 0.5)
    assert truth.selection(["a", "d", "e", "b"], truths) == (0.5, 1)
    precision, recall = truth.selection([], truths)
    assert math.isnan(precision) and recall == 0
