"""A Kiwi-Edit model between a layout on disk and the modules that run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..mllm import VisionLimits

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Parts:
    """Tensors and settings of one model, whatever it was read from."""

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
