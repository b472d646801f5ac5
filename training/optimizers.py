"""Optimisers and learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from .config import Config


def build(config: Config, parameters: Iterable[torch.nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimiser; ValueError if its package is not installed."""
    parameters = list(parameters)
    common = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, betas=config.betas, fused=device.type == "cuda", **common)
    if config.optimizer == "muon":
        return Muon(parameters, betas=config.betas, **common)
    if config.optimizer == "adafactor":
        # Its own floor of 1e-3 makes rates relative to the weights, and new ones start at 0: they would stay there.
        return torch.optim.Adafactor(parameters, eps=(None, 1.0), **common)
    if config.optimizer == "prodigy":
        try:
            from prodigyopt import Prodigy
        except ModuleNotFoundError:
            raise ValueError("Prodigy is not installed; pip install prodigyopt, or choose --optimizer adamw.") from None
        return Prodigy(parameters, betas=config.betas, use_bias_correction=True, safeguard_warmup=True, **common)
    return _eight_bit(config, parameters, common)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan, 2024) of matrices, AdamW of all else, at rates that mean the same for both.

    Args:
        betas: of AdamW.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, betas: tuple[float, float]
    ):
        params = list(params)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        if not hasattr(torch.optim, "Muon"):
            raise ValueError("Muon needs torch 2.9 or newer; install one, or choose --optimizer adamw.")
        matrices, others = ([p for p in params if (p.ndim == 2) == wanted] for wanted in (True, False))
        common = {"lr": lr, "weight_decay": weight_decay}
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **common))
        if others:
            self._parts.append(torch.optim.AdamW(others, betas=betas, **common))
        # One state and one list of groups, whoever reads or writes them.
        for part in self._parts:
            part.state = self.state
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def step(self, closure=None):
        for part in self._parts:
            part.step()


def _eight_bit(config: Config, parameters: list, common: dict) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ModuleNotFoundError:
        try:
            from torchao.optim import AdamW8bit
        except ModuleNotFoundError:
            raise ValueError(
                "No 8-bit AdamW is installed; pip install bitsandbytes (or torchao), or choose --optimizer adamw."
            ) from None
    return AdamW8bit(parameters, betas=config.betas, **common)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give an optimiser a learning rate; torchao's keep it in a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate(config: Config, step: int) -> float:
    """The rate of an update, from 0 on: a function of its number alone, so that nothing has to be restored."""
    if config.schedule == "official":  # torch's ConstantLR with its defaults
        return config.lr * (1 / 3 if step < 5 else 1.0)
    if config.schedule == "constant" and step >= config.warmup_steps:
        return config.lr
    return cosine(config.lr, step, config.steps, config.warmup_steps)


def cosine(lr: float, step: int, steps: int, warmup_steps: int) -> float:
    """The rate of an update after a linear warm-up and on a cosine down to 0."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
