"""Rows in Parquet files as RefVIE has them: iid, prompt, src_video, tgt_video and perhaps ref_image_bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .media import PICTURE_SUFFIXES, Media
from .places import ParquetCell, open_parquet
from .row import Placed, Row, attempt, digest_id, media_at, prompt_at

if TYPE_CHECKING:
    import pyarrow.parquet

_NEEDED = ("prompt", "src_video", "tgt_video")
_REFERENCE = "ref_image_bytes"


def read_parquet(path: Path, root: Path) -> Iterator[Placed]:
    """The rows of a file in order; ``src_video`` and ``tgt_video`` are paths, taken from ``root``.

    ``ref_image_bytes`` holds bytes or a struct of ``bytes`` and ``path``, whose path counts where it has no
    bytes. References stay in the file until they are used.

    A row without a path comes as a ValueError in its place. Raises ValueError for a damaged file, a missing column, or
    without pyarrow.
    """
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        missing = [column for column in _NEEDED if column not in names]
        if missing:
            raise ValueError(f"{path} has no column {' and no '.join(missing)}; give it {', '.join(_NEEDED)}.")
        columns = [*_NEEDED, *({"iid"} & {*names})]
        number = 0
        for group in range(file.num_row_groups):
            references = _references(file, group) if _REFERENCE in names else None
            for index, fields in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
                number += 1
                place = f"{path} row {number}"
                cell = (group, index, references[index]) if references else None
                yield place, attempt(_row, fields, path, root, place, number, cell)


def _row(fields: dict, path: Path, root: Path, place: str, number: int, cell: tuple | None) -> Row:
    prompt = prompt_at(fields["prompt"], place)
    source, target = (media_at(fields[column], root, column, place) for column in ("src_video", "tgt_video"))
    name = fields.get("iid")
    if name in (None, ""):
        # The number tells rows apart that differ in their reference only.
        name = digest_id(fields["src_video"], fields["tgt_video"], prompt, path.name, str(number))
    reference = cell and _reference(path, root, place, *cell)
    return Row(str(name), source, target, prompt, reference, str(path))


def _reference(path: Path, root: Path, place: str, group: int, index: int, found: tuple[bool, str]) -> Media | None:
    has_bytes, name = found
    if has_bytes:
        suffix = PurePosixPath(name).suffix.lower()
        suffix = suffix if suffix in PICTURE_SUFFIXES else ".png"
        return Media(str(path), ParquetCell(group, index, _REFERENCE, suffix))
    return media_at(name, root, _REFERENCE, place) if name else None


def _references(file: pyarrow.parquet.ParquetFile, group: int) -> list[tuple[bool, str]]:
    """For each row of a group, whether it has the bytes of a reference, and the path beside them or ""."""
    import pyarrow

    kind = file.schema_arrow.field(_REFERENCE).type
    if not pyarrow.types.is_struct(kind):
        return [(present, "") for present in _present(file, group, _REFERENCE)]
    members = {field.name for field in kind}
    count = file.metadata.row_group(group).num_rows
    present, paths = [False] * count, [""] * count
    if "bytes" in members:
        present = _present(file, group, f"{_REFERENCE}.bytes")
    if "path" in members:
        table = file.read_row_group(group, columns=[f"{_REFERENCE}.path"])
        paths = [(value or {}).get("path") or "" for value in table.column(_REFERENCE).to_pylist()]
    return list(zip(present, paths))


def _present(file: pyarrow.parquet.ParquetFile, group: int, leaf: str) -> list[bool]:
    """Which cells are not null: by the statistics where all or none are, else by reading some rows at a time."""
    metadata = file.metadata.row_group(group)
    columns = (metadata.column(index) for index in range(metadata.num_columns))
    statistics = next(column.statistics for column in columns if column.path_in_schema == leaf)
    if statistics is not None and statistics.has_null_count and statistics.null_count in (0, metadata.num_rows):
        return [statistics.null_count == 0] * metadata.num_rows
    present = []
    for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=[leaf]):
        cells = batch.column(0)
        if "." in leaf:
            cells = cells.flatten()[0]  # unlike field(), it is null where the struct is
        present += cells.is_valid().to_pylist()
    return present
