"""Rows in a CSV, JSON or JSON Lines table with the columns src_video, tgt_video, prompt and perhaps ref_image, id."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .row import Placed, Row, attempt, digest_id, media_at, prompt_at

SUFFIXES = frozenset((".csv", ".json", ".jsonl"))

_NEEDED = ("src_video", "tgt_video", "prompt")


def read_table(path: Path, root: Path) -> Iterator[Placed]:
    """The rows of a table in order; media paths are taken from ``root``.

    An id comes from the column ``id`` or ``iid``; without one it is a digest of the fields, and the second of
    two equal rows has "-2" added.

    A row without a path or with other faults comes as a ValueError in its place. Raises ValueError for a table that
    cannot be read or lacks a column.
    """
    read = {".csv": _csv, ".json": _json, ".jsonl": _jsonl}[path.suffix.lower()]
    seen = Counter()
    try:
        for place, fields in read(path):
            yield place, attempt(_row, fields, root, place, seen)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from error


def _row(fields: object, root: Path, place: str, seen: Counter) -> Row:
    if not isinstance(fields, dict):
        raise ValueError(f"{place} is not an object; give one with {', '.join(_NEEDED)}.")
    missing = [column for column in _NEEDED if column not in fields]
    if missing:
        raise ValueError(f"{place} has no {' and no '.join(missing)}; every row needs {', '.join(_NEEDED)}.")
    source, target, text, reference = (fields.get(column) for column in (*_NEEDED, "ref_image"))
    prompt = prompt_at(text, place)
    medias = [media_at(source, root, "src_video", place), media_at(target, root, "tgt_video", place)]
    if reference != reference:  # NaN, which pandas writes for none
        reference = None
    picture = None if reference in (None, "") else media_at(reference, root, "ref_image", place)
    name = _id(fields, place) or _numbered(digest_id(source, target, prompt, reference or ""), seen)
    return Row(name, *medias, prompt, picture)


def _id(fields: dict, place: str) -> str:
    for column in ("id", "iid"):
        value = fields.get(column)
        if value is not None and not isinstance(value, (str, int)):
            raise ValueError(f"{place} has an {column} that is neither text nor a whole number; correct it.")
        if value is not None and str(value).strip():
            return str(value).strip()
    return ""


def _numbered(name: str, seen: Counter) -> str:
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}-{seen[name]}"


def _csv(path: Path) -> Iterator[tuple[str, dict]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            missing = [column for column in _NEEDED if column not in (reader.fieldnames or ())]
            if missing:
                way = "name them in the first line"
                if any(";" in name for name in reader.fieldnames or ()):
                    way = "divide its fields by commas, not semicolons"
                raise ValueError(f"{path} has no column {' and no '.join(missing)}; {way}.")
            for fields in reader:
                place = f"{path} line {reader.line_num}"
                if None in fields or None in fields.values():
                    raise ValueError(f"{place} has not as many fields as the first line; quote fields with commas.")
                yield place, fields
        except csv.Error as error:
            raise ValueError(f"{path} line {reader.line_num} is not CSV ({error}); export it again.") from error


def _json(path: Path) -> Iterator[tuple[str, object]]:
    rows = _parse(path.read_text(encoding="utf-8-sig"), path)
    if not isinstance(rows, list):
        raise ValueError(f"{path} is not a list of rows; put them in [ and ], or one a line in a .jsonl file.")
    for number, fields in enumerate(rows, start=1):
        yield f"{path} row {number}", fields


def _jsonl(path: Path) -> Iterator[tuple[str, object]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path} line {number}", _parse(line.strip(), path, number)


def _parse(text: str, path: Path, line: int = 1) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path} line {line + error.lineno - 1}"
        raise ValueError(f"{place} is not JSON ({error.msg} at column {error.colno}); correct it.") from error
