"""Tensors that are read when they are needed, one at a time: models larger than memory pass through them."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

# As safetensors names them, in the order in which it writes tensors.
DTYPES = {
    "I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "I32": torch.int32, "BF16": torch.bfloat16,
    "F16": torch.float16, "I16": torch.int16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Source(NamedTuple):
    """A file as it was when it was opened."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike) -> Source:
        path = Path(path).resolve()
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor's shape and dtype, and how to get it."""

    shape: torch.Size
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]
    sources: frozenset[Source]
    """The files that it is read from."""


Tensor = torch.Tensor | LazyTensor


def load(tensor: Tensor) -> torch.Tensor:
    """The tensor itself, read now if it was not."""
    return tensor.load() if isinstance(tensor, LazyTensor) else tensor


def apply(function: Callable[..., torch.Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, lazily if one of them is lazy; its result may depend on values, its shape may not."""
    lazy = [tensor for tensor in tensors if isinstance(tensor, LazyTensor)]
    if not lazy:
        return function(*tensors)
    form = function(*(torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for tensor in tensors))
    sources = frozenset().union(*(tensor.sources for tensor in lazy))
    return LazyTensor(form.shape, form.dtype, lambda: function(*map(load, tensors)), sources)


def nbytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def read_header(path: str | os.PathLike) -> tuple[dict, int]:
    """The JSON header of a whole safetensors file, and where its data begins."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def open_tensors(path: str | os.PathLike) -> dict[str, LazyTensor]:
    """The tensors of a whole safetensors file, none of them read."""
    source = Source.of(path)
    header, start = read_header(path)
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{path} holds {name} as {entry['dtype']}, which is not known; choose another file.")
        dtype, shape, begin = DTYPES[entry["dtype"]], torch.Size(entry["shape"]), start + entry["data_offsets"][0]

        def read(dtype=dtype, shape=shape, begin=begin) -> torch.Tensor:
            return _read(source, begin, shape, dtype)

        tensors[name] = LazyTensor(shape, dtype, read, frozenset([source]))
    return tensors


def _read(source: Source, begin: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    size = shape.numel() * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    # Pages of its own go back at once; between smaller blocks the allocator would keep many times as much.
    buffer = mmap.mmap(-1, size) if size >= mmap.PAGESIZE else bytearray(size)
    view, done = memoryview(buffer), 0
    with open(source.path, "rb", buffering=0) as file:
        stat = os.fstat(file.fileno())
        if (stat.st_size, stat.st_mtime_ns) != source[1:]:
            raise ValueError(f"{source.path} changed while it was being read; start again.")
        file.seek(begin)
        while done < size:  # one call reads 2 GB at most
            count = file.readinto(view[done:])
            if not count:
                raise ValueError(f"{source.path} is cut short; download or copy it again.")
            done += count
    return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).reshape(shape)


def as_bytes(tensor: torch.Tensor):
    """The memory of a contiguous tensor, as a flat array of bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy()
