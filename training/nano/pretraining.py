"""The loop that trains the parts from nothing: any of its steps can be computed alone, so kills cost little."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from .. import checkpoint, metrics, optimizer_state, optimizers
from ..data.loader import in_workers
from ..data.stream import derive


@dataclass(frozen=True)
class Schedule:
    """Length and rates of a part's training: AdamW, a linear warm-up, then a cosine down to nothing."""

    steps: int
    lr: float
    warmup_steps: int = 100
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    save_every: int = 250
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of an update, from 0 on."""
        return optimizers.cosine(self.lr, step, self.steps, self.warmup_steps)


def train(
    folder: Path,
    model: nn.Module,
    batches: Dataset,
    loss: Callable[[object], tuple[torch.Tensor, dict[str, float]]],
    schedule: Schedule,
    device: torch.device,
    workers: int,
) -> nn.Module:
    """Train all of a module's parameters, from the newest checkpoint in ``folder`` on.

    Args:
        batches: by number of the step. loss: of a batch, with numbers to log.

    Returns:
        The module, on ``device``.
    """
    found = checkpoint.newest(folder / "checkpoints")
    step = found.step if found else 0
    parameters = dict(model.named_parameters())
    if found:
        model.load_state_dict(found.tensors("model"))
    model.to(device)
    optimizer = torch.optim.AdamW(
        parameters.values(), schedule.lr, weight_decay=schedule.weight_decay, fused=device.type == "cuda"
    )
    if found:
        optimizer_state.write(
            optimizer, parameters, found.tensors("optimizer"), lambda value, like, dtype: value.to(like.device, dtype)
        )
    folder.mkdir(parents=True, exist_ok=True)
    log = metrics.Metrics(folder, step)
    loader = in_workers(batches, workers, sampler=range(step, schedule.steps))
    model.train()
    bar = tqdm(
        loader, initial=step, total=schedule.steps, desc=folder.name, unit="step", dynamic_ncols=True, mininterval=1
    )
    for batch in bar:
        started = time.perf_counter()
        optimizers.set_rate(optimizer, schedule.rate(step))
        torch.manual_seed(derive(schedule.seed, folder.name, step))
        value, numbers = loss(batch)
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), schedule.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 10 == 0 or step == schedule.steps:
            shown = {"loss": value.item(), **{name: float(number) for name, number in numbers.items()}}
            if not math.isfinite(shown["loss"]):
                raise ValueError(
                    f"The loss is not finite at update {step}; try another --seed with another --output, or on a GPU "
                    "the same command, which goes on from before it."
                )
            shown |= {"gradient_norm": norm.item(), "lr": schedule.rate(step - 1)}
            log.add(step, shown | {"seconds": time.perf_counter() - started})
            bar.set_postfix(loss=f"{shown['loss']:.4f}", refresh=False)
        if step % schedule.save_every == 0 or step == schedule.steps:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
            state = optimizer_state.read(optimizer, parameters, lambda tensor: tensor)
            checkpoint.save(folder / "checkpoints", step, {"model": tensors, "optimizer": state}, {})
            checkpoint.prune(folder / "checkpoints", 1)
    metrics.plot(folder)
    return model
