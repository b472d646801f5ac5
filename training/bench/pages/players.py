"""Source, reference and the edits of all runs side by side, playing together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ...refvie.pages import page
from ...refvie.pages.page import section, text
from .. import results
from ..folder import Folder, Measured
from ..items import Item
from ..results import Results, Scored
from . import previews

_SEED = 7


class Run:
    """A run, and what each judge says of it.

    Args:
        name: what the page calls it.
    """

    def __init__(self, folder: Folder, name: str):
        self.folder, self.name = folder, name
        self.judged: list[Results] = [results.of(folder, judge) for judge in folder.judges()]
        self.numbers = results.numbers(folder)

    @cached_property
    def measured(self) -> dict[str, Measured]:
        return self.folder.measured()

    @cached_property
    def scored(self) -> dict[str, dict[str, Scored]]:
        """By judge's identity and item."""
        return {one.identity: {item.item.id: item for item in one.items} for one in self.judged}


def players(runs: Sequence[Run], out: Path, shown: int) -> str:
    """A card for each shown item, its clips side by side."""
    by = next(((run, one) for run in runs for one in run.judged), None)
    scored = {} if by is None else {one.item.id: one for one in by[1].items}
    items = {item.id: item for run in runs for item in run.folder.items}
    chosen = _chosen(list(items.values()), scored, shown)
    cards = []
    for item in chosen:
        found = previews.make([run.folder for run in runs], item, out / "clips")
        cards.append(_card(runs, item, found, scored.get(item.id)))
    categories = sorted({item.category for item in chosen})
    options = "".join(f"<option>{text(name)}</option>" for name in categories)
    order = [("worst", "worst first"), ("best", "best first"), ("name", "by name")]
    sorting = "".join(f'<option value="{value}">{words}</option>' for value, words in order)
    controls = (
        f'<div class="controls"><label>category <select id="category"><option value="">all</option>{options}</select>'
        f'</label><label>order <select id="order">{sorting}</select></label><button id="all">Play all</button></div>'
    )
    note = f"All {len(items)} items."
    if len(chosen) < len(items):
        which = "a sample" if by is None else "the worst, the best and some of the others"
        note = f"{len(chosen)} of {len(items)} items: {which}."
    if by is not None:
        note += f" Ordered by {text(by[0].name)}'s scores by {text(by[1].judge)}; what has no score yet comes last."
    note += " All clips of an item show the same moments; where an edit has ended, it is black."
    return section("Clips", note, f'{controls}<div id="cards">{"".join(cards)}</div>')


def _chosen(items: Sequence[Item], scored: dict[str, Scored], shown: int) -> list[Item]:
    """The worst and the best quarter of what is shown, and a sample of the rest; what has no score comes last."""
    values = {name: one.counted for name, one in scored.items() if one.counted is not None}
    known = sorted((item for item in items if item.id in values), key=lambda item: (values[item.id], item.id))
    unknown = sorted((item for item in items if item.id not in values), key=lambda item: item.id)
    if len(items) <= shown:
        return known + unknown
    ends = min(max(1, shown // 4) if shown >= 2 else 0, len(known) // 2)
    middle = len(known) - 2 * ends
    places = np.random.default_rng(_SEED).choice(middle + len(unknown), shown - 2 * ends, replace=False)
    between = [known[ends + place] for place in sorted(places) if place < middle]
    last = [unknown[place - middle] for place in sorted(places) if place >= middle]
    return known[:ends] + between + known[len(known) - ends :] + last


def _card(runs: Sequence[Run], item: Item, found: dict[str, str], first: Scored | None) -> str:
    views = [_view("source", found.get("source"), "source")]
    if item.reference is not None:
        shown = f'<img src="{text(found["reference"])}" alt="reference" loading="lazy">' if "reference" in found else (
            '<div class="none">gone</div>'
        )
        views.append(f"<figure>{shown}<figcaption>reference</figcaption></figure>")
    told = []
    for number, run in enumerate(runs):
        views.append(_view(run.name, found.get(str(number)), "edit"))
        told.append(_said(run, item))
    value = "" if first is None or first.counted is None else f"{first.counted:.4f}"
    play = "" if not set(found) - {"reference"} else '<button class="play" type="button">Play</button>'
    return (
        f'<article class="card clip" data-category="{text(item.category)}" data-value="{value}" '
        f'data-name="{text(item.id)}"><div class="views">{"".join(views)}</div>'
        f'<p class="prompt">{text(item.prompt)}</p>{"".join(told)}'
        f'<div class="foot">{play}<span class="soft small"><code>{text(item.id)}</code> · {text(item.category)}</span>'
        "</div></article>"
    )


def _view(name: str, path: str | None, kind: str) -> str:
    if path is None:
        shown = f'<div class="none">no {kind}</div>'
    else:
        poster = path.removesuffix(".mp4") + ".jpg"
        shown = f'<video src="{text(path)}" poster="{text(poster)}" preload="none" loop muted playsinline></video>'
    return f"<figure>{shown}<figcaption>{text(name)}</figcaption></figure>"


def _said(run: Run, item: Item) -> str:
    parts = []
    for one in run.judged:
        scored = run.scored[one.identity].get(item.id)
        if scored is None:
            continue
        if scored.scores:
            chips = "".join(
                f'<span class="chip">{text(name.replace("_", " "))} {page.number(round(value, 2))}</span>'
                for name, value in scored.scores.items()
            )
            why = text(scored.reason)
        else:
            chips, why = f'<span class="chip off">{text(scored.status)}</span>', text(scored.reason)
        who = f'<span class="soft small">{text(run.name)}, by {text(one.judge)}</span>'
        parts.append(f'<div class="said">{who} {chips}<div class="small">{why}</div></div>')
    measured = run.measured.get(item.id)
    if measured is not None and measured.values:
        chips = "".join(
            f'<span class="chip">{text(name.replace("_", " "))} {page.number(round(value, 3))}</span>'
            for name, value in measured.values.items() if value is not None
        )  # fmt: skip
        parts.append(f'<details><summary class="small soft">{text(run.name)}, measured</summary>{chips}</details>')
    return "".join(parts)


SCRIPT = """
'use strict';
const cards = [...document.querySelectorAll('.clip')], holder = document.getElementById('cards');
const category = document.getElementById('category'), order = document.getElementById('order');
const films = card => [...card.querySelectorAll('video')];
const still = card => {
  for (const film of films(card)) film.pause();
  const button = card.querySelector('.play');
  if (button) button.textContent = 'Play';
  card.playing = false;
};
const start = async card => {
  const own = films(card), button = card.querySelector('.play');
  if (!own.length || !button) return;
  card.playing = true;
  button.textContent = 'Pause';
  try {
    await Promise.all(own.map(film => new Promise((done, failed) => {
      if (film.readyState > 2) return done();
      film.addEventListener('canplay', done, {once: true});
      film.addEventListener('error', failed, {once: true});
      film.load();
    })));
    for (const film of own) film.currentTime = own[0].currentTime;
    if (card.playing) await Promise.all(own.map(film => film.play()));
  } catch { still(card); }
};
for (const card of cards) {
  card.querySelector('.play')?.addEventListener('click', () => card.playing ? still(card) : start(card));
}
const show = () => {
  for (const card of cards) {
    card.hidden = Boolean(category.value) && card.dataset.category !== category.value;
    if (card.hidden) still(card);
  }
  const value = (card, unknown) => card.dataset.value ? Number(card.dataset.value) : unknown;
  const by = {
    worst: (a, b) => value(a, 9) - value(b, 9), best: (a, b) => value(b, 0) - value(a, 0),
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
  }[order.value];
  holder.append(...cards.sort((a, b) => by(a, b) || a.dataset.name.localeCompare(b.dataset.name)));
};
category.addEventListener('change', show);
order.addEventListener('change', show);
document.getElementById('all').addEventListener('click', event => {
  const shown = cards.filter(card => !card.hidden), on = shown.some(card => card.playing);
  for (const card of shown) on ? still(card) : start(card);
  event.target.textContent = on ? 'Play all' : 'Pause all';
});
"""
