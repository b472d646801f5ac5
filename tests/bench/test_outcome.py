"""Means with their intervals, failures that count, and whether one run is better than another."""

import itertools
import json

import numpy as np
import pytest

from training.bench import clips, compare, published, results, scoring, statistics, suites
from training.bench.__main__ import main
from training.bench.folder import DONE, FAILED, Edit, Folder, Measured, Verdict
from training.bench.items import Item
from training.bench.judges import Options, open_judge
from training.bench.metrics import meter
from training.bench.pages import report
from training.nano import bench as nano_bench
from training.nano import world

CATEGORIES = ("local_add", "global_style", "local_remove")


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        drawn = {"a": rng.normal(3, 1, 40), "b": rng.normal(4, 0.5, 20)}
        found = statistics.mean(drawn, macro=True)
        hits += found.low <= 3.5 <= found.high
    assert 180 <= hits <= 198  # of 95%


def test_groups_count_by_their_items_or_alike():
    groups = {"a": [1, 1, 1], "b": [5]}
    assert statistics.mean(groups).value == 2 and statistics.mean(groups, macro=True).value == 3
    assert statistics.mean(groups).count == 4
    assert statistics.mean({"a": [2, 2, 2]}).text() == "2.00 (2.00 to 2.00)"
    assert statistics.mean({"a": []}) == statistics.Mean(None, None, None, 0) and statistics.mean({}).text() == "-"
    narrow = statistics.mean({"a": [1, 1, 1], "b": [5, 5, 5]})
    assert narrow.low == narrow.high == 3  # what differs between categories is no chance


@pytest.mark.parametrize(("values", "expected"), [
    ([1, 2, 3], 2 / 8), ([-1, -2, -3], 2 / 8), ([1, 2, -3], 1.0), ([], 1.0), ([0, 0], 1.0), ([0, 4], 1.0),
    ([1] * 10, 2 / 1024),
])  # fmt: skip
def test_the_sign_flip_test_is_exact_for_few(values, expected):
    assert statistics.sign_flip(values) == pytest.approx(expected)


def test_the_sign_flip_test_of_many_is_near_the_exact_one(monkeypatch):
    values = np.random.default_rng(1).normal(0.4, 1, 14)
    exact = statistics.sign_flip(values)
    by_hand = np.mean([
        abs(np.dot(signs, values)) >= abs(values.sum()) - 1e-12 for signs in itertools.product((1, -1), repeat=14)
    ])  # fmt: skip
    assert exact == pytest.approx(by_hand)
    monkeypatch.setattr(statistics, "_EXACT", 0)
    assert statistics.sign_flip(values) == pytest.approx(exact, abs=0.02)


def test_how_steady_a_judge_is():
    found = statistics.steadiness([(1, 3), (2, 2), (4,)])
    assert found.items == 2 and found.deviation == pytest.approx(2**0.5 / 2)
    assert found.error == pytest.approx(0.5)  # of one mean of two values that deviate by the root of 2, in two items
    assert statistics.steadiness([(1,), ()]) is None


# Results


def begun(path, name="x", count=9):
    items = [
        Item(f"i{number}", CATEGORIES[number % 3], f"Do {number}.", path / "none.mp4") for number in range(count)
    ]  # fmt: skip
    return Folder.begin(path, {"bench": "openve", "system": {"name": name}}, items)


def judged(folder, values, identity="judge of one kind", audit=None, name="judge-1"):
    """Scores by item: a number for all criteria, several for repeats, None for a judge that failed, "" for not judged,
    "edit" for an edit that failed, "none" for one that was not made."""
    folder.note_judge(name, {"model": "a-judge", "identity": identity, "settings": {}, "audit": audit})
    for item, value in zip(folder.items, values):
        if value == "none":
            continue
        folder.note_edit(
            Edit(item.id, FAILED, error="Out of memory.") if value == "edit" else Edit(item.id, DONE, item.source)
        )
        if value in ("edit", ""):
            continue
        for repeat, one in enumerate(value if isinstance(value, tuple) else (value,)):
            scores = {} if one is None else dict.fromkeys(item.criteria, float(one))
            status = FAILED if one is None else DONE
            told = Verdict(item.id, repeat, status, scores, scores, "so", error="Unread." if one is None else "")
            folder.note_verdicts(name, [told])
    return folder


def test_failures_count_as_the_lowest_and_what_is_missing_does_not(tmp_path):
    folder = judged(begun(tmp_path / "run"), [4, 2, "edit", (5, 3), None, 3, "none", "", 5])
    found = results.of(folder, "judge-1")
    assert [one.status for one in found.items] == [
        "scored", "scored", "edit failed", "scored", "judge failed", "scored", "not made yet", "not judged yet",
        "scored",
    ]  # fmt: skip
    assert found.overall.without.value == pytest.approx((4 + 2 + 4 + 3 + 5) / 5) and found.overall.without.count == 5
    assert found.overall.counting.value == pytest.approx((4 + 2 + 4 + 3 + 5 + 1 + 1) / 7)
    assert (found.overall.failed, found.overall.missing, found.complete) == (2, 2, False)
    add, style, remove = (found.by_category[name] for name in CATEGORIES)
    assert add.counting.value == 4 and style.counting.value == 1.5 and remove.counting.value == 3
    assert found.macro.value == pytest.approx((4 + 1.5 + 3) / 3)
    assert found.overall.criteria["preservation"].value == found.overall.without.value
    assert found.steadiness.items == 1
    text = found.text()
    assert "| all | 9 | 2 | 2 | 3.60 (" in text and "i2 (edit failed): Out of memory." in text
    assert "i4 (judge failed): Unread." in text and "not the whole run" in text
    told = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert told["items"][3]["repeats"] == [5, 3] and told["complete"] is False


def test_a_repeat_that_failed_leaves_the_others(tmp_path):
    folder = judged(begun(tmp_path / "run", count=1), [(None, 4)])
    (one,) = results.of(folder, "judge-1").items
    assert (one.status, one.overall) == ("scored", 4)
    with pytest.raises(ValueError, match="has no scores by other; there are judge-1"):
        results.of(folder, "other")


def test_what_was_found_out_of_an_edit_that_was_made_anew_is_not_its(tmp_path):
    folder = begun(tmp_path / "run", count=2)
    clips = [tmp_path / f"{number}.mp4" for number in range(2)]
    for clip in clips:
        clip.write_bytes(b"first")
    for item, clip in zip(folder.items, clips):
        folder.note_edit(Edit(item.id, DONE, clip))
        folder.note_measured(Measured(item.id, {"psnr": 30.0}))
    folder.note_judge("judge-1", {"model": "a-judge", "identity": "x", "settings": {}, "audit": None})
    scores = dict.fromkeys(folder.items[0].criteria, 4.0)
    folder.note_verdicts("judge-1", [Verdict(item.id, 0, DONE, scores, scores) for item in folder.items])
    clips[0].write_bytes(b"second")
    folder.note_edit(Edit("i0", DONE, clips[0]))
    assert [one.status for one in results.of(folder, "judge-1").items] == ["not judged yet", "scored"]
    assert set(folder.measured()) == {"i1"}
    clips[0].write_bytes(b"first")
    folder.note_edit(Edit("i0", DONE, clips[0]))
    assert results.of(folder, "judge-1").complete and set(folder.measured()) == {"i0", "i1"}


def test_numbers_without_a_judge(tmp_path):
    folder = begun(tmp_path / "run", count=4)
    for number, value in enumerate((30.0, 20.0, None)):
        folder.note_measured(Measured(f"i{number}", {"psnr": value, "none": None}))
    folder.note_measured(Measured("i0", {"psnr": 40.0, "none": None}))  # measured again
    folder.note_measured(Measured("i3", {}, "The clip cannot be read."))
    found = results.numbers(folder)
    assert set(found.numbers) == {"psnr"} and found.numbers["psnr"].mean.value == 30
    assert found.numbers["psnr"].absent == 1 and found.numbers["psnr"].by_category["local_add"].value == 40
    assert (found.measured, found.missing, found.failed) == (3, 0, {"i3": "The clip cannot be read."})
    assert "i3: The clip cannot be read." in results.text_of_numbers(folder)


def test_what_is_quoted_is_told_with_its_judge():
    assert [one.score for one in published.of("openve")][:2] == [4.04, 3.49]
    assert {one.system: one.score for one in published.of("refvie")}["Kiwi-Edit, reference-only"] == 3.31
    assert published.of("nano") == [] and set(published.JUDGES) == {"openve", "refvie"}


# Comparisons


def test_two_runs_are_compared_item_by_item(tmp_path):
    a = judged(begun(tmp_path / "a", "old"), [3, 3, 3, 3, 3, 3, 3, "none", "edit"])
    b = judged(begun(tmp_path / "b", "new"), [4, 3, 2, 4, 3, 3, 4, 3, "edit"])
    found = compare.compare(a, b)
    every = found.differences["all"]
    assert every.mean.value == pytest.approx(2 / 8) and (every.wins, every.ties, every.losses) == (3, 4, 1)
    assert every.p == pytest.approx(10 / 16)  # of 1, 1, 1 and -1
    assert found.differences["local_add"].mean.value == 1 and found.differences["local_remove"].losses == 1
    assert found.alone == (0, 1) and "new against old, by a-judge" in found.text()
    assert "1 items that only new has" in found.text()


def test_fewer_edits_do_not_look_better(tmp_path):
    a = judged(begun(tmp_path / "a", "old"), [2] * 9)
    b = judged(begun(tmp_path / "b", "new"), ["edit"] * 4 + [None] * 4 + [5])
    found = compare.compare(a, b, max_drop=0.1)
    assert found.differences["all"].mean.value == pytest.approx((8 * -1 + 3) / 9) and not found.passed


@pytest.mark.parametrize(("drop", "per_category", "passed"), [
    (0.3, False, True), (0.1, False, False), (0.3, True, False), (0.8, True, True), (0, False, False),
])  # fmt: skip
def test_the_gate(tmp_path, capsys, drop, per_category, passed):
    a = judged(begun(tmp_path / "a", "old"), [3] * 9)
    b = judged(begun(tmp_path / "b", "new"), [3, 3, 3, 3, 3, 2, 3, 3, 2])  # removals, by two thirds
    found = compare.compare(a, b, max_drop=drop, per_category=per_category)
    assert found.passed == passed
    given = ["compare", str(a.path), str(b.path), "--max-drop", str(drop)]
    assert main([*given, "--per-category"] if per_category else given) == (0 if passed else 1)
    assert f"Allowed drop {drop:g}: {'passed' if passed else 'failed by'}" in capsys.readouterr().out


def test_what_cannot_be_compared_is_told(tmp_path):
    a = judged(begun(tmp_path / "a"), [3] * 9)
    with pytest.raises(ValueError, match="other settings"):
        compare.compare(a, judged(begun(tmp_path / "b"), [3] * 9, "of another kind"))
    with pytest.raises(ValueError, match="No judge has scored both"):
        compare.compare(a, begun(tmp_path / "c"))
    other = Folder.begin(tmp_path / "d", a.run, [Item("i0", "local_add", "Another.", tmp_path / "none.mp4")])
    with pytest.raises(ValueError, match="no item in common"):
        compare.compare(a, other)
    for folder in (a, b := judged(begun(tmp_path / "e"), [3] * 9)):
        judged(folder, [3] * 9, name="judge-2")
    with pytest.raises(ValueError, match="say which with --judge: judge-1, judge-2"):
        compare.compare(a, b)
    assert compare.compare(a, b, "judge-2").differences["all"].ties == 9
    with pytest.raises(ValueError, match="no scores by judge-3"):
        compare.compare(a, b, "judge-3")
    with pytest.raises(ValueError, match="--max-drop is -1"):
        compare.compare(a, b, "judge-2", -1)
    with pytest.raises(ValueError, match="Nothing was scored or measured"):
        compare.compare(begun(tmp_path / "f"), begun(tmp_path / "g"))


def test_numbers_are_compared_where_nobody_judged(tmp_path):
    runs = begun(tmp_path / "a", "old"), begun(tmp_path / "b", "new")
    for folder, (psnr, warp, area) in zip(runs, ((30, 2.0, 0.1), (29, 1.5, 0.9))):
        for item in folder.items[: 8 if folder is runs[0] else 9]:
            values = {"preservation_psnr": psnr, "warp_error": warp, "region_area": area, "text_alignment": None}
            folder.note_measured(Measured(item.id, values))
    found = compare.compare(*runs, max_drop=0.5)
    assert set(found.differences) == {"preservation_psnr", "warp_error"}  # an area is not better or worse
    assert found.differences["preservation_psnr"].mean.value == -1
    assert found.differences["warp_error"].mean.value == 0.5  # less is better
    assert found.dropped == ("preservation_psnr",) and found.alone == (0, 1)


def test_nano_bench_is_measured_exactly(tmp_path, capsys):
    items = suites.nano(tmp_path / "right", share=0.01)
    known = {item.name.replace("/", "-"): item.edit for item in nano_bench.items({"seen": 1, "composition": 1})}
    for item in items:
        clips.save_exactly(tmp_path / "targets" / f"{item.id}.mkv", world.render(known[item.id].after), 8)
    given = ["run", "--bench", "nano", "--share", "0.01"]
    assert main([*given, "--out", str(tmp_path / "right"), "--edits", str(tmp_path / "targets")]) == 0
    assert main([*given, "--out", str(tmp_path / "copy"), "--model", "copy"]) == 0
    found = {}
    for name in ("right", "copy"):
        assert main(["measure", "--out", str(tmp_path / name)]) == 0
        found[name] = results.numbers(Folder(tmp_path / name)).numbers
    assert found["right"]["nano_success"].mean.value == found["right"]["nano_preserved"].mean.value == 1
    assert found["right"]["nano_region_psnr"].mean.value == 100
    assert found["copy"]["nano_success"].mean.value == 0 and found["copy"]["nano_success"].mean.count == 14


def test_numbers_of_other_versions_are_made_anew_and_not_compared(openve_bench, tmp_path, monkeypatch):
    given = ["run", "--bench", "openve", "--data", str(openve_bench), "--model", "copy", "--frames", "3"]
    folders = [tmp_path / "one", tmp_path / "two"]
    for path in folders:
        assert main([*given, "--out", str(path)]) == 0
        assert main(["measure", "--out", str(path)]) == 0
    lines = (folders[1] / "metrics.jsonl").read_text().splitlines()
    assert main(["measure", "--out", str(folders[1])]) == 0
    assert (folders[1] / "metrics.jsonl").read_text().splitlines() == lines  # nothing is done twice
    runs = list(map(Folder, folders))
    assert compare.compare(*runs, max_drop=0).passed
    monkeypatch.setattr(meter, "VERSION", "another")
    assert main(["measure", "--out", str(folders[1])]) == 0
    assert len((folders[1] / "metrics.jsonl").read_text().splitlines()) == 2 * len(lines)
    assert len(results.numbers(runs[1]).identities) == 1
    with pytest.raises(ValueError, match="measured by other models or versions"):
        compare.compare(*runs)
    page = report.write(runs, tmp_path / "page", shown=0).read_text(encoding="utf-8")
    assert "measured by different models or versions" in page


def test_the_commands_tell_what_came_of_it(openve_bench, tmp_path, capsys):
    given = ["--bench", "openve", "--data", str(openve_bench), "--out", str(tmp_path / "run"), "--model", "copy"]
    assert main(["run", *given, "--frames", "5"]) == 0
    assert main(["measure", "--out", str(tmp_path / "run")]) == 0
    assert "preservation_psnr" in capsys.readouterr().out
    assert main(["score", "--out", str(tmp_path / "run"), "--judge", "classical", "--frames", "2"]) == 0
    told = capsys.readouterr().out
    assert "10 edits scored, 0 failed, 0 known before." in told and "| all | 10 | 0 | 0 | 1.00 (" in told
    name = scoring.name_of(open_judge("classical", Options(frames=2)))
    assert results.of(Folder(tmp_path / "run"), name).overall.without.value == 1
    assert main(["measure", "--out", str(tmp_path / "none")]) == 2
    assert "There is no run in" in capsys.readouterr().err
