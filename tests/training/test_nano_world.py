"""The toy world: the same from the same seed, what is held out stays out, and its measure knows right from wrong."""

import dataclasses
import re

import numpy as np
import pytest

from kiwi_core import media
from training.data.rows import read_rows
from training.nano import bench, edits, feed, language, measure, rows, tokens, words, world

CATEGORIES = (*edits.CATEGORIES, *edits.REFERENCE_CATEGORIES)
EVERY = [(category, split) for category in CATEGORIES for split in edits.SPLITS]


def drawn(category, split="seen", count=3):
    return [edits.draw(category, edits.BENCH_SEEDS + number, split) for number in range(count)]


def pairs(scene):
    return {(thing.colour, thing.shape) for thing in scene.things}


def test_an_edit_is_its_seed():
    for category in CATEGORIES:
        first, again, other = (edits.draw(category, seed) for seed in (7, 7, 8))
        assert first == again
        assert first != other
        assert np.array_equal(world.render(first.after), world.render(again.after))


def test_a_ground_of_a_picture_begins_where_the_picture_does():
    found = drawn("background_reference", count=12)
    assert len({edit.reference.phase for edit in found}) > 4  # not one picture for each ground
    for edit in found:
        assert edit.after.ground == edit.reference
        others = [scene for name, scene in measure.alternatives(edit) if name != "source"]
        assert {scene.ground.phase for scene in others} == {edit.reference.phase}


def test_things_are_of_one_size_and_on_the_grid():
    for category in CATEGORIES:
        for edit in drawn(category):
            for thing in (*edit.before.things, *edit.after.things):
                assert (thing.radius, {thing.x, thing.y} <= {*world.GRID}) == (world.RADIUS, True)


def test_scenes_are_small_clips_of_bytes():
    edit = edits.draw("local_add", 3)
    clip = world.render(edit.before)
    assert clip.shape == (world.FRAMES, 64, 64, 3)
    assert clip.dtype == np.uint8
    assert world.render(edits.draw("local_add", 3, frames=1).before).shape == (1, 64, 64, 3)


@pytest.mark.parametrize("kind", ["image", "video", "ref"])
def test_training_never_sees_what_is_held_out(kind):
    for number in range(120):
        edit = rows.row_edit(kind, number, seed=0)
        seen = pairs(edit.before) | pairs(edit.after)
        if isinstance(edit.reference, world.Thing):
            seen.add((edit.reference.colour, edit.reference.shape))
        assert not seen & edits.HELD_OUT_THINGS
        assert not {colour for colour, _ in seen} & set(world.HELD_OUT_COLOURS)
        assert not {shape for _, shape in seen} & set(world.HELD_OUT_SHAPES)
        for scene in (edit.before, edit.after):
            assert (scene.ground.colour, scene.ground.pattern) not in edits.HELD_OUT_GROUNDS
            assert (scene.style, scene.ground.colour) not in edits.HELD_OUT_STYLES
        held_out = [re.sub(r"\\{\w+\\}", ".+", re.escape(one)) for one in words.HELD_OUT_WORDINGS[edit.task]]
        assert not any(re.fullmatch(wording, edit.prompt) for wording in held_out)


def test_held_out_wordings_are_made_of_words_that_training_knows():
    tokenizer = tokens.build()

    def spoken(wordings):
        said = {"thing": "red circle", "colour": "red", "shape": "circle", "place": "top left", "style": "sepia"}
        said |= {"ground": "red striped", "new": "red circle"}
        sentences = [words.say(wording, **said) for group in wordings.values() for wording in group]
        return {token for sentence in sentences for token in tokenizer.encode(sentence).tokens}

    assert spoken(words.HELD_OUT_WORDINGS) <= spoken(words.WORDINGS)


def test_nothing_that_is_trained_on_has_a_seed_of_the_benchmark(monkeypatch):
    draw, drawn_with = edits.draw, []

    def recorded(category, seed, split="seen", frames=world.FRAMES):
        drawn_with.append((seed, split))
        return draw(category, seed, split, frames)

    monkeypatch.setattr(edits, "draw", recorded)
    for number in range(20):
        for kind in ("image", "video", "ref"):
            rows.row_edit(kind, number, seed=0)
    feed.ClipFeed(8, 8, 0.5, seed=0)[1]
    language.QuestionFeed(tokens.build(), 8, seed=0)[0]
    assert len(drawn_with) > 70
    assert all(seed < edits.BENCH_SEEDS and split == "seen" for seed, split in drawn_with)
    drawn_with.clear()
    # The VAE alone is shown what is held out: it is to carry whatever there is, and is told nothing of it.
    feed.ClipFeed(8, 8, 0.5, seed=0, splits=edits.SPLITS)[1]
    assert all(seed < edits.BENCH_SEEDS for seed, _ in drawn_with)
    drawn_with.clear()
    bench.items({"seen": 2, "shape": 2})
    assert all(seed >= edits.BENCH_SEEDS for seed, _ in drawn_with)


@pytest.mark.parametrize(("category", "split"), EVERY)
def test_a_split_shows_what_it_is_named_for(category, split):
    for edit in drawn(category, split):
        shown = pairs(edit.before) | pairs(edit.after)
        if isinstance(edit.reference, world.Thing):
            shown.add((edit.reference.colour, edit.reference.shape))
        if split == "shape" and category != "background_reference":
            assert any(shape in world.HELD_OUT_SHAPES for _, shape in shown)
        if split == "colour" and category != "background_reference":
            assert any(colour in world.HELD_OUT_COLOURS for colour, _ in shown)
        if split == "composition":
            grounds = {(edit.after.ground.colour, edit.after.ground.pattern)}
            styles = {(edit.after.style, edit.after.ground.colour)}
            assert shown & edits.HELD_OUT_THINGS or grounds & edits.HELD_OUT_GROUNDS or styles & edits.HELD_OUT_STYLES


@pytest.mark.parametrize(("category", "split"), EVERY)
def test_the_target_passes_and_the_source_does_not(category, split):
    edit = drawn(category, split, count=1)[0]
    assert measure.score(edit, world.render(edit.after)).passed
    unchanged = measure.score(edit, world.render(edit.before))
    assert not unchanged.success
    assert unchanged.nearest == "source"


def test_the_wrong_colour_shape_or_place_is_no_success():
    for edit in drawn("local_add", count=6):
        thing = edit.after.things[-1]
        others = {
            "colour": dataclasses.replace(thing, colour="red" if thing.colour != "red" else "blue"),
            "shape": dataclasses.replace(thing, shape="ring" if thing.shape != "ring" else "square"),
            "place": dataclasses.replace(thing, x=64 - thing.x + 9, y=64 - thing.y + 9),
        }
        for name, other in others.items():
            made = dataclasses.replace(edit.after, things=(*edit.after.things[:-1], other))
            assert not measure.score(edit, world.render(made)).success, name


def test_an_edit_that_is_right_in_half_of_the_frames_is_no_success():
    for category in edits.CATEGORIES:
        edit = drawn(category, count=1)[0]
        made = world.render(edit.before)
        made[5:] = world.render(edit.after)[5:]
        assert not measure.score(edit, made).success


def test_what_happens_elsewhere_counts_as_not_preserved():
    edit = drawn("local_remove", count=1)[0]
    made = world.render(edit.after)
    outside = measure.kept_of(edit)
    made[outside] = 255 - made[outside]
    score = measure.score(edit, made)
    assert score.success
    assert not score.preserved
    assert not score.passed


def test_flicker_is_measured():
    edit = drawn("global_style", count=1)[0]
    steady = world.render(edit.after)
    flickering = steady.copy()
    flickering[::2] = np.clip(flickering[::2].astype(int) + 12, 0, 255)
    assert measure.score(edit, flickering).stability_psnr < 28 < measure.score(edit, steady).stability_psnr


def test_an_edit_of_another_size_is_refused():
    edit = drawn("local_add", count=1)[0]
    with pytest.raises(ValueError, match="compare like with like"):
        measure.score(edit, world.render(edit.after)[:5])


def test_rows_are_read_like_any_others_and_are_exact(tmp_path):
    pattern = rows.write(tmp_path, (3, 2, 2, 1), seed=1, workers=1)
    found = read_rows([pattern])
    assert len(found) == 8
    assert [row.target.probe().frames for row in found if row.reference] == [9, 9, 1]
    (row,) = [row for row in found if row.id == "ref-1-0"]
    edit = rows.row_edit("ref", 0, seed=1)
    assert row.prompt == edit.prompt
    assert np.array_equal(row.source.frames(), world.render(edit.before))
    assert np.array_equal(row.target.frames(), world.render(edit.after))
    assert np.array_equal(np.array(row.reference.picture()), edit.reference_picture())


def test_a_clip_in_which_nothing_moves_keeps_its_length(tmp_path):
    still = np.repeat(world.render(edits.draw("local_add", 0, frames=1).before), 9, axis=0)
    rows.save_exactly(tmp_path / "still.mkv", still)
    assert np.array_equal(media.load_video(tmp_path / "still.mkv").frames, still)


def test_rows_that_are_there_are_not_written_again(tmp_path):
    rows.write(tmp_path, (2, 0, 0, 0), workers=1)
    (table,) = tmp_path.glob("*/rows.jsonl")
    before = table.stat().st_mtime_ns
    rows.write(tmp_path, (2, 1, 0, 0), workers=1)
    assert table.stat().st_mtime_ns == before
    assert len(list(tmp_path.glob("*/rows.jsonl"))) == 2
    rows.write(tmp_path, (3, 1, 0, 0), workers=1)
    assert [len(path.read_text().splitlines()) for path in sorted(tmp_path.glob("*/rows.jsonl"))] == [3, 1]


def test_rows_are_the_same_files_when_they_are_written_again(tmp_path):
    edit = drawn("local_add", count=1)[0]
    made = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        rows.write_row(tmp_path / name, "row", edit)
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0].keys() == {"row.mkv", "row_edit.mkv"}
    assert made[0] == made[1]


def test_the_benchmark_goes_on_after_a_kill_and_reports(tmp_path):
    chosen = bench.items({"seen": 1, "composition": 1})
    calls = []

    def system(item):
        calls.append(item.name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return world.render(item.edit.after)

    with pytest.raises(KeyboardInterrupt):
        bench.run(tmp_path, "right", system, chosen)
    results = bench.run(tmp_path, "right", system, chosen)
    assert len(calls) == len(chosen) + 1
    assert all(result["passed"] for result in results)
    bench.run(tmp_path, "copy", bench.copy, chosen)
    text = bench.report(tmp_path)
    assert "| right | local_add | 100% (34 to 100) | 100% (34 to 100) |" in text
    assert "| copy | local_add | 0% (0 to 66) |" in text


def test_results_of_another_model_are_not_taken_for_this_ones(tmp_path):
    bench.keep_settings(tmp_path, model="a", steps=20)
    bench.keep_settings(tmp_path, model="a", steps=20)
    with pytest.raises(ValueError, match=r"begun with another model \('a' there, 'b' here\)"):
        bench.keep_settings(tmp_path, model="b", steps=20)
    with pytest.raises(ValueError, match=r"another steps \(20 there, 4 here\)"):
        bench.keep_settings(tmp_path, model="a", steps=4)


def test_the_interval_of_a_rate_is_wilsons():
    # 36 of 40: 0.769 to 0.960, by hand from the formula.
    assert bench.wilson(36, 40) == pytest.approx((0.769, 0.960), abs=1e-3)
    assert bench.wilson(0, 0) == (0.0, 1.0)


def test_a_wrong_reference_shows_something_else():
    chosen = bench.items({"seen": 4}, edits.REFERENCE_CATEGORIES)
    wrong = bench.wrong_references(chosen)
    for item in chosen:
        assert not np.array_equal(wrong[item.name], item.edit.reference_picture())
