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
from .parallel import Parallel


def rules_of(config: Config, latent_channels: int) -> Rules:
    """How a recipe shapes samples for a model: sides are multiples of 32 (5B) or 16 (14B)."""
    multiple = 32 if latent_channels == 48 else 16
    return Rules(config.max_pixels, config.max_frames, multiple, config.frame_rate, config.aspects, config.lengths)


def read(
    config: Config, parts: Parts, start: Lora | None, parallel: Parallel | None = None, as_before: bool = False
) -> tuple[dataset.Data, cache.Cache | None, Rules]:
    """Rows of a run, its cache if it has one, and the rules that shape its samples.

    The main process looks at the media first, and the others read what it found out.

    Args:
        parallel: the processes that all read them; None for this one alone.
        as_before: see :func:`training.data.dataset.read`.

    Raises:
        FileNotFoundError, ValueError: as :func:`training.data.dataset.read`; or the processes found different rows.
    """
    rules = rules_of(config, parts.source_embedder["patch_embedding.weight"].shape[1])
    main = parallel is None or parallel.is_main
    if not main:
        parallel.wait()
    index = Index(Path(config.cache or config.output) / "media.jsonl")
    data = dataset.read(
        config.data, config.data_root, rules, parts.limits.max_object_token, index, config.kinds,
        config.validation_data, config.validation_rows, as_before, quiet=not main,
    )  # fmt: skip
    if parallel is not None:
        if main:
            parallel.wait()
        if len(set(parallel.gather_list([(data.digest, data.validation_digest)]))) > 1:
            raise ValueError(
                "The processes do not read the same rows of the data: some of them cannot read what others can. Give "
                "all of them the same files, and start again."
            )
    if not config.cache:
        return data, None, rules
    cache.check_settings(config, data.training)
    weights = cache.weights_of(parts, start, config)
    kept = cache.Cache(config.cache, index, weights, rules, parts.limits, config.rounding, config.reference_scales)
    return data, kept, rules
