"""An average of the trained weights over the last steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


class EMA:
    """Exponential moving average; early on it follows faster, so that the start is forgotten.

    Args:
        parameters: trained ones by name. decay: of the average, 0..1.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self._parameters, self.decay = dict(parameters), decay
        self.average = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After update number ``step``, from 1 on."""
        decay = min(self.decay, step / (step + 9))
        parameters = [self._parameters[name] for name in self.average]
        torch._foreach_lerp_([*self.average.values()], [p.detach() for p in parameters], 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averages in place of its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(kept)
