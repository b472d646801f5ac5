"""Pictures of numbers, as SVG within a page: they follow its colours, light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...refvie.pages.page import text

COLOURS = ("kept", "bound", "pair", "double", "person", "failed")
"""Of the page's colours, those of runs by turns."""
_SIZE, _RADIUS = 360, 118


def colour(number: int) -> str:
    return f"var(--{COLOURS[number % len(COLOURS)]})"


def radar(axes: Sequence[str], runs: Sequence[Sequence[float | None]], low: float, high: float) -> str:
    """One polygon a run over three axes or more; what is None lies in the middle."""
    middle = _SIZE / 2
    turns = [2 * math.pi * place / len(axes) - math.pi / 2 for place in range(len(axes))]

    def point(turn: float, share: float) -> tuple[float, float]:
        return middle + _RADIUS * share * math.cos(turn), middle + _RADIUS * share * math.sin(turn)

    def outline(shares: Sequence[float]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in map(point, turns, shares))

    parts = []
    for step in range(round(low), round(high) + 1):
        share = (step - low) / (high - low)
        parts.append(f'<polygon points="{outline([share] * len(axes))}" class="ring"/>')
        x, y = point(turns[0], share)
        parts.append(f'<text x="{x + 4:.1f}" y="{y + 3:.1f}" class="mark">{step}</text>')
    for name, turn in zip(axes, turns):
        x, y = point(turn, 1.0)
        parts.append(f'<line x1="{middle}" y1="{middle}" x2="{x:.1f}" y2="{y:.1f}" class="ring"/>')
        x, y = point(turn, 1.12)
        anchor = "middle" if abs(math.cos(turn)) < 0.2 else "start" if math.cos(turn) > 0 else "end"
        words = name.replace("_", " ").split(" ")
        half = (len(words) + 1) // 2
        lines = [" ".join(words[:half]), " ".join(words[half:])] if len(name) > 10 else [" ".join(words)]
        for number, line in enumerate(filter(None, lines)):
            height = y + 4 + 13 * (number - (len(lines) - 1) * (0.5 - 0.5 * math.sin(turn)))
            parts.append(f'<text x="{x:.1f}" y="{height:.1f}" text-anchor="{anchor}">{text(line)}</text>')
    for number, values in enumerate(runs):
        shares = [0.0 if value is None else max(0.0, (value - low) / (high - low)) for value in values]
        parts.append(
            f'<polygon points="{outline(shares)}" style="stroke:{colour(number)};fill:{colour(number)}" class="run"/>'
        )
    box = f"-40 0 {_SIZE + 80} {_SIZE}"
    return _drawing(box, "Scores by category", parts)


def bars(axes: Sequence[str], runs: Sequence[Sequence[float | None]], low: float, high: float) -> str:
    """For each axis a bar a run."""
    height, width, left = 16, 300, 150
    parts, y = [], 8
    for place, name in enumerate(axes):
        parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{text(name.replace("_", " "))}</text>')
        for number, values in enumerate(runs):
            value = values[place]
            long = 0.0 if value is None else width * max(0.0, (value - low) / (high - low))
            parts.append(f'<rect x="{left}" y="{y}" width="{long:.1f}" height="{height - 3}" fill="{colour(number)}"/>')
            told = "–" if value is None else f"{value:.2f}"
            parts.append(f'<text x="{left + long + 6:.1f}" y="{y + 11}">{told}</text>')
            y += height
        y += 8
    box = f"0 0 {left + width + 60} {y}"
    return _drawing(box, "Scores by category", parts, "drawing wide")


def histogram(runs: Sequence[Sequence[float]], low: int, high: int) -> str:
    """How often each score was given, to the nearest half, the runs side by side."""
    steps = [low + half / 2 for half in range(2 * (high - low) + 1)]
    counts = [[sum(round(2 * value) / 2 == step for value in values) for step in steps] for values in runs]
    most = max((count for run in counts for count in run), default=0) or 1
    slot, height = 26, 90
    wide = (slot - 6) / max(1, len(runs))
    parts = []
    for place, step in enumerate(steps):
        for number, run in enumerate(counts):
            tall = height * run[place] / most
            x = place * slot + 3 + number * wide
            parts.append(
                f'<rect x="{x:.1f}" y="{height + 12 - tall:.1f}" width="{max(1, wide - 1):.1f}" height="{tall:.1f}" '
                f'fill="{colour(number)}"><title>{step:g}: {run[place]}</title></rect>'
            )
        if float(step).is_integer():
            x = place * slot + slot / 2
            parts.append(f'<text x="{x:.1f}" y="{height + 26}" text-anchor="middle">{step:g}</text>')
    box = f"0 0 {len(steps) * slot} {height + 32}"
    return _drawing(box, "How often each score", parts)


def legend(names: Sequence[str]) -> str:
    """Which colour is whose."""
    return "".join(
        f'<span class="key"><span class="swatch" style="background:{colour(number)}"></span>{text(name)}</span>'
        for number, name in enumerate(names)
    )


def _drawing(box: str, label: str, parts: Sequence[str], kind: str = "drawing") -> str:
    return f'<svg class="{kind}" viewBox="{box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
