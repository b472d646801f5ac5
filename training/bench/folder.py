"""The folder of a benchmark's run, and what lies where in it.

    run.json                        which benchmark, which system with which settings and versions
    items.jsonl                     what was asked
    edits/ID.mp4, edits/ID.json     the edit (.mkv of small ones), and how it was made or why not
    metrics.jsonl                   what was measured without a judge
    scores/JUDGE/judge.json         who judges, and whether it is any good
    scores/JUDGE/verdicts.jsonl     what it says of each item

Lines are added as they are found out, so a killed run goes on; a torn line is as one that is not there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import kiwi_core
from kiwi_core.atomic import replacing

from ..data.media import Media
from ..metrics import read_lines, write_lines
from .items import Item

DONE, FAILED = "done", "failed"
VERSIONS = "versions"
FRAMES, TIME = "frames", "time"
"""How frames of an edit and its source belong together: the first to the first and so on, or by seconds."""


@dataclass(frozen=True)
class Edit:
    """What became of an item in a system's hands."""

    item: str
    status: str
    """"done", or "failed": ``error`` says why."""
    path: Path | None = None
    seconds: float = 0.0
    """That it took, without loading the model."""
    align: str = FRAMES
    """"frames" or "time"."""
    error: str = ""
    digest: str = ""
    """Of the file; :meth:`Folder.note_edit` sees to it. What was found out of another file is not this edit's."""


@dataclass(frozen=True)
class Measured:
    """Numbers of one edit that need no judge."""

    item: str
    values: dict[str, float | None]
    """By metric; None where it does not apply."""
    error: str = ""
    """Why it could not be measured; "" if it could."""
    identity: str = ""
    """What the numbers are known by, see :class:`training.bench.metrics.Meter`."""


@dataclass(frozen=True)
class Verdict:
    """What a judge said of one edit, once."""

    item: str
    repeat: int
    status: str
    """"done", or "failed": the edit was there, but no answer could be had or read."""
    scores: dict[str, float] = field(default_factory=dict)
    """By criterion, 1 to 5, none above the first."""
    given: dict[str, float] = field(default_factory=dict)
    """The scores as the judge gave them."""
    reason: str = ""
    attempts: int = 1
    """How often the judge was asked, in earlier calls too."""
    error: str = ""


class Folder:
    """Reads and writes a run's folder. FileNotFoundError for one that is none, unless it is begun by :meth:`begin`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "run.json").is_file():
            raise FileNotFoundError(f"There is no run in {self.path}; make one with: python -m training.bench run.")
        self.run: dict = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        self.items = [_item(line) for line in read_lines(self.path / "items.jsonl")]

    @classmethod
    def begin(cls, path: str | Path, run: dict, items: Sequence[Item]) -> Folder:
        """Start a run, or go on with one that is the same. ValueError for one that is another."""
        assert len({item.id for item in items}) == len(items)
        path = Path(path)
        lines = [_line(item) for item in items]
        if (path / "run.json").is_file():
            known = cls(path)
            same = {name: value for name, value in known.run.items() if name != VERSIONS} == json.loads(json.dumps(run))
            if not same or [_line(item) for item in known.items] != lines:
                raise ValueError(f"{path} holds a run with other settings or items; give another folder for this one.")
            return known
        path.mkdir(parents=True, exist_ok=True)
        write_lines(path / "items.jsonl", lines)
        with replacing(path / "run.json") as temporary:
            temporary.write_text(json.dumps(run | {VERSIONS: _versions()}, indent=2) + "\n", encoding="utf-8")
        return cls(path)

    # Edits

    def edit_path(self, item: Item) -> Path:
        return self.path / "edits" / f"{item.id}.mp4"

    def edit(self, item: Item) -> Edit | None:
        """What became of an item; None if it was not tried yet."""
        try:
            told = json.loads((self.path / "edits" / f"{item.id}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        path = told.pop("path")
        return Edit(**told, path=None if path is None else Path(os.path.normpath(self.path / path)))

    def note_edit(self, edit: Edit) -> None:
        told = dataclasses.asdict(edit) | {"path": edit.path and os.path.relpath(edit.path, self.path)}
        if edit.path is not None and edit.path.is_file():
            told["digest"] = Media(str(edit.path)).digest()
        with replacing(self.path / "edits" / f"{edit.item}.json") as temporary:
            temporary.write_text(json.dumps(told) + "\n", encoding="utf-8")

    def digest(self, item: str) -> str:
        """Of an item's edit as it is now, "" if there is none."""
        return self._digests({item}).get(item, "")

    # Numbers without a judge

    def measured(self) -> dict[str, Measured]:
        """By item, the newest of the edit as it is now."""
        return {line["item"]: Measured(**line) for line in self._current(self.path / "metrics.jsonl")}

    def note_measured(self, found: Measured) -> None:
        self._add(self.path / "metrics.jsonl", [found])

    # Judges

    def judges(self) -> list[str]:
        """Names of the judges that have scored here."""
        return sorted(path.parent.name for path in self.path.glob("scores/*/judge.json"))

    def judge(self, name: str) -> dict:
        """Who a judge is: "model", "identity", "settings", and "audit", None or {"passed": ..., ...}."""
        return json.loads((self.path / "scores" / name / "judge.json").read_text(encoding="utf-8"))

    def note_judge(self, name: str, told: dict) -> None:
        with replacing(self.path / "scores" / name / "judge.json") as temporary:
            temporary.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    def verdicts(self, name: str) -> dict[str, list[Verdict]]:
        """By item, the newest of each repeat, of the edit as it is now."""
        found: dict[str, dict[int, Verdict]] = {}
        for line in self._current(self.path / "scores" / name / "verdicts.jsonl"):
            found.setdefault(line["item"], {})[line["repeat"]] = Verdict(**line)
        return {item: [by_repeat[number] for number in sorted(by_repeat)] for item, by_repeat in found.items()}

    def note_verdicts(self, name: str, found: Sequence[Verdict]) -> None:
        self._add(self.path / "scores" / name / "verdicts.jsonl", found)

    # Lines of an edit

    def _add(self, path: Path, found: Sequence[Measured | Verdict]) -> None:
        digests = self._digests({one.item for one in found})
        _add(path, [dataclasses.asdict(one) | {"edit": digests.get(one.item, "")} for one in found])

    def _current(self, path: Path) -> list[dict]:
        lines = read_lines(path)
        digests = self._digests({line["item"] for line in lines})
        return [line for line in lines if line.pop("edit") == digests.get(line["item"], "")]

    def _digests(self, names: Container[str]) -> dict[str, str]:
        """Of the edits as they are now, by item; one that lies otherwise beside its source is another."""
        edits = (self.edit(item) for item in self.items if item.id in names)
        return {
            edit.item: edit.digest if edit.align == FRAMES else f"{edit.digest} by {edit.align}"
            for edit in edits if edit is not None
        }  # fmt: skip


def _versions() -> dict[str, str]:
    """Of what the first edits are made with."""
    found = {"kiwi_edit": kiwi_core.__version__}
    for name in ("torch", "diffusers", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _item(line: dict) -> Item:
    paths = {name: line[name] and Path(line[name]) for name in ("source", "reference", "region")}
    return Item(**(line | paths))


def _line(item: Item) -> dict:
    told = dataclasses.asdict(item)
    return {name: str(value) if isinstance(value, Path) else value for name, value in told.items()}


def _add(path: Path, lines: Sequence[dict]) -> None:
    """Add lines in one write, behind a torn one if there is any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if file.tell():
            with path.open("rb") as read:
                read.seek(-1, os.SEEK_END)
                if read.read(1) != b"\n":
                    file.write(b"\n")
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())
