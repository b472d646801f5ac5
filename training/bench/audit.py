"""Is a judge any good? It is shown edits whose truth is known, and right ones must outscore all others.

Of each item of the toy world it scores four edits: the target itself, another edit than was asked for, the target with
the source in its second half, and the source. What counts is the order: a judge that scores everything high or low in
its own way can be used, one that does not see that nothing was done cannot.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kiwi_core.atomic import replacing

from .. import lock
from ..asking import Unavailable
from ..metrics import read_lines, write_lines
from ..nano import bench as nano_bench
from ..nano import measure, world
from ..nano.edits import Edit
from ..refvie.frames import spread
from .items import BACKGROUND, BACKGROUNDS, INSTRUCTION, SUBJECT
from .judges import Case, Judge
from .scoring import ATTEMPTS, UNREADABLE, answered

RIGHT, FAULTS = "right", ("wrong", "partial", "unedited")
MIN_AGREEMENT, MIN_CATEGORY = 0.8, 0.6
"""Shares of right orders, over all and in each category, from which on a judge passes."""
ITEMS = 6
"""Of a category."""
RESULTS, FILE = "answers.jsonl", "audit.json"
_ENLARGED = 4
"""The toy world's frames are small; judges are made for larger ones."""


@dataclass(frozen=True)
class Order:
    """How often right edits outscored those of a fault."""

    category: str
    fault: str
    right: int = 0
    ties: int = 0
    reversed: int = 0
    unread: int = 0
    """Where one of the two had no score: no order, and so an error."""

    @property
    def count(self) -> int:
        return self.right + self.ties + self.reversed + self.unread


def run(judge: Judge, out: Path, count: int = ITEMS, attempts: int = ATTEMPTS) -> dict:
    """Audit a judge; what ``out`` holds of its answers is not asked again. Returns what is also written there.

    Args:
        count: items of each category, the first ones of nano-bench.
    """
    if count < 1:
        raise ValueError(f"--items is {count}; give at least 1.")
    out.mkdir(parents=True, exist_ok=True)
    with lock.alone(out / ".lock", f"Another process audits in {out}; wait for it."):
        return _run(judge, out, count, attempts)


def _run(judge: Judge, out: Path, count: int, attempts: int) -> dict:
    path = out / RESULTS
    lines = read_lines(path)
    for line in lines:
        if line["identity"] != judge.identity:
            raise ValueError(f"{out} holds the audit of another judge, or of other settings; use another --out.")
    # What had no answer is asked anew: the judge may have been mended.
    lines = [line for line in lines if line["scores"] is not None]
    write_lines(path, lines)
    known = {(line["item"], line["version"]): line for line in lines}
    chosen = nano_bench.items({"seen": count})
    with path.open("a", encoding="utf-8") as file:
        for item in tqdm(chosen, desc=f"audit of {judge.name}", unit="item", mininterval=2, dynamic_ncols=True):
            asked = [version for version in (RIGHT, *FAULTS) if (item.name, version) not in known]
            cases = [case(item.edit, version, judge.frames, item.seed) for version in asked]
            for version, (answer, _) in zip(asked, answered(judge.score, cases, attempts)):
                unread = answer is None or isinstance(answer, ValueError)
                scores = None if unread else answer.scores
                line = {"identity": judge.identity, "item": item.name, "version": version, "scores": scores}
                if unread:
                    line["reason"] = UNREADABLE if answer is None else " ".join(str(answer).split())
                known[item.name, version] = line
                file.write(json.dumps(line) + "\n")
            file.flush()
    if all(line["scores"] is None for line in known.values()):
        reason = next(iter(known.values()))["reason"]
        raise Unavailable(f"{judge.name} scored no edit, at first so: {reason} Mend that, then go on.")
    found = found_out(judge, {item.name: item.edit.category for item in chosen}, known)
    with replacing(out / FILE) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def case(edit: Edit, version: str, frames: int, seed: int) -> Case:
    """What a judge is shown of an edit of the toy world: right, or with a fault."""
    source, target = world.render(edit.before), world.render(edit.after)
    made = {
        RIGHT: lambda: target,
        "wrong": lambda: world.render(_other(edit, seed)),
        "partial": lambda: np.concatenate([target[: (len(target) + 1) // 2], source[(len(target) + 1) // 2 :]]),
        "unedited": lambda: source,
    }[version]()
    places = spread(len(source), frames)
    reference = edit.reference_picture()
    kind = INSTRUCTION if reference is None else BACKGROUND if edit.category in BACKGROUNDS else SUBJECT
    return Case(
        kind, edit.category, edit.prompt, _larger(source[places]), _larger(made[places]),
        None if reference is None else _larger(reference[None])[0],
    )  # fmt: skip


def _other(edit: Edit, seed: int) -> world.Scene:
    """What could have been made instead; other than doing nothing."""
    others = [scene for name, scene in measure.alternatives(edit) if name not in ("source", "removed")]
    return others[np.random.default_rng(seed).integers(len(others))]


def _larger(frames: np.ndarray) -> np.ndarray:
    return frames.repeat(_ENLARGED, axis=1).repeat(_ENLARGED, axis=2)


def found_out(judge: Judge, categories: dict[str, str], lines: dict[tuple[str, str], dict]) -> dict:
    """Orders by category and fault, the share of right ones, and whether that is enough."""
    orders: dict[tuple[str, str], list[str]] = {}
    for item, category in categories.items():
        right = _overall(lines[item, RIGHT]["scores"])
        for fault in FAULTS:
            other = _overall(lines[item, fault]["scores"])
            if right is None or other is None:
                told = "unread"
            else:
                told = "right" if right > other else "ties" if right == other else "reversed"
            orders.setdefault((category, fault), []).append(told)
    counted = [
        Order(category, fault, **{name: told.count(name) for name in ("right", "ties", "reversed", "unread")})
        for (category, fault), told in orders.items()
    ]
    by_category = {name: _agreement([one for one in counted if one.category == name]) for name in categories.values()}
    agreement = _agreement(counted)
    return {
        "judge": judge.name, "identity": judge.identity, "items": len(categories), "agreement": agreement,
        "by_category": by_category, "by_fault": {
            fault: _agreement([one for one in counted if one.fault == fault]) for fault in FAULTS
        },
        "passed": agreement >= MIN_AGREEMENT and min(by_category.values()) >= MIN_CATEGORY,
        "bounds": {"agreement": MIN_AGREEMENT, "category": MIN_CATEGORY},
        "orders": [asdict(one) for one in counted],
        "reasons": sorted({line["reason"] for line in lines.values() if line.get("reason")}),
    }  # fmt: skip


def _overall(scores: dict[str, float] | None) -> float | None:
    return None if scores is None else float(np.mean(list(scores.values())))


def _agreement(orders: Sequence[Order]) -> float:
    return sum(one.right for one in orders) / max(1, sum(one.count for one in orders))


def text(found: dict) -> str:
    """An audit as a table in Markdown."""
    lines = [
        f"# Audit of {found['judge']}: {'passed' if found['passed'] else 'failed'}", "",
        f"Right edits outscored others in {100 * found['agreement']:.0f}% of {_count(found)} comparisons; at least "
        f"{100 * found['bounds']['agreement']:.0f}% are asked, and {100 * found['bounds']['category']:.0f}% in each "
        "category.", "",
        "| category | fault | right order | ties | reversed | unread |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in found["orders"]:
        cells = (one[name] for name in ("category", "fault", "right", "ties", "reversed", "unread"))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| category | agreement |", "|---|---|"]
    lines += [f"| {name} | {100 * share:.0f}% |" for name, share in found["by_category"].items()]
    if found.get("reasons"):
        lines += ["", "Unread:", *(f"- {reason}" for reason in found["reasons"])]
    return "\n".join(lines) + "\n"


def _count(found: dict) -> int:
    return sum(one[name] for one in found["orders"] for name in ("right", "ties", "reversed", "unread"))


def read(path: Path) -> dict:
    """An audit that was written into a folder, or its file. Raises FileNotFoundError or ValueError for none."""
    path = path / FILE if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no audit; make one with: python -m training.bench audit.") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no audit {path}; make one with: python -m training.bench audit.") from error
    if not isinstance(found, dict) or not {"identity", "judge", "passed", "agreement"} <= set(found):
        raise ValueError(f"{path} is no audit; make one with: python -m training.bench audit.")
    return found
