"""An optimiser's state as plain tensors by name, and back.

Keys are ``parameter|field``; ``parameter|field|part`` for a quantised field of several tensors (torchao's 8-bit
AdamW); ``parameter|field|int`` for a number (bitsandbytes' step); ``|field`` for what an optimiser keeps of all
parameters together (Prodigy's estimate).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

_HYPERPARAMETERS = ("params", "lr", "betas")


def read(
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    whole: Callable[[torch.Tensor], torch.Tensor],
    keep: bool = True,
) -> dict[str, torch.Tensor]:
    """The state on the CPU.

    Args:
        trained: parameters by name. whole: gathers a tensor that is shared between processes.
        keep: without it, gather with the others only.
    """
    found: dict[str, torch.Tensor] = {}

    def add(key: str, value: torch.Tensor) -> None:
        value = whole(value)
        if keep:
            found[key] = value.detach().cpu().contiguous()

    for name, parameter in trained.items():
        for field, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, torch.Tensor):
                found[f"{name}|{field}|int"] = torch.tensor(value, dtype=torch.int64)
            elif parts := _parts(value):
                for part in parts:
                    add(f"{name}|{field}|{part}", getattr(value, part))
            else:
                add(f"{name}|{field}", value)
    for name, value in optimizer.param_groups[0].items():
        if name not in _HYPERPARAMETERS and type(value) in (int, float):
            found[f"|{name}"] = torch.tensor(value, dtype=torch.float64)
    return found


@torch.no_grad()
def write(
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    like: Callable[[torch.Tensor, torch.Tensor, torch.dtype], torch.Tensor],
) -> None:
    """Put a state of :func:`read` into a fresh optimiser.

    Args:
        like: shares and places a whole tensor like a parameter, in some dtype.
    """
    group = optimizer.param_groups[0]
    on_device = bool(group.get("fused") or group.get("capturable"))
    for key, tensor in tensors.items():
        name, field, *part = key.split("|")
        if not name:
            group[field] = type(group.get(field, 0.0))(tensor.item())
            continue
        parameter = trained[name]
        state = optimizer.state[parameter]
        if part == ["int"]:
            state[field] = int(tensor)
        elif part:
            if field not in state:
                state[field] = optimizer._new_buffer(parameter, field == "exp_avg")
            getattr(state[field], part[0]).copy_(tensor)
        elif tensor.ndim == 0:
            state[field] = tensor.clone().to(parameter.device if on_device or field != "step" else "cpu")
        elif tensor.shape == parameter.shape:
            state[field] = like(tensor.clone(), parameter, tensor.dtype)
        else:
            state[field] = tensor.clone().to(parameter.device)


def _parts(value: torch.Tensor) -> list[str]:
    """Names of the tensors that a quantised one is made of."""
    return list(value.__tensor_flatten__()[0]) if hasattr(value, "tensor_attrs") else []
