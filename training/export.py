"""What comes out of a run: the official checkpoint, a LoRA for ComfyUI, a whole diffusers folder."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from kiwi_core.checkpoints import dit_keys, files, lora, released
from kiwi_core.checkpoints.lazy import LazyTensor, Tensor, apply
from kiwi_core.checkpoints.lora_dialects import CONNECTOR, DIT, MLLM
from kiwi_core.checkpoints.parts import Parts

from . import names
from .base import CHECKPOINT, EXPORTS
from .config import Config

logger = logging.getLogger(__name__)


def metadata(config: Config, data_digest: str, step: int) -> dict[str, str]:
    """What a file says about where it comes from."""
    base = Path(config.model).name
    return {
        "kiwi_edit.recipe": config.recipe,
        "kiwi_edit.base": base,
        "kiwi_edit.start": Path(config.start).name,
        "kiwi_edit.data": data_digest,
        "kiwi_edit.step": str(step),
        # For tools that show what a LoRA was made for.
        "modelspec.title": config.name,
        "modelspec.architecture": f"kiwi-edit-{config.architecture.lower()}",
        "ss_base_model_version": base,
    }


def write(
    config: Config,
    trained: Mapping[str, torch.Tensor],
    alphas: Mapping[str, float],
    parts: Parts,
    start: lora.Lora | None,
    data_digest: str,
    step: int,
) -> list[Path]:
    """Write the exports that the recipe asks for into ``exports/`` of the run.

    Args:
        trained: trained parameters (or their averages) by our names. alphas: of the adapters.
        parts, start: the model that the run started from, and the adapters that it started with.

    Returns:
        The files and folders.
    """
    folder = Path(config.output) / EXPORTS
    made = []
    changes = names.as_lora(trained, alphas)
    about = metadata(config, data_digest, step)
    if "training" in config.exports and config.adapter == "dora":
        logger.info("The official layout has no place for DoRA; ComfyUI's file holds it.")
    elif "training" in config.exports:
        tensors = {name: _bf16(tensor) for name, tensor in changes.write("training").tensors.items()}
        if config.dit == "full":
            tensors |= {
                f"dit.{dit_keys.to_original(name)}": _bf16(tensor)
                for name, tensor in parts.transformer.items()
                if ".text_embedder." in name  # not trained, but of the whole DiT
            }
        files.save_tensors(tensors, folder / CHECKPOINT, about)
        made.append(folder / CHECKPOINT)
    if "comfyui" in config.exports:
        written = changes.write("comfyui")
        path = folder / f"{config.name}.safetensors"
        files.save_tensors({name: _bf16(tensor) for name, tensor in written.tensors.items()}, path, about)
        made.append(path)
    if "diffusers" in config.exports:
        # A distilled model's adapters stand on those of its teacher, others go on with them.
        released.write(merged(parts, changes, start, config.objective == "distill"), folder / "diffusers")
        files.save_json(about, folder / "diffusers" / "training.json")
        made.append(folder / "diffusers")
    return made


def merged(parts: Parts, changes: lora.Lora, start: lora.Lora | None = None, both: bool = False) -> Parts:
    """The model with all changes merged, one tensor at a time when it is written.

    Args:
        start: adapters that the run started with. both: also where ``changes`` are, which otherwise went on with them.
    """
    tensors = {
        DIT: {dit_keys.to_original(name): tensor for name, tensor in parts.transformer.items()},
        MLLM: dict(parts.mllm),
        CONNECTOR: dict(parts.connector),
    }
    tensors[DIT] |= {dit_keys.SOURCE_PREFIX + name: tensor for name, tensor in parts.source_embedder.items()}
    tensors[DIT] |= {dit_keys.REFERENCE_PREFIX + name: tensor for name, tensor in parts.ref_embedder.items()}
    own = set() if both else {(part, weight) for part, weight, _ in changes}
    for each in filter(None, (start, changes)):
        for part, weight, change in each:
            if each is start and ((part, weight) in own or (change.down is None and change.diff is None)):
                continue
            tensors[part][weight] = _changed(tensors[part][weight], change)
    dit, source, reference, _ = dit_keys.split_embedders(tensors[DIT])
    return dataclasses.replace(
        parts,
        transformer={dit_keys.to_diffusers(name): tensor for name, tensor in dit.items()},
        source_embedder=source,
        ref_embedder=reference,
        mllm=tensors[MLLM],
        connector=tensors[CONNECTOR],
        limits=dataclasses.replace(parts.limits, max_pixels_per_frame=parts.limits.max_pixels_per_frame or 262144),
    )


def _changed(tensor: Tensor, change: lora.Change) -> Tensor:
    def new(weight: torch.Tensor) -> torch.Tensor:
        return change.apply(weight).to(weight.dtype)

    if isinstance(tensor, LazyTensor):
        return apply(new, tensor)
    return LazyTensor(tensor.shape, tensor.dtype, lambda: new(tensor), frozenset())


def _bf16(tensor: Tensor) -> Tensor:
    return apply(lambda value: value.detach().to(torch.bfloat16) if value.ndim else value, tensor)
