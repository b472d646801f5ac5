"""The connectors that the curriculum starts from: they pass the language model's states on, every direction as loud.

In these states a few directions drown all others, colours, shapes and places among them. A DiT learns what it is told
several times faster from whitened ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from kiwi_core.checkpoints.parts import Parts
from kiwi_core.mllm import MLLMInputs
from kiwi_core.pipeline import KiwiEditPipeline

from . import feed, world

_EDITS = 280
_DAMPING = 0.03
"""Of the loudest direction: what is below stays quieter."""
_LOUDNESS = 0.5


@torch.no_grad()
def whitened(
    parts: Parts, seed: int, change: Callable[[MLLMInputs], MLLMInputs] = lambda inputs: inputs
) -> dict[str, torch.Tensor]:
    """Queries as they are in a model, and connectors that whiten the states which its language model has of edits.

    The damped states come out in random directions of the DiT's width, with a root mean square of up to 0.5.

    Args:
        change: of what the language model is given, and of where its states are read.
    """
    encoder = KiwiEditPipeline.from_parts(parts, torch.float32).mllm_encoder
    heads = encoder.connector.connector, encoder.connector.ref_connector
    seen: list[list[torch.Tensor]] = [[] for _ in heads]
    for head, states in zip(heads, seen):
        head.register_forward_pre_hook(lambda _, given, states=states: states.append(given[0].flatten(0, -2)))
    for number in range(_EDITS):
        drawn = feed.training_seed("connector", seed, number)
        edit = feed.random_edit(drawn, frames=world.FRAMES if number % 3 else 1)
        encoder(change(encoder.prepare(edit.prompt, world.render(edit.before), edit.reference_picture())))
    generator = torch.Generator().manual_seed(seed)
    for head, states in zip(heads, seen):
        _whiten(head, torch.cat(states), generator)
    return dict(encoder.connector.state_dict())


def _whiten(head: nn.Sequential, states: torch.Tensor, generator: torch.Generator) -> None:
    """Make an MLP with GELU the damped whitening of ``[N, D]``, by GELU(x) - GELU(-x) = x."""
    first, _, last = head
    mean = states.mean(dim=0)
    variances, directions = torch.linalg.eigh(torch.cov(states.T))
    scales = (variances.clamp(min=0) + _DAMPING**2 * variances.max()).rsqrt()
    whitening = directions * scales @ directions.T
    # New tensors: the old ones are those of the parts that were given.
    first.weight.data = torch.cat([whitening, -whitening])
    first.bias.data = first.weight @ -mean
    out, width = last.out_features, len(mean)
    turned = torch.linalg.qr(torch.randn(out, out, generator=generator))[0][:, :width]
    turned = turned * (out / width) ** 0.5 * _LOUDNESS
    last.weight.data = torch.cat([turned, -turned], dim=1)
    last.bias.data = torch.zeros(out)
