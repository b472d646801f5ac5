"""Editing pairs from tables, Parquet files, shards and folders."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import tables
from .folder import read_folder
from .parquet import read_parquet
from .row import Placed, Row, kind_of
from .shards import read_shard

__all__ = ["Row", "kind_of", "read_rows"]


def read_rows(paths: Sequence[str | os.PathLike], root: str | os.PathLike | None = None) -> list[Row]:
    """The rows of all ``paths`` in order. No media are opened.

    A path is a table (``.csv``, ``.json``, ``.jsonl``), a ``.parquet`` file, a ``.tar`` shard, a folder of
    Parquet files and shards, a folder of clips, or a pattern such as ``shards/*.tar``; what a folder or a
    pattern stands for is taken by name. ``root`` is the folder that media paths in tables and Parquet files
    are relative to; None for the folder of each file.

    Raises FileNotFoundError for a path that does not exist, ValueError for one without rows or with faulty
    ones, and for two rows with one id.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    root = None if root is None else Path(root)
    if root is not None and not root.is_dir():
        raise FileNotFoundError(f"The root folder {root} does not exist; give the folder that media paths start from.")
    rows, places = [], {}
    for path in (file for given in paths for file in _expand(os.fspath(given))):
        count = len(rows)
        for place, row in _read(path, root):
            if row.id in places:
                both = f"{places[row.id]} and {place}"
                raise ValueError(f"{both} have the same id {row.id}; give each row its own, and each file once.")
            places[row.id] = place
            rows.append(row)
        if len(rows) == count:
            raise ValueError(f"{path} has no rows; give a file with at least one.")
    if not rows:
        raise ValueError("There are no rows; give at least one table, shard or folder.")
    return rows


def _expand(given: str) -> list[Path]:
    path = Path(given)
    if not path.exists():
        found = sorted(glob.glob(given)) if glob.has_magic(given) else []
        if not found:
            raise FileNotFoundError(f"{given} does not exist; check the path.")
        return [file for match in found for file in _expand(match)]
    if path.is_dir():
        return sorted(file for file in path.iterdir() if _is_shard(file)) or [path]
    return [path]


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
