"""The reviewer's pages: true pictures, choices in the ledger, and nothing for anybody else."""

import http.client
import io
import json
import re
import shutil
import sqlite3
import threading
import time
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest
import refvie_synthetic
from PIL import Image

from training.refvie import frames, pipeline, samples
from training.refvie.ledger import Ledger
from training.refvie.pages import review

COUNT = 55
NASTY = '<script>alert("x")</script> & "so on"'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run's folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("synthetic")
    refvie_synthetic.fill(folder, COUNT, prompts=[NASTY])
    return folder


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


class Client:
    """Asks a server as a browser would."""

    def __init__(self, server):
        self.server, self.parts = server, urlsplit(server.url)

    def ask(self, path="", body=None, secret=None, **headers):
        """Status, headers and body. A header that is None is not sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.parts.port, timeout=10)
        secret = self.server.secret if secret is None else secret
        known = {"Host": self.parts.netloc, "Origin": f"http://{self.parts.netloc}" if body is not None else None}
        known |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.putrequest("GET" if data is None else "POST", f"/{secret}/{path}", skip_host=True)
        for name, value in known.items():
            if value is not None:
                connection.putheader(name, value)
        if data is not None and "Content-Length" not in known:
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def page(self, **asked):
        status, _, body = self.ask(f"?{urlencode(asked)}")
        assert status == 200
        return body.decode()

    def numbers(self, **asked):
        return [int(one) for one in re.findall(r'data-number="(\d+)"', self.page(**asked))]

    def picture(self, number, view):
        status, headers, body = self.ask(f"picture/{number}/{view}")
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        return np.asarray(Image.open(io.BytesIO(body)), float)


@pytest.fixture
def client(run):
    with review.Server(run) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Client(server)
        server.shutdown()
        thread.join()


def chosen(run):
    with Ledger(run) as book:
        return dict(book.db.execute("SELECT sample, accepted FROM choices"))


def known(run, where="1"):
    book, given = pipeline.opened(run)
    with book:
        return list(samples.read(book, given, where))


def test_choices_enter_the_ledger_and_can_be_taken_back(client, run):
    for number, accepted in ((2, True), (3, False), (4, True), (4, None), (3, True)):
        status, _, _ = client.ask("choose", {"number": number, "accepted": accepted})
        assert status == 200
    assert chosen(run) == {2: 1, 3: 1}
    page = client.page()
    states = dict(re.findall(r'data-number="(\d+)" data-choice="(\w*)"', page))
    assert (states["2"], states["3"], states["4"]) == ("true", "true", "")
    (rejected,) = [one.number for one in known(run, "v.kept")][:1]
    client.ask("choose", {"number": rejected, "accepted": False})
    assert rejected not in [one.number for one in known(run, "v.kept")]


def test_choices_are_taken_while_a_run_works(client, run):
    with Ledger(run, writing=True) as book:
        assert client.ask("choose", {"number": 2, "accepted": True})[0] == 200
        book.db.execute("BEGIN IMMEDIATE")  # the run writes

        def end():
            time.sleep(0.3)
            book.db.execute("COMMIT")

        thread = threading.Thread(target=end)
        thread.start()
        assert client.ask("choose", {"number": 3, "accepted": False})[0] == 200
        thread.join()
    assert chosen(run) == {2: 1, 3: 0}


def test_a_choice_that_cannot_be_written_is_said(client, run, monkeypatch):
    def locked(*given):
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(Ledger, "choose", locked)
    status, _, body = client.ask("choose", {"number": 2, "accepted": True})
    assert (status, body) == (503, b"The ledger cannot be written now; try again.")


@pytest.mark.parametrize("changes", [
    {"secret": ""}, {"secret": "guessed"}, {"Host": "evil.example"}, {"Host": "evil.example:80"}, {"Host": None},
    {"Host": "127.0.0.1.evil.example"},
])  # fmt: skip
def test_nobody_looks_or_chooses_without_the_address_on_this_machine(client, run, changes):
    for path, body in (("", None), ("picture/2/source", None), ("choose", {"number": 2, "accepted": True})):
        status, _, answer = client.ask(path, body, **changes)
        assert (status, answer) == (403, b"Use the address that the program told.")
    assert chosen(run) == {}


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1"])
def test_another_site_cannot_choose(client, run, origin):
    assert client.ask("choose", {"number": 2, "accepted": True}, Origin=origin)[0] == 403
    assert chosen(run) == {}


def test_the_port_may_be_forwarded(client, run):
    told = {"Host": "localhost:9999", "Origin": "http://localhost:9999"}
    assert client.ask("choose", {"number": 2, "accepted": True}, **told)[0] == 200
    assert client.ask("", Host="localhost")[0] == 200
    assert chosen(run) == {2: 1}


@pytest.mark.parametrize(("body", "status"), [
    ({"number": 999, "accepted": True}, 404),
    ({"number": -1, "accepted": True}, 400),
    ({"number": True, "accepted": True}, 400),
    ({"number": 2**70, "accepted": True}, 400),
    ({"number": "2", "accepted": True}, 400),
    ({"number": 2, "accepted": "yes"}, 400),
    ({"number": 2, "accepted": 7}, 400),
    ({"number": 2}, 400),
    ([2, True], 400),
    (b"{", 400),
    (b"\xff", 400),
    (b"[" * 900, 400),
    (b" " * 1001, 400),
])  # fmt: skip
def test_choices_that_are_none(client, run, body, status):
    assert client.ask("choose", body)[0] == status
    assert chosen(run) == {}


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "99999999999999999999", ""])
def test_lengths_that_are_none(client, run, length):
    assert client.ask("choose", b"{}", Content_Length=length)[0] == 400


def test_choices_are_only_posted(client, run):
    assert client.ask("choose")[0] == 404
    assert client.ask("", {"number": 2, "accepted": True})[0] == 400
    assert chosen(run) == {}


@pytest.mark.parametrize("path", [
    "picture/2/secret", "picture/2", "picture/x/source", "picture/-2/source", "picture/2/source/99",
    "picture/999/source", "picture/2/source/x", "picture/2/../../ledger.sqlite", "../ledger.sqlite",
    "..%2fledger.sqlite", "ledger.sqlite", "picture/2/source/0/0", "picture/%32/source",
    "picture/99999999999999999999/source", "picture//source", "/etc/passwd",
])  # fmt: skip
def test_no_path_leads_to_a_file(client, path):
    status, _, body = client.ask(path)
    assert status == 404 and body in (b"There is no such picture.", b"There is no such page.")


def test_pictures_are_the_samples(client, run):
    (sample,) = known(run, "v.id = 's1'")
    before, after = frames.load(run / sample.artefacts["ingest"])
    middle = len(before) // 2
    for view, expected in (("source", before[middle]), ("target", after[middle])):
        assert np.abs(client.picture(sample.number, view) - expected).mean() < 4
    assert np.abs(client.picture(sample.number, "source/0") - before[0]).mean() < 4
    reference = np.asarray(Image.open(run / sample.artefacts["synthesise"]).convert("RGB"), float)
    assert np.abs(client.picture(sample.number, "reference") - reference).mean() < 4
    mask = frames.load_masks(run / sample.artefacts["segment"])[middle]
    redder = client.picture(sample.number, "mask")[..., 0] - after[middle][..., 0]
    assert redder[mask].mean() > 20 > 0 > redder[~mask].mean()


def test_a_picture_that_is_gone_is_told_and_the_rest_is_shown(client, run):
    (sample,) = known(run, "v.id = 's1'")
    (run / sample.artefacts["synthesise"]).unlink()
    (run / sample.artefacts["segment"]).write_bytes(b"no masks")
    assert [client.ask(f"picture/{sample.number}/{view}")[0] for view in review.VIEWS] == [200, 404, 200, 404]
    problem = known(run, "v.stage = 'pairs'")[0]
    assert client.ask(f"picture/{problem.number}/source")[0] == 404


def test_pages_show_all_samples_once_in_their_order(client):
    numbers = [one for page in range(-(-COUNT // review.PAGE)) for one in client.numbers(page=page)]
    assert numbers == list(range(1, COUNT + 1))
    assert client.numbers(page=999) == client.numbers(page=4)
    assert client.numbers(page="x") == client.numbers(page="-1") == client.numbers()
    assert 'id="next"' in client.page() and 'id="before"' not in client.page()


@pytest.mark.parametrize(("asked", "where"), [
    ({"verdict": "kept with a reference"}, "v.kept"),
    ({"verdict": "pair only", "origin": "ditto"}, "v.instruct AND NOT v.kept AND v.origin = 'ditto'"),
    ({"verdict": "not kept", "stage": "score"}, "NOT v.kept AND v.stage = 'score'"),
    ({"category": "local_add", "stage": "verify"}, "v.category = 'local_add' AND v.stage = 'verify'"),
    ({"stage": "no such stage", "verdict": "'; DROP TABLE samples; --"}, "1"),
])  # fmt: skip
def test_filters(client, run, asked, where):
    expected = [one.number for one in known(run, where)]
    assert client.numbers(**asked) == expected[: review.PAGE] != []


def test_what_is_near_its_bound_comes_first(client, run):
    scores = {one.number: one.scores().get("verify.same") for one in known(run)}
    told = {number: score for number, score in scores.items() if score is not None}
    assert len(told) > review.PAGE
    nearest = sorted(told, key=lambda number: abs(told[number] - 6))
    assert client.numbers(sort="verify.same, nearest to its bound") == nearest[: review.PAGE]
    lowest = sorted(told, key=told.get)
    assert client.numbers(sort="verify.same, lowest first") == lowest[: review.PAGE]
    assert client.numbers(sort="verify.same, highest first") == lowest[::-1][: review.PAGE]
    last = client.numbers(sort="verify.same, lowest first", page=4)
    assert not told.keys() & set(last)  # what has no score comes last


def test_a_list_stays_as_it_is_until_it_is_asked_for_anew(client, run):
    asked = {"verdict": "nobody's choice yet"}
    first, second = client.numbers(**asked), client.numbers(**asked, page=1)
    for number in first[:5]:
        client.ask("choose", {"number": number, "accepted": True})
    assert client.numbers(**asked, page=1) == second
    assert client.numbers(**asked) == [*first[5:], *second[:5]]
    assert client.numbers(verdict="accepted by a person") == first[:5]


def test_the_page_shows_text_as_text_and_asks_no_other_host(client):
    status, headers, body = client.ask()
    page = body.decode()
    assert status == 200
    assert NASTY not in page and "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &quot;so on&quot;" in page
    nonce = re.search(r"script-src 'nonce-([^']+)'", headers["Content-Security-Policy"])[1]
    assert re.findall(r"<script[^>]*>", page) == [f'<script nonce="{nonce}">']
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    assert not re.search(r"https?://", page)
    assert nonce not in client.page()


def test_each_start_has_another_secret_and_listens_here_only(run):
    with review.Server(run) as one, review.Server(run, host="localhost") as other:
        assert one.secret != other.secret and len(one.secret) >= 24
        assert one.server_address[0] == other.server_address[0] == "127.0.0.1"
        assert other.url.startswith(f"http://localhost:{other.server_address[1]}/{other.secret}/")
    with pytest.raises(ValueError, match=r"The host is '0.0.0.0'; give 127.0.0.1 or localhost"):
        review.Server(run, host="0.0.0.0")  # noqa: S104
    with pytest.raises(FileNotFoundError, match="There is no run in"):
        review.Server(run / "elsewhere")


def test_another_config_judges_otherwise(run):
    strict = refvie_synthetic.given(keep={"score.overall": {"min": 11}})
    with review.Server(run, given=strict) as server:
        found, _, _ = server.desk.look(server.desk.asked({"verdict": "kept with a reference"}), None)
        assert found == []
        assert "score.overall, nearest to its bound" in server.desk.filters["sort"]


def test_serve_ends_quietly_when_it_is_interrupted(run, monkeypatch, caplog):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(review.Server, "serve_forever", interrupted)
    with caplog.at_level("INFO"):
        review.serve(run)
    assert "Review at http://127.0.0.1:" in caplog.text and "the choices are in the ledger" in caplog.text
