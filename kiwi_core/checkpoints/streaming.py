"""Safetensors files written tensor by tensor.

The bytes are those of safetensors' own writer, which wants all tensors in memory at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import BinaryIO

from ..atomic import replacing
from .lazy import DTYPES, Tensor, as_bytes, load, nbytes

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = {dtype: index for index, dtype in enumerate(_NAMES)}
_CHUNK = 8 << 20

Progress = Callable[[int], object]


class FileLayout:
    """Where each tensor of a file stands: the widest types first, so that all are aligned, then by name."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None):
        self.tensors = tensors
        entries: dict = {"__metadata__": {"format": "pt", **(metadata or {})}}
        begins, end = {}, 0
        for name in sorted(tensors, key=lambda name: (_ORDER[tensors[name].dtype], name)):
            tensor = tensors[name]
            begins[name], begin, end = end, end, end + nbytes(tensor)
            entries[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % 8)
        self.header = len(header).to_bytes(8, "little") + header
        self.begins = {name: len(self.header) + begin for name, begin in begins.items()}
        self.size = len(self.header) + end

    def write(self, file: BinaryIO, name: str, progress: Progress) -> str:
        """Put a tensor into its place; returns its digest. Large tensors are not copied."""
        data = memoryview(as_bytes(load(self.tensors[name]).detach().cpu().contiguous()))
        assert len(data) == nbytes(self.tensors[name]), name
        digest = hashlib.blake2b(digest_size=16)
        file.seek(self.begins[name])
        for start in range(0, len(data), _CHUNK):
            chunk = data[start : start + _CHUNK]
            digest.update(chunk)
            write_all(file, chunk)
            progress(len(chunk))
        return digest.hexdigest()

    def digest(self, file: BinaryIO, name: str, progress: Progress) -> str:
        """Of what stands at a tensor's place."""
        digest = hashlib.blake2b(digest_size=16)
        file.seek(self.begins[name])
        left = nbytes(self.tensors[name])
        while left and (chunk := file.read(min(left, _CHUNK))):
            digest.update(chunk)
            progress(len(chunk))
            left -= len(chunk)
        return digest.hexdigest()


def write_all(file: BinaryIO, data) -> None:
    data = memoryview(data)
    while data:
        data = data[file.write(data) :]


def write_file(
    tensors: Mapping[str, Tensor], path: str | os.PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write one file, whole or not at all."""
    layout = FileLayout(tensors, metadata)
    with replacing(path) as temporary, open(temporary, "wb", buffering=0) as file:
        write_all(file, layout.header)
        for name in layout.begins:
            layout.write(file, name, lambda count: None)
