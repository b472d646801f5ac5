"""One page of one or several runs of a benchmark, beside what others have published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from kiwi_core.atomic import replacing

from ...refvie.pages import page
from ...refvie.pages.page import section, text
from .. import exact, pairwise, published, results
from ..folder import FAILED, Folder
from ..items import HIGHEST, LOWEST
from ..metrics import METRICS
from ..results import FAILURES, Results
from . import drawings, players
from .players import Run

PASSED, NOT_TRUSTED, NOT_AUDITED = "passed its audit", "failed its audit: not to be trusted", "not audited"


def write(folders: Folder | Sequence[Folder], out: Path, title: str = "", shown: int = 60) -> Path:
    """Write ``index.html``, ``clips``, ``report.md`` and ``report.json`` into ``out``; returns the page.

    Args:
        shown: items whose clips are shown: the worst, the best and some between.

    Raises ValueError for runs of several benchmarks.
    """
    folders = [folders] if isinstance(folders, Folder) else folders
    benches = {folder.run["bench"] for folder in folders}
    if len(benches) != 1:
        raise ValueError(f"The runs are of several benchmarks, {' and '.join(sorted(benches))}; report each by itself.")
    if shown < 0:
        raise ValueError(f"--shown is {shown}; give 0 or more.")
    names = _names(folders)
    runs = [Run(folder, name) for folder, name in zip(folders, names)]
    pairs = _pairs(runs)
    bench = benches.pop()
    out.mkdir(parents=True, exist_ok=True)
    told = {
        "bench": bench,
        "runs": [
            {"name": run.name, "system": run.folder.run["system"], "judges": [one.as_json() for one in run.judged],
             "numbers": asdict(run.numbers)}
            for run in runs
        ],
        "pairs": [
            {"a": pair.a, "b": pair.b, "judge": pair.judge, "outcomes": {
                name: asdict(one) | {"rate": one.rate, "interval": one.interval()} for name, one in pair.found.items()
            }}
            for pair in pairs
        ],
        "quoted": [asdict(one) | {"judge": published.JUDGES[bench]} for one in published.of(bench)],
    }  # fmt: skip
    files = {"report.json": json.dumps(told, indent=1, allow_nan=False), "report.md": _markdown(bench, runs, pairs)}
    for name, data in files.items():
        with replacing(out / name) as temporary:
            temporary.write_text(data + "\n", encoding="utf-8")
    path = out / "index.html"
    with replacing(path) as temporary:
        temporary.write_text(_html(bench, runs, pairs, out, title, shown), encoding="utf-8")
    return path


def _names(folders: Sequence[Folder]) -> list[str]:
    names = [folder.run["system"]["name"] for folder in folders]
    for tell in (lambda path: path.name, str):
        told = [
            name if names.count(name) == 1 else f"{name} ({tell(folder.path)})" for name, folder in zip(names, folders)
        ]  # fmt: skip
        if len(set(told)) == len(told):
            break
    return told


def audited(one: Results) -> str:
    """What is known of a judge."""
    if one.audit is None:
        return NOT_AUDITED
    return PASSED if one.audit["passed"] else NOT_TRUSTED


def _markdown(bench: str, runs: Sequence[Run], pairs: Sequence[_Pair]) -> str:
    lines = [f"# {bench}", ""]
    for run in runs:
        for one in run.judged:
            lines += [f"## {run.name}, by {one.judge} ({audited(one)})", "", one.text(), ""]
        lines += [f"## {run.name}, without a judge", "", results.text_of_numbers(run.folder), ""]
    for pair in pairs:
        lines += [f"## {pair.b} against {pair.a}, by {pair.judge}", "", pairwise.text(pair.found, pair.a, pair.b), ""]
    if quoted := published.of(bench):
        lines += [f"## Quoted, by {published.JUDGES[bench]}; not comparable", "", "| system | score |", "|---|---|"]
        lines += [f"| {one.system} | {one.score:.2f} |" for one in quoted]
    return "\n".join(lines)


def _html(bench: str, runs: Sequence[Run], pairs: Sequence[_Pair], out: Path, title: str, shown: int) -> str:
    judged = [(run, one) for run in runs for one in run.judged]
    heading = title or f"{bench}: {', '.join(run.name for run in runs)}"
    body = [
        f"<header><h1>{text(heading)}</h1></header>",
        section("Results", _note(bench, runs, judged), _table(bench, runs, judged)),
    ]
    if judged:
        keys = [f"{run.name}, by {one.judge}" for run, one in judged]
        note = "Failures count as 1. Intervals of fewer than ten items are too narrow."
        body.append(section("By category", note, _categories(judged, keys)))
        body.append(section("Scores", "How often each was given, without failures.", _histograms(judged, keys)))
    if pairs:
        note = (
            "Each pair was shown in both orders; only what is preferred in both is a win. Torn are ties in which the "
            "judge preferred a place. Ties count half."
        )
        body.append(section("Two by two", note, _two_by_two(pairs)))
    if any(run.numbers.numbers for run in runs):
        note = "Means with their 95% intervals."
        if len({name for run in runs for name in run.numbers.identities}) > 1:
            note += (
                " <strong>They were measured by different models or versions: what pictures and texts are compared by "
                "does not compare.</strong>"
            )
        body.append(section("Without a judge", note, _numbers(runs)))
    body.append(_failures(runs, judged))
    body.append(players.players(runs, out, shown))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{text(heading)}</title><style>{page.STYLE}{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main><script>{players.SCRIPT}</script></body></html>\n"
    )


def _note(bench: str, runs: Sequence[Run], judged: Sequence[tuple[Run, Results]]) -> str:
    parts = ["Scores run from 1 to 5; in brackets the 95% interval over items."]
    if published.of(bench):
        parts.append(
            "Quoted scores come from other scripts, which drop failures and show the judge other clips: they do not "
            f"compare with those measured here. {published.NOTES[bench]}"
        )
    if len({one.identity for _, one in judged}) > 1:
        parts.append("Scores of different judges do not compare with each other.")
    if len({frozenset((item.id, item.prompt, item.category) for item in run.folder.items) for run in runs}) > 1:
        parts.append(
            "<strong>The runs were asked different items: their means do not compare; <code>compare</code> takes those "
            "that both have.</strong>"
        )
    if any(not one.complete for _, one in judged):
        parts.append("<strong>Some items are missing: these are not whole runs.</strong>")
    return " ".join(parts)


def _table(bench: str, runs: Sequence[Run], judged: Sequence[tuple[Run, Results]]) -> str:
    columns = {
        "system": "", "": "", "judge": "", "items": "number", "failed": "number", "missing": "number",
        "score": "number", "failures as 1": "number", "mean of categories": "number",
    }  # fmt: skip
    rows = []
    for run, one in judged:
        kind = {PASSED: "good", NOT_TRUSTED: "failed", NOT_AUDITED: "bound"}[audited(one)]
        share = "" if one.audit is None else f", {100 * one.audit['agreement']:.0f}% in the right order"
        judge = (
            f'<div class="judge">{text(one.judge)}<br><span class="{kind} small">{audited(one)}{share}</span></div>'
        )
        every = one.overall
        rows.append((
            f"<strong>{text(run.name)}</strong>", '<span class="tag">measured here</span>', judge,
            str(len(one.items)), str(every.failed), str(every.missing), every.without.text(),
            f"<strong>{every.counting.text()}</strong>", one.macro.text(),
        ))  # fmt: skip
    for run in runs:
        if not run.judged:
            count = str(len(run.folder.items))
            rows.append((f"<strong>{text(run.name)}</strong>", '<span class="tag">measured here</span>', "no judge yet",
                         count, "", "", "–", "–", "–"))  # fmt: skip
    for one in published.of(bench):
        name, judge = text(one.system), text(published.JUDGES[bench])
        soft = [f'<span class="soft">{cell}</span>' for cell in (name, f"quoted, {text(one.source)}", judge)]
        rows.append((*soft, "", "", "", f'<span class="soft">{one.score:.2f}</span>', "", ""))
    return f'<div class="card">{page.table(columns, rows)}</div>'


def _categories(judged: Sequence[tuple[Run, Results]], keys: Sequence[str]) -> str:
    names = list(dict.fromkeys(name for _, one in judged for name in one.by_category))
    values = [[_value(one, name) for name in names] for _, one in judged]
    draw = drawings.radar if len(names) >= 3 else drawings.bars
    drawing = draw([name.replace("_", " ") for name in names], values, LOWEST, HIGHEST)
    columns = {"category": ""} | dict.fromkeys(map(text, keys), "number")
    rows = [
        (text(name.replace("_", " ")), *(
            f"{one.by_category[name].counting.text()}" if name in one.by_category else "–" for _, one in judged
        ))
        for name in names
    ]  # fmt: skip
    return (
        f'<div class="card beside">{drawing}<div>{drawings.legend(keys)}{page.table(columns, rows)}</div></div>'
    )


@dataclass(frozen=True)
class _Pair:
    """Two runs that a judge has compared, by their names."""

    a: str
    b: str
    judge: str
    found: dict[str, pairwise.Outcome]


def _pairs(runs: Sequence[Run]) -> list[_Pair]:
    return [
        _Pair(a.name, b.name, judge, found)
        for b in runs for a in runs if a is not b for judge, found in pairwise.told(a.folder, b.folder).items()
    ]  # fmt: skip


def _two_by_two(pairs: Sequence[_Pair]) -> str:
    cards = []
    for pair in pairs:
        a, b = text(pair.a), text(pair.b)
        columns = {"category": ""} | dict.fromkeys(
            (f"{a} better", f"{b} better", "ties", "torn", "failed", "missing", f"{b} wins"), "number"
        )
        rows = [(text(name.replace("_", " ")), *map(str, astuple(one)), one.text()) for name, one in pair.found.items()]
        heading = f"<h3>{b} against {a}, by {text(pair.judge)}</h3>"
        cards.append(f'<div class="card">{heading}{page.table(columns, rows)}</div>')
    return "".join(cards)


def _value(one: Results, name: str) -> float | None:
    return one.by_category[name].counting.value if name in one.by_category else None


def _histograms(judged: Sequence[tuple[Run, Results]], keys: Sequence[str]) -> str:
    criteria = list(dict.fromkeys(name for _, one in judged for name in one.overall.criteria))
    cards = []
    for name in criteria:
        values = [[item.scores[name] for item in one.items if name in item.scores] for _, one in judged]
        told = " · ".join(
            one.overall.criteria[name].text() if name in one.overall.criteria else "–" for _, one in judged
        )
        drawing = drawings.histogram(values, LOWEST, HIGHEST)
        cards.append(
            f'<div class="card"><h3>{text(name.replace("_", " "))}</h3>{drawing}'
            f'<div class="soft small">{told}</div></div>'
        )
    return f'{drawings.legend(keys)}<div class="grid">{"".join(cards)}</div>'


def _numbers(runs: Sequence[Run]) -> str:
    columns = {"metric": ""} | {text(run.name): "number" for run in runs} | {"what it tells": ""}
    names = list(dict.fromkeys(name for run in runs for name in run.numbers.numbers))
    rows = []
    for name in names:
        known = (METRICS | exact.METRICS).get(name)
        title, unit, better, meaning = (
            (known.title, known.unit, known.better, known.meaning) if known else (name.replace("_", " "), "", "", "")
        )
        arrow = {"more": "&nbsp;↑", "less": "&nbsp;↓"}.get(better, "")
        cells = []
        for run in runs:
            one = run.numbers.numbers.get(name)
            if one is None:
                cells.append("–")
                continue
            told = f"{page.count(one.mean.count)} items" + (f", not of {page.count(one.absent)}" if one.absent else "")
            cells.append(f"{one.mean.text(3)}<br><span class='soft small'>{told}</span>")
        heading = f"{text(title)}{arrow}<br><span class='soft small'>{text(unit)}</span>"
        rows.append((heading, *cells, f'<div class="meaning">{text(meaning)}</div>'))
    return f'<div class="card">{page.table(columns, rows)}</div>'


def _failures(runs: Sequence[Run], judged: Sequence[tuple[Run, Results]]) -> str:
    rows = [
        (text(run.name), f"<code>{text(item.item.id)}</code>", text(item.status), text(item.reason))
        for run, one in judged for item in one.items if item.status in FAILURES
    ] + [
        (text(run.name), f"<code>{text(item.id)}</code>", "no edit", text(edit.error))
        for run in runs if not run.judged for item in run.folder.items
        if (edit := run.folder.edit(item)) is not None and edit.status == FAILED
    ] + [
        (text(run.name), f"<code>{text(item)}</code>", "not measured", text(why))
        for run in runs for item, why in run.numbers.failed.items()
    ]  # fmt: skip
    if not rows:
        return section("Failures", "There are none.", "")
    table = page.table(dict.fromkeys(("system", "item", "what", "why"), ""), dict.fromkeys(rows))
    note = "For a judge's score each counts as the lowest; what was not measured is in no number."
    return section("Failures", note, f'<div class="card">{table}</div>')


_STYLE = """
.small { font-size: 12.5px; }
.good { color: var(--good); }
.tag { font-size: 12px; padding: 1px 7px; border-radius: 999px; background: var(--well); white-space: nowrap; }
.key { display: inline-block; margin: 0 16px 8px 0; font-size: 13px; }
.judge { min-width: 190px; }
.meaning { min-width: 240px; }
.beside > * { min-width: 0; }
.beside { display: grid; grid-template-columns: minmax(260px, 420px) 1fr; gap: 24px; align-items: center; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(280px, 100%), 1fr)); gap: 14px; }
.grid h3 { margin-top: 0; }
.drawing { width: 100%; height: auto; display: block; }
.drawing.wide { max-width: 560px; }
.drawing text { font-size: 11.5px; fill: var(--ink); }
.drawing .mark { font-size: 9.5px; fill: var(--soft); }
.drawing .ring { fill: none; stroke: var(--line); }
.drawing .run { fill-opacity: 0.12; stroke-width: 2; stroke-linejoin: round; }
.controls { display: flex; flex-wrap: wrap; gap: 14px; align-items: center; margin: 10px 0 14px; font-size: 13px; }
.controls select, button {
  font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: 3px 10px;
}
button { cursor: pointer; }
#cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(560px, 100%), 1fr)); gap: 14px; }
.clip { display: flex; flex-direction: column; gap: 8px; padding: 12px; min-width: 0; }
.clip[hidden] { display: none; }
.clip .prompt { margin: 0; font-weight: 600; }
.views video {
  display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: var(--well);
  border: 1px solid var(--line); border-radius: 6px;
}
.foot { display: flex; gap: 12px; align-items: center; margin-top: auto; }
@media (max-width: 720px) {
  main { padding: 18px 12px 40px; }
  .beside { grid-template-columns: 1fr; }
  .views { grid-auto-flow: row; grid-template-columns: 1fr 1fr; }
}
"""
