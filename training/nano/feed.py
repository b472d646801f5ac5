"""Endless batches out of the world for training the parts: each is drawn from its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from kiwi_core import vae as vae_ops

from ..data.prepare import REFERENCE_SCALES, boxed_reference
from ..data.stream import derive
from . import edits, world


def training_seed(*parts: object) -> int:
    """A seed that nano-bench does not use."""
    return derive(*parts) % edits.BENCH_SEEDS


def random_edit(seed: int, frames: int, splits: Sequence[str] = ("seen",)) -> edits.Edit:
    """An edit of any category."""
    categories = (*edits.CATEGORIES, *edits.REFERENCE_CATEGORIES)
    rest, category = divmod(seed, len(categories))
    rest, split = divmod(rest, len(splits))
    return edits.draw(categories[category], rest, splits[split], frames)


@dataclass
class Clips:
    """A batch of clips with what they show."""

    frames: torch.Tensor
    """uint8 ``[B, T, 64, 64, 3]``."""
    things: torch.Tensor
    """uint8 ``[B, T, 64, 64]``: 255 where a thing is, or a reference."""
    scenes: list[world.Scene]


class ClipFeed(Dataset):
    """Clips and, in between, pictures: scenes before and after edits, and references as the VAE sees them.

    Args:
        clips, pictures: number of each in its batches. references: share of the pictures that are references.
        turns: every so many batches are clips. splits: what is shown; those that editing never sees in training are for
            the VAE alone, which is to carry whatever there is.
    """

    def __init__(
        self, clips: int, pictures: int, references: float, seed: int, turns: int = 2, splits: Sequence[str] = ("seen",)
    ):
        self.clips, self.pictures, self.references, self.seed = clips, pictures, references, seed
        self.turns, self.splits = turns, splits

    def __getitem__(self, step: int) -> Clips:
        length, count = (world.FRAMES, self.clips) if step % self.turns == 1 else (1, self.pictures)
        made: list[tuple[np.ndarray, np.ndarray, world.Scene]] = []
        while len(made) < count:
            seed = training_seed("clips", self.seed, step, len(made))
            rng = np.random.default_rng(seed)
            edit = random_edit(seed, length, self.splits)
            for scene in (edit.before, edit.after):
                made.append((world.render(scene), np.rint(world.cover(scene) * 255).astype(np.uint8), scene))
            if length == 1 and edit.reference is not None and rng.random() < self.references:
                scale = float(rng.uniform(*REFERENCE_SCALES))
                shown = boxed_reference(edit.reference_picture(), world.SIZE, world.SIZE, scale)[None]
                made.append((shown, np.full(shown.shape[:3], 255, np.uint8), edit.after))
        frames, covers, scenes = zip(*made[:count])
        return Clips(torch.from_numpy(np.stack(frames)), torch.from_numpy(np.stack(covers)), list(scenes))


def pixels(clips: Clips, device: torch.device) -> torch.Tensor:
    """Frames of a batch, ``[B, 3, T, H, W]`` in -1..1."""
    return vae_ops.pixels(clips.frames.to(device))


def mask(clips: Clips, device: torch.device) -> torch.Tensor:
    """Where things are, ``[B, 1, T, H, W]`` in 0..1."""
    return clips.things.to(device).unsqueeze(1).float() / 255
