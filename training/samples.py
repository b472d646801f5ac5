"""Sample clips during training: what the model makes of validation rows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from kiwi_core import media, schedule

from .data.stream import derive
from .model import At, Batch, KiwiModel

_FRAME_RATE = 15  # as the published model saves
_NAME_BYTES = 160  # file systems take 255, of which suffixes and temporary names have their share


@torch.no_grad()
def sample(forward: Callable, batch: Batch, steps: int, shift: float = 5.0) -> torch.Tensor:
    """Latents of an edit by Euler's method from the batch's noise, ``[B, C, F, h, w]``.

    Args:
        forward: a ``KiwiModel`` or what wraps it.
    """
    sigmas = schedule.flow_sigmas(steps, shift)
    batch.context = forward(batch, context_only=True)
    latents = batch.noise
    for sigma, following in pairwise(sigmas):
        velocity = forward(batch, At(latents, sigma.reshape(1)))
        latents = (latents + velocity * (following - sigma).item()).to(latents.dtype)
    return latents


@torch.no_grad()
def decode(model: KiwiModel, latents: torch.Tensor) -> np.ndarray:
    """Frames uint8 ``[T, H, W, 3]`` of latents ``[1, C, F, h, w]``."""
    model.pipe.vae.to(latents.device)
    return model.pipe._decode(latents)


def write(model: KiwiModel, batch: Batch, latents: torch.Tensor, folder: Path) -> Path:
    """The edit as a clip (or picture) and a sheet of source, edit and target beside it; returns the sheet."""
    rows = {
        "source": decode(model, batch.source_latents[:1]),
        "edit": decode(model, latents[:1]),
        "target": decode(model, batch.latents[:1]),
    }
    name = _file_name(batch.row_ids[0])
    media.save_video(folder / (f"{name}.mp4" if len(rows["edit"]) > 1 else f"{name}.png"), rows["edit"], _FRAME_RATE)
    sheet = folder / f"{name}_sheet.jpg"
    media.contact_sheet(rows).save(sheet, quality=92)
    return sheet


def _file_name(row_id: str) -> str:
    """A row's id as part of a file's name, of which none is too long and no two are the same."""
    letters = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in row_id)
    name = letters.encode()[:_NAME_BYTES].decode(errors="ignore")
    return name if name == row_id else f"{name}-{derive(row_id):016x}"
