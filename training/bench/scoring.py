"""Scores of all edits of a run by one judge, item by item: nothing is asked twice, and nothing is lost."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kiwi_core import media

from .. import lock
from ..asking import Unavailable
from . import clips
from .folder import DONE, FAILED, Folder, Verdict
from .items import Item
from .judges import Case, Judge, Scores

BUSY = "Another process asks {} about {}; wait for it."
UNREADABLE = "No answer of the judge could be read."
ATTEMPTS = 3
_AT_ONCE = 16
"""Edits that a judge is given together: what a kill may cost."""
REFUSED = 8
"""Edits that are given together and all refused: then no edit is at fault."""


@dataclass(frozen=True)
class Count:
    """What became of a call."""

    scored: int
    failed: int
    before: int
    """Verdicts that were there already."""


def run(
    folder: Folder, judge: Judge, repeats: int = 1, attempts: int = ATTEMPTS, audit: dict | None = None,
    retry: bool = False,
) -> Count:  # fmt: skip
    """Have a judge score every edit that is there, so many times each.

    Args:
        attempts: how often it is asked for an answer that can be read; the first is the likeliest one, further ones are
            drawn with some warmth. audit: what :mod:`.audit` found out about the judge. retry: also judge again what
            failed.

    An edit that cannot be read, or that the judge does not take or answers unreadably, is a failed verdict with a
    reason. Raises Unavailable where no edit is at fault; what was found out stays. Raises ValueError where another
    process asks the same judge of the same run.
    """
    if repeats < 1 or attempts < 1:
        raise ValueError(f"repeats is {repeats} and attempts {attempts}; give at least 1.")
    with lock.alone(folder.path / "scores" / f".{name_of(judge)}.lock", BUSY.format(judge.name, folder.path)):
        return _scored(folder, judge, repeats, attempts, audit, retry)


def _scored(folder: Folder, judge: Judge, repeats: int, attempts: int, audit: dict | None, retry: bool) -> Count:
    name = name_of(judge)
    note(folder, judge, audit)
    known = folder.verdicts(name)
    waiting, before = [], 0
    for item in folder.items:
        edit = folder.edit(item)
        if edit is None or edit.status != DONE:
            continue
        before_this = {one.repeat: one for one in known.get(item.id, ())}
        done = {repeat for repeat, one in before_this.items() if one.status == DONE or not retry}
        before += len(done)
        for repeat in range(repeats):
            if repeat not in done:
                unread = repeat in before_this and before_this[repeat].error == UNREADABLE
                # What could not be read is not asked in the same way again: the same answer would come.
                waiting.append(_Asked(item, repeat, before_this[repeat].attempts if unread else 0))
    scored = failed = 0
    with tqdm(total=len(waiting), desc=judge.name, unit="edit", mininterval=2, dynamic_ncols=True) as bar:
        for start in range(0, len(waiting), _AT_ONCE):
            found = _judged(folder, judge, waiting[start : start + _AT_ONCE], attempts)
            folder.note_verdicts(name, found)
            scored += sum(one.status == DONE for one in found)
            failed += sum(one.status == FAILED for one in found)
            bar.update(len(found))
    return Count(scored, failed, before)


def name_of(judge: Judge) -> str:
    """The judge's folder: its name, and a few letters that tell it from others of the name."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", judge.name).strip("-.")[-60:] or "judge"
    return f"{plain}-{hashlib.blake2b(judge.identity.encode(), digest_size=3).hexdigest()}"


def note(folder: Folder, judge: Judge, audit: dict | None) -> None:
    """Write down who judges; an audit that is known already stays. ValueError for another judge's audit."""
    name = name_of(judge)
    if audit is not None and audit["identity"] != judge.identity:
        raise ValueError(
            f"The audit is of another judge, {audit['judge']}, or of other settings; audit this one, {judge.name}."
        )
    if audit is None and name in folder.judges():
        audit = folder.judge(name)["audit"]
    told = {"model": judge.name, "identity": judge.identity, "settings": {"frames": judge.frames}, "audit": audit}
    folder.note_judge(name, told)


def case_of(folder: Folder, item: Item, frames: int, repeat: int = 0) -> Case:
    """An item's edit as a judge sees it. Raises ValueError or FileNotFoundError for what cannot be read."""
    edit = folder.edit(item)
    case = shown(item, clips.read(item.source, edit.path, edit.align).some(frames))
    return dataclasses.replace(case, repeat=repeat)


def shown(item: Item, both: clips.Both) -> Case:
    """What a judge sees of an edit. Raises ValueError or FileNotFoundError for a reference that cannot be read."""
    reference = None if item.reference is None else np.asarray(media.load_image(item.reference))
    return Case(item.kind, item.category, item.prompt, both.source, both.edit, reference)


@dataclass(frozen=True)
class _Asked:
    """An edit that waits for a verdict."""

    item: Item
    repeat: int
    first: int
    """The attempt to begin with."""


def _judged(folder: Folder, judge: Judge, asked: Sequence[_Asked], attempts: int) -> list[Verdict]:
    cases: dict[_Asked, Case] = {}
    found: dict[_Asked, Verdict] = {}
    for one in asked:
        same = next((case for known, case in cases.items() if known.item is one.item), None)
        try:
            case = case_of(folder, one.item, judge.frames) if same is None else same
            cases[one] = dataclasses.replace(case, repeat=one.repeat)
        except (ValueError, FileNotFoundError) as error:
            found[one] = Verdict(one.item.id, one.repeat, FAILED, error=_line(error))
    if not cases and len({one.item.id for one in asked}) >= REFUSED:
        first = next(iter(found.values()))
        raise Unavailable(f"No clip of {len(found)} can be read, the first so: {first.error} Mend that, then go on.")
    answers: dict[_Asked, tuple[object, int]] = {}
    for first in sorted({one.first for one in cases}):
        some = [one for one in cases if one.first == first]
        answers |= zip(some, answered(judge.score, [cases[one] for one in some], attempts, first))
    refused = [answer for answer, _ in answers.values() if isinstance(answer, ValueError)]
    if len(refused) >= REFUSED and len(refused) == len(answers):
        raise Unavailable(f"{judge.name} refuses every edit, at last so: {_line(refused[-1])} Mend that, then go on.")
    for one, (answer, times) in answers.items():
        # Counted on over calls: what could not be read is asked in another way each time.
        found[one] = _verdict(one.item.id, one.repeat, answer, one.first + times)
    return [found[one] for one in asked]


def answered(ask: Callable, questions: Sequence, attempts: int, first: int = 0) -> list[tuple[object, int]]:
    """Answers, None for what stays unreadable, and how often each was asked, beginning with attempt ``first``."""
    answers, times = [None] * len(questions), [0] * len(questions)
    for attempt in range(first, first + attempts):
        places = [place for place, answer in enumerate(answers) if answer is None]
        if not places:
            break
        for place, answer in zip(places, ask([questions[place] for place in places], attempt), strict=True):
            answers[place] = answer
            times[place] += 1
    return list(zip(answers, times))


def _verdict(item: str, repeat: int, answer: Scores | ValueError | None, times: int) -> Verdict:
    if isinstance(answer, ValueError):
        return Verdict(item, repeat, FAILED, attempts=times, error=_line(answer))
    if answer is None:
        return Verdict(item, repeat, FAILED, attempts=times, error=UNREADABLE)
    return Verdict(item, repeat, DONE, answer.scores, answer.given, answer.reason, times)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode() or type(error).__name__


def default_cache(folder: Path) -> Path:
    """Where a judge's answers are kept, if nothing else is asked for."""
    return folder / "judge_answers.sqlite"
