"""What a recipe would do: its configuration, what it trains, and the memory that it takes, without any weights."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import torch
from torch import nn

from kiwi_core.geometry import latent_frame_count

from . import architectures, model
from .config import Config

GIB = 2**30
# Bytes of an optimiser's state for each trained number.
_STATE = {"adamw": 8, "adamw8bit": 2, "adafactor": 0, "prodigy": 16, "muon": 4}
# Bytes of activations a token while a block of the DiT is computed again and differentiated, in units of the width
# and of the feed-forward's: measured (make bench-training).
_BLOCK_DIM, _BLOCK_FFN = 62, 12


@dataclass(frozen=True)
class Memory:
    """Bytes on the device while training."""

    frozen: int
    """Weights that are not trained."""
    trained: int
    """Trained weights in float32."""
    gradients: int
    optimizer: int
    average: int
    """EMA."""
    activations: int
    encoders: int
    """VAE and vision tower; none with a full cache."""

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def memory(config: Config, built: model.KiwiModel) -> Memory:
    """Estimate for the largest sample of the recipe.

    Args:
        built: the model, on any device, with base weights that are not quantised.
    """
    base = 4 if config.base_dtype == "fp32" else 2
    trained = sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad)
    counts = {name: _frozen(part) for name, part in _parts(built).items()}
    quantised = 1 if config.base_dtype == "fp8" else base
    frozen = counts["blocks"] * quantised + counts["dit"] * base
    encoders = counts["vision"] * base + counts["vae"] * base
    cached = bool(config.cache and config.reference_scales)
    if config.trains_mllm or not cached:  # without a cache a frozen one makes the contexts
        frozen += counts["layers"] * quantised + counts["text"] * base
    return Memory(
        frozen=frozen,
        trained=trained * 4,
        gradients=trained * 4,
        optimizer=trained * _STATE[config.optimizer],
        average=trained * 4 if config.ema_decay else 0,
        activations=_activations(config, built),
        encoders=0 if cached else encoders,
    )


def _parts(built: model.KiwiModel) -> dict[str, list[nn.Module]]:
    text = built.mllm.model.language_model
    others = [module for name, module in built.dit.named_children() if name not in ("blocks", "condition_embedder")]
    others += [built.dit.condition_embedder, built.vae_condition]
    others += [built.ref_vae_condition] if built.ref_vae_condition is not None else []
    return {
        "blocks": [built.dit.blocks], "dit": others, "layers": [text.layers], "text": [text.embed_tokens],
        "vision": [built.mllm.model.visual], "vae": [built.pipe.vae],
    }  # fmt: skip


def _frozen(modules: list[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if not p.requires_grad)


def tokens(config: Config, built: model.KiwiModel) -> int:
    """Of the DiT, for the largest sample of the recipe."""
    factor = built.pipe.vae.config.scale_factor_spatial * built.dit.config.patch_size[1]
    frames = latent_frame_count(config.max_frames) + (1 if "ref" in (config.kinds or ("ref",)) else 0)
    return frames * config.max_pixels // factor**2


def _activations(config: Config, built: model.KiwiModel) -> int:
    dit, text = built.dit.config, built.mllm.model.language_model.config
    size = 4 if config.precision == "fp32" else 2
    count = tokens(config, built) * config.batch_size
    dim = dit.num_attention_heads * dit.attention_head_dim
    block = count * (dim * _BLOCK_DIM + dit.ffn_dim * _BLOCK_FFN) * size // 2
    kept = count * dim * size
    dit_bytes = block + kept * dit.num_layers if config.checkpointing else block * dit.num_layers
    if not config.trains_mllm:
        return dit_bytes
    length = 4500 * config.batch_size  # a clip of 16 frames, a reference, the queries and the instruction
    layer = length * (text.hidden_size * _BLOCK_DIM // 2 + text.intermediate_size * _BLOCK_FFN) * size // 2
    kept = length * text.hidden_size * size
    layers = text.num_hidden_layers
    return dit_bytes + (layer + kept * layers if config.checkpointing else layer * layers)


def trained_patterns(built: model.KiwiModel) -> dict[str, tuple[int, int]]:
    """Names of trained parameters with their numbers left out: how many tensors and how many numbers."""
    found: dict[str, tuple[int, int]] = {}
    for name, parameter in built.trained().items():
        pattern = re.sub(r"\.\d+\.(?=attn|ffn|self_attn|mlp|norm|scale|input|post)", ".*.", name)
        tensors, numbers = found.get(pattern, (0, 0))
        found[pattern] = tensors + 1, numbers + parameter.numel()
    return found


def build(config: Config) -> model.KiwiModel:
    """The recipe's model of the published sizes, without weights."""
    unquantised = "bf16" if config.base_dtype == "fp8" else config.base_dtype
    with torch.device("meta"):
        return model.from_parts(architectures.meta_parts(config.architecture), config.replace(base_dtype=unquantised))


def describe(config: Config) -> str:
    """All of it as text."""
    built = build(config)
    lines = [f"# {config.recipe}", "", "## Configuration"]
    width = max(len(field.name) for field in dataclasses.fields(config))
    lines += [f"{field.name:<{width}}  {getattr(config, field.name)!r}" for field in dataclasses.fields(config)]
    patterns = trained_patterns(built)
    tensors, numbers = (sum(part) for part in zip(*patterns.values()))
    everything = sum(parameter.numel() for parameter in built.parameters())
    lines += ["", f"## Trained: {numbers:,} numbers in {tensors} tensors, of {everything:,}"]
    width = max(map(len, patterns))
    lines += [f"{name:<{width}}  {count:>4} x  {size:>14,}" for name, (count, size) in patterns.items()]
    found = memory(config, built)
    lines += ["", f"## Memory: about {found.total / GIB:.1f} GiB on one device ({tokens(config, built):,} tokens)"]
    lines += [f"{name:<12}{value / GIB:>7.1f} GiB" for name, value in dataclasses.asdict(found).items()]
    return "\n".join(lines)
