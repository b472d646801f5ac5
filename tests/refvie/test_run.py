"""The whole run: every stage once and never twice, whatever is killed, fails, is full or changes."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import refvie_models
from refvie_runs import command, count, environment, found, recorded, run, write_pairs

from training.nano import edits, rows
from training.refvie import engine, frames, pipeline, stages
from training.refvie.backends import Quality
from training.refvie.config import Bound
from training.refvie.ledger import DONE, FAILED, MISSING, Ledger

EVERY = [*stages.CLASSES]
WITH_REFERENCE = 12  # of twenty pairs of five categories, those of change, add and background


@pytest.fixture
def own(finished, tmp_path):
    """A finished run of one's own."""
    shutil.copytree(finished, tmp_path / "own")
    return tmp_path / "own"


def test_every_stage_is_done_for_every_pair_that_it_is_for(finished, standins):
    told = count(finished, standins())
    assert [told[name] for name in ("ingest", "score", "locate")] == [{DONE: 20}] * 3
    for name in ("segment", "synthesise", "verify", "embed"):
        assert told[name] == {DONE: WITH_REFERENCE, "": 20 - WITH_REFERENCE}
    book, _ = pipeline.opened(finished)
    with book:
        assert book.db.execute("SELECT sum(kept), sum(instruct) FROM verdicts").fetchone() == (WITH_REFERENCE, 20)
        artefacts = [row[0] for row in book.db.execute("SELECT artefact FROM results WHERE artefact <> ''")]
        assert len(artefacts) == 20 + 2 * WITH_REFERENCE
        assert all((finished / path).is_file() for path in artefacts)
        models = {row[0] for row in book.db.execute("SELECT DISTINCT model FROM results WHERE stage = 'score'")}
        assert models == {"refvie_models:Judge"}
    assert not any(path.is_file() for name in ("spool", "at-hand", "jobs") for path in (finished / name).glob("*"))


def test_a_second_run_computes_nothing(own, pairs, standins):
    before = recorded(own)
    run(pairs, own, standins())
    run(None, own, standins())
    assert recorded(own) == before


@pytest.mark.parametrize(("changed", "again"), [
    ("verify", {"verify"}),
    ("segment", {"segment", "synthesise", "verify", "embed"}),
    ("score", {"score"}),
])  # fmt: skip
def test_a_new_version_of_a_stage_computes_it_and_what_depends_on_it(own, pairs, standins, monkeypatch, changed, again):
    before = recorded(own)
    monkeypatch.setattr(stages.CLASSES[changed], "version", 2)
    run(pairs, own, standins())
    new = recorded(own)
    assert {key: new[key] for key in before} == before
    assert {stage for stage, *_ in new.keys() - before.keys()} == again
    monkeypatch.undo()
    run(pairs, own, standins())
    assert recorded(own) == new  # and the old one is still known


def test_another_threshold_is_a_question_and_opens_what_it_lets_through(own, pairs, standins):
    before = recorded(own)
    strict = standins(keep={"verify.same": {"min": 9}})
    book, _ = pipeline.opened(own, strict)
    with book:
        assert book.db.execute("SELECT sum(kept) FROM verdicts").fetchone() == (0,)
        reasons = dict(book.db.execute("SELECT reason, count(*) FROM verdicts WHERE stage = 'verify' GROUP BY 1"))
        assert reasons == {"verify.same (min 9)": WITH_REFERENCE}
    assert recorded(own) == before


def test_a_bound_spares_later_stages_what_does_not_pass(pairs, standins, tmp_path):
    given = standins(keep={"score.prompt_following": {"min": 9}})
    run(pairs, tmp_path / "run", given)
    told = count(tmp_path / "run", given)
    passed = told["locate"][DONE]
    assert 0 < passed < 20
    looser = dataclasses.replace(given, keep={"score.prompt_following": Bound(min=0)})
    run(pairs, tmp_path / "run", looser)
    assert count(tmp_path / "run", looser)["locate"] == {DONE: 20}


def test_pairs_that_cannot_be_read_are_rows_with_a_reason(pairs, standins, tmp_path):
    folder = tmp_path / "pairs"
    shutil.copytree(pairs.parent, folder)
    lines = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()][:6]
    (folder / lines[0]["src_video"]).write_bytes(b"not a clip")
    whole = (folder / lines[1]["tgt_video"]).read_bytes()
    (folder / lines[1]["tgt_video"]).write_bytes(whole[: len(whole) // 3])
    lines[2]["prompt"] = "  "
    lines[3]["tgt_video"] = "../outside.mkv"
    edit = edits.draw("local_add", 99, frames=5)
    lines[4] |= {"tgt_video": rows.write_row(folder, "short", edit)["tgt_video"]}
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run(folder / "pairs.jsonl", tmp_path / "run", standins())
    book, _ = pipeline.opened(tmp_path / "run")
    with book:
        verdicts = book.db.execute("SELECT id, stage, reason FROM verdicts")
        told = {name: (stage, reason) for name, stage, reason in verdicts}
    assert told["pair0"][0] == told["pair1"][0] == "ingest"
    assert "The source cannot be read" in told["pair0"][1]
    assert told["pair1"][1].startswith("The source has 9 frames and the target 2; ")  # a clip that was cut off
    assert told["pair2"][0] == told["pair3"][0] == "pairs"
    assert told["pair4"] == ("ingest", "The source has 9 frames and the target 5; give clips of one length.")
    assert len(told) == 6


def test_answers_that_cannot_be_read_are_missing_and_asked_again_on_request(pairs, standins, tmp_path):
    words = [json.loads(line)["prompt"] for line in pairs.read_text().splitlines()]
    given = standins(attempts=2, score={"options": {"unreadable": words[3], "slow": words[4]}})
    run(pairs, tmp_path / "run", given)
    assert count(tmp_path / "run", given)["score"] == {DONE: 19, MISSING: 1}
    with Ledger(tmp_path / "run") as book:
        asked = dict(book.db.execute("SELECT sample, attempts FROM results WHERE stage = 'score' AND attempts > 1"))
    assert asked == {4: 2, 5: 2}
    book, _ = pipeline.opened(tmp_path / "run")
    with book:
        why = book.db.execute("SELECT stage, reason, instruct FROM verdicts WHERE id = 'pair3'").fetchone()
    assert why == ("score", stages.UNREADABLE, 0)  # never a score that passes
    before = recorded(tmp_path / "run")
    run(pairs, tmp_path / "run", given)
    assert recorded(tmp_path / "run") == before
    run(pairs, tmp_path / "run", given, retry=True)
    changed = {key for key, at in recorded(tmp_path / "run").items() if before[key] != at}
    assert {key[2] for key in changed} == {"pair3"}


def test_a_model_that_is_not_there_stops_the_run_and_nothing_is_lost(pairs, standins, tmp_path):
    given = standins(score={"options": {"down": True}})
    with pytest.raises(engine.Stopped, match=r"^The stand-in is down; start it\.$"):
        run(pairs, tmp_path / "run", given)
    before = recorded(tmp_path / "run")
    assert Counter(stage for stage, *_ in before) == {"ingest": 20}
    run(pairs, tmp_path / "run", standins())
    after = recorded(tmp_path / "run")
    assert {key: after[key] for key in before} == before
    assert Counter(stage for stage, *_ in after)["score"] == 20


def test_a_full_disk_stops_the_run_and_nothing_is_lost(pairs, standins, tmp_path, monkeypatch):
    calls, save = [], frames.save

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(frames, "save", full)
    with pytest.raises(engine.Stopped, match="is full or cannot be written; make room, then run again"):
        run(pairs, tmp_path / "run", standins())
    before = recorded(tmp_path / "run")
    assert len(before) == 8  # two batches of four; the third was in hand
    monkeypatch.undo()
    run(pairs, tmp_path / "run", standins())
    after = recorded(tmp_path / "run")
    assert {key: after[key] for key in before} == before
    assert Counter(stage for stage, *_ in after)["ingest"] == 20


def test_files_out_of_reach_leave_what_is_known_alone(own, standins, tmp_path):
    moved = tmp_path / "mount"
    table = write_pairs(moved, 5)
    run(table, tmp_path / "run", standins())
    before = recorded(tmp_path / "run")
    for path in moved.glob("*.mkv"):
        path.unlink()
    run(table, tmp_path / "run", standins())
    assert recorded(tmp_path / "run") == before
    book, _ = pipeline.opened(tmp_path / "run")
    with book:
        assert book.db.execute("SELECT sum(instruct) FROM verdicts").fetchone() == (5,)


def test_what_is_edited_anew_is_computed_anew(standins, tmp_path):
    table = write_pairs(tmp_path / "pairs", 5)
    run(table, tmp_path / "run", standins())
    before = recorded(tmp_path / "run")
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    lines[2]["prompt"] = "Do it otherwise."
    table.write_text("\n".join(map(json.dumps, lines)))
    run(table, tmp_path / "run", standins())
    after = recorded(tmp_path / "run")
    changed = {key[2] for key in after if before.get(key) != after[key]}
    assert changed == {"pair2"}


def test_killed_anywhere_it_computes_nothing_twice_and_loses_nothing(pairs, standins, finished, tmp_path):
    folder, marks, known = tmp_path / "run", tmp_path / "marks", {}
    marks.mkdir()
    given = standins(score={"options": {"seconds": 0.02, "marks": str(marks)}})

    def made():
        return sum(path.is_file() for place in (folder / "artefacts", marks) for path in place.rglob("*"))

    # While clips are read, while they are scored, with masks, with pictures.
    for limit in (6, 27, 46, 58, None):
        process = subprocess.Popen(
            command(pairs, folder, given, tmp_path), env=environment(), cwd=tmp_path,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while process.poll() is None and (limit is None or made() < limit):
            time.sleep(0.005)
        if limit is not None:
            assert process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with Ledger(folder, writing=True) as book:
            engine.fold(book)
        now = recorded(folder)
        assert {key: now.get(key) for key in known} == known  # nothing lost, nothing made again
        known = now
    assert process.returncode == 0
    assert found(folder) == found(finished)


def test_one_run_at_a_time(own, pairs, standins, tmp_path):
    with Ledger(own, writing=True):
        process = subprocess.run(
            command(pairs, own, standins(), tmp_path), env=environment(), cwd=tmp_path, capture_output=True, text=True
        )
    assert process.returncode == 2
    assert process.stderr.strip().splitlines() == [
        f"python -m training.refvie: Another run works in {own}; wait for it or end it."
    ]


def told(pairs, number):
    return json.loads(pairs.read_text().splitlines()[number])["prompt"]


@pytest.fixture
def marks(tmp_path):
    (tmp_path / "marks").mkdir()
    return str(tmp_path / "marks")


@pytest.fixture
def processes(monkeypatch):
    """Workers in processes of their own find the stand-ins."""
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


def failures(folder):
    with Ledger(folder) as book:
        return book.db.execute("SELECT sample, error FROM results WHERE status = 'failed'").fetchall()


def test_a_worker_that_dies_costs_what_it_had_in_hand(pairs, standins, finished, tmp_path, marks, processes):
    given = standins(score={"options": {"kills": told(pairs, 6), "marks": marks}, "workers": 2}, attempts=1)
    run(pairs, tmp_path / "run", given)
    assert found(tmp_path / "run") == found(finished)


@pytest.mark.parametrize("attempts", [1, 2])
def test_what_kills_every_worker_has_failed_and_its_neighbours_have_not(
    pairs, standins, tmp_path, marks, processes, attempts
):
    # The sample behind it is still in the hand of the other worker when one dies.
    options = {"kills": "!" + told(pairs, 6), "waits": told(pairs, 7), "marks": marks}
    given = standins(score={"options": options, "workers": 2, "batch_size": 1}, attempts=attempts)
    run(pairs, tmp_path / "run", given)
    assert count(tmp_path / "run", given)["score"] == {DONE: 19, FAILED: 1}
    assert failures(tmp_path / "run") == [(7, f"A worker died of it {attempts} times.")]
    before = recorded(tmp_path / "run")
    run(pairs, tmp_path / "run", given)
    assert recorded(tmp_path / "run") == before
    mended = standins(score={"options": {"marks": marks}, "workers": 2}, attempts=attempts)
    run(pairs, tmp_path / "run", mended, retry=True)
    assert count(tmp_path / "run", mended)["score"] == {DONE: 20}


def test_what_kills_the_run_itself_is_found_by_the_runs_after_it(pairs, standins, tmp_path, marks):
    given = standins(score={"options": {"kills": "!" + told(pairs, 6), "marks": marks}}, attempts=2)
    ends = []
    while not ends or ends[-1]:
        ends.append(subprocess.run(
            command(pairs, tmp_path / "run", given, tmp_path), env=environment(), cwd=tmp_path, capture_output=True
        ).returncode)  # fmt: skip
        assert len(ends) < 6
    assert ends == [-signal.SIGKILL] * 3 + [0]  # once with others, twice alone
    assert count(tmp_path / "run", given)["score"] == {DONE: 19, FAILED: 1}
    assert failures(tmp_path / "run") == [(7, "A worker died of it 2 times.")]


def test_clips_are_read_by_several_processes(pairs, standins, finished, tmp_path, processes):
    run(pairs, tmp_path / "run", standins(ingest={"workers": 2, "batch_size": 3}))
    assert found(tmp_path / "run") == found(finished)


def test_a_broken_line_of_the_spool_costs_its_sample_and_no_more(pairs, standins, finished, tmp_path):
    given = standins(score={"options": {"down": True}})
    with pytest.raises(engine.Stopped):
        run(pairs, tmp_path / "run", given)
    spool = tmp_path / "run" / "spool"
    (path,) = spool.glob("ingest-*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    with Ledger(tmp_path / "run", writing=True) as book:  # as if nothing had been folded yet
        book.db.executescript("DELETE FROM results; DELETE FROM spools; UPDATE samples SET content = ''")
    path.write_bytes(lines[0][:40] + b"".join(lines[1:]))
    before = {line["sample"]: line["at"] for line in map(json.loads, lines[2:])}
    run(pairs, tmp_path / "run", standins())
    assert found(tmp_path / "run") == found(finished)
    with Ledger(tmp_path / "run") as book:
        now = dict(book.db.execute("SELECT sample, at FROM results WHERE stage = 'ingest'"))
    assert {sample: now[sample] for sample in before} == before
    assert len(before) == 18


def test_what_cannot_be_written_stops_the_run_and_leaves_no_half_line(pairs, standins, finished, tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def failing(file):
        calls.append(file)
        if len(calls) > 12:  # eight clips' frames and their lines, then some of the next batch's
            raise OSError(errno.EIO, "Input/output error")
        sync(file)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(engine.Stopped, match=r"The folder of the run cannot be written .*Input/output error"):
        run(pairs, tmp_path / "run", standins())
    assert len(recorded(tmp_path / "run")) == 8
    assert not [*(tmp_path / "run" / "at-hand").glob("*.json")]  # nothing died
    monkeypatch.undo()
    run(pairs, tmp_path / "run", standins())
    assert found(tmp_path / "run") == found(finished)


@pytest.mark.parametrize(("answer", "error"), [
    (ValueError("cut off here: \ud83d"), "cut off here: \\ud83d"),
    (Quality(float("nan"), 8, 9, 9), "The model told a value that is no number or no text."),
    (Quality(8, 8, 9, 9, "cut off here: \ud83d"), "The model told a value that is no number or no text."),
])  # fmt: skip
def test_what_no_ledger_takes_is_a_failure_with_a_reason(pairs, standins, tmp_path, monkeypatch, answer, error):
    def judge(self, views, attempt=0):
        if isinstance(answer, Exception):
            raise answer
        return [answer] * len(views)

    monkeypatch.setattr(refvie_models.Judge, "judge", judge)
    for _ in range(2):
        run(pairs, tmp_path / "run", standins())
        assert {told for _, told in failures(tmp_path / "run")} == {error}


def test_a_machine_that_fails_on_everything_stops_the_run(pairs, standins, finished, tmp_path, monkeypatch):
    def judge(self, views, attempt=0):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(refvie_models.Judge, "judge", judge)
    sentence = "score failed on 16 samples in a row, at last by RuntimeError: CUDA error: .*; mend that, then run again"
    with pytest.raises(engine.Stopped, match=sentence):
        run(pairs, tmp_path / "run", standins())
    monkeypatch.undo()
    run(pairs, tmp_path / "run", standins(), retry=True)
    assert found(tmp_path / "run") == found(finished)


def test_a_back_end_that_leaves_answers_out_stops_the_run(pairs, standins, tmp_path, monkeypatch):
    monkeypatch.setattr(refvie_models.Painter, "paint", lambda self, paintings: [])
    with pytest.raises(engine.Stopped, match="The back end of synthesise has 0 answers to 4 questions; mend its class"):
        run(pairs, tmp_path / "run", standins())


def test_one_bad_sample_of_a_batch_leaves_the_others_their_answers(pairs, standins, tmp_path, monkeypatch):
    asked, paint = [], refvie_models.Painter.paint

    def refusing(self, paintings):
        asked.append(len(paintings))
        if any(painting.name == bad for painting in paintings):
            raise ValueError("This one not.")
        return paint(self, paintings)

    bad = told(pairs, 2).split()[-1]
    monkeypatch.setattr(refvie_models.Painter, "paint", refusing)
    given = standins(synthesise={"batch_size": 12})
    run(pairs, tmp_path / "run", given)
    failed = count(tmp_path / "run", given)["synthesise"][FAILED]
    assert 0 < failed < 12
    assert {error for _, error in failures(tmp_path / "run")} == {"This one not."}


@pytest.mark.parametrize("stage", ["ingest", "segment", "synthesise"])
@pytest.mark.parametrize("damage", ["removed", "cut off"])
def test_what_is_lost_is_made_again(own, pairs, standins, monkeypatch, stage, damage):
    damaged = {}
    for picture in sorted(own.glob("artefacts/synthesise-*/*/*"))[::3]:
        [path] = own.glob(f"artefacts/{stage}-*/*/{picture.stem.partition('-')[0]}-*")
        damaged[path] = path.read_bytes()
        path.unlink() if damage == "removed" else path.write_bytes(damaged[path][: len(damaged[path]) // 2])
    assert len(damaged) == WITH_REFERENCE // 3
    before = recorded(own)
    monkeypatch.setattr(refvie_models.Verifier, "version", 2)  # which needs them all
    given = standins()
    run(pairs, own, given)
    assert {path: path.read_bytes() for path in damaged} == damaged
    again = {key[:1] + key[2:3] for key, at in recorded(own).items() if before.get(key) != at}
    # Nothing else is: what was found out by them stands.
    assert len([one for one in again if one[0] == stage]) == len(damaged)
    assert {one[0] for one in again} == {stage, "verify"}
    assert count(own, given)["verify"] == {DONE: WITH_REFERENCE, "": 20 - WITH_REFERENCE}


def test_what_is_gone_from_the_folder_is_made_again_on_request(own, finished, pairs, standins):
    paths = [*own.glob("artefacts/synthesise-*/*/pair1*")]
    for path in paths:
        path.unlink()
    run(pairs, own, standins())
    assert not any(path.exists() for path in paths)
    run(pairs, own, standins(), retry=True)
    assert all(path.exists() for path in paths) and len(paths) > 1
    assert found(own) == found(finished)


def test_a_run_with_other_frames_leaves_the_results_of_the_first_in_place(own, pairs, standins):
    before = recorded(own)
    run(pairs, own, standins(side=32), only=("ingest",))
    book, _ = pipeline.opened(own, standins())
    with book:
        assert book.db.execute("SELECT sum(kept), sum(instruct) FROM verdicts").fetchone() == (WITH_REFERENCE, 20)
    after = recorded(own)
    assert {key: after[key] for key in before} == before
    assert len(after) == len(before) + 20


def test_a_wrong_table_leaves_the_config_that_results_are_judged_by(own, standins, tmp_path):
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "absent.csv", own, standins(keep={"verify.same": {"min": 9}}))
    book, given = pipeline.opened(own)
    with book:
        assert given.keep == {}


def test_a_ledger_that_is_none_is_told_in_a_sentence(tmp_path):
    (tmp_path / "ledger.sqlite").write_text("no database " * 100)
    process = subprocess.run(
        [sys.executable, "-m", "training.refvie", "report", "--out", str(tmp_path)],
        env=environment(), cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 2
    (line,) = process.stderr.strip().splitlines()
    assert line.startswith("python -m training.refvie: The ledger cannot be used (file is not a database)")


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"keep": {"score.beauty": {"min": 1}}}, "keep has 'score.beauty', which no stage tells; use ingest.frames"),
    ({"score": {"backend": "clasical"}}, "There is no back end 'clasical' for score; use classical, "),
    ({"score": {"backend": "no_such_module:Judge"}}, "The back end no_such_module:Judge cannot be imported"),
    ({"score": {"backend": "diffusers"}}, "The back end diffusers cannot score; use "),
    ({"score": {"options": {"colour": 1}}}, "score by refvie_models:Judge has no option 'colour'; it has marks, "),
])  # fmt: skip
def test_what_cannot_be_run_is_said_before_anything_is_done(pairs, standins, tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(pairs, tmp_path / "run", standins(**changes))
    assert not (tmp_path / "run").exists()


def test_the_same_run_twice_finds_the_same(pairs, standins, finished, tmp_path):
    run(pairs, tmp_path / "again", standins())
    assert found(tmp_path / "again") == found(finished)
