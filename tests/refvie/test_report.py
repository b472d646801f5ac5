"""The report: true numbers, no other host, no HTML of others, and one pass of the ledger."""

import dataclasses
import html
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
import refvie_synthetic

from training.refvie import pipeline, samples, select, stages
from training.refvie.config import Bound
from training.refvie.pages import report, survey
from training.refvie.pairs.pair import CATEGORIES

COUNT = 110  # every fate with every category, twice
NASTY = '<script>alert("x")</script><img src=http://evil.example/a.png onerror=alert(1)> & \'so on\''


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("synthetic")
    refvie_synthetic.fill(folder, COUNT, drawn=COUNT, prompts=[NASTY] * COUNT, origins=("ditto", f"<b>{NASTY}"))
    return folder


@pytest.fixture
def book(run):
    book, given = pipeline.opened(run)
    with book:
        survey.prepare(book)
        yield book, given


@pytest.fixture(scope="module")
def document(run, tmp_path_factory):
    book, given = pipeline.opened(run)
    with book:
        return report.report(book, given, tmp_path_factory.mktemp("page") / "deep" / "report.html").read_text("utf-8")


class Elements(HTMLParser):
    """Tags that are open at the end, and what each tag was given."""

    def __init__(self, document):
        super().__init__()
        self.open, self.tags, self.addresses = [], Counter(), []
        self.feed(document)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        assert not any(name.startswith("on") for name, _ in attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1

    def handle_endtag(self, tag):
        if tag in ("td", "th", "tr"):
            return
        while self.open and self.open[-1] in ("td", "th", "tr"):
            self.open.pop()
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_shows_text_as_text(document):
    found = Elements(document)
    assert found.tags["script"] == 0 and found.tags["b"] > 0
    assert found.addresses and all(one.startswith("data:image/jpeg;base64,") for one in found.addresses)
    assert not re.search(r"url\(|@import|https?://(?!evil)", document)
    assert "<script" not in document and html.escape(NASTY) in document
    assert "default-src 'none'" in document
    assert len(document) < 3_000_000


def test_the_same_ledger_gives_the_same_page(run, document, tmp_path):
    book, given = pipeline.opened(run)
    with book:
        again = report.report(book, given, tmp_path / "report.html").read_text("utf-8")
        other = report.report(book, given, tmp_path / "report.html", seed=7).read_text("utf-8")
    assert again == document
    shown = [re.findall(r"<code>(s\d+)</code> ·", page) for page in (document, other)]
    assert shown[0] != shown[1] and len(shown[0]) == len(set(shown[0]))


def test_the_funnel_adds_up_to_the_verdicts(book):
    steps = {step.name: step for step in survey.funnel(book[0])}
    per = COUNT // len(refvie_synthetic.FATES)  # samples of a fate
    assert [*steps] == ["pairs", "review", *stages.CLASSES, "deduplicate"]
    assert (steps["pairs"].entered, steps["pairs"].lost) == (COUNT, {"failed": per})
    assert steps["score"].lost == {"bound": per, "failed": per}
    assert steps["locate"].lost == {"pair": 2 * (COUNT - 3 * per) // 5}
    assert steps["segment"].lost == {"failed": 3 * per // 5, "waits": 3 * per // 5}
    assert steps["verify"].lost == {"bound": 3 * per // 5}
    totals = survey.totals(book[0])
    assert steps["deduplicate"].passed == totals.kept == len(list(samples.read(*book, "v.kept")))
    assert (totals.pairs, totals.instruct) == (COUNT, COUNT - 3 * per)


def test_groups_add_up_to_the_whole(book):
    whole = [step.passed for step in survey.funnel(book[0])]
    for column, names in (("category", set(CATEGORIES)), ("origin", {"ditto", f"<b>{NASTY}"})):
        found = survey.groups(book[0], column)
        assert {group.name for group in found} == names
        assert [sum(left) for left in zip(*(group.left for group in found))] == whole
        assert sum(group.pairs for group in found) == COUNT
    few = survey.groups(book[0], "category", most=2)
    assert len(few) == 2


def test_reasons_that_differ_in_numbers_paths_and_names_are_one():
    assert survey.kind("Nothing in frame 3 of /data/a b/c.mp4, 1.5 s.") == survey.kind(
        "Nothing in frame 12 of /data/a b/d.mp4, 22.5 s."
    )
    assert survey.kind("verify.same (min 6)") == "verify.same (min 6)" != survey.kind("verify.same (min 7)")
    assert survey.kind("looks like s1") == survey.kind("looks like s2") != survey.kind("the same files as s1")
    assert len(survey.kind("word " * 1000)) < 200
    assert survey.kind("") == "no message"


def test_reasons_and_errors_have_counts_and_examples(book):
    per = COUNT // len(refvie_synthetic.FATES)
    found = {(one.stage, one.kind): one for one in survey.reasons(book[0])}
    lost = found["segment", "Nothing was found in frame # of the region."]
    assert (lost.count, lost.sort) == (3 * per // 5, "failed")
    ids = [one.id for one in samples.read(*book, "v.reason LIKE 'Nothing was found%'")]
    assert lost.examples == (ids[0], ids[-1])
    assert found["pairs", refvie_synthetic.PROBLEM].count == per
    assert sum(one.count for one in found.values()) == COUNT - survey.totals(book[0]).kept
    work = survey.work(*book, "score")
    assert [(one.sort, one.kind, one.count) for one in work.errors] == [("missing", stages.UNREADABLE, per)]
    assert (work.done, work.failed, work.missing) == (COUNT - 2 * per, 0, per)
    assert work.attempts == work.done + 3 * per
    assert work.seconds == pytest.approx(0.06 * work.results)
    assert work.model == "score-model"


def test_histograms_count_every_value_once(book):
    scores = [(one.kept, one.scores()["score.overall"]) for one in samples.read(*book, "score.status = 'done'")]
    (found,) = [one for one in survey.work(*book, "score").histograms if one.name == "score.overall"]
    assert (found.low, found.high, found.bound) == (0.0, 10.0, Bound(min=6))
    assert (found.least, found.most) == (min(score for _, score in scores), max(score for _, score in scores))
    places = [int(score / 10 * survey.BINS) for _, score in scores]
    for kept, bins in ((True, found.kept), (False, found.others)):
        counted = Counter(place for place, (one, _) in zip(places, scores) if one is kept)
        assert bins == tuple(counted[place] for place in range(survey.BINS))
    assert found.mean == pytest.approx(sum(score for _, score in scores) / len(scores))
    assert found.broken == sum(score < 6 for _, score in scores) > 0


def test_a_value_at_the_end_of_its_scale_is_in_the_last_bin(run, tmp_path):
    refvie_synthetic.fill(tmp_path, 5, drawn=0)
    book, given = pipeline.opened(tmp_path)
    with book:
        book.db.execute("UPDATE results SET \"values\" = json_set(\"values\", '$.overall', 10) WHERE stage = 'score'")
        select.select(book, given)
        survey.prepare(book)
        (found,) = [one for one in survey.work(book, given, "score").histograms if one.name == "score.overall"]
    assert sum(found.kept) + sum(found.others) == found.kept[-1] + found.others[-1] == 4


def test_what_a_person_said_is_told(run, tmp_path):
    refvie_synthetic.fill(tmp_path, COUNT, drawn=0)
    book, given = pipeline.opened(tmp_path)
    with book:
        kept = [one.id for one in samples.read(book, given, "v.kept")]
        for name in kept[:3]:
            book.choose(name, False)
        book.choose(kept[3], True)
        select.select(book, given)
        survey.prepare(book)
        totals = survey.totals(book)
        steps = {step.name: step.lost for step in survey.funnel(book)}
    assert (totals.accepted, totals.rejected, totals.kept) == (1, 3, len(kept) - 3)
    assert steps["review"] == {"person": 3}


def test_duplicates_are_one_reason(tmp_path):
    given = refvie_synthetic.fill(tmp_path, COUNT, drawn=0)
    book, _ = pipeline.opened(tmp_path)
    with book:
        book.db.execute("UPDATE results SET vector = (SELECT vector FROM results WHERE vector NOT NULL LIMIT 1)"
                        " WHERE vector NOT NULL")  # fmt: skip
        select.select(book, dataclasses.replace(given, duplicates=0.97))
        survey.prepare(book)
        (found,) = survey.reasons(book, "stage = 'deduplicate'")
        assert survey.totals(book).kept == 1
    assert (found.kind, found.sort) == ("looks like another", "double")


def test_the_sheet_goes_round_the_reasons(book):
    where = "NOT kept AND sort NOT IN ('waits', 'pair') AND stage <> 'pairs'"
    numbers = survey.sheet(book[0], where, "stage, kind", 8)
    whys = {one.number: (one.stage, survey.kind(one.reason)) for one in samples.read(*book)}
    assert set(Counter(whys[number] for number in numbers[:4]).values()) == {1}
    assert set(Counter(whys[number] for number in numbers).values()) == {2}


def test_what_is_gone_is_said_and_the_rest_is_shown(run, tmp_path):
    refvie_synthetic.fill(tmp_path, 22, drawn=22)
    for path in (tmp_path / "artefacts").glob("s1*"):
        path.unlink()
    (tmp_path / "artefacts" / "s2.png").write_bytes(b"no picture")
    book, given = pipeline.opened(tmp_path)
    with book:
        document = report.report(book, given, tmp_path / "report.html").read_text("utf-8")
    assert "source is gone" in document and "reference is gone" in document and "data:image/jpeg" in document


def test_a_run_that_has_only_begun_has_a_report(tmp_path):
    refvie_synthetic.fill(tmp_path, 5, drawn=0, fates=("problem",))
    book, given = pipeline.opened(tmp_path)
    with book:
        document = report.report(book, given, tmp_path / "report.html").read_text("utf-8")
    Elements(document)
    assert refvie_synthetic.PROBLEM in document


def test_a_page_is_written_whole_or_not_at_all(run, tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("the old one")
    monkeypatch.setattr(report, "_failures", lambda *given: 1 / 0)
    book, given = pipeline.opened(run)
    with book, pytest.raises(ZeroDivisionError):
        report.report(book, given, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "the old one"


def test_the_work_grows_no_faster_than_the_samples(tmp_path):
    steps, sizes = [], []
    for count in (220, 1760):
        refvie_synthetic.fill(tmp_path / str(count), count, drawn=0)
        book, given = pipeline.opened(tmp_path / str(count))
        with book:
            steps.append(0)

            def step():
                steps[-1] += 1

            book.db.set_progress_handler(step, 1000)  # of the database's own instructions
            sizes.append(report.report(book, given, tmp_path / "report.html").stat().st_size)
    assert 8 * 0.5 < steps[1] / steps[0] < 8 * 1.5
    assert sizes[1] < 1.2 * sizes[0]
