"""Frozen linear layers in scaled float8: half the memory of bfloat16, computed in the dtype of their input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from kiwi_core.checkpoints import fp8
from kiwi_core.checkpoints.lazy import load


class Float8Linear(nn.Linear):
    """A frozen linear layer. ``weight`` is put together when it is asked for, so that peft takes it for a usual one."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        scaled = fp8.quantise(linear.weight.detach())
        self.register_buffer("weight8", load(scaled.weight), persistent=False)
        self.register_buffer("scale", load(scaled.scale).float().to(linear.weight.device), persistent=False)
        self.register_parameter("bias", linear.bias)

    @property
    def weight(self) -> torch.Tensor:
        return (self.weight8.to(torch.float32) * self.scale).to(self.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight, self.bias)

    def _apply(self, fn, recurse=True):
        # A cast of the model to another float dtype is not for these numbers; a move is.
        weight8, scale = self.weight8, self.scale
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=weight8.device)).dtype
        self.weight8 = weight8.to(self.weight8.device)
        self.scale = scale.to(self.scale.device)
        return self


def quantise(module: nn.Module) -> int:
    """Put every linear layer below ``module`` into float8, one at a time; returns how many.

    Norms, embeddings and layers with trained weights stay as they are.
    """
    layers = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and not child.weight.requires_grad
    ]
    for parent, name, child in layers:
        setattr(parent, name, Float8Linear(child))
    return len(layers)
