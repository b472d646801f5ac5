"""What the report and the reviewer's pages share: their look, and how numbers are written."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #5b6470; --line: #e1e4e9; --well: #eef0f3;
  --kept: #2c6bd1; --bound: #c77700; --failed: #c2362f; --pair: #4f8f8b; --double: #7f5bb5; --person: #b0437f;
  --waits: #a3acb8; --other: #c3cad4; --heat: 44, 107, 209; --good: #1e7f4f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1c2026; --ink: #e6e9ed; --soft: #9aa4b1; --line: #2c323a; --well: #262b32;
    --kept: #6ea2f5; --bound: #e2a03f; --failed: #ec7068; --pair: #67b3ae; --double: #a98be0; --person: #df7fb3;
    --waits: #616b78; --other: #4a525d; --heat: 110, 162, 245; --good: #58c08a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1280px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 40px 0 4px; letter-spacing: -0.005em; }
h3 { font-size: 14px; margin: 20px 0 8px; }
p { margin: 0 0 12px; }
.soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; white-space: nowrap; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
.middle { text-align: center; }
code { font: 12.5px/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; }
.chip {
  display: inline-block; padding: 1px 8px; margin: 0 4px 4px 0; border-radius: 999px; background: var(--well);
  font-size: 12px; white-space: nowrap; font-variant-numeric: tabular-nums;
}
.chip.off { color: var(--bound); box-shadow: inset 0 0 0 1px currentColor; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(370px, 100%), 1fr)); gap: 14px; }
.sample { display: flex; flex-direction: column; gap: 10px; padding: 12px; min-width: 0; }
.sample .id { margin-top: auto; color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.views { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 6px; }
.views figure { margin: 0; min-width: 0; }
.views img, .views .none {
  display: flex; align-items: center; justify-content: center; width: 100%; aspect-ratio: 4 / 3; object-fit: contain;
  background: var(--well); border: 1px solid var(--line); border-radius: 6px; color: var(--soft); font-size: 12px;
}
.views figcaption { font-size: 12px; color: var(--soft); text-align: center; }
.prompt { overflow-wrap: anywhere; display: -webkit-box; -webkit-line-clamp: 4; -webkit-box-orient: vertical;
  overflow: hidden; }
.why { font-size: 13px; font-weight: 600; overflow-wrap: anywhere; }
.kept { color: var(--kept); } .bound { color: var(--bound); } .failed { color: var(--failed); }
.pair { color: var(--pair); } .double { color: var(--double); } .person { color: var(--person); }
.waits { color: var(--soft); }
"""

COLOURS = {
    "kept": "goes on or is kept", "bound": "out of a bound", "failed": "failed, no answer, or no pair",
    "pair": "pair only: no reference shows such an edit", "double": "there twice", "person": "by a person",
    "waits": "not known yet",
}  # fmt: skip
"""By class, which is also a colour's name, what it stands for."""


def text(value: object) -> str:
    """Any text as HTML that shows it."""
    return html.escape(str(value), quote=True)


def count(value: int) -> str:
    return f"{value:,}"


def share(part: float, whole: float) -> str:
    if not whole:
        return "–"
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"


def number(value: float) -> str:
    """A measured value, as short as it can be told."""
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.3g} s"


def table(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already. ``columns``: each one's class, by its heading."""
    kinds = [f' class="{kind}"' if kind else "" for kind in columns.values()]
    head = "".join(f"<th{kind}>{name}</th>" for name, kind in zip(columns, kinds))
    lines = ("".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds)) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def section(title: str, note: str, body: str) -> str:
    told = f'<p class="soft">{note}</p>' if note else ""
    return f"<h2>{title}</h2>{told}{body}"


def swatch(name: str) -> str:
    return f'<span class="swatch" style="background:var(--{name})"></span>'


def chips(scores: Mapping[str, float], broken: set[str]) -> str:
    """Values of a sample, those out of their bounds marked."""
    return "".join(
        f'<span class="chip{" off" if name in broken else ""}">{text(name)} {number(value)}</span>'
        for name, value in scores.items()
    )
