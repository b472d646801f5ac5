"""The rows of a run, sorted by kind, with the shape of each, and those that are held out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from kiwi_core import mllm

from ..config import KINDS
from .index import Index, each
from .prepare import Rules, Shape, shape_of
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


def read(
    data: Sequence[str],
    root: str,
    rules: Rules,
    max_object_token: int,
    index: Index,
    kinds: Sequence[str] = (),
    validation_data: Sequence[str] = (),
    validation_rows: int = 0,
) -> Data:
    """Read and sort the rows.

    Args:
        kinds: those that are used, in order; all that are there without.
        validation_rows: so many of each kind are held out, always the same ones, where ``validation_data`` is empty.

    Raises:
        FileNotFoundError, ValueError: as :func:`training.data.rows.read_rows`; or a kind has no rows.
    """
    if not data:
        raise ValueError("No data is given; pass --data a table, a parquet file, a shard or a folder of clips.")
    rows = read_rows(data, root or None)
    found, broken = _sort(rows, rules, max_object_token, index)
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
        held, more = _sort(read_rows(validation_data, root or None), rules, max_object_token, index)
        validation, broken = {kind: held[kind] for kind in chosen if kind in held}, broken + more
    elif validation_rows:
        validation = {kind: _hold_out(kind, rows, validation_rows) for kind, rows in chosen.items()}
        _leave_out(chosen, {row.target.name for rows in validation.values() for row in rows.rows})
    trained = {row.target.name for rows in chosen.values() for row in rows.rows}
    shared = sum(row.target.name in trained for rows in validation.values() for row in rows.rows)
    if shared:
        logger.warning("The targets of %d of the validation rows are trained on too.", shared)
    most = max(len(rows.rows) for rows in chosen.values())
    for kind, rows in chosen.items():
        if len(rows.rows) < most * _RARE:
            logger.warning(
                "There are %d %s rows and %d of another kind. Kinds take turns, so these come very often; add some, or "
                "leave them out with --kinds.", len(rows.rows), kind, most,
            )  # fmt: skip
    return Data(chosen, validation, broken, digest(chosen))


def _sort(
    rows: list[Row], rules: Rules, max_object_token: int, index: Index
) -> tuple[dict[str, Rows], list[tuple[str, str]]]:
    def look(row: Row):
        mllm.check_prompt(row.prompt)
        probe, tokens = index.probe(row.target), 0
        if row.reference is not None:
            picture = index.probe(row.reference)
            unit = mllm.MERGED
            size = mllm.smart_size(picture.height, picture.width, unit, 4 * unit**2, max_object_token * unit**2)
            tokens = size[0] * size[1] // unit**2
        return kind_of(row, probe), shape_of(probe, rules), tokens

    found: dict[str, Rows] = {}
    broken = []
    for row, result in zip(rows, each(look, rows)):
        if isinstance(result, Exception):
            broken.append((row.id, str(result)))
            continue
        kind, shape, tokens = result
        found.setdefault(kind, Rows()).add(row, shape, (shape, tokens))
    return found, broken


def _hold_out(kind: str, rows: Rows, count: int) -> Rows:
    """Take some rows out, chosen by their ids; one at least stays."""
    order = sorted(range(len(rows.rows)), key=lambda place: hashlib.sha256(rows.rows[place].id.encode()).digest())
    if count >= len(order):
        logger.warning("Of the %d %s rows, %d are held out: one is to be trained on.", len(order), kind, len(order) - 1)
    chosen = set(order[: min(count, len(order) - 1)])
    return rows.take([place in chosen for place in range(len(order))])


def _leave_out(chosen: dict[str, Rows], targets: set[str]) -> None:
    """Take out what would be learned by heart: the held-out targets under other instructions or as other kinds."""
    for kind, rows in chosen.items():
        again = [row.target.name in targets for row in rows.rows]
        if any(again) and not all(again):
            rows.take(again)
            logger.info("%d more %s rows are left out, whose targets are held out.", sum(again), kind)


def digest(chosen: dict[str, Rows]) -> str:
    """Of what the rows say, in their order; the contents of their media are not read."""
    found = hashlib.sha256()
    for kind, rows in chosen.items():
        for row, shape in zip(rows.rows, rows.shapes):
            media = (row.source, row.target, *([row.reference] if row.reference else []))
            names = [one.name.rpartition("/")[2] for one in media]
            found.update("\0".join([kind, row.id, row.prompt, str(shape), *names]).encode() + b"\1")
    return found.hexdigest()[:16]
