"""Samples that cannot be read: told, counted, and too many of them stop the run."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from .intervals import wilson

logger = logging.getLogger(__name__)

FILE = "broken.jsonl"
# So many that cannot be read in a row are no accident.
_FEW = 20


class Broken:
    """The broken samples of a process.

    Args:
        folder: of the run, whose file says which rows were told before. share: of broken samples that is borne.
        drawn, bad: samples drawn so far, and the broken ones of them.
    """

    def __init__(self, folder: Path, share: float, drawn: int = 0, bad: int = 0):
        self.path, self.share, self.drawn, self.bad = folder / FILE, share, drawn, bad
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.known: dict[str, str] = {}
        for line in lines:
            with contextlib.suppress(ValueError):  # torn by a kill
                told = json.loads(line)
                self.known[told["row"]] = told["problem"]

    def draw(self, good: int, broken: Iterable[tuple[str, str]]) -> None:
        """A batch was drawn; raises ValueError if too many samples were broken so far."""
        broken = list(broken)
        self.tell(broken)
        self.drawn += good + len(broken)
        self.bad += len(broken)
        if self.bad == self.drawn >= _FEW:
            raise ValueError("None of the samples can be read; run check-data.")
        # Draws are a sample of the data: only a share that is surely too large ends what may be days of work.
        if wilson(self.bad, self.drawn)[0] > self.share:
            self._refuse(self.bad, self.drawn)

    def tell(self, broken: Iterable[tuple[str, str]]) -> None:
        """Report rows and their problems, each once."""
        new = {row: problem for row, problem in broken if row not in self.known}
        self.known |= new
        for row, problem in new.items():
            logger.warning("%s is left out: %s", row, problem)
        if new:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"row": row, "problem": problem}) + "\n" for row, problem in new.items())

    def check(self, bad: int, total: int) -> None:
        """ValueError if so many of so many are too many."""
        if bad > self.share * total:
            self._refuse(bad, total)

    def _refuse(self, bad: int, total: int) -> None:
        row, problem = next(iter(self.known.items()))
        raise ValueError(
            f"{bad} of {total} samples cannot be read (the first is {row}: {problem.rstrip('.')}); see {FILE} in the "
            "output folder, mend them, or raise --max-broken-share."
        )
