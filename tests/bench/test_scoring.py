"""Judges: what is asked and read, and that a bad, slow, limited or broken one loses and invents nothing."""

import dataclasses
import json
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from chat_server import Stand
from lock_holder import held
from tiny_chat_model import write_qwen

from training.asking import Question, Unavailable, google, remote
from training.bench import audit, clips, pairwise, scoring, suites
from training.bench.__main__ import main
from training.bench.folder import DONE, FAILED, Edit, Folder
from training.bench.items import BACKGROUND, CRITERIA, INSTRUCTION, SUBJECT
from training.bench.judges import Options, cache, open_judge, rubrics, ruled
from training.nano import edits

KEY = "sk-very/secret+key"


@pytest.fixture
def folder(openve_bench, refvie_bench, tmp_path):
    """A run of both benchmarks' items, the edits are the sources; one failed, one was not made."""
    references = [dataclasses.replace(item, id=f"ref-{item.id}") for item in suites.read("refvie", refvie_bench)]
    items = suites.read("openve", openve_bench) + references
    made = Folder.begin(tmp_path / "run", {"bench": "both", "system": {"name": "copy"}}, items)
    for item in items[2:]:
        made.note_edit(Edit(item.id, DONE, item.source))
    made.note_edit(Edit(items[0].id, FAILED, error="Out of memory."))
    return made


def asked_kind(body):
    told = body["messages"][0]["content"]
    return next(kind for kind in CRITERIA if all(f'"{name}"' in told for name in CRITERIA[kind]))


def scores(*values, reason="so"):
    """A reply with these scores for whatever was asked."""

    def turn(body):
        return json.dumps({"reason": reason} | dict(zip(CRITERIA[asked_kind(body)], values)))

    return turn


def judge(stand, frames=2, **options):
    return open_judge(stand.url, Options(model="a-model", timeout=5, frames=frames, **options))


def verdicts(folder, made):
    return folder.verdicts(scoring.name_of(made))


def test_a_judge_scores_every_edit_once(folder, stand):
    stand.turns = [scores(4, 5, 3)]
    made = judge(stand)
    assert scoring.run(folder, made) == scoring.Count(12, 0, 0)
    found = verdicts(folder, made)
    assert set(found) == {item.id for item in folder.items[2:]}
    for item in folder.items[2:]:
        (one,) = found[item.id]
        first, second, third = item.criteria
        assert one.scores == {first: 4, second: 4, third: 3}  # none is above the first
        assert one.given == {first: 4, second: 5, third: 3} and one.reason == "so"
    assert scoring.run(folder, made) == scoring.Count(0, 0, 12)
    assert len(stand.seen) == 12


def test_a_judge_sees_the_same_moments_of_both_and_what_was_asked(folder, stand):
    stand.turns = [scores(1, 1, 1)]
    scoring.run(folder, judge(stand, frames=3))
    for _, _, body in stand.seen:
        assert (body["temperature"], body["seed"], body["model"]) == (0, 0, "a-model")
        content = body["messages"][1]["content"]
        labels = [part["text"] for part in content if part["type"] == "text"]
        for side in ("source", "edited"):
            assert [label for label in labels if label.startswith(side)] == [
                f"{side} frame {number}:" for number in (1, 2, 3)
            ]
        pictures = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        assert pictures[-6:-3] == pictures[-3:]  # here the edit is the source
        assert len(pictures) == 6 + (asked_kind(body) != INSTRUCTION)
    prompts = sorted(
        json.loads(body["messages"][1]["content"][0]["text"].partition(": ")[2]) for *_, body in stand.seen
    )
    assert prompts == sorted(item.prompt for item in folder.items[2:])


def test_repeats_have_other_seeds_and_stay_cold(folder, stand):
    stand.turns = [scores(2, 2, 2)]
    made = judge(stand)
    scoring.run(folder, made, repeats=2)
    scoring.run(folder, made, repeats=3)
    assert sorted(body["seed"] for *_, body in stand.seen) == sorted([0, 1, 2] * 12)
    assert {body["temperature"] for *_, body in stand.seen} == {0}
    assert all([one.repeat for one in found] == [0, 1, 2] for found in verdicts(folder, made).values())


@pytest.mark.parametrize("bad", [
    "I would say 4, 4 and 3.", '{"identity": 4', "", '{"reason": "x"}', '[{"a": 1}]', '{"a": NaN}', "null",
    (200, {}, "no JSON at all"), (200, {}, '{"choices": []}'), scores("4", "4", "3"), scores(0, 0, 0), scores(6, 3, 3),
    scores(True, 3, 3), scores(4, 4),
])  # fmt: skip
def test_what_cannot_be_read_is_asked_again_and_is_never_a_score(folder, stand, bad):
    stand.turns = [bad]
    made = judge(stand)
    assert scoring.run(folder, made) == scoring.Count(0, 12, 0)
    assert len(stand.seen) == 36
    for (one,) in verdicts(folder, made).values():
        assert (one.status, one.scores, one.attempts, one.error) == (FAILED, {}, 3, scoring.UNREADABLE)
    stand.turns = [bad] * 12 + [scores(3, 3, 3)]
    assert scoring.run(folder, made, retry=True) == scoring.Count(12, 0, 0)
    assert {one.attempts for (one,) in verdicts(folder, made).values()} == {scoring.ATTEMPTS + 2}
    assert {body["temperature"] for *_, body in stand.seen[-12:]} == {0.3}  # the coldest answer would be the same


def test_words_around_the_answer_are_read(stand):
    text = '<think>They ask for {"identity": 1}.</think>\n```json\n{"identity": 5, "temporal": 4, "physical": 4.5}\n```'
    assert rubrics.read_scores(SUBJECT, text).scores == {"identity": 5, "temporal": 4, "physical": 4.5}
    lone = rubrics.read_scores(SUBJECT, '{"identity": 5, "temporal": 4, "physical": 4, "reason": "cut \\ud83d"}')
    assert json.dumps(lone.reason).isascii() and lone.reason.encode()


def test_the_rule_is_enforced_in_code():
    names = CRITERIA[BACKGROUND]
    assert ruled(BACKGROUND, dict(zip(names, (2, 5, 1)))).scores == dict(zip(names, (2, 2, 1)))
    with pytest.raises(ValueError, match="no matting from 1 to 5"):
        ruled(BACKGROUND, {names[0]: 2, names[2]: 2})


def test_a_limited_and_a_stumbling_server_lose_nothing(folder, stand):
    stand.turns = [(429, {"Retry-After": "0"}, "slow down"), (503, {}, "later"), (500, {}, "?"), scores(3, 3, 3)]
    made = judge(stand)
    assert scoring.run(folder, made) == scoring.Count(12, 0, 0)


def test_answers_before_a_breakdown_are_kept(folder, stand, tmp_path):
    stand.turns = [*[scores(3, 3, 3)] * 5, (503, {}, "later")]
    made = open_judge(stand.url, Options(model="a-model", timeout=5, frames=2, workers=2), tmp_path / "answers.sqlite")
    with pytest.raises(Unavailable, match="failed 3 times"):
        scoring.run(folder, made)
    stand.seen.clear()
    stand.turns = [scores(3, 3, 3)]
    assert scoring.run(folder, made) == scoring.Count(12, 0, 0)
    assert len(stand.seen) == 12 - 5


def test_a_slow_server_is_waited_for(folder, stand):
    def slow(body):
        time.sleep(0.05)
        return scores(3, 3, 3)(body)

    stand.turns = [slow]
    started = time.monotonic()
    assert scoring.run(folder, judge(stand, workers=6)).scored == 12
    assert time.monotonic() - started < 12 * 5


def test_a_server_that_breaks_down_stops_the_run_and_what_it_said_stays(folder, stand, monkeypatch):
    monkeypatch.setattr(scoring, "_AT_ONCE", 4)
    count, lock = [], threading.Lock()

    def breaking(body):
        with lock:
            count.append(1)
            return scores(3, 3, 3)(body) if len(count) <= 8 else (500, {}, "down")

    stand.turns = [breaking]
    made = judge(stand, workers=1)
    with pytest.raises(Unavailable, match="failed 3 times"):
        scoring.run(folder, made)
    assert len(verdicts(folder, made)) == 8
    stand.turns = [scores(3, 3, 3)]
    assert scoring.run(folder, made) == scoring.Count(4, 0, 8)


def test_an_edit_that_is_refused_or_unreadable_is_a_failure_with_a_reason(folder, stand):
    refused, broken = folder.items[3], folder.items[4]
    folder.note_edit(Edit(broken.id, DONE, folder.path / "none.mp4"))

    def turn(body):
        if json.dumps(refused.prompt)[1:-1] in body["messages"][1]["content"][0]["text"]:
            return 400, {}, json.dumps({"error": {"message": "Held back."}})
        return scores(3, 3, 3)(body)

    stand.turns = [turn]
    made = judge(stand)
    assert scoring.run(folder, made) == scoring.Count(10, 2, 0)
    found = verdicts(folder, made)
    assert "Held back" in found[refused.id][0].error and "none.mp4" in found[broken.id][0].error


def test_a_judge_that_refuses_everything_stops_the_run(folder, stand):
    stand.turns = [(400, {}, json.dumps({"error": {"message": "At most 4 images."}}))]
    made = judge(stand)
    with pytest.raises(Unavailable, match=r"refuses every edit, at last so: .*At most 4 images"):
        scoring.run(folder, made)
    assert verdicts(folder, made) == {}
    stand.turns = [scores(3, 3, 3)]
    assert scoring.run(folder, made).scored == 12


def test_what_could_not_be_read_is_not_taken_from_the_cache_again(folder, stand, tmp_path):
    stand.turns = ["mumble"]
    made = open_judge(stand.url, Options(model="a-model", frames=2), tmp_path / "answers.sqlite")
    assert scoring.run(folder, made).failed == 12
    stand.turns = [scores(3, 3, 3)]
    assert scoring.run(folder, made, retry=True) == scoring.Count(12, 0, 0)
    assert {body["seed"] for *_, body in stand.seen[-12:]} == {3}


def test_a_second_scoring_is_free(folder, stand, tmp_path):
    stand.turns = [scores(3, 2, 1)]
    kept = tmp_path / "answers.sqlite"
    first = open_judge(stand.url, Options(model="a-model"), kept)
    scoring.run(folder, first, repeats=2)
    assert len(stand.seen) == 24
    other = Folder.begin(tmp_path / "other", folder.run, folder.items)
    for item in folder.items[2:]:
        other.note_edit(folder.edit(item))
    again = open_judge(stand.url, Options(model="a-model"), kept)
    assert scoring.run(other, again, repeats=2).scored == 24
    assert len(stand.seen) == 24 and again.chat.asked == 0
    assert verdicts(other, again) == verdicts(folder, first)
    scoring.run(other, open_judge(stand.url, Options(model="another"), kept))
    assert len(stand.seen) == 36  # another model is asked


def test_the_cache_tells_questions_apart(tmp_path):
    class Chat:
        def answers(self, questions, attempt=0):
            return [ValueError("no") if question.system == "bad" else f"{number} {attempt}"
                    for number, question in enumerate(questions)]  # fmt: skip

    picture = np.zeros((2, 3, 3), np.uint8)
    questions = [
        Question("a", ("b", picture)), Question("a", ("b", picture.reshape(3, 2, 3))), Question("a", ("b",)),
        Question("ab", (picture,)), Question("a", ("b", picture), 1), Question("a", ("b", picture + 1)),
    ]  # fmt: skip
    kept = cache.Cached(Chat(), tmp_path / "x.sqlite", "model")
    first = kept.answers(questions)
    assert len(set(first)) == 6 and kept.answers(questions[::-1]) == first[::-1] and kept.asked == 6
    assert kept.answers(questions[:1], attempt=1) == ["0 1"]
    assert cache.Cached(Chat(), tmp_path / "x.sqlite", "model").answers(questions[2:3]) == first[2:3]
    bad = kept.answers([Question("bad", ())])[0]
    assert isinstance(bad, ValueError)
    before = kept.asked
    kept.answers([Question("bad", ())])  # a refusal is not kept
    assert kept.asked == before + 1


def test_keys_reach_the_server_and_nothing_else(folder, stand, monkeypatch, capfd, caplog):
    monkeypatch.setenv("SOME_KEY", KEY)
    stand.turns = [(401, {}, f"bad key {KEY}"), scores(3, 3, 3)]
    given = ["score", "--out", str(folder.path), "--judge", stand.url, "--model", "a-model"]
    assert main([*given, "--key-variable", "SOME_KEY"]) == 2
    stand.turns = [scores(3, 3, 3)]
    scoring.run(folder, open_judge(stand.url, Options("a-model", "SOME_KEY"), folder.path / "judge_answers.sqlite"))
    assert {headers["Authorization"] for _, headers, _ in stand.seen} == {f"Bearer {KEY}"}
    told = "".join(capfd.readouterr()) + caplog.text
    files = b"".join(path.read_bytes() for path in folder.path.rglob("*") if path.is_file())
    assert KEY not in told and KEY.encode() not in files and "key_variable" in told


@pytest.mark.parametrize(("given", "sentence"), [
    ("gpt-5", "is no judge"), ("transformers:", "is no judge"), ("http://127.0.0.1:1/v1", "--model NAME"),
    ("ftp://host", "is no judge"), ("google-genai", "GEMINI_API_KEY"),
])  # fmt: skip
def test_what_is_no_judge_is_said_in_a_sentence(folder, monkeypatch, capsys, given, sentence):
    for name in google.KEYS:
        monkeypatch.delenv(name, raising=False)
    assert main(["score", "--out", str(folder.path), "--judge", given]) == 2
    assert sentence in capsys.readouterr().err
    assert folder.judges() == []


class Google(Stand):
    """The stand-in, as Google's server speaks."""

    def reply(self, text):
        parts = [{"text": "thinking aloud", "thought": True}, {"text": text}]
        return 200, {"Content-Type": "application/json"}, json.dumps({"candidates": [{"content": {"parts": parts}}]})


@pytest.fixture
def googles(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02))
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Google()
    yield made
    made.close()


def test_google_is_asked_as_any_other(googles):
    googles.turns = [googles.reply("fine")]
    chat = google.GoogleChat("gemini-x", timeout=5, url=googles.url.removesuffix("/v1"))
    picture = np.full((32, 48, 3), 200, np.uint8)
    assert chat.answers([Question("Be a judge.", ("Look:", picture), 3)], attempt=1) == ["fine"]
    ((path, headers, body),) = googles.seen
    assert "gemini-x:generateContent" in path and KEY not in path
    assert KEY in headers.values()
    config = body["generationConfig"]
    assert (config["temperature"], config["seed"]) == (0.3, 4)
    text, image = body["contents"][0]["parts"]
    assert text["text"] == "Look:" and "image/jpeg" in image["inlineData"].values()
    assert body["systemInstruction"]["parts"][0]["text"] == "Be a judge."
    assert KEY not in repr(chat)


@pytest.mark.parametrize(("turn", "kind", "words"), [
    ((400, {}, {"message": "Too many pictures."}), ValueError, "Too many pictures"),
    ((400, {}, {"message": f"API key not valid: {KEY}"}), Unavailable, "right key"),
    ((403, {}, {"message": "no"}), Unavailable, "right key"), ((404, {}, {"message": "no"}), Unavailable, "no model"),
    ((429, {}, {"message": "slow"}), Unavailable, "429"), ((500, {}, {"message": "oh"}), Unavailable, "500"),
])  # fmt: skip
def test_what_google_refuses_is_told_without_the_key(googles, turn, kind, words):
    code, headers, error = turn
    told = json.dumps({"error": {"code": code} | error})
    googles.turns = [(code, {"Content-Type": "application/json"} | headers, told)]
    chat = google.GoogleChat("gemini-x", timeout=5, url=googles.url.removesuffix("/v1"))
    try:
        (found,) = chat.answers([Question("x", ("y",))])
    except Unavailable as error:
        found = error
    assert isinstance(found, kind) and words in str(found) and KEY not in str(found)
    assert len(googles.seen) == (3 if code in (429, 500) else 1)


def test_google_is_given_the_time_it_asks_for(googles):
    told = {"error": {"code": 429, "message": "slow", "details": [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure"},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.4s"},
    ]}}  # fmt: skip
    kind = {"Content-Type": "application/json"}
    googles.turns = [(429, kind, json.dumps(told)), (200, kind, "no JSON"), googles.reply("fine")]
    chat = google.GoogleChat("gemini-x", timeout=5, url=googles.url.removesuffix("/v1"))
    started = time.monotonic()
    assert chat.answers([Question("x", ("y",))]) == ["fine"]
    assert time.monotonic() - started > 0.4


def test_google_holding_an_answer_back_is_no_answer(googles):
    googles.turns = [(200, {"Content-Type": "application/json"}, '{"promptFeedback": {"blockReason": "OTHER"}}')]
    chat = google.GoogleChat("gemini-x", timeout=5, url=googles.url.removesuffix("/v1"))
    assert chat.answers([Question("x", ("y",))]) == [""]


# Audit


def versions(count):
    """By its pixels, which version of which edit of the audit it is."""
    from training.nano import bench

    found = {}
    for item in bench.items({"seen": count}):
        for version in (*audit.FAULTS, audit.RIGHT):
            case = audit.case(item.edit, version, 4, item.seed)
            found[case.prompt, case.edit.tobytes()] = version
    return found


class Knowing:
    name, frames = "knowing", 4

    def __init__(self, known, given):
        self.known, self.given, self.identity, self.count = known, given, json.dumps(given), 0

    def score(self, cases, attempt=0):
        self.count += len(cases)
        return [self._one(case) for case in cases]

    def _one(self, case):
        value = self.given[self.known[case.prompt, case.edit.tobytes()]]
        if value is None:
            return None
        return ruled(case.kind, dict.fromkeys(CRITERIA[case.kind], value))


def test_an_audit_passes_a_judge_that_sees_and_fails_one_that_does_not(tmp_path):
    known = versions(2)
    good = Knowing(known, {"right": 5, "wrong": 2, "partial": 3, "unedited": 1})
    found = audit.run(good, tmp_path / "good", 2)
    assert found["passed"] and found["agreement"] == 1 and found["items"] == 14
    assert set(found["by_category"]) == {*edits.CATEGORIES, *edits.REFERENCE_CATEGORIES}
    assert audit.read(tmp_path / "good") == json.loads(json.dumps(found))
    blind = Knowing(known, {"right": 5, "wrong": 2, "partial": 5, "unedited": 1})
    found = audit.run(blind, tmp_path / "blind", 2)
    assert not found["passed"] and found["agreement"] == pytest.approx(2 / 3)
    assert found["by_fault"] == {"wrong": 1, "partial": 0, "unedited": 1}
    assert {one["ties"] for one in found["orders"] if one["fault"] == "partial"} == {2}
    upside = audit.run(Knowing(known, {"right": 1, "wrong": 2, "partial": 3, "unedited": 1}), tmp_path / "upside", 2)
    assert upside["agreement"] == 0 and sum(one["reversed"] for one in upside["orders"]) == 28
    dumb = audit.run(Knowing(known, {"right": None, "wrong": 2, "partial": 3, "unedited": 1}), tmp_path / "dumb", 2)
    assert dumb["agreement"] == 0 and sum(one["unread"] for one in dumb["orders"]) == 42
    assert "failed" in audit.text(dumb) and "passed" in audit.text(audit.read(tmp_path / "good"))


def test_an_audit_goes_on_where_it_was_stopped(tmp_path):
    known = versions(1)
    given = {"right": 5, "wrong": 2, "partial": 3, "unedited": 1}
    first = audit.run(Knowing(known, given), tmp_path, 1)
    path = tmp_path / audit.RESULTS
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-5]) + lines[-5][:20])
    again = Knowing(known, given)
    assert audit.run(again, tmp_path, 1) == first
    assert again.count == 5


def test_an_audit_of_a_judge_that_refuses_all_is_none(tmp_path):
    known, given = versions(1), {"right": 5, "wrong": 2, "partial": 3, "unedited": 1}
    mended = Knowing(known, given)
    refusing = SimpleNamespace(
        name=mended.name, identity=mended.identity, frames=mended.frames,
        score=lambda cases, attempt: [ValueError("At most 4 images.\n Give fewer.")] * len(cases),
    )  # fmt: skip
    with pytest.raises(Unavailable, match=r"scored no edit, at first so: At most 4 images. Give fewer. Mend that"):
        audit.run(refusing, tmp_path, 1)
    assert not (tmp_path / audit.FILE).exists()
    assert audit.run(mended, tmp_path, 1)["passed"]  # all were asked anew
    other = SimpleNamespace(name="b", identity="another", frames=2)
    with pytest.raises(ValueError, match="holds the audit of another judge"):
        audit.run(other, tmp_path, 1)
    some = Knowing(known, given | {"partial": None})
    assert scoring.UNREADABLE in audit.text(audit.run(some, tmp_path / "some", 1))


def test_the_verdict_of_an_audit_stands_beside_the_scores(folder, tmp_path, capsys):
    given = ["--judge", "classical", "--frames", "3", "--items", "1"]
    assert main(["audit", *given, "--out", str(tmp_path / "audit")]) == 0
    assert re.search(r"Audit of classical: (passed|failed)", capsys.readouterr().out)
    made = open_judge("classical", Options(frames=3))
    found = audit.read(tmp_path / "audit")
    scoring.run(folder, made, audit=found)
    name = scoring.name_of(made)
    assert folder.judge(name)["audit"] == found
    scoring.run(folder, made)
    assert folder.judge(name)["audit"] == found  # it is not forgotten
    with pytest.raises(ValueError, match="another judge"):
        scoring.run(folder, open_judge("classical", Options(frames=4)), audit=found)
    with pytest.raises(FileNotFoundError, match="There is no audit"):
        audit.read(tmp_path / "none")
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(ValueError, match="is no audit"):
        audit.read(tmp_path / "no.json")


def test_judges_that_always_answer_the_same_are_not_asked_again(folder, capsys):
    for judge in ("classical", "transformers:some/model"):
        assert main(["score", "--out", str(folder.path), "--judge", judge, "--repeats", "2"]) == 2
        assert "gives the same answer again when it runs here; leave --repeats out." in capsys.readouterr().err


def test_a_file_of_answers_that_is_damaged_is_told_in_a_sentence(folder, stand, tmp_path, capsys):
    (tmp_path / "answers").write_bytes(b"no database" * 100)
    given = ["score", "--out", str(folder.path), "--judge", stand.url, "--model", "a-model"]
    assert main([*given, "--cache", str(tmp_path / "answers")]) == 2
    assert "Kept answers cannot be read or written (file is not a database);" in capsys.readouterr().err


def test_an_answer_that_cannot_be_read_is_shown_and_may_be_longer(folder, stand, caplog):
    stand.turns = ["I think that the edit", *[scores(3, 3, 3)] * 20]
    scoring.run(folder, open_judge(stand.url, Options(model="a-model", max_new_tokens=4000)))
    assert 'An answer cannot be read (21 characters): "I think that the edit"' in caplog.text
    assert {body["max_tokens"] for *_, body in stand.seen} == {4000}
    with pytest.raises(ValueError, match="max_new_tokens is 10"):
        Options(max_new_tokens=10)


def test_the_classical_judge_sees_that_nothing_was_done(folder):
    made = open_judge("classical", Options(frames=4))
    assert scoring.run(folder, made).scored == 12
    for found in verdicts(folder, made).values():
        assert set(found[0].scores.values()) == {1.0}
    categories = (*edits.CATEGORIES, *edits.REFERENCE_CATEGORIES)
    right = [audit.case(edits.draw(name, 5), "right", 4, 5) for name in categories]
    assert all(np.mean(list(one.scores.values())) > 2 for one in made.score(right))


# Two by two


@pytest.fixture
def two(folder, tmp_path):
    other = Folder.begin(tmp_path / "other", folder.run | {"system": {"name": "other"}}, folder.items)
    for item in folder.items:
        other.note_edit(Edit(item.id, DONE, folder.items[2].source))
    return folder, other


def prefers(answer):
    def turn(body):
        said = answer(body) if callable(answer) else answer
        return said if said == "nonsense" else json.dumps({"reason": "r", "better": said})

    return turn


def first_is_source(body):
    """Who prefers the copy: its frames are the source's."""
    pictures = [part["image_url"]["url"] for part in body["messages"][1]["content"] if part["type"] == "image_url"]
    third = len(pictures) // 3
    source, first = pictures[-3 * third : -2 * third], pictures[-2 * third : -third]
    return "first" if source == first else "second"


def test_both_orders_count_and_a_favoured_place_is_a_tie(two, stand):
    a, b = two
    stand.turns = [prefers(first_is_source)]
    found = pairwise.run(a, b, judge(stand))["all"]
    # The third item's edits are the same; one of A failed, and loses; one is still to be made.
    assert (found.a, found.b, found.ties, found.failed, found.missing) == (11, 1, 1, 0, 1)
    assert found.rate == pytest.approx((1 + 0.5) / 13)
    before = len(stand.seen)
    assert pairwise.run(a, b, judge(stand))["all"] == found and len(stand.seen) == before
    assert "| all | 11 | 1 | 1 (1) | 0 | 1 | 12% " in pairwise.text(pairwise.run(a, b, judge(stand)), "a", "b")
    (told,) = pairwise.told(a, b).values()
    assert told["all"] == found and sum(one.a for name, one in told.items() if name != "all") == found.a
    assert pairwise.told(b, a) == {}
    b.note_edit(Edit(b.items[3].id, FAILED, error="Out of memory."))  # anew, and not what was compared
    (told,) = pairwise.told(a, b).values()
    assert told["all"].a + told["all"].b + told["all"].ties == 12 and told["all"].missing == 2


@pytest.mark.parametrize(("said", "expected"), [
    ("first", (0, 1, 12, 0, 12)), ("tie", (0, 1, 12, 0, 0)), ("nonsense", (0, 1, 0, 12, 0)),
])  # fmt: skip
def test_a_judge_without_a_preference_makes_no_winner(two, stand, said, expected):
    stand.turns = [prefers(said)]
    found = pairwise.run(*two, judge(stand))["all"]
    assert (found.a, found.b, found.ties, found.failed, found.torn) == expected
    stand.turns = [prefers("tie")]
    again = pairwise.run(*two, judge(stand), retry=True)["all"]
    assert (again.failed, again.ties) == (0, found.ties + found.failed)


def test_pairs_show_the_moments_that_both_edits_share(openve_bench, tmp_path):
    (item, *_) = suites.read("openve", openve_bench)
    source = np.zeros((33, 48, 64, 3), np.uint8) + np.arange(33, dtype=np.uint8)[:, None, None, None] * 7
    folders = []
    for name, count in (("long", 33), ("short", 9)):
        folder = Folder.begin(tmp_path / name, {"bench": "x", "system": {"name": name}}, [
            dataclasses.replace(item, source=clips.save_exactly(tmp_path / "source.mkv", source, 16)),
        ])  # fmt: skip
        made = clips.save_exactly(tmp_path / f"{name}.mkv", source[:count], 8)  # whose rate was lost
        folder.note_edit(Edit(item.id, DONE, made, align="frames"))
        folders.append(folder)
    asked = []

    def prefer(pairs, attempt):
        asked.extend(pairs)
        return [("tie", "")] * len(pairs)

    pairwise.run(*folders, SimpleNamespace(name="j", identity="j", frames=5, prefer=prefer))
    (one, other), (back, forth) = asked
    for case in (one, other, back, forth):
        assert case.source[:, 0, 0, 0].tolist() == case.edit[:, 0, 0, 0].tolist() == [0, 14, 28, 42, 56]


def test_a_judge_that_refuses_pairs_is_told_so(two):
    a, b = two

    def refuses(pairs, attempt):
        return [ValueError("At most 4 images.")] * len(pairs)

    with pytest.raises(Unavailable, match=r"refuses every pair, at last so: At most 4 images\. Mend that"):
        pairwise.run(a, b, SimpleNamespace(name="j", identity="j", frames=2, prefer=refuses))
    (found,) = pairwise.told(a, b).values()
    assert (found["all"].failed, found["all"].missing) == (scoring.REFUSED - 1, len(b.items) - scoring.REFUSED)


def test_what_is_not_made_yet_has_not_lost(two, tmp_path):
    a, _ = two
    begun = Folder.begin(tmp_path / "begun", a.run | {"system": {"name": "begun"}}, a.items)
    found = pairwise.run(a, begun, SimpleNamespace(name="j", identity="j", frames=2, prefer=None))["all"]
    assert (found.a, found.missing) == (0, len(a.items))


def test_each_retry_asks_in_another_way(two, stand):
    a, b = two
    stand.turns = [prefers("nonsense")]
    made = judge(stand)
    for _ in range(2):
        scoring.run(b, made, retry=True)
        pairwise.run(a, b, made, retry=True)
    asked = len(stand.seen)
    scoring.run(b, made, retry=True)
    pairwise.run(a, b, made, retry=True)
    assert len(stand.seen) > asked  # not the answers that are known already
    assert {one.attempts for (one,) in verdicts(b, made).values()} == {3 * scoring.ATTEMPTS}


def test_two_processes_do_not_ask_the_same_twice(two, stand):
    a, b = two
    made = judge(stand)
    name = scoring.name_of(made)
    paths = [b.path / "scores" / f".{name}.lock", b.path / "pairwise" / f".{name}{pairwise._against(a)[:-6]}.lock"]
    with held(*paths):
        with pytest.raises(ValueError, match="Another process asks a-model about "):
            scoring.run(b, made)
        with pytest.raises(ValueError, match="Another process asks a-model"):
            pairwise.run(a, b, made)
        assert not stand.seen
    stand.turns = [prefers("tie")]
    assert pairwise.run(a, b, made)["all"].ties


def test_who_cannot_compare_is_told(two, tmp_path):
    with pytest.raises(ValueError, match="cannot compare two edits"):
        pairwise.run(*two, open_judge("classical"))
    empty = Folder.begin(tmp_path / "empty", {"bench": "x", "system": {}}, [])
    with pytest.raises(ValueError, match="no item in common"):
        pairwise.run(two[0], empty, SimpleNamespace(prefer=None, name="x", identity="y"))


def test_a_model_that_runs_here_is_a_judge(folder, tmp_path):
    """A random one: it is asked, and what it says cannot be read."""
    made = open_judge(f"transformers:{write_qwen(tmp_path / 'model', 'qwen3_vl')}", Options(frames=1, device="cpu"))
    made.chat.max_new_tokens = 4
    assert scoring.run(folder, made, attempts=1) == scoring.Count(0, 12, 0)
    assert {one.error for (one,) in verdicts(folder, made).values()} == {scoring.UNREADABLE}
