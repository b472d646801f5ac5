"""Two runs side by side in front of a judge: which edit is better?

Each pair is shown in both orders, since judges favour a place; only what is preferred in both is a win.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from kiwi_core import geometry

from .. import lock
from ..asking import Unavailable
from ..intervals import wilson
from ..metrics import read_lines, write_lines
from . import clips, scoring
from .folder import DONE, Folder
from .items import Item
from .judges import Case
from .judges.rubrics import FIRST, SECOND, ChatJudge

A, B, TIE, FAILED_ITEM = "a", "b", "tie", "failed"
ALL, FOLDER = "all", "pairwise"


@dataclass(frozen=True)
class Outcome:
    """Counts of wins; an edit that failed loses against one that did not, and two that did are a tie."""

    a: int
    b: int
    ties: int
    failed: int
    """Pairs without an answer that could be read."""
    torn: int
    """Of the ties, those where the judge preferred whichever came in the same place."""
    missing: int
    """Pairs that were not asked about yet, or of which an edit is still to be made."""

    @property
    def rate(self) -> float:
        """Share of B's wins, ties as half; 0.5 where nothing is known."""
        count = self.a + self.b + self.ties
        return (self.b + self.ties / 2) / count if count else 0.5

    def interval(self) -> tuple[float, float]:
        """95% interval of the rate (Wilson's)."""
        count = self.a + self.b + self.ties
        return wilson(self.b + self.ties / 2, count)

    def text(self) -> str:
        """"18% (5 to 47)": how often B wins."""
        low, high = self.interval()
        return f"{100 * self.rate:.0f}% ({100 * low:.0f} to {100 * high:.0f})"


def run(
    a: Folder, b: Folder, judge: ChatJudge, attempts: int = scoring.ATTEMPTS, retry: bool = False
) -> dict[str, Outcome]:
    """Compare the items that both runs ask; by category and under "all". Goes on where it was stopped: what was found
    out lies in B's folder.

    Args:
        retry: also what had no answer that could be read; it is asked with more warmth.

    Raises ValueError where the runs share no item, or the judge cannot compare; Unavailable where it refuses all.
    """
    if not hasattr(judge, "prefer"):
        raise ValueError(f"The judge {judge.name} cannot compare two edits; use a model of language and pictures.")
    both = _shared(a, b)
    if not both:
        raise ValueError(f"{a.path} and {b.path} have no item in common; compare runs of one benchmark.")
    path = b.path / FOLDER / f"{scoring.name_of(judge)}{_against(a)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock.alone(path.with_name(f".{path.stem}.lock"), scoring.BUSY.format(judge.name, path.parent)):
        return _by_category(both, _asked(path, a, b, both, judge, attempts, retry))


def _asked(
    path: Path, a: Folder, b: Folder, both: Sequence[Item], judge: ChatJudge, attempts: int, retry: bool
) -> dict[str, dict]:
    write_lines(path, read_lines(path))
    known = _known(path, a, b)
    failed = {name for name, line in known.items() if line["better"] == FAILED_ITEM} if retry else set()
    made = [item for item in both if all(folder.edit(item) is not None for folder in (a, b))]
    refused = 0
    with path.open("a", encoding="utf-8") as file:
        for item in tqdm(made, desc=f"{judge.name}, two by two", unit="pair", mininterval=2, dynamic_ncols=True):
            if item.id not in known or item.id in failed:
                first = known[item.id].get("asked", attempts) if item.id in failed else 0
                line = _compared(a, b, item, judge, attempts, first)
                refused = refused + 1 if line.pop("refused", False) else 0
                if refused == scoring.REFUSED:
                    raise Unavailable(
                        f"{judge.name} refuses every pair, at last so: {line['reasons'][0]} Mend that, then go on with "
                        "--retry-failed."
                    )
                known[item.id] = line | {"edits": _edits(a, b, item.id)}
                file.write(json.dumps(known[item.id]) + "\n")
                file.flush()
    return known


def told(a: Folder, b: Folder) -> dict[str, dict[str, Outcome]]:
    """What judges have said of two runs so far, by the judge's folder name; of edits that are still the same."""
    both, found = _shared(a, b), {}
    for path in sorted((b.path / FOLDER).glob(f"*{glob.escape(_against(a))}")):
        if known := _known(path, a, b):
            found[path.name.removesuffix(_against(a))] = _by_category(both, known)
    return found


def _shared(a: Folder, b: Folder) -> list[Item]:
    """What both were asked."""
    of_a = {item.id: (item.prompt, item.category) for item in a.items}
    return [item for item in b.items if of_a.get(item.id) == (item.prompt, item.category)]


def _against(a: Folder) -> str:
    other = hashlib.blake2b(str(a.path.resolve()).encode(), digest_size=4).hexdigest()
    return f"-against-{a.path.name}-{other}.jsonl"


def _known(path: Path, a: Folder, b: Folder) -> dict[str, dict]:
    return {line["item"]: line for line in read_lines(path) if line["edits"] == _edits(a, b, line["item"])}


def _by_category(items: Sequence[Item], known: Mapping[str, dict]) -> dict[str, Outcome]:
    found = {ALL: _counted([known.get(item.id) for item in items])}
    for category in dict.fromkeys(item.category for item in items):
        found[category] = _counted([known.get(item.id) for item in items if item.category == category])
    return found


def _compared(a: Folder, b: Folder, item: Item, judge: ChatJudge, attempts: int, first: int) -> dict:
    line = {"item": item.id, "better": TIE, "reasons": [], "torn": False, "asked": 0}
    there = [_there(folder, item) for folder in (a, b)]
    if not all(there):
        return line | {"better": A if there[0] else B if there[1] else TIE}
    try:
        one, other = _cases(a, b, item, judge.frames)
    except (ValueError, FileNotFoundError) as error:
        return line | {"better": FAILED_ITEM, "reasons": [str(error)]}
    answers = scoring.answered(judge.prefer, [(one, other), (other, one)], attempts, first)
    line["asked"] = first + max(times for _, times in answers)
    if refusals := [answer for answer, _ in answers if isinstance(answer, ValueError)]:
        return line | {"better": FAILED_ITEM, "reasons": [" ".join(str(refusals[0]).split())], "refused": True}
    if any(answer is None for answer, _ in answers):
        return line | {"better": FAILED_ITEM, "reasons": [scoring.UNREADABLE]}
    (forth, why), (back, why_back) = (answer for answer, _ in answers)
    line["reasons"] = [why, why_back]
    if {forth, back} == {FIRST, SECOND}:
        return line | {"better": A if forth == FIRST else B}
    return line | {"torn": forth == back and forth in (FIRST, SECOND)}


def _cases(a: Folder, b: Folder, item: Item, frames: int) -> tuple[Case, Case]:
    """Both edits at the same moments, of one size, beside the same frames of the source."""
    edits = [folder.edit(item) for folder in (a, b)]
    read = [clips.read(item.source, edit.path, edit.align) for edit in edits]
    one, other = clips.together(*read, frames)
    case = scoring.shown(item, one)
    edit = other.edit
    if edit.shape != one.edit.shape:
        edit = geometry.resize_frames(edit, *one.edit.shape[1:3])
    return case, dataclasses.replace(case, edit=edit)


def _edits(a: Folder, b: Folder, item: str) -> list[str]:
    """What was compared, so that an edit that is made anew is compared anew."""
    return [folder.digest(item) for folder in (a, b)]


def _there(folder: Folder, item: Item) -> bool:
    edit = folder.edit(item)
    return edit is not None and edit.status == DONE


def _counted(lines: Sequence[dict | None]) -> Outcome:
    there = [line for line in lines if line is not None]
    told = [line["better"] for line in there]
    counts = (told.count(kind) for kind in (A, B, TIE, FAILED_ITEM))
    return Outcome(*counts, sum(line["torn"] for line in there), len(lines) - len(there))


def text(found: dict[str, Outcome], a: str, b: str) -> str:
    """Counts as a table in Markdown."""
    lines = [f"| | {a} better | {b} better | ties (torn) | failed | missing | {b} wins |", "|---" * 7 + "|"]
    lines += [
        f"| {name} | {one.a} | {one.b} | {one.ties} ({one.torn}) | {one.failed} | {one.missing} | {one.text()} |"
        for name, one in found.items()
    ]
    return "\n".join(lines) + "\n"
