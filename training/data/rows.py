"""Editing pairs from tables, Parquet files, shards and folders."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import tables
from .folder import is_edit, read_folder
from .parquet import read_parquet
from .row import Placed, Row, kind_of
from .shards import read_shard

__all__ = ["Row", "kind_of", "read_rows"]

_SHOWN = 19


def read_rows(paths: Sequence[str | os.PathLike], root: str | os.PathLike | None = None) -> list[Row]:
    """The rows of all ``paths`` in order. No media are opened.

    A path is a table (``.csv``, ``.json``, ``.jsonl``), a ``.parquet`` file, a ``.tar`` shard, a folder of
    Parquet files and shards, a folder of clips, or a pattern such as ``shards/*.tar``; what a folder or a
    pattern stands for is taken by name. ``root`` is the folder that media paths in tables and Parquet files
    are relative to; None for the folder of each file.

    Where an id comes again in another file, the file's name is put before it.

    Raises FileNotFoundError for a path that does not exist, ValueError for one without rows, given twice, or with
    faulty rows or two of one id, of which all are told at once.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    root = None if root is None else Path(root)
    if root is not None and not root.is_dir():
        raise FileNotFoundError(f"The root folder {root} does not exist; give the folder that media paths start from.")
    rows: list[Row] = []
    faults: list[str] = []
    taken: set[str] = set()
    files: set[str] = set()
    for path in (file for given in paths for file in _expand(os.fspath(given))):
        real = os.path.realpath(path)
        if real in files:
            raise ValueError(f"{path} is given twice; give each file once.")
        files.add(real)
        before, places = len(rows) + len(faults), {}
        for place, row in _read(path, root):
            if isinstance(row, ValueError):
                faults.append(str(row))
            elif row.id in places:
                both = f"{places[row.id]} and {place}"
                faults.append(f"{both} have the same id {row.id}; give each row its own in the column id.")
            else:
                places[row.id] = place
                rows.append(_named(row, path, taken))
        if len(rows) + len(faults) == before:
            raise ValueError(f"{path} has no rows; give a file with at least one.")
    if faults:
        more = len(faults) - _SHOWN
        raise ValueError("\n".join(faults[:_SHOWN] + [f"and {more} more."] * (more > 0)))
    if not rows:
        raise ValueError("There are no rows; give at least one table, shard or folder.")
    return rows


def _named(row: Row, path: Path, taken: set[str]) -> Row:
    """The row with an id that no row of another file has."""
    name, number = row.id, 1
    while name in taken:
        name = f"{path.stem}/{row.id}" + (f"-{number}" if number > 1 else "")
        number += 1
    taken.add(name)
    return row if name == row.id else dataclasses.replace(row, id=name)


def _expand(given: str) -> list[Path]:
    path = Path(given)
    if not path.exists():
        found = sorted(glob.glob(given)) if glob.has_magic(given) else []
        if not found:
            raise FileNotFoundError(f"{given} does not exist; check the path.")
        return [file for match in found for file in _expand(match)]
    if not path.is_dir():
        return [path]
    shards = sorted(file for file in path.iterdir() if _is_shard(file))
    pair = next((file for file in path.iterdir() if shards and is_edit(file)), None)
    if pair:
        raise ValueError(f"{path} has both {pair.name} and {shards[0].name}; give pairs and shards in folders apart.")
    return shards or [path]


def _is_shard(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".tar") and path.is_file() and not path.name.startswith(".")


def _read(path: Path, root: Path | None) -> Iterator[Placed]:
    suffix = path.suffix.lower()
    if path.is_dir():
        return read_folder(path)
    if suffix in tables.SUFFIXES:
        return tables.read_table(path, root or path.parent)
    if suffix == ".parquet":
        return read_parquet(path, root or path.parent)
    if suffix == ".tar":
        return read_shard(path)
    raise ValueError(f"{path} is no table of rows; give .csv, .json, .jsonl, .parquet, .tar or a folder.")
