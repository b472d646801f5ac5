"""Where to edit: a mask for the latents that are sampled, and the edit put back into the untouched source.

A mask is bool ``[1 or T, H, W]`` of any size, true where the edit may show.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from . import media

GROW, FEATHER = 8, 8


def as_mask(mask, max_frames: int | None = None) -> torch.Tensor:
    """A mask from a path, PIL images or an array, at most its first ``max_frames``; white (half of full or more) is
    edited, transparent is not.

    Arrays: bool, uint8 0..255 or float 0..1, ``[H, W]`` or ``[T, H, W]``, all of them with or without 1, 3 or (uint8)
    4 channels at the end.

    Raises ValueError for other shapes and values.
    """
    if isinstance(mask, torch.Tensor):
        mask = (mask.float() if mask.is_floating_point() else mask).cpu().numpy()
    if not isinstance(mask, (np.ndarray, Image.Image, list, tuple, str, os.PathLike)):
        raise ValueError(f"A mask is a path, PIL images or an array, not {type(mask).__name__}; convert it.")
    if not isinstance(mask, np.ndarray):
        mask = media.as_frames(mask, max_frames, background="black")
    if not 2 <= mask.ndim <= 4 or 0 in mask.shape or (mask.ndim == 4 and mask.shape[-1] not in (1, 3, 4)):
        raise ValueError(f"The mask has shape {list(mask.shape)}; give [H, W] or [T, H, W].")
    colours = mask.ndim > 2 and mask.shape[-1] in (1, 3, 4)  # no frame is so narrow
    if mask.ndim == (3 if colours else 2):
        mask = mask[None]
    mask = mask[:max_frames]
    if colours and mask.shape[-1] == 4:
        mask = media.as_frames(mask, background="black")
    white = _white(mask)
    found = [(frame.mean(axis=-1, dtype=np.float32) if colours else frame) >= white / 2 for frame in mask]
    return torch.from_numpy(np.stack(found))


def _white(mask: np.ndarray) -> int:
    """Full white of an array's type."""
    if mask.dtype == bool:
        return 1
    largest = mask.max()
    if mask.dtype == np.uint8:
        if largest == 1:
            raise ValueError("This uint8 mask holds 0 and 1; give bool, or 0 to 255.")
        return 255
    if not (np.issubdtype(mask.dtype, np.floating) and mask.min() >= 0 and largest <= 1):
        raise ValueError(
            f"This mask is {mask.dtype} from {mask.min()} to {largest}; give bool, uint8 0 to 255, or floats 0 to 1."
        )
    return 1


SPARE = 3
"""Frames that a clip of 4k + 1 may have more than the one that was masked."""


def fit(mask: torch.Tensor, num_frames: int, spare: int = 0) -> torch.Tensor:
    """A mask cut to the clip; as many as ``spare`` missing frames repeat the last one.

    Raises ValueError where it has more than one frame but fewer than the clip, or is empty.
    """
    if 1 < len(mask) < num_frames - spare:
        raise ValueError(
            f"The mask has {len(mask)} frames and the clip {num_frames}; give one for all frames, or one for each."
        )
    mask = mask[:num_frames]
    if not mask.any():
        raise ValueError("The mask is empty, so nothing would be edited; mark in white what is to change.")
    if 1 < len(mask) < num_frames:
        mask = torch.cat([mask, mask[-1:].expand(num_frames - len(mask), -1, -1)])
    return mask


def latent_mask(
    mask: torch.Tensor, num_frames: int, height: int, width: int, grow: int = GROW,
    frame_done: Callable[[], None] = lambda: None,
) -> torch.Tensor:  # fmt: skip
    """The mask of latents: a cell is edited where any masked pixel of any of its frames falls into it.

    Args:
        mask: see :func:`fit`, for a clip of 4k + 1 frames or fewer. num_frames, height, width: of the latents.
        grow: pixels of the mask by which it is widened before. frame_done: called after each of its frames.

    Returns:
        bool ``[1, 1, num_frames, height, width]``.
    """
    cells = []
    for frame in mask:
        cells.append(_cells(frame, height, width, grow))
        frame_done()
    cells = torch.stack(cells)
    if len(cells) == 1:
        return cells.expand(num_frames, -1, -1)[None, None]
    cells = fit(cells, 4 * num_frames - 3, spare=SPARE)
    groups = cells[1:].unflatten(0, (num_frames - 1, 4)).any(dim=1) if num_frames > 1 else cells[1:]
    return torch.cat([cells[:1], groups])[None, None]


def _cells(frame: torch.Tensor, height: int, width: int, grow: int) -> torch.Tensor:
    near = _far_from(~frame, grow + 1) <= grow
    return F.adaptive_max_pool2d(near[None, None].float(), (height, width))[0, 0] > 0


def _far_from(inside: torch.Tensor, limit: int) -> torch.Tensor:
    """How far each pixel is from the nearest one that is not inside, at most ``limit``: int16 ``[H, W]``.

    Squares around a pixel grow by one in every direction (Chebyshev). The edge of the frame is no end.
    """
    above, below = _below_last(~inside, limit), _below_last(~inside.flip(0), limit).flip(0)
    column = torch.minimum(above, below).clamp(max=limit)
    found = column.clone()
    for aside in range(1, min(limit, int(column.max()), inside.shape[1])):
        other = column.clamp(min=aside)
        torch.minimum(found[:, aside:], other[:, :-aside], out=found[:, aside:])
        torch.minimum(found[:, :-aside], other[:, aside:], out=found[:, :-aside])
    return found


def _below_last(outside: torch.Tensor, limit: int) -> torch.Tensor:
    """How many rows each pixel is below the last one of its column that is outside; more than ``limit`` without one."""
    rows = torch.arange(len(outside), dtype=torch.int16)[:, None]
    none = -limit - 1
    return rows - torch.where(outside, rows, none).to(torch.int16).cummax(dim=0).values


def alphas(mask: torch.Tensor, num_frames: int, height: int, width: int, feather: int) -> Iterator[torch.Tensor]:
    """How much of the edit shows, for each frame: float32 ``[height, width]``.

    Exactly 0 outside the mask; inside it rises over ``feather`` pixels from its edge to 1. The edge of the frame is
    none of the mask's.
    """
    for index in range(num_frames):
        if index < len(mask):
            alpha = _alpha(mask[index], height, width, feather)
        yield alpha


def _alpha(frame: torch.Tensor, height: int, width: int, feather: int) -> torch.Tensor:
    inside = frame[None, None].float()
    if frame.shape != (height, width):
        inside = (F.interpolate(inside, (height, width), mode="bilinear") >= 0.5).float()
    return _far_from(inside[0, 0] > 0, feather + 1).float() / (feather + 1)


def composite(edited: np.ndarray, source: np.ndarray, mask: torch.Tensor, feather: int = FEATHER) -> np.ndarray:
    """The edit inside the mask, the source's own bytes outside of it.

    ``edited``, ``source``: uint8 ``[T, H, W, 3]`` of one size and length; ``feather`` in pixels of theirs.
    """
    result = source.copy()
    for target, frame, alpha in zip(result, edited, alphas(mask, *source.shape[:3], feather)):
        alpha = alpha.numpy()
        inside = alpha > 0
        before, share = target[inside].astype(np.float32), alpha[inside, None]
        target[inside] = np.rint(before + share * (frame[inside] - before)).astype(np.uint8)
    return result
