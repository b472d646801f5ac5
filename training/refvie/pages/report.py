"""One HTML page of what a run kept, what it did not, why, and what it cost. It asks nothing of any other host."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from kiwi_core.atomic import replacing

from .. import pictures, samples, select, stages
from ..config import Config
from ..ledger import INGEST, Ledger
from ..samples import Sample
from . import page, survey
from .page import count, duration, number, share, text

logger = logging.getLogger(__name__)

KEPT, PAIRS, OTHERS = 24, 6, 36
"""Samples that are shown: with a reference, as pairs only, not kept."""
_SIDE = 200
_WIDTH, _HEIGHT = 300, 96
"""Of a histogram, without its words."""

_STYLE = """
.totals { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0 0; }
.totals b { display: block; font-size: 26px; line-height: 1.2; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--soft); margin: 0 0 14px; }
.funnel { display: grid; grid-template-columns: max-content 1fr repeat(3, max-content); gap: 7px 14px;
  align-items: center; font-variant-numeric: tabular-nums; }
.bar { display: flex; gap: 2px; height: 20px; }
.bar i { display: block; border-radius: 3px; min-width: 2px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 14px; }
.chart { padding: 12px 14px; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.chart .limit { stroke: var(--bound); stroke-width: 1.5; stroke-dasharray: 4 3; }
.chart .outside { fill: var(--bound); opacity: 0.1; }
.chart .mark { fill: var(--bound); font-weight: 600; }
th.heat { text-align: center; padding: 6px 2px; }
td.heat { padding: 2px; vertical-align: middle; }
td.heat span { display: block; text-align: center; border-radius: 4px; padding: 4px 2px; }
.after { margin: 14px 0 0; }
"""


def report(book: Ledger, given: Config, path: str | Path, seed: int = 0) -> Path:
    """Write the page, whole or not at all; returns where.

    Args:
        book: as :func:`training.refvie.pipeline.opened` gives it. seed: of the samples that are shown.
    """
    path = Path(path)
    survey.prepare(book, seed)
    works = []
    for name in stages.CLASSES:
        logger.info("report: %s", name)
        works.append(survey.work(book, given, name))
    totals = survey.totals(book)
    sections = [
        _head(book, given, totals),
        _funnel(survey.funnel(book)),
        _groups(book, totals),
        _reasons(book, totals),
        _values(works),
        _cost(works, totals),
        _failures(book, works, totals),
        _sheets(book, given),
    ]
    body = "\n".join(sections)
    document = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>RefVIE: {text(book.folder.resolve().name)}</title><style>{page.STYLE}{_STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
    with replacing(path) as temporary:
        temporary.write_text(document, encoding="utf-8")
    return path


def _head(book: Ledger, given: Config, totals: survey.Totals) -> str:
    told = [
        (count(totals.pairs), "pairs"),
        (count(totals.kept), f"kept with a reference, {share(totals.kept, totals.pairs)}"),
        (count(totals.instruct), f"good enough by their instruction, {share(totals.instruct, totals.pairs)}"),
        (f"{count(totals.accepted)} / {count(totals.rejected)}", "accepted / rejected by a person"),
    ]
    cards = "".join(f'<div class="card"><b>{value}</b><span class="soft">{words}</span></div>' for value, words in told)
    return (
        f"<h1>{text(book.folder.resolve().name)}</h1>"
        f'<p class="soft">RefVIE, judged by the config {text(given.name)}.</p><div class="totals">{cards}</div>'
    )


def _legend(words: Mapping[str, str]) -> str:
    marks = "".join(f"<span>{page.swatch(name)}{told}</span>" for name, told in words.items())
    return f'<div class="legend">{marks}</div>'


def _funnel(steps: Sequence[survey.Step]) -> str:
    whole = max(1, steps[0].entered)
    rows, seen = [], {"kept"}
    for step in steps:
        parts = [("kept", step.passed), *sorted(step.lost.items(), key=lambda one: -one[1])]
        seen.update(step.lost)
        bars = "".join(
            f'<i style="width:{100 * size / whole:.3f}%;background:var(--{name})"'
            f' title="{count(size)} {page.COLOURS[name]}"></i>'
            for name, size in parts
            if size
        )
        lost = step.entered - step.passed
        rows.append(
            f'<span>{step.name}</span><span class="bar">{bars}</span>'
            f'<span class="number soft">{f"−{count(lost)}" if lost else ""}</span>'
            f'<span class="number">{count(step.passed)}</span>'
            f'<span class="number soft">{share(step.passed, whole)}</span>'
        )
    legend = _legend({name: words for name, words in page.COLOURS.items() if name in seen})
    return page.section(
        "What is left after each stage",
        "A bar is as long as what came to the stage. Of what does not go on, the first reason counts.",
        f'<div class="card">{legend}<div class="funnel">{"".join(rows)}</div></div>',
    )


def _groups(book: Ledger, totals: survey.Totals) -> str:
    parts = []
    for column in ("origin", "category"):
        found = survey.groups(book, column)
        heads = dict.fromkeys(survey.STEPS, "heat")
        columns = {column: "", "all": "number", **heads, "with reference": "number", "by instruction": "number"}
        more = totals.pairs - sum(group.pairs for group in found)
        note = f'<p class="soft">{count(more)} more pairs are of smaller groups.</p>' if more else ""
        parts.append(f'<h3>By {column}</h3><div class="card">{page.table(columns, map(_group, found))}{note}</div>')
    return page.section("By origin and category", "The share that is left after each stage.", "".join(parts))


def _group(group: survey.Group) -> list[str]:
    cells = [
        f'<span style="background:rgba(var(--heat),{0.34 * left / group.pairs:.3f})" title="{count(left)}">'
        f"{share(left, group.pairs)}</span>"
        for left in group.left
    ]
    name = text(group.name) or '<span class="soft">not told</span>'
    return [name, count(group.pairs), *cells, count(group.kept), count(group.instruct)]


def _reasons(book: Ledger, totals: survey.Totals) -> str:
    found = survey.reasons(book)
    more = totals.pairs - totals.kept - sum(one.count for one in found)
    note = f'<p class="soft">{count(more)} more have rarer reasons.</p>' if more else ""
    table = _reason_table(found, totals.pairs)
    return page.section("Why the rest is not kept", "", f'<div class="card">{table}{note}</div>')


def _reason_table(found: Sequence[survey.Reason], whole: int) -> str:
    if not found:
        return '<span class="soft">None.</span>'
    columns = {"stage": "", "reason": "", "samples": "number", "of all": "number soft", "such as": ""}
    rows = (
        (one.stage, page.swatch(one.sort) + text(one.kind), count(one.count), share(one.count, whole), _examples(one))
        for one in found
    )
    return page.table(columns, rows)


def _examples(one: survey.Reason) -> str:
    return ", ".join(f"<code>{text(name)}</code>" for name in one.examples)


def _values(works: Sequence[survey.Work]) -> str:
    charts, same = [], []
    for one in (histogram for work in works for histogram in work.histograms):
        if one.least == one.most and one.bound is None:
            same.append(f"{one.name} {number(one.least)}")
        else:
            charts.append(_chart(one))
    if not charts and not same:
        return ""
    note = f'<p class="soft after">The same for all: {text(", ".join(same))}.</p>' if same else ""
    legend = _legend({"kept": "kept with a reference", "other": "others", "bound": "bound, and what it leaves out"})
    return page.section("What the stages told", "", f'{legend}<div class="charts">{"".join(charts)}</div>{note}')


def _chart(one: survey.Histogram) -> str:
    top = max(kept + other for kept, other in zip(one.kept, one.others)) or 1
    wide, step = _WIDTH / survey.BINS, (one.high - one.low) / survey.BINS
    bars = []
    for place, (kept, other) in enumerate(zip(one.kept, one.others)):
        low, level = one.low + step * place, float(_HEIGHT)
        told = f"{number(low)} to {number(low + step)}: {count(kept)} kept, {count(other)} others"
        bars.append(f"<g><title>{told}</title>")
        for size, name in ((kept, "kept"), (other, "other")):
            if size:
                height = max(0.75, _HEIGHT * size / top)
                level -= height
                bars.append(
                    f'<rect x="{place * wide + 0.6:.2f}" y="{level:.2f}" width="{wide - 1.2:.2f}" height="{height:.2f}"'
                    f' rx="1" fill="var(--{name})"/>'
                )
        bars.append("</g>")
    words = f"mean {number(one.mean)}, {number(one.least)} to {number(one.most)}"
    if one.bound is not None:
        words += f", {count(one.broken)} outside"
    return (
        f'<div class="card chart"><b>{one.name}</b> <span class="soft">{count(sum(one.kept) + sum(one.others))}</span>'
        f'<svg viewBox="0 -16 {_WIDTH} {_HEIGHT + 34}" role="img" aria-label="{one.name}: {words}">'
        f"{_limits(one)}{''.join(bars)}"
        f'<line x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}" stroke="var(--line)"/>'
        f'<text x="0" y="{_HEIGHT + 14}">{number(one.low)}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{number(one.high)}</text></svg>'
        f'<span class="soft">{words}</span></div>'
    )


def _limits(one: survey.Histogram) -> str:
    parts = []
    for end in ("min", "max"):
        value = getattr(one.bound, end, None)
        if value is not None:
            x = _WIDTH * (value - one.low) / (one.high - one.low)
            left, right = (0, x) if end == "min" else (x, _WIDTH)
            side = "end" if x > _WIDTH / 2 else "start"
            parts.append(
                f'<rect class="outside" x="{left:.2f}" y="0" width="{max(0, right - left):.2f}" height="{_HEIGHT}"/>'
                f'<line class="limit" x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="{_HEIGHT}"/>'
                f'<text class="mark" x="{x:.2f}" y="-4" text-anchor="{side}">{end} {number(value)}</text>'
            )
    return "".join(parts)


def _cost(works: Sequence[survey.Work], totals: survey.Totals) -> str:
    whole = sum(work.seconds for work in works)

    def each(seconds: float, parts: int) -> str:
        return duration(seconds / parts) if parts else "–"

    rows = [
        (
            one.stage, text(one.model), count(one.results), each(one.seconds, one.results),
            f"{one.attempts / one.results:.2f}" if one.results else "–", duration(one.seconds),
            share(one.seconds, whole), each(one.seconds, totals.kept),
        )
        for one in works
    ]  # fmt: skip
    rows.append(("<b>all</b>", "", "", "", "", f"<b>{duration(whole)}</b>", "", f"<b>{each(whole, totals.kept)}</b>"))
    names = ("samples", "each", "attempts", "together", "share", "for one kept")
    table = page.table({"stage": "", "by": "", **dict.fromkeys(names, "number")}, rows)
    return page.section(
        "What it cost",
        "Time of one copy of the model, failures among it; without earlier versions and models. For one kept: all of "
        "the stage's time, shared by what is kept with a reference.",
        f'<div class="card">{table}</div>',
    )


def _failures(book: Ledger, works: Sequence[survey.Work], totals: survey.Totals) -> str:
    rows = [
        (work.stage, one.sort, text(one.kind), count(one.count), share(one.count, work.results), _examples(one))
        for work in works
        for one in work.errors
    ]
    columns = {"stage": "", "": "", "why": "", "samples": "number", "of the stage's": "number soft", "such as": ""}
    nothing = '<span class="soft">Nothing failed, and every answer could be read.</span>'
    problems = _reason_table(survey.reasons(book, f"stage = '{survey.PAIRS}'", 20), totals.pairs)
    table = f'<div class="card">{page.table(columns, rows) if rows else nothing}</div>'
    return page.section("Failures and missing answers", "Tried again by: run --retry-failed.", table) + page.section(
        "Problems of pairs", "Rows of the tables that are no pair.", f'<div class="card">{problems}</div>'
    )


def _sheets(book: Ledger, given: Config) -> str:
    rejected = f"NOT kept AND sort NOT IN ('{survey.WAITS}', '{survey.NO_REFERENCE}') AND stage <> '{survey.PAIRS}'"
    parts = [
        ("Kept with a reference", "kept", "category, origin", KEPT),
        (f"Pairs only: {select.NO_REFERENCE}", f"sort = '{survey.NO_REFERENCE}' AND instruct", "category", PAIRS),
        ("Not kept", f"{rejected} AND stage <> '{INGEST}'", "stage, kind", OTHERS),
    ]
    found = []
    for title, where, by, most in parts:
        numbers = survey.sheet(book, where, by, most)
        cards = "".join(_card(book.folder, given, one) for one in _in_order(book, given, numbers))
        if cards:
            found.append(page.section(title, "", f'<div class="samples">{cards}</div>'))
    return "".join(found)


def _in_order(book: Ledger, given: Config, numbers: Sequence[int]) -> list[Sample]:
    where = f"v.number IN ({', '.join(map(str, numbers))})"
    found = {one.number: one for one in samples.read(book, given, where)} if numbers else {}
    return [found[number] for number in numbers]


def _card(folder: Path, given: Config, sample: Sample) -> str:
    frames = sample.artefacts.get(INGEST)
    views = [
        ("source", frames and (lambda: pictures.frame(folder / frames, "source", side=_SIDE))),
        ("reference", _reference(folder, sample)),
        ("target", frames and (lambda: pictures.frame(folder / frames, "target", side=_SIDE))),
    ]
    figures = "".join(_figure(name, make) for name, make in views)
    scores = sample.scores()
    wanted = {name: value for name, value in scores.items() if name in given.keep or name == "score.overall"}
    why = (
        f'<div class="why {survey.sort(sample.stage, sample.reason)}">{text(sample.stage)}: {text(sample.reason)}</div>'
        if not sample.kept
        else ""
    )
    return (
        f'<div class="card sample"><div class="views">{figures}</div><div class="prompt">{text(sample.prompt)}</div>'
        f"{why}<div>{page.chips(wanted, samples.broken(given, scores))}</div>"
        f'<div class="id"><code>{text(sample.id)}</code> · {text(sample.category)} · {text(sample.origin)}</div></div>'
    )


def _reference(folder: Path, sample: Sample) -> Callable[[], Image.Image] | None:
    path = sample.artefacts.get("synthesise")
    return (lambda: pictures.opened(folder / path, _SIDE)) if path else None


def _figure(name: str, make: Callable[[], Image.Image] | None) -> str:
    shown = f'<div class="none">no {name}</div>'
    if make:
        try:
            data = base64.b64encode(pictures.jpeg(make())).decode()
            shown = f'<img alt="{name}" src="data:image/jpeg;base64,{data}">'
        except (OSError, ValueError, KeyError):
            shown = f'<div class="none">{name} is gone</div>'
    return f"<figure>{shown}<figcaption>{name}</figcaption></figure>"
