"""The report tells what the results are, what is quoted, who judged, and what failed."""

import json
import os
import re
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import bench_runs
import numpy as np
import pytest

from kiwi_core import media
from training.bench import pairwise, published, results
from training.bench.folder import DONE, FAILED, Edit, Folder, Verdict
from training.bench.items import Item
from training.bench.pages import drawings, previews, report


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    failed = {"passed": False, "agreement": 0.5, "judge": "a-judge", "identity": "identity of a-judge"}
    return [
        bench_runs.fill(base / "one", "mine", audit=failed), bench_runs.fill(base / "two", "yours <i>", better=1),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    return report.write(runs, tmp_path_factory.mktemp("page"), shown=8)


@pytest.fixture(scope="module")
def page(written):
    return written.read_text(encoding="utf-8")


def test_the_numbers_are_those_of_the_results(runs, page, written):
    told = json.loads((written.parent / "report.json").read_text(), parse_constant=pytest.fail)
    for folder, kept in zip(runs, told["runs"]):
        found = results.of(folder, "a-judge-1")
        assert found.overall.without.text() in page and found.overall.counting.text() in page
        assert all(one.counting.text() in page for one in found.by_category.values())
        assert kept["judges"][0]["overall"]["counting"]["value"] == found.overall.counting.value
        assert found.overall.counting.text() in (written.parent / "report.md").read_text()
    assert "Preservation, PSNR" in page and results.numbers(runs[0]).numbers["preservation_psnr"].mean.text(3) in page


def test_quoted_scores_stand_apart(page):
    for one in published.of("refvie"):
        assert all(f'<span class="soft">{told}</span>' in page for told in (one.system, f"{one.score:.2f}"))
    assert page.count('<span class="tag">measured here</span>') == 2
    assert page.count("quoted, ") == len(published.of("refvie"))
    assert "do not compare with those measured here" in page
    assert not any(one.system in page for one in published.of("openve") if "Aleph" not in one.system)


def test_a_judge_is_labelled_by_its_audit(runs, page, tmp_path):
    assert "failed its audit: not to be trusted, 50% in the right order" in page and "not audited" in page
    audit = {"passed": True, "agreement": 0.97}
    good = bench_runs.fill(tmp_path / "good", audit=audit, judges=("one", "two"), count=2, fails=())
    text = report.write([good], tmp_path / "page", shown=0).read_text()
    assert text.count("passed its audit, 97% in the right order") == 2
    assert "Scores of different judges do not compare" in text and "different judges" not in page


def test_failures_are_listed_and_every_text_is_escaped(page):
    for words in ("Out of &lt;memory&gt;.", "No answer could be read.", "edit failed", "judge failed"):
        assert words in page
    assert "yours &lt;i&gt;" in page and "<i>" not in page.replace("&lt;i&gt;", "")
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)


def test_the_worst_the_best_and_some_between_are_shown(runs, page, written, tmp_path):
    shown = re.findall(r'<article class="card clip" data-category="\w+" data-value="([\d.]+)" data-name="(\w+)"', page)
    assert len(shown) == 8 and "8 of 14 items" in page
    values = [float(value) for value, _ in shown]
    assert values == sorted(values) and values[:2] == [1, 1] and values[-2:] == [5, 5]
    assert report.write(runs, tmp_path / "again", shown=8).read_text() == page
    assert "All 14 items." in report.write(runs, tmp_path / "all", shown=60).read_text()
    whole = report.write(runs, tmp_path / "one", shown=1).read_text()
    assert whole.count('<article class="card clip"') == 1


def test_clips_are_small_and_made_once(runs, written):
    clips = written.parent / "clips"
    item = next(item for item in runs[0].items if (clips / f"{item.id}-0.mp4").is_file() and item.reference)
    found = previews.make(runs, item, clips)
    assert set(found) == {"source", "reference", "0", "1"}
    shapes = {media.load_video(written.parent / found[key]).frames.shape for key in ("source", "0", "1")}
    assert shapes == {(9, 320, 320, 3)}
    stamps = {key: (written.parent / path).stat().st_mtime_ns for key, path in found.items()}
    previews.make(runs, item, clips)
    assert {key: (written.parent / path).stat().st_mtime_ns for key, path in found.items()} == stamps
    later = (written.parent / found["0"]).stat().st_mtime + 10
    os.utime(runs[0].edit(item).path, (later, later))
    previews.make(runs, item, clips)
    assert (written.parent / found["0"]).stat().st_mtime_ns != stamps["0"]


def test_what_cannot_be_read_leaves_a_gap(tmp_path):
    folder = bench_runs.fill(tmp_path / "run", count=7, fails=())
    for item in folder.items[:2]:
        folder.edit(item).path.write_bytes(b"no clip")
    folder.items[-1].reference.unlink()
    page = report.write([folder], tmp_path / "page").read_text()
    assert page.count("no edit") == 2 and page.count("no source") == 0 and page.count(">gone<") == 1


def clip(path, levels, rate):
    """A clip whose brightness tells which frame it is."""
    frames = np.zeros((len(levels), 64, 64, 3), np.uint8) + np.asarray(levels, np.uint8).reshape(-1, 1, 1, 1)
    return media.save_video(path, frames, rate, crf=4)


def begun(path, edit, item):
    folder = Folder.begin(path, {"bench": "own", "system": {"name": path.name}}, [item])
    folder.note_edit(edit)
    return folder


def levels(page, name):
    told = media.load_video(page / "clips" / f"i0-{name}.mp4")
    return float(told.frame_rate), told.frames.mean(axis=(1, 2, 3))


@pytest.fixture(scope="module")
def item(tmp_path_factory):
    """Its source is 4 seconds long, of 96 frames."""
    source = clip(tmp_path_factory.mktemp("source") / "source.mp4", 2 * np.arange(96) + 20, 24)
    return Item("i0", "local_add", "Do.", source)


def test_a_page_that_is_written_anew_for_other_runs_shows_their_clips(item, tmp_path):
    runs = [
        begun(tmp_path / name, Edit("i0", DONE, clip(tmp_path / f"{name}.mp4", [level] * 8, 8)), item)
        for name, level in (("dark", 40), ("bright", 200))
    ]  # fmt: skip
    for order in (runs, runs[::-1], runs):
        report.write(order, tmp_path / "page")
        brightness = [levels(tmp_path / "page", number)[1].mean() for number in (0, 1)]
        assert brightness == pytest.approx([200, 40] if order[0] is runs[1] else [40, 200], abs=6)


def test_clips_of_an_item_are_at_the_same_moment_however_they_are_aligned(item, tmp_path):
    same = 2 * np.arange(96) + 20
    edits = [
        Edit("i0", DONE, clip(tmp_path / "slow.mp4", same[:48], 8), align="frames"),
        Edit("i0", DONE, clip(tmp_path / "time.mp4", same, 24), align="time"),
        Edit("i0", DONE, clip(tmp_path / "held.mp4", same[::4], 6), align="time"),
    ]
    runs = [begun(tmp_path / f"run{number}", edit, item) for number, edit in enumerate(edits)]
    report.write(runs, tmp_path / "page")
    rate, source = levels(tmp_path / "page", "source")
    assert rate == 24 and len(source) == 96
    for number, near in enumerate((4, 4, 10)):
        told, shown = levels(tmp_path / "page", number)
        ends = 48 if number == 0 else 96
        assert told == rate and len(shown) == 96 and np.abs(shown - source)[:ends].max() < near
        assert ends == 96 or shown[ends + 1 :].max() < 8  # over, so black


def test_a_long_clip_is_as_fast_as_it_was(tmp_path):
    long = Item("i0", "local_add", "Do.", clip(tmp_path / "source.mp4", np.arange(240), 24))
    report.write(begun(tmp_path / "run", Edit("i0", DONE, long.source), long), tmp_path / "page")
    rate, shown = levels(tmp_path / "page", 0)
    assert len(shown) == previews.MOST_FRAMES and len(shown) / rate == pytest.approx(10, abs=0.01)


def test_the_source_is_shown_where_the_edit_failed(item, tmp_path):
    folder = begun(tmp_path / "run", Edit("i0", FAILED, error="Out of memory."), item)
    page = report.write(folder, tmp_path / "page").read_text()
    assert "no edit" in page and "no source" not in page and 'src="clips/i0-source.mp4"' in page


def test_what_has_no_score_yet_is_neither_best_nor_worst(tmp_path):
    folder = bench_runs.fill(tmp_path / "run", count=9, fails=(), judges=())
    folder.note_judge("j-1", {"model": "j", "identity": "x", "settings": {}, "audit": None})
    for number, item in enumerate(folder.items[:4]):
        scores = dict.fromkeys(item.criteria, 2.0 + number)
        folder.note_verdicts("j-1", [Verdict(item.id, 0, DONE, scores, scores)])
    for shown in (4, 60):
        page = report.write(folder, tmp_path / "page", shown=shown).read_text()
        values = re.findall(r'data-value="([\d.]*)" data-name', page)
        known = [float(value) for value in values if value]
        assert values[: len(known)] == sorted(values[: len(known)]) and len(values) == min(shown, 9)
        assert known[0] == 2 and known[-1] == 5 and not any(values[len(known) :])


def test_runs_of_one_name_are_told_apart(item, tmp_path):
    runs = [
        Folder.begin(tmp_path / name / "run", {"bench": "own", "system": {"name": "same"}}, [item]) for name in "uv"
    ]  # fmt: skip
    page = report.write(runs, tmp_path / "page", shown=0).read_text()
    assert all(f"same ({folder.path})" in page for folder in runs)


def test_runs_of_two_benchmarks_are_refused(runs, tmp_path):
    other = bench_runs.fill(tmp_path / "other", bench="openve", count=1, fails=())
    with pytest.raises(ValueError, match="several benchmarks, openve and refvie"):
        report.write([runs[0], other], tmp_path / "page")
    with pytest.raises(ValueError, match="--shown is -1"):
        report.write(runs, tmp_path / "page", shown=-1)
    assert not (tmp_path / "page").exists()


def test_a_run_without_a_judge_is_reported(tmp_path):
    folder = bench_runs.fill(tmp_path / "run", judges=(), count=3, fails=())
    page = report.write([folder], tmp_path / "page").read_text()
    assert "no judge yet" in page and "Preservation, PSNR" in page and "By category" not in page


def test_drawings_are_true():
    drawn = ElementTree.fromstring(drawings.radar(["a", "b", "c", "d"], [[5, 1, 3, None]], 1, 5))  # noqa: S314
    run = next(one for one in drawn.iter() if one.get("class") == "run")
    points = [tuple(map(float, point.split(","))) for point in run.get("points").split()]
    assert points[0] == (180, 62) and points[1] == points[3] == (180, 180) and points[2] == (180, 239)
    bars = ElementTree.fromstring(drawings.bars(["a", "b"], [[5, 3], [1, None]], 1, 5))  # noqa: S314
    assert [float(one.get("width")) for one in bars.iter("rect")] == [300, 0, 150, 0]
    counted = ElementTree.fromstring(drawings.histogram([[1, 1, 4.4], [5]], 1, 5))  # noqa: S314
    tall = [float(one.get("height")) for one in counted.iter("rect")]
    assert tall[0] == 90 and tall[2 * 7] == 45 and tall[2 * 8 + 1] == 45 and sum(tall) == 180


def test_runs_of_other_items_do_not_stand_side_by_side_unnoticed(runs, tmp_path):
    few = bench_runs.fill(tmp_path / "few", "few", count=4)
    told = "The runs were asked different items"
    assert told in report.write([runs[0], few], tmp_path / "page", shown=0).read_text(encoding="utf-8")
    assert told not in report.write(runs, tmp_path / "alike", shown=0).read_text(encoding="utf-8")


def test_failed_edits_are_told_without_a_judge_too(tmp_path):
    folder = bench_runs.fill(tmp_path / "one", "mine", judges=())
    page = report.write(folder, tmp_path / "page", shown=0).read_text(encoding="utf-8")
    assert "Out of &lt;memory&gt;." in page and "There are none." not in page


def test_runs_that_a_judge_compared_are_shown_two_by_two(tmp_path):
    a, b = bench_runs.fill(tmp_path / "one", "mine"), bench_runs.fill(tmp_path / "two", "yours <i>")
    before = report.write([a, b], tmp_path / "before", shown=0).read_text(encoding="utf-8")
    assert "Two by two" not in before

    def prefers_a(pairs, attempt):  # each pair is asked as it is, and turned round
        return [(("first", "second")[place % 2], "so") for place in range(len(pairs))]

    judge = SimpleNamespace(name="a-judge", identity="one", frames=2, prefer=prefers_a)
    outcome = pairwise.run(a, b, judge)["all"]
    assert outcome.a > 2
    page = report.write([a, b], tmp_path / "page", shown=0).read_text(encoding="utf-8")
    assert re.search(r"<h3>yours &lt;i&gt; against mine, by a-judge-\w{6}</h3>", page)
    row = [outcome.a, outcome.b, outcome.ties, outcome.torn, outcome.failed, outcome.missing, outcome.text()]
    assert "".join(f'<td class="number">{cell}</td>' for cell in row) in page
    (pair,) = json.loads((tmp_path / "page" / "report.json").read_text())["pairs"]
    assert (pair["a"], pair["b"], pair["outcomes"]["all"]["a"]) == ("mine", "yours <i>", outcome.a)
    assert f"| all | {outcome.a} | {outcome.b} |" in (tmp_path / "page" / "report.md").read_text()
    alone = report.write([b], tmp_path / "alone", shown=0).read_text(encoding="utf-8")
    assert "Two by two" not in alone
