"""A Kiwi-Edit model between a layout on disk and the modules that run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..connector import DualConnector
from ..mllm import VisionLimits
from ..variant import find_variant
from . import vae_keys
from .lazy import Tensor

Tensors = Mapping[str, Tensor]
LIMITS = ("max_pixels_per_frame", "max_object_token", "min_pixels_per_frame")
"""What files tell of :class:`kiwi_core.mllm.VisionLimits`; the rest is Qwen's own."""


def stored_limits(limits: VisionLimits) -> dict[str, int | None]:
    """The limits that a file has to tell: the smallest frame only where it is not that of all published models."""
    values = {name: getattr(limits, name) for name in LIMITS}
    if limits.min_pixels_per_frame == VisionLimits.min_pixels_per_frame:
        del values["min_pixels_per_frame"]
    return values


@dataclass(frozen=True)
class Parts:
    """Tensors and settings of one model, whatever it was read from. ValueError if they do not fit together."""

    transformer: Tensors
    """The DiT under diffusers' names."""
    transformer_config: Mapping
    """Arguments of diffusers' ``WanTransformer3DModel``."""
    source_embedder: Tensors
    """``patch_embedding.{weight,bias}``."""
    ref_embedder: Tensors
    """The same for references; empty for a model without them."""
    ref_pad_first: bool
    """Whether references stand before the video in the token sequence."""
    vae: Tensors
    """Under the original Wan names."""
    mllm: Tensors
    """Qwen2.5-VL under its published names (``model.*``, ``visual.*``)."""
    qwen_config: Mapping
    connector: Tensors
    """Queries and connectors under the released names."""
    tokenizer: str
    """The text of ``tokenizer.json``."""
    limits: VisionLimits
    latents_mean: list[float] | None = None
    """Of the VAE; None for the published numbers."""
    latents_std: list[float] | None = None
    processor_files: Mapping[str, str] = field(default_factory=dict)
    """Further text files of the processor folder, kept so that a saved folder is complete."""

    def __post_init__(self):
        # By shapes alone: what does not fit is refused before a weight is read.
        variant = find_variant({name: tensor.shape for name, tensor in self.transformer.items()})
        dim, channels = variant.dim, variant.latent_channels
        vae_channels = vae_keys.vae_config(self.vae, self.latents_mean, self.latents_std)["z_dim"]
        if vae_channels != channels:
            raise ValueError(
                f"The VAE has {vae_channels} latent channels and the model {channels}; use the "
                f"{'Wan2.2' if channels == 48 else 'Wan2.1'} VAE with this model."
            )
        connector = DualConnector.sizes_from(self.connector)
        if connector["dit_dim"] != dim:
            raise ValueError(
                f"The connector is for a model of width {connector['dit_dim']}, not {dim}; use the files of one "
                "checkpoint together."
            )
        embeddings = self.mllm.get("model.embed_tokens.weight")
        if embeddings is None or embeddings.shape[1] != connector["hidden_size"]:
            found = "is missing" if embeddings is None else f"is {embeddings.shape[1]} wide"
            raise ValueError(
                f"The connector needs a language model of width {connector['hidden_size']} and its "
                f"model.embed_tokens {found}; use Qwen2.5-VL-3B of the same checkpoint."
            )
        for kind, embedder in (("source", self.source_embedder), ("reference", self.ref_embedder)):
            if kind == "reference" and not embedder:
                continue
            weight = embedder.get("patch_embedding.weight")
            if weight is None or weight.shape[:2] != (dim, channels):
                found = "its weight is missing" if weight is None else list(weight.shape)
                raise ValueError(
                    f"The {kind} embedder is not this model's ({found}); use the files of one checkpoint together."
                )


def fill(module: torch.nn.Module, tensors: Tensors, name: str) -> torch.nn.Module:
    """Give a module exactly its tensors, without copying them; ``name`` is what an error calls it. Frozen."""
    expected = module.state_dict()
    for key in sorted(expected.keys() | tensors.keys()):
        wanted, found = (list(part[key].shape) if key in part else "absent" for part in (expected, tensors))
        if wanted != found:
            raise ValueError(f"The {name}'s {key} should be {wanted} and is {found}; download its files again.")
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)
