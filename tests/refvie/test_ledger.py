"""The ledger: what waits for a stage, what is known already, what a threshold lets through."""

import dataclasses

import pytest

from training.refvie.config import Bound
from training.refvie.ledger import DONE, FAILED, INGEST, MISSING, Ledger, Result, Stage
from training.refvie.pairs.pair import Pair

INGESTED = Stage(INGEST, "i1")
SCORED = Stage("score", "s1", (INGESTED,), (INGESTED,))
LOCATED = Stage(
    "locate", "l1", (INGESTED,), (INGESTED, SCORED), "json_extract(score.\"values\", '$.reason') <> 'nonsense'"
)
GOOD = {"score.overall": Bound(min=5)}


def pair(name, **changes):
    return Pair(name, f"/{name}.mp4", f"/{name}_edit.mp4", "Make it red.", "set", **changes)


def waiting(book, stage, keep=GOOD, **options):
    jobs = list(book.pending(stage, keep, **options))
    assert len(jobs) == book.count(stage, keep, options.get("retry", False)) or "only" in options
    return [job.id for job in jobs]


def done(book, stage, name, status=DONE, **values):
    number, given, content = book.db.execute(
        "SELECT number, given, content FROM samples WHERE id = ?", (name,)
    ).fetchone()
    known = given if stage.name == INGEST else content
    book.record([Result(number, stage.name, stage.key, known, status, values, artefact=f"{stage.name}/{name}")])


@pytest.fixture
def book(tmp_path):
    with Ledger(tmp_path, writing=True) as book:
        book.take([(pair(name), f"given {name}") for name in "abc"] + [(pair("d", problem="No file."), "given d")])
        yield book


def test_a_stage_waits_for_what_it_needs(book):
    assert waiting(book, INGESTED) == ["a", "b", "c"]  # not the pair with a problem
    assert waiting(book, SCORED) == []
    done(book, INGESTED, "a", content="content a")
    done(book, INGESTED, "b", FAILED)
    assert waiting(book, INGESTED) == ["c"]
    assert waiting(book, SCORED) == ["a"]
    (job,) = book.pending(SCORED, GOOD)
    assert (job.content, job.source, job.prompt) == ("content a", "/a.mp4", "Make it red.")
    assert job.results == {INGEST: {"key": INGESTED.key, "values": {"content": "content a"}, "artefact": "ingest/a"}}
    assert type(job).parse(job.text()) == job


def test_bounds_are_asked_and_not_applied(book):
    for name, overall in (("a", 4.9), ("b", 5), ("c", 9)):
        done(book, INGESTED, name, content=name)
        done(book, SCORED, name, overall=overall, reason="")
    assert waiting(book, LOCATED) == ["b", "c"]  # a bound belongs to what it keeps
    assert waiting(book, LOCATED, {}) == ["a", "b", "c"]
    assert waiting(book, LOCATED, {"score.overall": Bound(min=1, max=4.9)}) == ["a"]
    assert waiting(book, LOCATED, {"score.absent": Bound(min=0)}) == []  # what is not told is not within a bound
    done(book, SCORED, "c", overall=9, reason="nonsense")
    assert waiting(book, LOCATED) == ["b"]


def test_a_new_version_computes_its_stage_again_and_the_old_one_is_still_known(book):
    done(book, INGESTED, "a", content="a")
    done(book, SCORED, "a", overall=9, reason="")
    done(book, LOCATED, "a")
    newer = dataclasses.replace(SCORED, key="s2")
    assert waiting(book, newer) == ["a"]
    done(book, newer, "a", overall=2, reason="")
    assert waiting(book, newer) == waiting(book, SCORED) == waiting(book, LOCATED) == []
    after_newer = dataclasses.replace(LOCATED, key="l2", after=(INGESTED, newer))
    assert waiting(book, after_newer) == []  # scored too low now
    assert waiting(book, after_newer, {}) == ["a"]


def test_failures_and_missing_answers_are_tried_again_on_request_only(book):
    for name in "abc":
        done(book, INGESTED, name, content=name)
    done(book, SCORED, "a", FAILED)
    done(book, SCORED, "b", MISSING)
    assert waiting(book, SCORED) == ["c"]
    assert waiting(book, SCORED, retry=True) == ["a", "b", "c"]
    assert waiting(book, SCORED, retry=True, only=[2]) == ["b"]
    assert waiting(book, LOCATED, {}) == []  # neither a failure nor a missing answer passes
    assert book.statuses(SCORED) == {FAILED: 1, MISSING: 1, "": 2}


def test_other_files_under_an_id_are_another_sample_and_the_old_ones_are_still_known(book):
    done(book, INGESTED, "a", content="first")
    done(book, SCORED, "a", overall=9, reason="")
    book.take([(pair("a"), "given anew")])
    book.restore_content(INGESTED)
    assert waiting(book, INGESTED) == ["a"]  # b and c are not of this run
    assert waiting(book, SCORED) == []
    done(book, INGESTED, "a", content="second")
    assert waiting(book, SCORED) == ["a"]
    book.take([(pair("a"), "given a")])
    book.restore_content(INGESTED)
    assert waiting(book, INGESTED) == waiting(book, SCORED) == []


def test_the_same_content_read_anew_keeps_its_results(book):
    done(book, INGESTED, "a", content="same")
    done(book, SCORED, "a", overall=9, reason="")
    book.take([(pair("a"), "copied to another disk")])
    book.restore_content(INGESTED)
    done(book, INGESTED, "a", content="same")
    assert waiting(book, SCORED) == []


def test_the_ledger_is_there_after_a_new_start_and_has_one_writer(book, tmp_path):
    done(book, INGESTED, "a", content="a")
    with Ledger(tmp_path) as reader:
        assert waiting(reader, INGESTED) == ["b", "c"]
        assert reader.taken("a") == (pair("a"), "given a")
        assert reader.taken("z") is None
    with pytest.raises(FileNotFoundError, match="There is no run in"):
        Ledger(tmp_path / "elsewhere")


def test_a_choice_is_of_a_sample_that_there_is(book):
    book.choose("a", True)
    book.choose("a", False)
    book.choose("b", True)
    book.choose("b", None)
    assert book.db.execute("SELECT sample, accepted FROM choices").fetchall() == [(1, 0)]
    with pytest.raises(ValueError, match="There is no sample 'z'"):
        book.choose("z", True)
