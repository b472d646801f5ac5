"""One editing pair."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
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

    @property
    def unit(self) -> tuple[str, int] | None:
        """What is read in one go with the row: its tar, or its row group of a Parquet file; None for files alone."""
        for media in (self.target, self.reference):
            if media is not None and media.place is not None:
                return self.shard, getattr(media.place, "row_group", 0)
        return None


Placed = tuple[str, "Row | ValueError"]
"""Where a row stands, for messages, and the row or what is wrong with it."""


def attempt(make: Callable[..., Row], *given: object) -> Row | ValueError:
    """A row, or what is wrong with it: so all faults of a table are told at once."""
    try:
        return make(*given)
    except ValueError as error:
        return error


def kind_of(row: Row, probe: Probe) -> str:
    """What the row teaches, by its target's ``probe``: "ref" with a reference, "image" for one frame, or "video"."""
    if row.reference is not None:
        return "ref"
    return "image" if probe.frames == 1 else "video"


def media_at(text: object, root: Path, column: str, place: str) -> Media:
    """The media file that a table names, a relative path taken from ``root``.

    Whether there is such a file is found when it is read. Raises ValueError for no path and for one that leaves
    ``root``.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place} has no {column}; give the path of a file.")
    path = os.path.normpath(text)
    if os.path.isabs(path):
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
