"""What the frozen parts of the model make of a sample: latents, vision features, and the context where it is fixed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tokenizers import Tokenizer

from kiwi_core import mllm
from kiwi_core import vae as vae_ops

from .data.loader import Sample
from .data.prepare import boxed_reference
from .model import KiwiModel

# Pixels of all frames that the VAE encodes at once, so that many small clips are one batch and large ones are not.
_AT_ONCE = 2**22


@dataclass
class Encoded:
    """One sample after the frozen parts; a cache holds these."""

    target: torch.Tensor
    """Latents ``[C, F, h, w]``."""
    source: torch.Tensor
    """The same of the source."""
    source_features: torch.Tensor
    """``[tokens, D]`` of the vision tower."""
    source_grid: torch.Tensor
    """int64 ``[1, 3]``."""
    references: torch.Tensor | None = None
    """Latents of the reference in each scale, ``[scales, C, 1, h, w]``."""
    reference_features: torch.Tensor | None = None
    reference_grid: torch.Tensor | None = None
    context: torch.Tensor | None = None
    """``[N, dim]``, where neither language model nor connector is trained."""

    def to(self, device: torch.device) -> Encoded:
        """On a device; the grids, which are read there, stay on the CPU."""
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor) and not name.endswith("grid")
        }
        return replace(self, **moved)


@dataclass
class Prepared:
    """A sample's pixels as the frozen parts take them; all that a worker process can do."""

    target: np.ndarray
    """uint8 ``[T, H, W, 3]``."""
    source: np.ndarray
    source_patches: tuple[torch.Tensor, torch.Tensor]
    """Rows and grid, see :func:`kiwi_core.mllm.patchify`."""
    boxed: np.ndarray | None = None
    """The reference in each scale, uint8 ``[scales, H, W, 3]``."""
    reference_patches: tuple[torch.Tensor, torch.Tensor] | None = None


def prepare(sample: Sample, limits: mllm.VisionLimits, scales: Sequence[float] | None = None) -> Prepared:
    """A sample's frames, prepared.

    Args:
        scales: in which the reference is shown; the sample's own without.
    """
    prepared = Prepared(sample.target, sample.source, mllm.patchify_source(sample.source, sample.kind, limits))
    if sample.reference is not None:
        height, width = sample.target.shape[1:3]
        sizes = scales or [sample.scale_value]
        prepared.boxed = np.stack([boxed_reference(sample.reference, height, width, scale) for scale in sizes])
        prepared.reference_patches = mllm.patchify_reference(sample.reference, limits)
    return prepared


class Encoder:
    """The frozen parts of a model on a device, which they are moved to when they are first needed."""

    def __init__(self, model: KiwiModel, device: torch.device | str):
        self.model, self.device = model, torch.device(device)
        self.vae, self.mllm = model.pipe.vae, model.mllm
        self.limits = model.mllm.limits
        counts = tuple(self.mllm.connector.num_queries.items())
        self.assemble = functools.partial(assemble, self.mllm.tokenizer, counts, self.limits.tokens_per_second)
        """See :func:`assemble`; without the model, so that worker processes can have it."""
        self._there = False

    def _move(self) -> None:
        if not self._there:
            self.vae.to(self.device)
            (self.mllm if self.fixes_context else self.mllm.model.visual).to(self.device)
            self._there = True

    def rest(self) -> None:
        """Off the device with the VAE, where only sample clips needed it."""
        if not self._there and self.device.type != "cpu":
            self.vae.to("cpu")
            torch.cuda.empty_cache()

    @property
    def fixes_context(self) -> bool:
        """Whether the context of a sample never changes."""
        return not self.model.config.trains_mllm

    @torch.no_grad()
    def latents(self, frames: np.ndarray) -> torch.Tensor:
        """Latents ``[B, C, F, h, w]`` of uint8 frames ``[B, T, H, W, 3]``, on the device."""
        self._move()
        pixels = vae_ops.pixels(frames)
        tile = vae_ops.default_tile(self.vae, *frames.shape[2:4])
        size = max(1, _AT_ONCE // frames[0, ..., 0].size)
        parts = [vae_ops.encode(self.vae, part.to(self.device, self.vae.dtype), tile) for part in pixels.split(size)]
        return torch.cat(parts)

    @torch.no_grad()
    def features(self, pictures: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        """Vision features ``[tokens, D]`` of patches with their grids, see :func:`kiwi_core.mllm.patchify`."""
        self._move()
        pixels = torch.cat([patches for patches, _ in pictures])
        grids = torch.cat([grid for _, grid in pictures])
        if self.model.config.rounding == "shipped":
            pixels = pixels.to(torch.bfloat16).float()
        features = self.mllm.encode_vision(pixels.to(self.device), grids.to(self.device))
        return list(features.split((grids.prod(dim=1) // mllm.MERGE_SIZE**2).tolist()))

    def context(self, encoded: Encoded, kind: str, prompt: str) -> torch.Tensor:
        """Context ``[N, dim]`` of a frozen language model."""
        self._move()
        shown = [(encoded.source_features, encoded.source_grid)]
        if encoded.reference_features is not None:
            shown.append((encoded.reference_features, encoded.reference_grid))
        inputs = self.assemble(kind, prompt, tuple(tuple(grid[0].tolist()) for _, grid in shown))
        vision = tuple(replace(part, features=features) for part, (features, _) in zip(inputs.vision, shown))
        with torch.no_grad():
            return self.mllm(replace(inputs, vision=vision))[0]

    def encode(self, kind: str, prompts: Sequence[str], prepared: Sequence[Prepared]) -> list[Encoded]:
        """Samples of one kind and shape at once, all with references of one size or all without."""
        targets, sources = (
            self.latents(np.stack([getattr(one, name) for one in prepared])) for name in ("target", "source")
        )
        shown = [[one.source_patches for one in prepared]]
        boxed = [None] * len(prepared)
        if prepared[0].boxed is not None:
            scales = len(prepared[0].boxed)
            boxed = self.latents(np.concatenate([one.boxed for one in prepared])[:, None]).split(scales)
            shown.append([one.reference_patches for one in prepared])
        seen = [self.features(pictures) for pictures in shown]
        found = []
        for place, prompt in enumerate(prompts):
            encoded = Encoded(targets[place], sources[place], seen[0][place], shown[0][place][1], boxed[place])
            if len(shown) > 1:
                encoded.reference_features, encoded.reference_grid = seen[1][place], shown[1][place][1]
            if self.fixes_context:
                encoded.context = self.context(encoded, kind, prompt)
            found.append(encoded)
        return found


@functools.lru_cache(maxsize=2048)
def assemble(
    tokenizer: Tokenizer,
    counts: tuple[tuple[str, int], ...],
    tokens_per_second: int,
    kind: str,
    prompt: str,
    grids: tuple[tuple[int, ...], ...],
) -> mllm.MLLMInputs:
    """What the language model is shown of a sample, without pixels and features.

    Args:
        counts: the connector's ``num_queries``. grids: of the source, and of the reference if there is one.

    Raises:
        ValueError: an empty instruction, one with a reserved token, or a kind without queries.
    """
    mllm.check_prompt(prompt)
    queries = dict(counts)
    mllm.check_mode(kind, queries)
    grids = [torch.tensor([grid]) for grid in grids]
    return mllm.assemble(tokenizer, prompt, kind, queries[kind], grids, tokens_per_second)
