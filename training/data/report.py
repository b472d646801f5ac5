"""What a check of the rows found."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kiwi_core.atomic import replacing

_SHOWN_PROBLEMS = 20
_SHOWN_VALUES = 8


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a row; ``media`` is the name of the clip or picture, "" if it is the prompt."""

    row_id: str
    media: str
    message: str
    severity: str = "error"
    """"error" or "warning"."""

    def __str__(self) -> str:
        return f"{self.severity}: row {self.row_id}{f', {self.media}' if self.media else ''}: {self.message}"


@dataclass
class Report:
    """Problems in the order of the rows, and how many rows there are of each sort.

    ``kinds``, ``sizes`` (height and width in pixels) and ``frames`` count rows by their targets, those that
    cannot be read left out; ``rows`` is the number of all.
    """

    rows: int
    problems: list[Problem] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    frames: Counter[int] = field(default_factory=Counter)

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "warning"]

    def __str__(self) -> str:
        sizes = Counter({f"{width}x{height}": count for (height, width), count in self.sizes.items()})
        lines = [
            f"Rows: {self.rows}. Errors: {len(self.errors)}. Warnings: {len(self.warnings)}.",
            f"Kinds: {_counts(self.kinds)}.",
            f"Sizes: {_counts(sizes)}.",
            f"Frames: {_counts(self.frames)}.",
            *map(str, self.problems[:_SHOWN_PROBLEMS]),
        ]
        hidden = len(self.problems) - _SHOWN_PROBLEMS
        return "\n".join(lines + [f"and {hidden} more problems"] * (hidden > 0))

    def write(self, path: str | os.PathLike) -> Path:
        """Write the problems as JSON Lines, one a line, and return the path; a missing folder is made."""
        path = Path(path)
        lines = [json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in self.problems]
        with replacing(path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
        return path


def _counts(counter: Counter) -> str:
    shown = [f"{value} ({count})" for value, count in counter.most_common(_SHOWN_VALUES)]
    rest = len(counter) - len(shown)
    return ", ".join(shown + [f"{rest} others"] * (rest > 0)) or "none"
