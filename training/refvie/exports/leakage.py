"""Which samples are also in a benchmark, so that a model trained on them would be measured on what it knows.

A sample is, if one of its clips has the bytes of a benchmark's, or if the middle frame of its source or target, or its
reference, looks the same as a benchmark's picture or any frame of its clips, whatever their size and compression.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...data import rows
from ...data.media import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Media
from .. import frames, pictures, samples
from ..config import Config
from ..ledger import INGEST, Ledger
from ..pairs import tables
from ..samples import Sample

logger = logging.getLogger(__name__)

ALIKE = 0.97
"""Correlation of two pictures' structures from which they are the same."""
SAME_FILE, SAME_PICTURE = "the same file", "looks the same"
_SIDE = 16
"""Pixels of a side to which pictures are brought to be compared."""
_FLAT = 3.0
"""Levels of contrast, beyond a plain gradient, below which a picture has no structure to compare."""
_FRAMES = 64
"""Of a benchmark's clip, at most so many are compared, spread over it evenly."""
_SUFFIXES = PICTURE_SUFFIXES | VIDEO_SUFFIXES
_CHUNK = 256


@dataclass(frozen=True)
class Match:
    """What a sample has in common with a benchmark."""

    what: str
    """"source", "target" or "reference"."""
    item: str
    """The benchmark's, as messages call it."""
    how: str
    """:data:`SAME_FILE`, or :data:`SAME_PICTURE` with the correlation."""


class Benchmark:
    """What the samples are compared with.

    Args:
        paths: clips and pictures; folders of them and tables of their paths (CSV, JSON, JSON Lines, Parquet, which may
            also hold pictures themselves, and shards). A table's paths begin at its folder.

    Raises FileNotFoundError or ValueError for a path that is not there or holds nothing, a table that names files which
    are not there, and a file that cannot be read.
    """

    def __init__(self, paths: Sequence[str | Path], alike: float = ALIKE):
        self.alike = alike
        self.digests: dict[str, str] = {}
        """Names of items by the digest of their bytes."""
        self.owners: list[str] = []
        found = []
        for path in paths:
            count = 0
            for name, item in _items(Path(path)):
                count += 1
                digest, frames = _content(item)
                if digest not in self.digests:
                    self.digests[digest] = name
                    made = [one for one in map(vector, frames) if one is not None]
                    found += made
                    self.owners += [name] * len(made)
            if not count:
                raise ValueError(f"{path} has no clips or pictures to compare with; give a folder or table of them.")
            logger.info("%d clips and pictures in %s", count, path)
        self.vectors = np.stack(found) if found else np.zeros((0, 3 * _SIDE**2), np.float32)

    def matches(
        self, digests: Sequence[Mapping[str, str]], vectors: Sequence[Mapping[str, np.ndarray | None]]
    ) -> list[Match | None]:
        """The first match of each sample.

        Args:
            digests: of each sample's files, by what they are. vectors: of its pictures, see :func:`vector`.
        """
        places = [(number, what) for number, one in enumerate(vectors) for what in one if one[what] is not None]
        nearest: dict[int, Match] = {}
        if places and len(self.vectors):
            likeness = np.stack([vectors[number][what] for number, what in places]) @ self.vectors.T
            best = likeness.argmax(axis=1)
            for row, (number, what) in enumerate(places):
                value = float(likeness[row, best[row]])
                if value >= self.alike and number not in nearest:
                    nearest[number] = Match(what, self.owners[best[row]], f"{SAME_PICTURE} ({value:.3f})")
        found = []
        for number, one in enumerate(digests):
            same = [Match(what, self.digests[key], SAME_FILE) for what, key in one.items() if key in self.digests]
            found.append(same[0] if same else nearest.get(number))
        return found


def find(book: Ledger, given: Config, benchmark: Benchmark) -> Iterator[tuple[Sample, Match]]:
    """The samples good enough for training that match a benchmark, in their order.

    About 10 ms of one core a sample: a frame of each clip is decoded, and the reference. All cores are used.

    Raises FileNotFoundError for a sample whose frames are gone.
    """
    wanted = samples.read(book, given, "v.kept OR v.instruct")
    total = book.db.execute("SELECT count(*) FROM verdicts WHERE kept OR instruct").fetchone()[0]
    bar = tqdm(total=total, desc="benchmarks", unit="sample", mininterval=1, dynamic_ncols=True)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes beside Python
        while chunk := list(islice(wanted, _CHUNK)):
            vectors = list(pool.map(lambda one: _vectors(book.folder, one), chunk))
            digests = [
                {role: one.values[INGEST][f"{role}_digest"] for role in ("source", "target")} for one in chunk
            ]
            for one, match in zip(chunk, benchmark.matches(digests, vectors)):
                if match:
                    yield one, match
            bar.update(len(chunk))


def _vectors(folder: Path, sample: Sample) -> dict[str, np.ndarray | None]:
    path = folder / sample.artefacts[INGEST]
    found = {role: vector(pictures.frame(path, role, side=8 * _SIDE)) for role in ("source", "target")}
    if sample.kept:
        found["reference"] = vector(pictures.opened(folder / sample.artefacts["synthesise"], 8 * _SIDE))
    return found


def vector(picture: Image.Image) -> np.ndarray | None:
    """The structure of an RGB picture as float32 ``[768]`` of length one, or None for one that has too little.

    What is the same in all pictures with a bright sky is taken out first: each colour's mean and gradient.
    """
    small = np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32).reshape(-1, 3)
    line = np.linspace(-1, 1, _SIDE, dtype=np.float32)
    plane = np.stack([np.ones(_SIDE**2, np.float32), np.tile(line, _SIDE), np.repeat(line, _SIDE)])
    plane /= np.linalg.norm(plane, axis=1, keepdims=True)  # the three are at right angles
    rest = (small - plane.T @ (plane @ small)).reshape(-1)
    length = np.linalg.norm(rest)
    return rest / length if length > _FLAT * len(rest) ** 0.5 else None


def _items(path: Path) -> Iterator[tuple[str, Media | bytes]]:
    """Clips and pictures with the names that messages call them by."""
    suffix = path.suffix.lower()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give tables, folders or files of a benchmark.")
    if path.is_dir():
        known = _SUFFIXES | tables.SUFFIXES | {".tar"}
        for one in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in one.relative_to(path).parts)
            if one.suffix.lower() in known and one.is_file() and not hidden:
                yield from _items(one)
    elif suffix in _SUFFIXES:
        yield str(path), Media(str(path))
    elif suffix in tables.SUFFIXES:
        yield from _in_table(path)
    elif suffix == ".tar":
        for row in rows.read_rows([path]):
            for media in (row.source, row.target, row.reference):
                if media is not None:
                    yield media.name, media
    else:
        raise ValueError(f"{path} is neither a clip, a picture, a folder nor a table; give one of these.")


def _in_table(path: Path) -> Iterator[tuple[str, Media | bytes]]:
    columns, read = tables.open_table(path)
    for row in read(columns or []):
        if row.problem:
            raise ValueError(f"{row.place.capitalize()} of {path} {row.problem}.")
        for value in _values(row.fields):
            if isinstance(value, bytes):
                yield f"{path} {row.place}", value
            elif Path(value).suffix.lower() in _SUFFIXES:
                media = path.parent / value
                if not media.is_file():
                    raise FileNotFoundError(f"{path} {row.place} names {value}, which is not there; give its folder.")
                yield str(media), Media(str(media))


def _values(fields: object) -> Iterator[str | bytes]:
    """All text and bytes in a row, however deep. Text with line breaks is no path."""
    if isinstance(fields, (bytes, str)):
        if isinstance(fields, bytes) or (len(fields) < 4096 and "\n" not in fields and "\0" not in fields):
            yield fields
    elif isinstance(fields, Mapping):
        for value in fields.values():
            yield from _values(value)
    elif isinstance(fields, (list, tuple)):
        for value in fields:
            yield from _values(value)


def _content(item: Media | bytes) -> tuple[str, list[Image.Image]]:
    """The digest of an item's bytes, as :meth:`training.data.media.Media.digest` makes it, and its frames."""
    if isinstance(item, bytes):
        return hashlib.blake2b(item, digest_size=16).hexdigest(), [pictures.opened(item)]
    found = item.frames()
    return item.digest(), [Image.fromarray(found[place]) for place in frames.spread(len(found), _FRAMES)]
