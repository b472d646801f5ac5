"""The model that a run starts from: read in any layout, with new parts where it has none, and the stage before."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from kiwi_core.checkpoints import dit_keys, files, hub, lora, released, single_files, training
from kiwi_core.checkpoints.lora_dialects import CONNECTOR, DIT, MLLM
from kiwi_core.checkpoints.parts import Parts
from kiwi_core.connector import QUERY_KINDS
from kiwi_core.variant import Variant, find_variant

from . import architectures
from .config import Config

EXPORTS, CHECKPOINT = "exports", "training.safetensors"


def read(config: Config) -> tuple[Parts, lora.Lora | None]:
    """Parts for a run, and the adapters of ``config.start`` that are still to be put in.

    Whole tensors of ``start`` are in the parts already. New queries are drawn from ``config.seed``.

    Raises:
        FileNotFoundError, ValueError: files that are missing, damaged, or do not go together.
    """
    if not config.model:
        raise ValueError("No model is given; pass --model a released folder, or --model, --mllm and --vae the bases.")
    before = start_file(config.start) if config.start else None
    torch.manual_seed(config.seed)
    if config.model.endswith(".safetensors") and config.connector:
        needed = {name: getattr(config, name) for name in ("vae", "mllm", "connector")}
        for name, path in needed.items():
            if not path:
                raise ValueError(f"{config.model} is ComfyUI's file; pass --{name} too.")
        parts = single_files.read(config.model, **needed)
    elif config.mllm or config.vae:
        parts = _from_bases(config)
    else:
        parts = released.read(hub.folder_of(config.model))
    parts = _completed(parts, config)
    if before is None:
        return parts, None
    start = lora.read(before)
    return _with_whole(parts, start), start


def start_file(start: str | Path) -> Path:
    """The checkpoint that ``--start`` means: a file, or the one of a finished run's folder."""
    path = Path(start)
    if not path.is_dir():
        return files.check_file(path)
    for found in (path / EXPORTS / CHECKPOINT, path / CHECKPOINT):
        if found.is_file():
            return files.check_file(found)
    others = sorted((path / EXPORTS).glob("*.safetensors"))
    advice = f"name {others[0]}" if others else "let that run end first, or name a checkpoint"
    raise FileNotFoundError(f"{path} has no {EXPORTS}/{CHECKPOINT}; {advice}.")


def start_mark(config: Config) -> str:
    """What tells the checkpoint that a run starts from apart from others, wherever it lies; empty without one."""
    if not config.start:
        return ""
    path = start_file(config.start)
    about = files.read_metadata(path)
    known = [about.get(f"kiwi_edit.{name}", "") for name in ("recipe", "start", "data", "step")]
    return "|".join(known) if any(known) else path.name


def _from_bases(config: Config) -> Parts:
    for name in ("mllm", "vae"):
        if not getattr(config, name):
            raise ValueError(f"{config.model} is given with bases; pass --{name} too.")
    dit = training.load_base(config.model)
    variant = find_variant({name: tensor.shape for name, tensor in dit.items()})
    language, qwen_config, tokenizer = training.read_qwen(config.mllm)
    hidden = language["model.embed_tokens.weight"].shape[1]
    dit, source, reference, first = dit_keys.split_embedders(dit)
    return Parts(
        transformer={dit_keys.to_diffusers(name): tensor for name, tensor in dit.items()},
        transformer_config=variant.transformer_config(),
        source_embedder=source or architectures.new_embedder(variant.dim, variant.latent_channels),
        ref_embedder=reference,
        ref_pad_first=first or config.ref_pad_first,
        vae=single_files.read_vae(config.vae),
        mllm=language,
        qwen_config=qwen_config,
        connector=architectures.new_connector(_architecture(config, variant), hidden, variant.dim),
        tokenizer=tokenizer,
        limits=architectures.limits(
            _architecture(config, variant), qwen_config.get("vision_config", {}).get("tokens_per_second", 2)
        ),
        processor_files=released.read_processor(config.mllm),
    )


def _architecture(config: Config, variant: Variant) -> str:
    """Whose queries a new connector has: the model's own, where it is a published one."""
    return variant.name if variant.name in architectures.NUM_QUERIES else config.architecture


def _completed(parts: Parts, config: Config) -> Parts:
    """With what the recipe trains and the model lacks, as training starts with it."""
    variant = find_variant({name: tensor.shape for name, tensor in parts.transformer.items()})
    dim, channels = parts.source_embedder["patch_embedding.weight"].shape[:2]
    smallest = parts.limits.min_pixels_per_frame
    if 0 < config.mllm_max_pixels < smallest:
        raise ValueError(
            f"mllm_max_pixels is {config.mllm_max_pixels}; this model is shown frames of {smallest} pixels or more: "
            "use that at least, or 0."
        )
    changes = {"limits": dataclasses.replace(parts.limits, max_pixels_per_frame=config.mllm_max_pixels or None)}
    if config.train_ref_embedder and not parts.ref_embedder:
        changes["ref_embedder"] = architectures.new_embedder(dim, channels)
    width = parts.connector["connector.0.weight"].shape[1]
    fresh = architectures.new_connector(_architecture(config, variant), width, dim)
    wanted = {f"{kind}_queries" for kind in QUERY_KINDS if kind in config.queries}
    if config.train_ref_connector:
        wanted |= {name for name in fresh if name.startswith("ref_connector.")} | {"ref_queries"}
    missing = {name: fresh[name] for name in wanted if name not in parts.connector}
    if missing:
        changes["connector"] = {**parts.connector, **missing}
    return dataclasses.replace(parts, **changes)


def _with_whole(parts: Parts, start: lora.Lora) -> Parts:
    """With the whole tensors of an earlier checkpoint in place of the parts' own."""
    names = {DIT: dict(parts.transformer), "source": dict(parts.source_embedder), "reference": dict(parts.ref_embedder)}
    connector, language = dict(parts.connector), dict(parts.mllm)
    for part, weight, change in start:
        if change.whole is None:
            continue
        if part == CONNECTOR:
            connector[weight] = change.whole
        elif weight.startswith(dit_keys.REFERENCE_PREFIX):
            names["reference"][weight.removeprefix(dit_keys.REFERENCE_PREFIX)] = change.whole
        elif weight.startswith(dit_keys.SOURCE_PREFIX):
            names["source"][weight.removeprefix(dit_keys.SOURCE_PREFIX)] = change.whole
        elif part == MLLM:
            language[weight] = change.whole
        elif part == DIT:
            names[DIT][dit_keys.to_diffusers(weight)] = change.whole
    try:
        return dataclasses.replace(
            parts, transformer=names[DIT], source_embedder=names["source"], ref_embedder=names["reference"],
            connector=connector, mllm=language,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"--start does not go with --model: {error}") from None
