"""Sample clips during training: what the model makes of validation rows."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from kiwi_core import media, schedule
from kiwi_core import vae as vae_ops

from .model import At, Batch, KiwiModel


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
    vae = model.pipe.vae
    factor = vae.config.scale_factor_spatial
    tile = vae_ops.default_tile(vae, latents.shape[-2] * factor, latents.shape[-1] * factor)
    video = vae_ops.decode(vae.to(latents.device), latents.to(vae.dtype), tile)[0]
    return ((video + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def write(model: KiwiModel, batch: Batch, latents: torch.Tensor, folder: Path, rate: Fraction | float = 15) -> Path:
    """The edit as a clip (or picture) and a sheet of source, edit and target beside it; returns the sheet."""
    rows = {
        "source": decode(model, batch.source_latents[:1]),
        "edit": decode(model, latents[:1]),
        "target": decode(model, batch.latents[:1]),
    }
    name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in batch.row_ids[0])
    media.save_video(folder / (f"{name}.mp4" if len(rows["edit"]) > 1 else f"{name}.png"), rows["edit"], rate)
    sheet = folder / f"{name}_sheet.jpg"
    folder.mkdir(parents=True, exist_ok=True)
    media.contact_sheet(rows).save(sheet, quality=92)
    return sheet
