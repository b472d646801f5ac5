"""What the frozen parts of the model make of a sample: latents, vision features, and the context where it is fixed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from kiwi_core import mllm
from kiwi_core import vae as vae_ops

from .data.prepare import boxed_reference
from .model import KiwiModel


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


class Encoder:
    """The frozen parts of a model on a device, which they are moved to when they are first needed."""

    def __init__(self, model: KiwiModel, device: torch.device | str):
        self.model, self.device = model, torch.device(device)
        self.vae, self.mllm = model.pipe.vae, model.mllm
        self.limits = model.mllm.limits
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
        """Latents ``[C, F, h, w]`` of uint8 frames ``[T, H, W, 3]``, on the device."""
        self._move()
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2).unsqueeze(0).float() / 127.5 - 1
        tile = vae_ops.default_tile(self.vae, *frames.shape[1:3])
        return vae_ops.encode(self.vae, pixels.to(self.device, self.vae.dtype), tile)[0]

    @torch.no_grad()
    def features(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Vision features ``[tokens, D]`` of patches, see :func:`kiwi_core.mllm.patchify`."""
        self._move()
        if self.model.config.rounding == "shipped":
            pixels = pixels.to(torch.bfloat16).float()
        return self.mllm.encode_vision(pixels.to(self.device), grid.to(self.device))

    @torch.no_grad()
    def context(self, encoded: Encoded, kind: str, prompt: str) -> torch.Tensor:
        """Context ``[N, dim]`` of a frozen language model."""
        self._move()
        return self.mllm(self.inputs(encoded, kind, prompt))[0]

    def inputs(self, encoded: Encoded, kind: str, prompt: str) -> mllm.MLLMInputs:
        """What the language model is shown of an encoded sample.

        ValueError for an empty instruction, one with a reserved token, or a kind without queries.
        """
        mllm.check_prompt(prompt)
        counts = self.mllm.connector.num_queries
        mllm.check_mode(kind, counts)
        shown = [(encoded.source_features, encoded.source_grid)]
        if encoded.reference_features is not None:
            shown.append((encoded.reference_features, encoded.reference_grid))
        grids = [grid for _, grid in shown]
        inputs = mllm.assemble(
            self.mllm.tokenizer, prompt, kind, counts[kind], grids, self.limits.tokens_per_second
        )
        vision = tuple(replace(part, features=features) for part, (features, _) in zip(inputs.vision, shown))
        return replace(inputs, vision=vision)

    def encode(
        self,
        kind: str,
        prompt: str,
        source: np.ndarray,
        target: np.ndarray,
        reference: np.ndarray | None = None,
        scales: list[float] | None = None,
    ) -> Encoded:
        """All of a sample.

        Args:
            source, target: uint8 ``[T, H, W, 3]``. reference: uint8 ``[H, W, 3]``. scales: in which it is shown.
        """
        pixels, grid = mllm.patchify_source(source, kind, self.limits)
        encoded = Encoded(self.latents(target), self.latents(source), self.features(pixels, grid), grid)
        if reference is not None:
            height, width = target.shape[1:3]
            boxed = [boxed_reference(reference, height, width, scale) for scale in scales or [1.0]]
            encoded.references = torch.stack([self.latents(picture[None]) for picture in boxed])
            pixels, encoded.reference_grid = mllm.patchify_reference(reference, self.limits)
            encoded.reference_features = self.features(pixels, encoded.reference_grid)
        if self.fixes_context:
            encoded.context = self.context(encoded, kind, prompt)
        return encoded
