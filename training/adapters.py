"""LoRA and DoRA in the DiT and the language model (peft's), and loading them from a checkpoint."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator

import torch
from torch import nn

from kiwi_core.checkpoints.lora import Lora

from . import names
from .config import Config

_BLOCKS, _LAYERS = "dit.blocks.", "mllm.model.language_model.layers."


def targets(model: nn.Module, config: Config) -> dict[str, int]:
    """Linear layers that get adapters, and their rank."""
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if name.startswith(_BLOCKS) and config.dit == "lora":
            within = name.removeprefix(_BLOCKS).partition(".")[2]
            if any(fnmatch.fnmatchcase(within, pattern) for pattern in config.dit_targets):
                found[name] = config.dit_rank
        elif name.startswith(_LAYERS) and config.mllm_rank and name.rpartition(".")[2] in config.mllm_targets:
            found[name] = config.mllm_rank
    for wanted, prefix, field, example in (
        (config.dit == "lora", _BLOCKS, "dit_targets", "attn1.to_q"),
        (config.mllm_rank, _LAYERS, "mllm_targets", "q_proj"),
    ):
        if wanted and not any(name.startswith(prefix) for name in found):
            raise ValueError(f"No layer fits {field} {', '.join(getattr(config, field))}; use names such as {example}.")
    return found


def inject(model: nn.Module, config: Config) -> None:
    """Put the adapters of a recipe into the model; they change nothing yet."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = targets(model, config)
    for prefix, part in (("dit.", model.dit), ("mllm.model.", model.mllm.model)):
        chosen = {name.removeprefix(prefix): rank for name, rank in layers.items() if name.startswith(prefix)}
        if not chosen:
            continue
        rank = next(iter(chosen.values()))
        inject_adapter_in_model(
            LoraConfig(
                r=rank,
                lora_alpha=config.alpha or rank,
                target_modules=list(chosen),
                lora_dropout=config.dropout,
                use_dora=config.adapter == "dora",
            ),
            part,
        )


def alphas(model: nn.Module) -> dict[str, float]:
    """Alpha of every adapter by the full name of its weight, where it is not the rank."""
    from peft.tuners.lora import LoraLayer

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and module.lora_alpha["default"] != module.r["default"]:
            found[names.key(f"{name}.weight")[1]] = float(module.lora_alpha["default"])
    return found


@torch.no_grad()
def merge_absent(model: nn.Module, start: Lora, chosen: dict[str, int]) -> None:
    """Add a checkpoint's adapters to the weights of layers that get none here.

    Args:
        chosen: of :func:`targets`.
    """
    own = {names.key(f"{name}.weight")[:2] for name in chosen}
    weights = names.keys(name for name, _ in model.named_parameters())
    parameters = dict(model.named_parameters())
    for part, weight, change in start:
        if (part, weight) in own and change.diff is not None:
            raise ValueError(f"--start adds to {weight}, which has adapters here; merge it into the model first.")
        if (change.down is None and change.diff is None) or (part, weight) in own:
            continue
        name = weights.get((part, weight, "whole"))
        if name is None or not change.fits(tuple(parameters[name].shape)):
            raise ValueError(f"--start changes {weight}, which does not fit this model; use its own base.")
        parameters[name].data = change.apply(parameters[name]).to(parameters[name].dtype)


@torch.no_grad()
def load(model: nn.Module, start: Lora, config: Config) -> None:
    """Go on with the adapters of a checkpoint."""
    parameters = dict(model.named_parameters())
    places = names.keys(parameters)
    for part, weight, change in start:
        if (part, weight, "down") in places and change.down is not None:
            kind = "lora" if change.dora is None else "dora"
            if kind != config.adapter:
                raise ValueError(f"--start has adapters of the kind {kind}; set --adapter {kind}.")
        for kind in ("down", "up", "dora"):
            tensor, name = getattr(change, kind), places.get((part, weight, kind))
            if tensor is None or name is None:
                continue
            parameter = parameters[name]
            if parameter.numel() != tensor.numel() or parameter.shape[0] != tensor.shape[0]:
                flag = "mllm-rank" if part == "mllm" else "dit-rank"
                raise ValueError(f"--start has adapters of rank {change.rank}; set --{flag} {change.rank}.")
            if kind == "up":  # what alpha makes of it is the same before and after
                tensor = tensor.float() * (change.scale * change.rank / (config.alpha or change.rank))
            parameter.copy_(tensor.reshape(parameter.shape))


@contextlib.contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """The model as it was without its adapters: the teacher of its own LoRA."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, value in zip(layers, before):
            layer._disable_adapters = value
