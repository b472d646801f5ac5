"""A page in the browser, on this machine alone, where a person looks at samples and accepts or rejects them.

Nobody else can look or choose: the server listens on the loopback address only, every address in it begins with a
secret that is made anew at each start, and requests that another site sends in the user's name are refused. Samples
are asked for by their numbers; no part of a request is ever taken for a file's name.
"""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode

from PIL import Image

from .. import pictures, pipeline, samples, stages
from ..config import Config
from ..ledger import INGEST
from ..samples import Sample
from . import page, survey
from .page import text

logger = logging.getLogger(__name__)

HOSTS = ("127.0.0.1", "localhost")
PAGE = 12
"""Samples on a page."""
_SIDE = 480
_LONGEST = 1000
"""Bytes of a choice."""
VIEWS = ("source", "reference", "target", "mask")

VERDICTS = {
    "all": "1",
    "kept with a reference": "v.kept",
    "pair only": "v.instruct AND NOT v.kept",
    "not kept": "NOT v.instruct AND NOT v.kept",
    "accepted by a person": "c.accepted = 1",
    "rejected by a person": "c.accepted = 0",
    "nobody's choice yet": "c.accepted IS NULL",
}
"""What can be asked for, in SQL."""


def serve(folder: str | Path, port: int = 0, given: Config | None = None, host: str = HOSTS[0]) -> None:
    """Show a run's samples until interrupted. Choices enter the ledger at once, also while a run works on it.

    Args:
        port: 0 for a free one; the log says which. given: another config to judge by than that of the last run. host:
            of :data:`HOSTS`. To look from another machine, forward the port, as with ``ssh -L``.

    Raises ValueError or FileNotFoundError where there is no run or no such host, OSError for a port in use.
    """
    with Server(folder, port, given, host) as server:
        logger.info("Review at %s (stop with Ctrl-C)", server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            logger.info("Review ended; the choices are in the ledger.")


class Server(ThreadingHTTPServer):
    """What :func:`serve` runs; ``url`` is where it is found. Closing it closes the ledger."""

    daemon_threads = True

    def __init__(self, folder: str | Path, port: int = 0, given: Config | None = None, host: str = HOSTS[0]):
        if host not in HOSTS:
            raise ValueError(f"The host is {host!r}; give {' or '.join(HOSTS)} and forward the port, as by ssh -L.")
        self.desk = Desk(folder, given)
        self.secret = secrets.token_urlsafe(18)
        try:
            super().__init__((HOSTS[0], port), _Handler)
        except BaseException:
            self.desk.close()
            raise
        self.url = f"http://{host}:{self.server_address[1]}/{self.secret}/"

    def server_close(self) -> None:
        super().server_close()
        self.desk.close()


class Desk:
    """A run's samples as they are looked at. Safe to use from several threads."""

    def __init__(self, folder: str | Path, given: Config | None = None):
        self._lock = threading.Lock()
        self._book, self.given = pipeline.opened(folder, given)
        self._asked: dict[str, str] | None = None
        self.filters = {
            "verdict": list(VERDICTS),
            **{name: ["", *self._distinct(name)] for name in ("stage", "category", "origin")},
            "sort": list(self._orders()),
        }
        """What can be asked for, by name; the first of each without."""

    def close(self) -> None:
        with self._lock:
            self._book.close()

    def _distinct(self, column: str) -> list[str]:
        query = f"SELECT DISTINCT {column} FROM verdicts WHERE {column} <> '' ORDER BY 1"
        found = [row[0] for row in self._book.db.execute(query)]
        return [name for name in survey.STEPS if name in found] if column == "stage" else found

    def _orders(self) -> dict[str, str]:
        """By what people call it, SQL to sort by."""
        found = {"in the order of the tables": "v.number"}
        values = {
            f"{stage}.{value}": f"json_extract(\"{stage}\".\"values\", '$.{value}')"
            for stage, made in stages.CLASSES.items()
            for value in made.tells
        }
        for name, bound in self.given.keep.items():
            ends = [f"abs({values[name]} - {float(end)!r})" for end in (bound.min, bound.max) if end is not None]
            nearest = ends[0] if len(ends) == 1 else f"min({', '.join(ends)})"
            found[f"{name}, nearest to its bound"] = f"{nearest} NULLS LAST, v.number"
        for name, value in values.items():
            found[f"{name}, lowest first"] = f"{value} ASC NULLS LAST, v.number"
            found[f"{name}, highest first"] = f"{value} DESC NULLS LAST, v.number"
        return found

    def asked(self, given: Mapping[str, str]) -> dict[str, str]:
        """The filters that are asked for; what there is not is as if it were not asked."""
        return {
            name: given[name] if given.get(name) in known else known[0] for name, known in self.filters.items()
        }

    def look(self, asked: dict[str, str], number: int | None) -> tuple[list[Sample], int, int]:
        """The samples of a page, its number and how many pages there are.

        The list stays as it is from page to page, whatever is chosen meanwhile, until it is asked for without a number.
        """
        with self._lock:
            if number is None or asked != self._asked:
                self._list(asked)
            count = self._book.db.execute("SELECT count(*) FROM listed").fetchone()[0]
            pages = max(1, -(-count // PAGE))
            number = min(max(0, number or 0), pages - 1)
            rows = self._book.db.execute(
                "SELECT number FROM listed WHERE place > ? ORDER BY place LIMIT ?", (number * PAGE, PAGE)
            )
            numbers = [row[0] for row in rows]
            found = {one.number: one for one in self._read(numbers)}
        return [found[one] for one in numbers if one in found], number, pages

    def _list(self, asked: dict[str, str]) -> None:
        conditions = [VERDICTS[asked["verdict"]]]
        conditions += [f"v.{name} = :{name}" for name in ("stage", "category", "origin") if asked[name]]
        arguments: dict = dict(asked)
        source = samples.joined(self._book, self.given, arguments)
        self._asked = None
        self._book.db.executescript(
            "DROP TABLE IF EXISTS temp.listed; CREATE TEMP TABLE listed (place INTEGER PRIMARY KEY, number INTEGER)"
        )
        self._book.db.execute(
            f"INSERT INTO listed (number) SELECT v.number FROM {source} WHERE {' AND '.join(conditions)}"
            f" ORDER BY {self._orders()[asked['sort']]}",
            arguments,
        )
        self._asked = asked

    def _read(self, numbers: list[int]) -> list[Sample]:
        where = f"v.number IN ({', '.join(map(str, map(int, numbers)))})"
        return list(samples.read(self._book, self.given, where))

    def sample(self, number: int) -> Sample | None:
        with self._lock:
            return next(iter(self._read([number])), None)

    def choose(self, number: int, accepted: bool | None) -> bool:
        """A person's word, see :meth:`training.refvie.ledger.Ledger.choose`; False if there is no such sample."""
        with self._lock:
            found = self._read([number])
            if found:
                self._book.choose(found[0].id, accepted)
            return bool(found)

    def picture(self, number: int, view: str, place: int | None) -> Image.Image | None:
        """One of :data:`VIEWS` of a sample, None if there is none."""
        sample = self.sample(number)
        if sample is None or INGEST not in sample.artefacts:
            return None
        frames = self._book.folder / sample.artefacts[INGEST]
        made = {name: self._book.folder / path for name, path in sample.artefacts.items()}
        try:
            if view in ("source", "target"):
                return pictures.frame(frames, view, place, _SIDE)
            if view == "reference" and "synthesise" in made:
                return pictures.opened(made["synthesise"], _SIDE)
            if view == "mask" and "segment" in made:
                return pictures.overlay(frames, made["segment"], place, _SIDE)
        except (OSError, ValueError, KeyError, IndexError) as error:
            logger.warning("%s of %s: %s", view, sample.id, error)
        return None


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version, server_version, sys_version = "HTTP/1.1", "refvie", ""
    timeout = 60

    def do_GET(self) -> None:
        parts = self._parts()
        if parts is None:
            return
        desk = self.server.desk
        if parts == [""]:
            query = {name: values[-1] for name, values in parse_qs(self.path.partition("?")[2]).items()}
            nonce = secrets.token_urlsafe(12)
            body = _document(desk, query, nonce).encode()
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", body, nonce)
        elif len(parts) in (3, 4) and parts[0] == "picture" and parts[2] in VIEWS and _whole(parts[1], *parts[3:]):
            made = desk.picture(int(parts[1]), parts[2], int(parts[3]) if parts[3:] else None)
            if made is None:
                self._refuse(HTTPStatus.NOT_FOUND, "There is no such picture.")
            else:
                self._send(HTTPStatus.OK, "image/jpeg", pictures.jpeg(made, 88))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")

    def do_POST(self) -> None:
        self.close_connection = True  # what was not read of a refused request is no next one
        parts = self._parts()
        if parts is None:
            return
        if self.headers.get("Origin", "") not in ("", f"http://{self.headers['Host']}"):
            return self._refuse(HTTPStatus.FORBIDDEN, "Another site asks for this.")
        length = self.headers.get("Content-Length", "")
        if parts != ["choose"] or not _whole(length) or int(length) > _LONGEST:
            return self._refuse(HTTPStatus.BAD_REQUEST, "Send a choice.")
        try:
            given = json.loads(self.rfile.read(int(length)))
            number, accepted = given["number"], given["accepted"]
        except (ValueError, KeyError, TypeError, RecursionError):
            number = accepted = ""
        if type(number) is not int or not 0 <= number < 1 << 62 or accepted not in (True, False, None):
            return self._refuse(HTTPStatus.BAD_REQUEST, "Send a choice.")
        try:
            if not self.server.desk.choose(number, accepted):
                return self._refuse(HTTPStatus.NOT_FOUND, "There is no such sample.")
        except sqlite3.OperationalError as error:
            logger.warning("The choice was not written: %s", error)
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "The ledger cannot be written now; try again.")
        return self._send(HTTPStatus.OK, "application/json", b"{}")

    def _parts(self) -> list[str] | None:
        """What stands behind the secret in the address; None, and an answer, for those who do not know it."""
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] or host
        secret, slash, rest = self.path.partition("?")[0].removeprefix("/").partition("/")
        known = secrets.compare_digest(secret.encode(), self.server.secret.encode())
        if name not in HOSTS or not slash or not known:
            self._refuse(HTTPStatus.FORBIDDEN, "Use the address that the program told.")
            return None
        return rest.split("/")

    def _refuse(self, status: HTTPStatus, words: str) -> None:
        self._send(status, "text/plain; charset=utf-8", words.encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes, nonce: str = "") -> None:
        script = f"script-src 'nonce-{nonce}'; " if nonce else ""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'none'; {script}style-src 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        )
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "same-origin")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "private, max-age=600" if kind == "image/jpeg" else "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *given: object) -> None:
        logger.debug(format, *given)


def _whole(*given: str) -> bool:
    """Whether all are whole numbers of a length that a database takes."""
    return all(one.isascii() and one.isdigit() and len(one) < 16 for one in given)


_STYLE = """
main { max-width: 1500px; padding-top: 0; }
header { position: sticky; top: 0; z-index: 1; background: var(--page); padding: 14px 0; display: flex; flex-wrap: wrap;
  gap: 10px 16px; align-items: end; border-bottom: 1px solid var(--line); margin-bottom: 16px; }
header form { display: flex; flex-wrap: wrap; gap: 10px; align-items: end; flex: 1; }
label { display: grid; gap: 2px; font-size: 12px; color: var(--soft); }
select, button, nav a { font: inherit; font-size: 14px; color: var(--ink); background: var(--card); border-radius: 7px;
  border: 1px solid var(--line); padding: 5px 10px; text-decoration: none; max-width: 250px; }
button, nav a { cursor: pointer; }
button:hover, nav a:hover { border-color: var(--soft); }
nav { display: flex; gap: 8px; align-items: center; font-variant-numeric: tabular-nums; }
.samples { grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); }
.views { grid-auto-flow: row; grid-template-columns: 1fr 1fr; }
.sample { border-width: 2px; cursor: default; scroll-margin: 90px 0 20px; }
.sample.at { border-color: var(--kept); }
.sample .buttons { display: flex; gap: 8px; align-items: center; }
.sample .word { margin-left: auto; font-size: 13px; font-weight: 600; }
.sample .word::after { content: "no choice yet"; color: var(--soft); font-weight: 400; }
.sample[data-choice="true"] .word::after { content: "accepted"; color: var(--good); }
.sample[data-choice="false"] .word::after { content: "rejected"; color: var(--failed); }
.sample[data-choice="true"] .accept { border-color: var(--good); color: var(--good); }
.sample[data-choice="false"] .reject { border-color: var(--failed); color: var(--failed); }
.keys { font-size: 13px; }
kbd { font: inherit; border: 1px solid var(--line); border-radius: 4px; padding: 0 5px; background: var(--card); }
#trouble { color: var(--failed); font-weight: 600; }
"""

_SCRIPT = """
const cards = [...document.querySelectorAll('.sample')], done = [], trouble = document.getElementById('trouble');
let at = location.hash === '#last' ? cards.length - 1 : 0, playing = null;
const stop = () => { clearInterval(playing); playing = null; };
const pick = place => {
  stop();
  cards[at]?.classList.remove('at');
  at = Math.max(0, Math.min(cards.length - 1, place));
  cards[at]?.classList.add('at');
  cards[at]?.scrollIntoView({block: 'nearest'});
};
const turn = (id, last) => {
  const link = document.getElementById(id);
  if (link) location.href = link.href + (last ? '#last' : '');
};
const step = by => {
  if (at + by < 0) turn('before', true);
  else if (at + by >= cards.length) turn('next', false);
  else pick(at + by);
};
const say = async (card, word, undoing) => {
  const before = card.dataset.choice;
  const body = JSON.stringify({number: Number(card.dataset.number), accepted: word === '' ? null : word === 'true'});
  try {
    const answer = await fetch('choose', {method: 'POST', headers: {'Content-Type': 'application/json'}, body});
    trouble.textContent = answer.ok ? '' : await answer.text();
    if (!answer.ok) return false;
  } catch {
    trouble.textContent = 'The choice was not taken: is the program still running?';
    return false;
  }
  card.dataset.choice = word;
  if (!undoing) done.push([card, before]);
  return true;
};
const undo = async () => {
  const last = done.pop();
  if (last) { pick(cards.indexOf(last[0])); await say(last[0], last[1], true); }
  else if (cards[at]) await say(cards[at], '', true);
};
const play = () => {
  if (playing) return stop();
  const card = cards[at], count = Number(card.dataset.frames);
  let place = 0;
  playing = setInterval(() => {
    for (const picture of card.querySelectorAll('img[data-moves]')) picture.src = `${picture.dataset.moves}/${place}`;
    place = (place + 1) % count;
  }, 250);
};
const columns = () => cards.filter(card => card.offsetTop === cards[0].offsetTop).length;
const keys = {
  a: async () => { if (await say(cards[at], 'true')) step(1); },
  r: async () => { if (await say(cards[at], 'false')) step(1); },
  u: undo, ArrowRight: () => step(1), ArrowLeft: () => step(-1),
  ArrowDown: () => pick(at + columns()), ArrowUp: () => pick(at - columns()), ' ': play,
};
document.addEventListener('keydown', event => {
  const act = keys[event.key];
  if (!act || !cards.length || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest('select, button, a')) {
    if (event.key === ' ' || event.key.startsWith('Arrow')) return;
  }
  event.preventDefault();
  act();
});
cards.forEach((card, place) => {
  card.addEventListener('click', () => { if (place !== at) pick(place); });
  card.querySelector('.accept').addEventListener('click', () => say(card, 'true'));
  card.querySelector('.reject').addEventListener('click', () => say(card, 'false'));
  card.querySelector('.undo').addEventListener('click', () => say(card, ''));
  for (const picture of card.querySelectorAll('img')) picture.addEventListener('error', () => {
    picture.replaceWith(Object.assign(document.createElement('div'), {className: 'none', textContent: 'gone'}));
  });
});
for (const select of document.querySelectorAll('select')) select.addEventListener('change', () => select.form.submit());
if (at) pick(at); else cards[0]?.classList.add('at');
"""


def _document(desk: Desk, query: Mapping[str, str], nonce: str) -> str:
    asked = desk.asked(query)
    found, number, pages = desk.look(asked, int(query["page"]) if _whole(query.get("page", "x")) else None)
    selects = "".join(
        f'<label>{name}<select name="{name}">{_options(known, asked[name])}</select></label>'
        for name, known in desk.filters.items()
    )
    links = [
        f'<a id="{name}" href="?{text(urlencode(asked | {"page": other}))}">{words}</a>' if 0 <= other < pages else ""
        for name, words, other in (("before", "← Before", number - 1), ("next", "Next →", number + 1))
    ]
    keys = (("a", "accept"), ("r", "reject"), ("u", "undo"), ("← ↑ ↓ →", "move"), ("space", "play"))
    cards = "".join(_card(desk.given, one) for one in found)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>RefVIE: review</title><style>{page.STYLE}{_STYLE}</style></head><body><main><header>"
        f'<form>{selects}<noscript><button>Show</button></noscript></form><nav>{links[0]}<span class="soft">'
        f"{number + 1} of {page.count(pages)}</span>{links[1]}</nav></header>"
        f'<p class="keys soft">{" &nbsp; ".join(f"<kbd>{key}</kbd> {words}" for key, words in keys)} '
        '<span id="trouble" role="status"></span></p>'
        f'<div class="samples">{cards}</div>{"" if cards else "<p>There are no such samples.</p>"}'
        f'</main><script nonce="{nonce}">{_SCRIPT}</script></body></html>\n'
    )


def _options(known: list[str], chosen: str) -> str:
    return "".join(
        f'<option value="{text(name)}"{" selected" if name == chosen else ""}>{text(name) or "any"}</option>'
        for name in known
    )


def _card(given: Config, sample: Sample) -> str:
    made = {"source": INGEST, "reference": "synthesise", "target": INGEST, "mask": "segment"}
    figures = "".join(
        f"<figure>{_view(sample, view) if stage in sample.artefacts else f'<div class=none>no {view}</div>'}"
        f"<figcaption>{view}</figcaption></figure>"
        for view, stage in made.items()
    )
    scores = sample.scores()
    shown = {name: value for name, value in scores.items() if name in given.keep or name == "score.overall"}
    why = "kept" if sample.kept else f"{sample.stage}: {sample.reason}"
    kind = "kept" if sample.kept else survey.sort(sample.stage, sample.reason)
    choice = "" if sample.accepted is None else str(sample.accepted).lower()
    count = int(min(given.frames, sample.values.get(INGEST, {}).get("frames", 1)))
    buttons = "".join(
        f'<button type="button" class="{name}">{name.capitalize()}</button>' for name in ("accept", "reject", "undo")
    )
    said = [told["reason"] for told in sample.values.values() if isinstance(told.get("reason"), str) and told["reason"]]
    return (
        f'<div class="card sample" data-number="{sample.number}" data-choice="{choice}" data-frames="{count}">'
        f'<div class="views">{figures}</div><div class="prompt">{text(sample.prompt)}</div>'
        f'<div class="why {kind}">{text(why)}</div><div>{page.chips(shown, samples.broken(given, scores))}</div>'
        f'<div class="soft">{text(" · ".join(said))}</div>'
        f'<div class="id"><code>{text(sample.id)}</code> · {text(sample.category)} · {text(sample.origin)}</div>'
        f'<div class="buttons">{buttons}<span class="word"></span></div></div>'
    )


def _view(sample: Sample, view: str) -> str:
    address = f"picture/{sample.number}/{view}"
    moves = "" if view == "reference" else f' data-moves="{address}"'
    return f'<img alt="{view}" src="{address}" loading="lazy"{moves}>'
