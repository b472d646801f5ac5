"""The data of a run, with its cache."""

from __future__ import annotations

from pathlib import Path

from kiwi_core.checkpoints.lora import Lora
from kiwi_core.checkpoints.parts import Parts

from . import cache
from .config import Config
from .data import dataset
from .data.index import Index
from .data.prepare import Rules


def rules_of(config: Config, latent_channels: int) -> Rules:
    """How a recipe shapes samples for a model: sides are multiples of 32 (5B) or 16 (14B)."""
    multiple = 32 if latent_channels == 48 else 16
    return Rules(config.max_pixels, config.max_frames, multiple, config.frame_rate, config.aspects, config.lengths)


def read(config: Config, parts: Parts, start: Lora | None) -> tuple[dataset.Data, cache.Cache | None, Rules]:
    """Rows of a run, its cache if it has one, and the rules that shape its samples."""
    rules = rules_of(config, parts.source_embedder["patch_embedding.weight"].shape[1])
    index = Index(Path(config.cache or config.output) / "media.jsonl")
    data = dataset.read(
        config.data, config.data_root, rules, parts.limits.max_object_token, index, config.kinds,
        config.validation_data, config.validation_rows,
    )  # fmt: skip
    if not config.cache:
        return data, None, rules
    cache.check_settings(config, data.training)
    weights = cache.weights_of(parts, start, config)
    kept = cache.Cache(config.cache, index, weights, rules, parts.limits, config.rounding, config.reference_scales)
    return data, kept, rules
