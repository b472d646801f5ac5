"""Frames cut into overlapping tiles, and the results blended back over ramps. A tile holds all frames of its part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tile:
    """Size of the tiles and distance between their starts, each (height, width) in latent units."""

    size: tuple[int, int]
    stride: tuple[int, int]

    def __post_init__(self):
        if not all(1 <= stride <= size for size, stride in zip(self.size, self.stride)):
            raise ValueError(
                f"VAE tiles of {self.size} cannot advance by {self.stride}; give a stride from 1 to the size."
            )


def even_tile(height: int, width: int, longest: int, overlap: int) -> Tile:
    """Tiles of about one size that cover a frame, no side above ``longest``; all in latent units."""
    strides = []
    for side in (height, width):
        step = side - overlap
        tiles = max(1, -(-step // (longest - overlap)))
        strides.append(max(1, -(-step // tiles)))
    return Tile(size=(strides[0] + overlap, strides[1] + overlap), stride=(strides[0], strides[1]))


def scaled(part: slice, factor: int) -> slice:
    """The part of an axis that is ``factor`` times as long."""
    return slice(part.start * factor, part.stop * factor)


def _parts(length: int, size: int, stride: int) -> list[slice]:
    """Tiles along an axis: the last is the first one to reach the end, and may be shorter."""
    starts = range(0, max(1, length - size + stride), stride)
    return [slice(start, min(start + size, length)) for start in starts]


def _ramp(part: slice, length: int, border: int, factor: int, device: torch.device) -> torch.Tensor:
    """Weights along one axis of a tile: a ramp over each border, but none at the edges of the frame."""
    weight = torch.ones((part.stop - part.start) * factor, device=device)
    slope = torch.arange(1, border * factor + 1, device=device) / (border * factor)
    if part.start > 0:
        weight[: len(slope)] = slope
    if part.stop < length:
        weight[len(weight) - len(slope) :] = slope.flip(0)
    return weight


def assemble(
    read: Callable[[slice, slice], Iterator[torch.Tensor]],
    shape: tuple[int, ...],
    factor: int,
    tile: Tile | None,
    progress: Progress | None,
    device: torch.device,
) -> torch.Tensor:
    """Weighted mean of what ``read(rows, columns)`` yields of each tile, frames in order.

    Args:
        shape: the result's. factor: its pixels per latent, in which tiles and ``read`` count.
        tile: None: one that covers the frame. progress: called with (tiles done, tiles).
        device: where the result is put together; ``read`` may compute on another.

    Returns:
        float32 on ``device``.
    """
    frame = (shape[3] // factor, shape[4] // factor)
    tile = tile or Tile(size=frame, stride=frame)
    border = [size - stride for size, stride in zip(tile.size, tile.stride)]
    parts = list(product(*(_parts(*axis) for axis in zip(frame, tile.size, tile.stride))))
    canvas, total = torch.zeros(shape, device=device), torch.zeros(shape[3:], device=device)
    for index, part in enumerate(parts, start=1):
        window = (..., *(scaled(axis, factor) for axis in part))
        down, across = (_ramp(*axis, factor, device) for axis in zip(part, frame, border))
        weight = torch.minimum(down[:, None], across)
        total[window] += weight
        start = 0
        for frames in read(*part):
            stop = start + frames.shape[2]
            canvas[window][:, :, start:stop] += (frames * weight.to(frames.device)).to(device)
            start = stop
        if progress is not None:
            progress(index, len(parts))
    return canvas.div_(total)


def tile_count(height: int, width: int, tile: Tile) -> int:
    """How many tiles a frame is cut into."""
    rows, columns = (len(_parts(*axis)) for axis in zip((height, width), tile.size, tile.stride))
    return rows * columns
