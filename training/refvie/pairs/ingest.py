"""Pairs from tables, millions of them: every row is a pair, or one that says what is wrong with it."""

from __future__ import annotations

import errno
import functools
import glob
import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...data.row import digest_id
from . import layouts
from .pair import Pair
from .tables import SUFFIXES, Row, open_table

logger = logging.getLogger(__name__)

_SAFE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,78}[A-Za-z0-9_-])?")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_PREFIX = 60
_MISSING = (errno.ENOENT, errno.ENOTDIR)
_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ)


def read(
    tables: Sequence[str | Path],
    root: str | Path | None = None,
    layout: str = layouts.AUTO,
    origin: str = "",
    columns: Mapping[str, str] | None = None,
) -> Iterator[Pair]:
    """The pairs of the tables, in their order; the same tables give the same ids.

    Args:
        tables: CSV, JSON (a list), JSON Lines or Parquet files, folders (all tables in them and below, by name) and
            patterns such as ``sets/**/*.csv``. A file that is named twice is read once.
        root: folder that paths begin at and that no clip may lie outside of; each table's own folder without.
        layout: one of :data:`layouts.LAYOUTS` by name, or "auto" to go by the columns.
        origin: name of the set; the layout's without, or the table's if that has none.
        columns: names of columns by role (source, target, prompt, id, category), where no layout knows them.

    An id comes from the table, made fit to be a file's name, or else from a digest of origin, paths and prompt. An id
    that comes again is told apart by a digest, and is a problem if the row is the same. No clip is opened.

    Raises FileNotFoundError or ValueError at once for arguments that name nothing, and ValueError later for a table
    that lacks columns or is broken as a whole, after the pairs before.
    """
    layouts.check(layout, columns)
    if root is not None and not Path(root).is_dir():
        raise FileNotFoundError(f"The root folder {root} does not exist; give the folder that paths begin at.")
    given = [tables] if isinstance(tables, (str, os.PathLike)) else tables
    found: dict[str, Path] = {}
    for path in (table for one in given for table in _expand(os.fspath(one))):
        found.setdefault(os.path.realpath(path), path)
    return _pairs(list(found.values()), root, layout, origin, columns)


def _pairs(
    tables: Sequence[Path], root: str | Path | None, layout: str, origin: str, columns: Mapping[str, str] | None
) -> Iterator[Pair]:
    names = _Names()
    for path in tables:
        found, rows = open_table(path)
        try:
            known, chosen = layouts.find(found, layout, columns)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error
        table = _Table(path, _Root(root or path.parent), known, chosen, _writable(origin or known.origin or path.stem))
        count = 0
        for row in rows(list(chosen.values())):
            count += 1
            yield table.pair(row, names)
        if not count:
            logger.warning("%s has no rows.", path)


def _expand(given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        inside = (one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
        found = sorted(one for one in inside if not any(part[0] == "." for part in one.relative_to(path).parts))
        if not found:
            raise ValueError(f"{given} has no tables; give a folder with {', '.join(sorted(SUFFIXES))} files.")
        return found
    if not path.exists():
        found = sorted(glob.glob(given, recursive=True)) if glob.has_magic(given) else []
        if not found:
            raise FileNotFoundError(f"{given} does not exist; check the path.")
        return [table for one in found for table in _expand(one)]
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{given} is no table; give {', '.join(sorted(SUFFIXES))} or a folder.")
    return [path]


class _Table:
    """What the rows of one table have in common."""

    def __init__(self, path: Path, root: _Root, layout: layouts.Layout, columns: Mapping[str, str], origin: str):
        self.path, self.root, self.layout, self.columns, self.origin = path, root, layout, columns, origin

    def pair(self, row: Row, names: _Names) -> Pair:
        problem = row.problem
        if not problem and not isinstance(row.fields, dict):
            problem = f"is no object; give one with {', '.join(self.columns.values()) or 'columns'}"
        if problem:
            digest = digest_id(self.origin, _text(row.fields))
            name, _ = names.take(digest, digest, bytes.fromhex(digest))
            return self._unusable(name, f"{row.place.capitalize()} of {self.path} {problem}.")

        source, target, prompt, given, kind = (row.fields.get(self.columns.get(role)) for role in layouts.ROLES)
        fields = [_text(value) for value in (source, target, prompt)]
        digest = digest_id(self.origin, *fields)
        content = digest_id(*map(self.root.join, fields[:2]), fields[2])
        given, problem = _given(given)
        name, first = names.take(_safe(given) if given else digest, digest, bytes.fromhex(content))
        problem = problem or _fault(prompt)
        if problem:
            return self._unusable(name, problem, _writable(prompt) if isinstance(prompt, str) else "")
        paths = []
        for role, text in (("source", source), ("target", target)):
            path, fault = self.root.place(text, role)
            paths.append(path)
            problem = problem or fault
        if first:
            problem = f"It is the same as {first}, which comes before it; remove one."
        category = layouts.category(kind, self.layout, target, self.path)
        return Pair(name, *paths, prompt.strip(), self.origin, category, _writable(problem))

    def _unusable(self, name: str, problem: str, prompt: str = "") -> Pair:
        return Pair(name, "", "", prompt, self.origin, problem=_writable(problem))


class _Names:
    """Ids that were given out, with digests of what for. They are kept apart even where case does not count."""

    def __init__(self):
        self._seen: dict[str, bytes] = {}
        self._again: dict[str, int] = {}

    def take(self, name: str, digest: str, content: bytes) -> tuple[str, str]:
        """An id of its own, and the one that the same was given before under this name, or "".

        Args:
            digest: of what stands in the row, the same wherever its files lie. content: also of where they lie.
        """
        for found in (name, f"{name}-{digest}", f"{name}-{content.hex()}"):
            known = self._seen.setdefault(found.lower(), content)
            if known is content:
                return found, ""
            if known == content:
                break
        number = self._again.get(found, 1) + 1
        while f"{found}-{number}".lower() in self._seen:
            number += 1
        self._again[found] = number
        self._seen[f"{found}-{number}".lower()] = content
        return f"{found}-{number}", found


class _Root:
    """The folder that a table's paths begin at and must not leave."""

    def __init__(self, path: str | Path):
        self.path = os.path.abspath(path)
        self._real = os.path.realpath(path)
        self._folder = functools.lru_cache(maxsize=4096)(os.path.realpath)  # rows of a folder stand together

    def join(self, text: str) -> str:
        return os.path.normpath(os.path.join(self.path, text))

    def place(self, text: object, role: str) -> tuple[str, str]:
        """The absolute path, "" if it is none that may be looked at, and what is wrong with it.

        A file that is only missing keeps its path, so that it is known again when its disk is back. Raises OSError if
        the disk fails.
        """
        if not isinstance(text, str) or not text.strip():
            return "", f"There is no {role}; give the path of a clip."
        path = self.join(text)
        outside = "", f"The {role} {_brief(text)} lies outside of {self.path}; give a root that all clips lie in."
        if not _within(path, self.path) and not _within(path, self._real):
            return outside
        folder, name = os.path.split(path)
        try:
            path.encode()  # a name that is no text cannot be written down
            real = os.path.join(self._folder(folder), name)
            if not _within(real, self._real):
                return outside
            found = os.lstat(real)
            if stat.S_ISLNK(found.st_mode):
                real = os.path.realpath(real)
                if not _within(real, self._real):
                    return outside
                found = os.stat(real)
        except ValueError:
            return "", f"The {role} {_brief(text)} cannot be a path; correct it."
        except OSError as error:
            if error.errno in _MISSING:
                return path, f"The {role} does not exist; copy it there, or give the root folder that paths begin at."
            if error.errno == errno.EACCES:
                return path, f"The {role} may not be read; change its permissions."
            if error.errno in _NO_NAME:
                return "", f"The {role} {_brief(text)} cannot be a path; correct it."
            raise
        if not stat.S_ISREG(found.st_mode):
            return path, f"The {role} is no file; give the path of a clip."
        return path, ""


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _given(value: object) -> tuple[str, str]:
    """The id that a table gives, "" for none, and what is wrong with it."""
    if isinstance(value, float) and value.is_integer():  # what a whole number becomes in a column with gaps
        value = int(value)
    if value is None or value != value:
        return "", ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return "", "The id is neither text nor a whole number; correct it."
    return str(value).strip(), ""


def _safe(text: str) -> str:
    """The text if it can be a file's name anywhere, else one made of it and a digest."""
    if _SAFE.fullmatch(text):
        return text
    return f"{_UNSAFE.sub('-', text).strip('-.')[:_PREFIX]}-{digest_id(text)}".lstrip("-")


def _fault(prompt: object) -> str:
    if not isinstance(prompt, str):
        return "The instruction is no text; write it as text."
    if not prompt.strip():
        return "The instruction is empty; say in a sentence what was changed."
    if _writable(prompt) != prompt:
        return "The instruction has characters that are none; write it anew."
    return ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else repr(value)


def _writable(text: str) -> str:
    """The text without half characters, which no file or database takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _brief(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
