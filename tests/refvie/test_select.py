"""What is kept: duplicates, and a person's word."""

import numpy as np
import pytest
from refvie_runs import run, write_pairs

from training.refvie import pipeline, select, stages
from training.refvie.ledger import Ledger


def unit(*rows):
    found = np.array(rows, np.float32)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def test_a_duplicate_is_alike_in_reference_and_target_and_the_best_stays(monkeypatch):
    monkeypatch.setattr(select, "_BLOCK", 2)
    one, near, other = (1, 0, 0), (1, 0.1, 0), (0, 1, 0)
    vectors = np.stack([
        unit(one, one), unit(one, other), unit(near, one), unit(near, near), unit(other, other), unit(one, one),
    ]).astype(np.float16)  # fmt: skip
    assert select.duplicates(vectors, 0.99) == {2: 0, 3: 0, 5: 0}
    assert select.duplicates(vectors, 0.999) == {5: 0}
    assert select.duplicates(vectors, 0.99, safe=3) == {3: 0, 5: 0}


def test_what_is_no_duplicate_of_what_stays_stays():
    angles = np.radians([0, 20, 40, 60])  # each near the next, none near the next but one
    vectors = np.stack([[np.cos(angles), np.sin(angles)]] * 2).transpose(2, 0, 1).astype(np.float16)
    assert select.duplicates(vectors, np.cos(np.radians(25))) == {1: 0, 3: 2}


@pytest.mark.parametrize("block", [7, 2048])
def test_blocks_do_not_matter(block, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 2, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    stays, expected = [], {}
    for place, both in enumerate(vectors):
        near = [other for other in stays if min((both * vectors[other]).sum(axis=-1)) >= 0.8]
        if near:
            expected[place] = near[0]
        else:
            stays.append(place)
    monkeypatch.setattr(select, "_BLOCK", block)
    assert expected
    assert {*select.duplicates(vectors.astype(np.float16), 0.8)} == {*expected}


def told(folder, given=None):
    book, _ = pipeline.opened(folder, given)
    with book:
        rows = book.db.execute("SELECT id, kept, instruct, stage, reason FROM verdicts").fetchall()
    return {row[0]: row[1:] for row in rows}


def test_a_person_s_word_goes_before_bounds_and_duplicates(standins, tmp_path):
    table = write_pairs(tmp_path / "pairs", 5)
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, *(line.replace('"id": "pair', '"id": "copy') for line in lines)]))
    given = standins(keep={"verify.same": {"min": 9}})
    run(table, tmp_path / "run", given)
    assert told(tmp_path / "run")["pair1"][0] == 0
    with Ledger(tmp_path / "run") as book:
        for name in ("pair1", "copy1"):
            book.choose(name, True)
        book.choose("pair0", False)
    found = told(tmp_path / "run")  # its reference is there; only what came after did not wait for it
    assert found["pair1"] == found["copy1"] == (1, 1, "", "")
    assert found["pair0"] == (0, 0, "review", select.REJECTED)
    assert found["copy0"][1] == 1  # the first of the two that is not rejected
    assert found["copy3"][:2] == (0, 0)
    with Ledger(tmp_path / "run") as book:
        assert [job.id for job in book.pending(stages.plan(given)["embed"], given.keep)] == ["pair1", "copy1"]
    doubled = standins(keep={}, duplicates=0.97)
    run(None, tmp_path / "run", doubled)
    found = told(tmp_path / "run")
    assert found["copy4"][2:] == ("deduplicate", "the same files as pair4")
    assert found["pair1"][0] == found["copy1"][0] == 1


def test_duplicates_are_looked_for_once_for_the_same_question(standins, tmp_path, monkeypatch):
    table = write_pairs(tmp_path / "pairs", 10)
    run(table, tmp_path / "run", standins(duplicates=0.1))
    asked, look = [], select.duplicates
    monkeypatch.setattr(select, "duplicates", lambda *given: asked.append(given[1:]) or look(*given))
    first = told(tmp_path / "run")
    assert any(stage == "deduplicate" for _, _, stage, _ in first.values())
    assert told(tmp_path / "run") == first
    assert asked == [(0.1, 0)]
    with Ledger(tmp_path / "run") as book:
        book.choose("pair1", True)
    assert told(tmp_path / "run")["pair1"][0] == 1
    told(tmp_path / "run", standins(duplicates=0.2))
    assert asked[1:] == [(0.1, 1), (0.2, 1)]
