"""The rows of CSV, JSON, JSON Lines and Parquet files, some at a time, whatever is wrong with some of them."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.places import open_parquet

SUFFIXES = frozenset((".csv", ".json", ".jsonl", ".parquet"))

_CHUNK = 1 << 20
_LONGEST = 1 << 24
"""Characters or bytes of a row. What is longer is no row, but a file that is broken."""
_BATCH = 256
_PEEK = 64
"""Rows of a file without a header that are looked at to know its columns."""

_OPENED = re.compile(r"\s*\[")
_SPACE = re.compile(r"\s*")
_NEXT = re.compile(r"\s*([,\]])")
_UNDECODABLE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class Row:
    """What stands in one place of a table."""

    place: str
    """"line 7" or "row 7"; both count from 1, lines with the header."""
    fields: object
    """By column, of a sound row; else whatever stands there."""
    problem: str = ""
    """Words that go on after the place, as in "is not UTF-8"."""


Rows = Callable[[Sequence[str]], Iterator[Row]]
"""Gives the rows, with at least the columns named."""


def open_table(path: Path) -> tuple[list[str] | None, Rows]:
    """The columns of a table, None if it has no sound row to tell them, and its rows, which can be asked for once and
    are read as they are taken.

    A row that cannot be read is one with a problem. Raises ValueError for a file that is broken as a whole, at once or
    when its rows are taken that far. Text may have a byte order mark, and a CSV may have ",", ";" or tabs.
    """
    return {".csv": _csv, ".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix.lower()](path)


def _parquet(path: Path) -> tuple[list[str], Rows]:
    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        number, names = 0, list(dict.fromkeys(wanted))
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):  # one by one: a damaged group would take rows before it along
                for batch in file.iter_batches(_BATCH, [group], names):
                    for values in zip(*(_cells(column) for column in batch.columns)):
                        number += 1
                        yield Row(f"row {number}", dict(zip(batch.schema.names, values)))

    with open_parquet(path) as file:
        return file.schema_arrow.names, rows


def _cells(column) -> list:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_cell(cell) for cell in column]


def _cell(cell) -> object:
    """A value; bytes for text that is none."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return cell.as_buffer().to_pybytes()


def _json(path: Path) -> tuple[list[str] | None, Rows]:
    return _peeked(path, _elements(path))


def _jsonl(path: Path) -> tuple[list[str] | None, Rows]:
    return _peeked(path, _parsed_lines(path))


def _peeked(path: Path, rows: Iterator[Row]) -> tuple[list[str] | None, Rows]:
    head = list(itertools.islice(rows, _PEEK))
    found = [row.fields for row in head if not row.problem and isinstance(row.fields, dict)]
    if not found and len(head) == _PEEK:
        raise ValueError(f"{path} has no object in its first {_PEEK} rows; give a table of objects.")
    names = list(dict.fromkeys(itertools.chain.from_iterable(found))) if found else None
    return names, lambda wanted: itertools.chain(head, rows)


def _elements(path: Path) -> Iterator[Row]:
    """Those of a list, without ever holding the whole file."""
    decoder, number = json.JSONDecoder(), 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_CHUNK)
            opened = _OPENED.match(text)
            if not opened:
                raise ValueError(f"{path} is no list of rows; put them in [ and ], or one a line in a .jsonl file.")
            at = opened.end()
            while True:
                begin = _SPACE.match(text, at).end()
                if not number and text.startswith("]", begin):
                    at = begin + 1
                    break
                try:
                    fields, end = decoder.raw_decode(text, begin)
                    after = _NEXT.match(text, end)
                except (ValueError, RecursionError):
                    after = None
                if after is None:  # cut off, perhaps, by the end of what was read so far
                    left = len(text) - at
                    more = file.read(max(_CHUNK, left)) if left < _LONGEST else ""
                    if not more:
                        raise ValueError(f"{path} is broken JSON after row {number}; write or download it again.")
                    text, at = text[at:] + more, 0
                    continue
                number += 1
                yield Row(f"row {number}", fields)
                at = after.end()
                if after[1] == "]":
                    break
            if (text[at:] + file.read(_CHUNK)).strip():
                raise ValueError(f"{path} goes on after its list of rows; write or download it again.")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text after row {number}; save it as UTF-8.") from error


def _parsed_lines(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        place, text = f"line {number}", line.decode("utf-8", "surrogateescape")
        if _UNDECODABLE.search(text):
            yield Row(place, text, "is not UTF-8; save the table as UTF-8")
        elif text.strip():
            try:
                yield Row(place, json.loads(text))
            except (ValueError, RecursionError):
                yield Row(place, text, "is not JSON; write one object a line")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, of those that are too long only the beginning."""
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = rest = file.readline(_LONGEST)
            if not line:
                return
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(_LONGEST)
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


class _Feed:
    """Lines for a csv.reader, which go back if they turn out not to belong together: a quote that is not closed takes
    those that follow along, up to the reader's limit of a field."""

    def __init__(self, lines: Iterator[tuple[int, bytes]]):
        self._lines = lines
        self._back: deque[tuple[int, str]] = deque()
        self.taken: list[tuple[int, str]] = []
        """Those of the row that is being read."""

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        if self._back:
            number, text = self._back.popleft()
        else:
            number, line = next(self._lines)
            text = line.decode("utf-8", "surrogateescape")
        self.taken.append((number, text))
        return text

    def give_back(self) -> None:
        """All but the first."""
        self._back.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def _csv(path: Path) -> tuple[list[str], Rows]:
    lines = _lines(path)
    first = next((line for _, line in lines if line.strip()), b"")
    try:
        text = first.decode()
        headers = [next(csv.reader([text], delimiter=delimiter, strict=True), []) for delimiter in ",;\t"]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} does not begin with names of columns in UTF-8; export it again.") from error
    header = max(headers, key=len)
    names = [name.strip() for name in header]

    def rows(wanted: Sequence[str]) -> Iterator[Row]:
        feed = _Feed(lines)
        reader = csv.reader(feed, delimiter=",;\t"[headers.index(header)], strict=True)
        places = {name: names.index(name) for name in wanted}
        while True:
            feed.taken = []
            problem, fields = "", []
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem = f"is not CSV ({error}); export it again"
            else:
                if not fields:
                    continue
                if len(fields) != len(names):
                    problem = f"has {len(fields)} fields and not {len(names)}; put quotes around text with commas"
            if problem:
                feed.give_back()
            number, text = feed.taken[0]
            for bad, line in feed.taken:
                if _UNDECODABLE.search(line):
                    number, text, problem = bad, line, "is not UTF-8; save the table as UTF-8"
                    break
            if problem:
                yield Row(f"line {number}", text, problem)
            else:
                yield Row(f"line {number}", {name: fields[place] for name, place in places.items()})

    return names, rows
