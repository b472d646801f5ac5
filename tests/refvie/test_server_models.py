"""Models behind a server: what is sent, what is made of good, bad, late and missing replies, and that keys stay."""

import base64
import io
import json
import logging
import threading
import time
import traceback
from types import SimpleNamespace

import chat_server
import numpy as np
import pytest
from PIL import Image

from training.asking import remote, server
from training.refvie import backends
from training.refvie.backends import Check, Quality, Region, Unavailable, View

KEY = "sk-very/secret+key"
SCORES = json.dumps({"prompt_following": 8, "consistency": 7, "naturalness": 6, "artifacts": 5, "reason": "fine"})
GOOD = Quality(8, 7, 6, 5, "fine")


@pytest.fixture
def stand(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = chat_server.Stand(SCORES)
    yield made
    made.close()


def view(prompt="Make it red.", frames=2):
    source = np.zeros((frames, 64, 96, 3), np.uint8)
    source[:, :, 48:] = (np.arange(frames)[:, None, None, None] * 60 + 60).astype(np.uint8)
    return View(prompt, "", source, 255 - source)


def judge(stand, **options):
    return backends.load("score", "openai", {"url": stand.url, "model": "a-model", "timeout": 5} | options)


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and 20 < len(text) < 500
    return text


def test_what_is_sent_is_a_chat_with_pictures(stand):
    asked = view("Make it <b>red</b>.")
    assert judge(stand, max_new_tokens=77).judge([asked]) == [GOOD]
    ((path, headers, body),) = stand.seen
    assert path == "/v1/chat/completions" and headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert {key: body[key] for key in ("model", "max_tokens", "temperature", "seed")} == {
        "model": "a-model", "max_tokens": 77, "temperature": 0, "seed": 0,
    }  # fmt: skip
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert "prompt_following" in system["content"]
    first, *parts = user["content"]
    assert first == {"type": "text", "text": 'The instruction: "Make it \\u003cb>red\\u003c/b>."'}
    assert [part["text"] for part in parts[::2]] == [
        "source frame 1:", "source frame 2:", "edited frame 1:", "edited frame 2:",
    ]  # fmt: skip
    for part, frame in zip(parts[1::2], (*asked.source, *asked.target)):
        kind, _, data = part["image_url"]["url"].partition(",")
        assert kind == "data:image/jpeg;base64"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
        assert np.abs(shown - frame).mean() < 3


def test_a_further_attempt_is_another_throw(stand):
    model = judge(stand)
    for attempt in (0, 1, 2):
        model.judge([view()], attempt)
    assert [(body["temperature"], body["seed"]) for _, _, body in stand.seen] == [(0, 0), (0.3, 1), (0.3, 2)]


def test_all_three_questions_are_asked(stand):
    options = {"url": stand.url + "/", "model": "Qwen/Qwen2.5-VL-7B-Instruct"}
    stand.turns = [json.dumps({
        "category": "local_add", "name": "kite", "boxes": [{"frame": 2, "box": [42, 28, 84, 56]}],
    })]  # fmt: skip
    (found,) = backends.load("locate", "openai", options).locate([view()])
    assert found == Region("local_add", "kite", (None, (0.5, 0.5, 1, 1)))  # pixels of frames of 84 x 56
    stand.turns = ['```json\n{"same": 4, "usable": 9}\n```']
    pictures = view().target
    check = Check("subject", "kite", "Add it.", pictures[0], pictures, np.ones(pictures.shape[:3], bool))
    (match,) = backends.load("verify", "openai", options).verify([check])
    assert (match.same, match.usable) == (4, 9)
    assert stand.seen[-1][0] == "/v1/chat/completions"


@pytest.mark.parametrize("turn", [
    "I would say 8.", SCORES[:-1], SCORES.replace("8", "11"), "",
    (200, {}, "not JSON"), (200, {}, "[]"), (200, {}, '{"choices": []}'), (200, {}, "{}"), (200, {}, ""),
    (200, {}, '{"choices": [{"message": {"content": null}}]}'), (200, {}, '{"choices": [{"message": "8"}]}'),
    (200, {}, '{"choices": [{"message": {"content": 8}}]}'), (200, {}, "[" * 100_000),
])  # fmt: skip
def test_a_bad_answer_is_missing_and_not_asked_again_here(stand, turn):
    stand.turns = [turn]
    assert judge(stand).judge([view()]) == [None]
    assert len(stand.seen) == 1


def test_answers_are_in_order_and_so_many_are_asked_at_once(stand):
    busy, most, lock = 0, 0, threading.Lock()

    def turn(body):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        number = int(body["messages"][1]["content"][0]["text"].split()[-1].rstrip('."'))
        time.sleep(0.05 if number % 2 else 0.1)
        with lock:
            busy -= 1
        return SCORES.replace("8", str(number))

    stand.turns = [turn]
    found = judge(stand, workers=3).judge([view(f"Make it number {number}.") for number in range(7)])
    assert [one.prompt_following for one in found] == list(range(7))
    assert most == 3


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504, 408])
def test_a_server_that_is_busy_is_asked_again(stand, code):
    stand.turns = [(code, {}, "busy"), (code, {}, "busy"), SCORES]
    assert judge(stand).judge([view()]) == [GOOD]
    assert len(stand.seen) == 3


def test_a_server_that_stays_busy_stops_the_run(stand):
    stand.turns = [(503, {}, "busy")]
    with pytest.raises(Unavailable, match=r"failed 3 times \(it says 503\)") as error:
        judge(stand).judge([view()] * 3)
    assert stand.url in one_sentence(error)


class Pauses(threading.Event):
    """Lets no time go by."""

    asked = []

    def wait(self, timeout=None):
        Pauses.asked.append(timeout)
        return self.is_set()


def test_the_pauses_grow_and_are_as_long_as_the_server_asks_but_bounded(stand, monkeypatch):
    monkeypatch.setattr(remote, "threading", SimpleNamespace(Event=Pauses))

    def pauses(*headers):
        Pauses.asked.clear()
        stand.turns = [*((429, {"Retry-After": header} if header else {}, "") for header in headers), SCORES]
        assert judge(stand).judge([view()]) == [GOOD]
        return Pauses.asked

    assert pauses("", "") == [0.01, 0.02]
    assert pauses("7", "0") == [7, 0.02]
    assert pauses("99999999", "soon") == [remote.LONGEST_PAUSE, 0.02]
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    pause, second = pauses(later, "Thu, 01 Jan 1970 00:00:00 GMT")
    assert 20 < pause <= 30 and second == 0.02


def test_a_slow_server_is_asked_again_and_then_stops_the_run(stand):
    def slow(body):
        time.sleep(0.4)
        return SCORES

    stand.turns = [slow, SCORES]
    assert judge(stand, timeout=0.1).judge([view()]) == [GOOD]
    stand.turns = [slow]
    with pytest.raises(Unavailable, match="timed out"):
        judge(stand, timeout=0.1).judge([view()])


def test_no_server_stops_the_run(stand):
    stand.close()
    with pytest.raises(Unavailable, match="refused") as error:
        judge(stand).judge([view()])
    assert stand.url in one_sentence(error)


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_request_that_is_refused_is_its_samples_fault(stand, code):
    def turn(body):
        wrong = "much" in body["messages"][1]["content"][0]["text"]
        return (code, {}, json.dumps({"error": {"message": "Too\nmany pictures."}})) if wrong else SCORES

    stand.turns = [turn]
    model = judge(stand)
    good, refused, other = model.judge([view(), view("Too much."), view()])
    assert (good, other) == (GOOD, GOOD) and len(stand.seen) == 3
    assert isinstance(refused, ValueError) and str(refused).endswith(f"({code}): Too many pictures.")
    stand.turns = [(code, {}, "x" * 10_000)]
    (refused,) = model.judge([view()])
    assert len(str(refused)) < 300 and "xxx" in str(refused)


@pytest.mark.parametrize(("code", "words"), [
    (401, "right key.*key_variable"), (403, "right key"), (404, "no model a-model.*url"), (405, "correct url"),
    (302, "correct url"),
])  # fmt: skip
def test_what_no_sample_is_to_blame_for_stops_the_run_at_once(stand, code, words):
    stand.turns = [(code, {"Location": f"{stand.url}/elsewhere"}, "no")]
    with pytest.raises(Unavailable, match=words) as error:
        judge(stand, workers=1).judge([view()] * 4)
    one_sentence(error)
    assert len(stand.seen) == 1  # not asked again, and no others; nor at the other address
    assert {path for path, *_ in stand.seen} == {"/v1/chat/completions"}


def test_one_that_fails_stops_those_that_wait(stand, monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (30.0,))
    stand.turns = [(503, {}, ""), (401, {}, "")]
    started = time.monotonic()
    with pytest.raises(Unavailable, match="401"):
        judge(stand, workers=2).judge([view()] * 2)
    assert time.monotonic() - started < 10


def every_word(error):
    """All that could be printed of an exception."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))


@pytest.mark.parametrize("turn", [
    SCORES, *((code, {}, f'{{"error": {{"message": "bad key {KEY} in Bearer {KEY}"}}}}') for code in (
        400, 401, 403, 404, 418, 422, 429, 500,
    )),
    (400, {}, f"no JSON {KEY}"), (307, {"Location": f"/{KEY}"}, KEY),
])  # fmt: skip
def test_the_key_is_sent_and_told_nobody(stand, monkeypatch, caplog, capfd, turn):
    monkeypatch.setenv("SOME_KEY", KEY + "\n")
    caplog.set_level(logging.DEBUG)
    stand.turns = [turn]
    options = {"url": stand.url, "model": "a-model", "key_variable": "SOME_KEY"}
    model = backends.load("score", "openai", options)
    told = ""
    try:
        answer = model.judge([view()])[0]
        told = every_word(answer) if isinstance(answer, ValueError) else ""
    except Unavailable as error:
        told = every_word(error)
    assert bool(told) == (turn != SCORES)
    assert stand.seen[0][1]["Authorization"] == f"Bearer {KEY}"
    told += caplog.text + "".join(capfd.readouterr()) + repr(vars(model))
    assert KEY not in told + backends.identity("score", "openai", options)


@pytest.mark.parametrize("value", [None, "", " \n", "two\nlines", "schlüssel", "a\0b"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_told(stand, monkeypatch, value):
    if value is None:
        monkeypatch.delenv("SOME_KEY", raising=False)
    elif "\0" not in value:
        monkeypatch.setenv("SOME_KEY", value)
    else:
        monkeypatch.setattr(server.os, "environ", {"SOME_KEY": value})
    with pytest.raises(ValueError, match=r"^key_variable names no environment variable") as error:
        judge(stand, key_variable="SOME_KEY")
    assert "lines" not in one_sentence(error)


def test_a_key_in_the_wrong_place_is_not_told(stand):
    with pytest.raises(ValueError, match="key_variable") as error:
        judge(stand, key_variable=KEY)
    assert KEY not in every_word(error.value)
    for url in (f"http://user:{KEY}@127.0.0.1/v1", f"http://127.0.0.1/v1?key={KEY}"):
        with pytest.raises(ValueError, match="url is no plain address") as error:
            judge(stand, url=url)
        assert KEY not in every_word(error.value)


@pytest.mark.parametrize(("options", "words"), [
    ({"url": "localhost:8000/v1"}, "url"), ({"url": "file:///etc/passwd"}, "url"), ({"url": ""}, "url"),
    ({"workers": 0}, "workers"), ({"workers": True}, "workers"), ({"timeout": 0}, "timeout"),
    ({"coordinates": "miles"}, "coordinates"), ({"speed": 1}, "no option 'speed'"),
])  # fmt: skip
def test_bad_options_are_refused(stand, options, words):
    with pytest.raises(ValueError, match=words) as error:
        judge(stand, **options)
    one_sentence(error)


def test_where_and_how_fast_it_is_asked_does_not_change_what_answers_are_known_by():
    given = {"url": "http://one/v1", "model": "a-model"}
    known = backends.identity("score", "openai", given)
    assert known == backends.identity("score", "openai", given | {
        "url": "http://two/v1", "timeout": 3, "workers": 2, "key_variable": "SOME_KEY",
    })  # fmt: skip
    assert known != backends.identity("score", "openai", given | {"model": "another"})
    assert known != backends.identity("score", "openai", given | {"max_pixels": 10_000})
