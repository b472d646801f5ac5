"""Names of trained tensors: ours, and the one form that every checkpoint and LoRA dialect is read into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from kiwi_core.checkpoints import lora_dialects
from kiwi_core.checkpoints.lora import Change, Lora
from kiwi_core.checkpoints.lora_dialects import CONNECTOR, DIT, MLLM

BASE_LAYER = ".base_layer"

Key = tuple[str, str, str]
"""Part of the model, full name of the weight, and "whole", "down", "up" or "dora"."""


def key(name: str) -> Key:
    """The key of a parameter of :class:`training.model.KiwiModel`."""
    part, weight, kind, _ = lora_dialects.split(name.replace(BASE_LAYER, ""))
    return part, weight, kind


def keys(names: Iterable[str]) -> dict[Key, str]:
    """Parameters' names by their keys."""
    return {key(name): name for name in names}


def as_lora(tensors: Mapping[str, torch.Tensor], alphas: Mapping[str, float] | None = None) -> Lora:
    """Trained tensors under our names as a :class:`Lora`, which writes them in any dialect.

    Args:
        alphas: of the adapters by the weight's full name; elsewhere alpha is the rank.
    """
    changes: dict[str, dict[str, Change]] = {DIT: {}, MLLM: {}, CONNECTOR: {}}
    for name, tensor in tensors.items():
        part, weight, kind = key(name)
        change = changes[part].setdefault(weight, Change())
        if kind == "dora":  # peft's are flat, one a row
            tensor = tensor.reshape(-1, 1)
        setattr(change, kind, tensor)
        change.names.append(name)
        if kind == "down" and alphas and weight in alphas:
            change.alpha = alphas[weight]
    return Lora("The trained weights", "training", changes)
