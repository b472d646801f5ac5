"""The rows of a run, sorted by kind, with the shape of each, and those that are held out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from kiwi_core import mllm

from ..config import KINDS
from .index import Index, each
from .media import Media
from .prepare import Rules, Shape, pair_shape, shape_of
from .row import Row, kind_of
from .rows import read_rows

logger = logging.getLogger(__name__)

_RARE = 0.1


@dataclass
class Rows:
    """Samples of one kind."""

    rows: list[Row] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    groups: list[Hashable] = field(default_factory=list)
    """What must be equal within a batch: the shape and the reference's number of tokens."""

    def add(self, row: Row, shape: Shape, group: Hashable) -> None:
        self.rows.append(row)
        self.shapes.append(shape)
        self.groups.append(group)

    def take(self, which: Sequence[bool]) -> Rows:
        """Take out those that are marked."""
        taken, kept = Rows(), Rows()
        for mark, *one in zip(which, self.rows, self.shapes, self.groups):
            (taken if mark else kept).add(*one)
        self.rows, self.shapes, self.groups = kept.rows, kept.shapes, kept.groups
        return taken


@dataclass
class Data:
    """What a run learns from."""

    training: dict[str, Rows]
    """By kind, in the order in which they take turns."""
    validation: dict[str, Rows]
    broken: list[tuple[str, str]]
    """Rows whose media cannot be read, and why."""
    digest: str
    """Of the rows that are trained on: ids, prompts, shapes, names of media."""
    validation_digest: str
    """Of those that are held out."""


def read(
    data: Sequence[str],
    root: str,
    rules: Rules,
    max_object_token: int,
    index: Index,
    kinds: Sequence[str] = (),
    validation_data: Sequence[str] = (),
    validation_rows: int = 0,
    as_before: bool = False,
    quiet: bool = False,
) -> Data:
    """Read and sort the rows.

    Args:
        kinds: those that are used, in order; all that are there without.
        validation_rows: so many of each kind are held out, always the same ones, where ``validation_data`` is empty.
        as_before: as older runs did, whose rows are to stay what they are: sources are not looked at, a held-out
            target is known by its path as it is written, and no validation rows may fit. quiet: without a progress bar.

    Raises:
        FileNotFoundError, ValueError: as :func:`training.data.rows.read_rows`; or a kind has no rows.
        OSError, MemoryError: as :func:`training.data.index.each`.
    """
    about = "" if quiet else "looking at the data"
    if not data:
        raise ValueError("No data is given; pass --data a table, a parquet file, a shard or a folder of clips.")
    rows = read_rows(data, root or None)
    found, broken = _sort(rows, rules, max_object_token, index, as_before, about)
    for kind in kinds:
        if kind not in found:
            if broken:
                raise ValueError(f"The data has no {kind} rows that can be read; the first: {broken[0][1]}")
            example = {"image": "pairs of pictures", "video": "pairs of clips", "ref": "pairs with a reference"}[kind]
            raise ValueError(f"The data has no {kind} rows ({example}); add some, or set --kinds without it.")
    chosen = {kind: found[kind] for kind in (kinds or KINDS) if kind in found}
    if not chosen:
        reason = f"the first is {broken[0][0]}: {broken[0][1]}" if broken else "there are none"
        raise ValueError(f"No row of the data can be used ({reason}).")
    for kind in found.keys() - chosen.keys():
        logger.warning("%d %s rows are not used by this recipe (kinds).", len(found[kind].rows), kind)
    validation: dict[str, Rows] = {}
    if validation_data:
        rows = read_rows(validation_data, root or None)
        held, more = _sort(rows, rules, max_object_token, index, as_before, about)
        validation, broken = {kind: held[kind] for kind in chosen if kind in held}, broken + more
        if not validation and not as_before:
            raise ValueError(
                f"--validation-data has no rows of the kinds that are trained on ({', '.join(chosen)}) that can be "
                "read; give some, or hold rows out with --validation-rows."
            )
        for kind in held.keys() - validation.keys():
            logger.warning("%d %s rows of --validation-data are not used by this recipe.", len(held[kind].rows), kind)
    elif validation_rows:
        validation = {kind: _hold_out(kind, rows, validation_rows) for kind, rows in chosen.items()}
    name: Callable[[Media], str] = (lambda media: media.name) if as_before else (lambda media: media.identity)
    held_out = {name(row.target) for rows in validation.values() for row in rows.rows}
    if validation_rows and not validation_data:
        _leave_out(chosen, held_out, name)
    trained = {name(row.target) for rows in chosen.values() for row in rows.rows} if held_out else set()
    shared = sum(name(row.target) in trained for rows in validation.values() for row in rows.rows)
    if shared:
        logger.warning("The targets of %d of the validation rows are trained on too.", shared)
    most = max(len(rows.rows) for rows in chosen.values())
    for kind, rows in chosen.items():
        if len(rows.rows) < most * _RARE:
            logger.warning(
                "There are %d %s rows and %d of another kind. Kinds take turns, so these come very often; add some, or "
                "leave them out with --kinds.", len(rows.rows), kind, most,
            )  # fmt: skip
    return Data(chosen, validation, broken, digest(chosen), digest(validation))


def _sort(
    rows: list[Row], rules: Rules, max_object_token: int, index: Index, as_before: bool, about: str
) -> tuple[dict[str, Rows], list[tuple[str, str]]]:
    def look(row: Row):
        mllm.check_prompt(row.prompt)
        probe, tokens = index.probe(row.target), 0
        shape = shape_of(probe, rules) if as_before else pair_shape(row, index.probe(row.source), probe, rules)
        if row.reference is not None:
            picture = index.probe(row.reference)
            unit = mllm.MERGED
            size = mllm.smart_size(picture.height, picture.width, unit, 4 * unit**2, max_object_token * unit**2)
            tokens = size[0] * size[1] // unit**2
        return kind_of(row, probe), shape, tokens

    found: dict[str, Rows] = {}
    broken = []
    for row, result in zip(rows, each(look, rows, about)):
        if isinstance(result, Exception):
            broken.append((row.id, str(result)))
            continue
        kind, shape, tokens = result
        found.setdefault(kind, Rows()).add(row, shape, (shape, tokens))
    return found, broken


def _hold_out(kind: str, rows: Rows, count: int) -> Rows:
    """Take some rows out, chosen by their ids; one at least stays."""
    order = sorted(range(len(rows.rows)), key=lambda place: hashlib.sha256(_bytes(rows.rows[place].id)).digest())
    if count >= len(order):
        logger.warning("Of the %d %s rows, %d are held out: one is to be trained on.", len(order), kind, len(order) - 1)
    chosen = set(order[: min(count, len(order) - 1)])
    return rows.take([place in chosen for place in range(len(order))])


def _leave_out(chosen: dict[str, Rows], targets: set[str], name: Callable[[Media], str]) -> None:
    """Take out what would be learned by heart: the held-out targets under other instructions or as other kinds."""
    for kind, rows in chosen.items():
        again = [name(row.target) in targets for row in rows.rows]
        if any(again) and not all(again):
            rows.take(again)
            logger.info("%d more %s rows are left out, whose targets are held out.", sum(again), kind)


def digest(chosen: dict[str, Rows]) -> str:
    """Of what the rows say, in their order; the contents of their media are not read."""
    found = hashlib.sha256()
    for kind, rows in chosen.items():
        for row, shape in zip(rows.rows, rows.shapes):
            media = (row.source, row.target, *([row.reference] if row.reference else []))
            names = [PurePath(one.name).name for one in media]  # wherever they lie
            found.update(_bytes("\0".join([kind, row.id, row.prompt, str(shape), *names])) + b"\1")
    return found.hexdigest()[:16]


def _bytes(text: str) -> bytes:
    """Also of the names of files that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape")
