"""One editing pair."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from .media import Media, Probe


@dataclass(frozen=True)
class Row:
    """An editing pair: ``prompt`` says how ``source`` became ``target``, perhaps with the help of ``reference``."""

    id: str
    """Unique and stable: the table's own, the key in a shard, the stem in a folder, or a digest of the fields."""
    source: Media
    target: Media
    prompt: str
    reference: Media | None = None
    shard: str = ""
    """The tar or Parquet file that the row stands in, the same for all its rows; "" outside of those."""


Placed = tuple[str, Row]
"""A row and, for messages, where it stands."""


def kind_of(row: Row, probe: Probe) -> str:
    """What the row teaches, by its target's ``probe``: "ref" with a reference, "image" for one frame, or "video"."""
    if row.reference is not None:
        return "ref"
    return "image" if probe.frames == 1 else "video"


def media_at(text: object, root: Path, column: str, place: str) -> Media:
    """The media file that a table names, a relative path taken from ``root``.

    Raises ValueError for no path and for one that leaves ``root``, FileNotFoundError for an absolute path
    without a file.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place} has no {column}; give the path of a file.")
    path = os.path.normpath(text)
    if os.path.isabs(path):
        if not os.path.exists(path):
            raise FileNotFoundError(f"{place} has the {column} {text}, which does not exist; correct the path.")
        return Media(path)
    if Path(path).parts[:1] == ("..",):
        raise ValueError(f"{place} has the {column} {text}, which leaves {root}; give another root folder.")
    return Media(str(root / path))


def prompt_at(text: object, place: str) -> str:
    """The prompt that a table gives, "" for none; raises ValueError for anything but text."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{place} has a prompt that is no text; put it in quotes.")
    return text or ""


def digest_id(*fields: str) -> str:
    """An id for a row without one: the same for the same fields, on every machine."""
    return hashlib.blake2b(json.dumps(fields).encode(), digest_size=8).hexdigest()
