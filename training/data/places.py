"""Where the bytes of a clip or picture lie when they have no file of their own: in a tar, in a Parquet file."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow.parquet

_CHUNK = 1 << 20
# Bytes of row groups that a process keeps: all that the stream mixes, where they are as small as RefVIE's.
_KEPT = 256 << 20

_kept: OrderedDict[tuple, pyarrow.ChunkedArray] = OrderedDict()
_reading = threading.Lock()


@dataclass(frozen=True)
class TarMember:
    """``size`` bytes from byte ``offset`` of an uncompressed tar on; ``name`` is the member's."""

    name: str
    offset: int
    size: int

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()

    def chunks(self, path: str) -> Iterator[bytes]:
        """The bytes, piece by piece, of the tar at ``path``; raises as :func:`file_chunks` does."""
        yield from file_chunks(path, self.offset, self.size)


@dataclass(frozen=True)
class ParquetCell:
    """A cell with bytes, or with a struct that has them as ``bytes``; ``row`` counts from 0 in its row group."""

    row_group: int
    row: int
    column: str
    suffix: str = ".png"
    """A guess, for a temporary file's name: readers go by the content."""

    @property
    def name(self) -> str:
        return f"{self.column}[{self.row_group}.{self.row}]"

    def chunks(self, path: str) -> Iterator[bytes]:
        """The bytes of the cell of the file at ``path``.

        Raises FileNotFoundError for a missing file, ValueError for one without such a cell or without pyarrow.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"{path} does not exist; check the path.")
        status = file.stat()
        cells = _cells(path, self.row_group, self.column, status.st_mtime_ns, status.st_size)
        value = cells[self.row].as_py() if self.row < len(cells) else None
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise ValueError(f"{path} has no bytes at {self.name}; read the rows again if the file has changed.")
        yield value


def file_chunks(path: str, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
    """Bytes ``offset`` to ``offset + size`` of a file, or all from ``offset`` on, piece by piece.

    Raises FileNotFoundError for a missing file, ValueError for one that may not be read or is too short.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist; check the path.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be opened; give a file that may be read.") from error
    with file:
        file.seek(offset)
        left = size
        while left != 0:
            chunk = file.read(_CHUNK if left is None else min(_CHUNK, left))
            if not chunk:
                if left is not None:
                    raise ValueError(f"{path} ends {left} bytes too early; copy it again.")
                return
            left = None if left is None else left - len(chunk)
            yield chunk


@contextmanager
def open_parquet(path: str | Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Raises ValueError for a file that is not Parquet, that turns out damaged inside the block, or no pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("Parquet files need pyarrow; run pip install 'kiwi-edit[train]'.") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:  # of media that a row names
        raise
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as Parquet; download it again.") from error


def _cells(path: str, row_group: int, column: str, *version: int) -> pyarrow.ChunkedArray:
    """One column of one row group. Parquet has no smaller unit, so the last ones are kept for what comes next."""
    key = path, row_group, column, *version
    with _reading:  # several threads that want the same group are to read it once
        if key not in _kept:
            with open_parquet(path) as file:
                if row_group >= file.num_row_groups or column not in file.schema_arrow.names:
                    raise ValueError(f"{path} has no {column} in row group {row_group}; read the rows again.")
                _kept[key] = file.read_row_group(row_group, columns=[column]).column(column)
        _kept.move_to_end(key)
        while len(_kept) > 1 and sum(cells.nbytes for cells in _kept.values()) > _KEPT:
            _kept.popitem(last=False)
        return _kept[key]
