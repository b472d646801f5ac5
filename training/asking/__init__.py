"""Asking models of language and pictures: what a question is, and what stands between us and the models that answer.

:mod:`.server` asks any server that speaks OpenAI's protocol, :mod:`.google` Google's models, :mod:`.local` a model that
runs here. :mod:`.reading` takes their words for JSON, strictly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

TEMPERATURE = 0.3
"""Of every attempt after the first, which is greedy."""
MAX_NEW_TOKENS = 1024


class Unavailable(RuntimeError):
    """The model cannot answer at all: no server, no memory, no file. One sentence that says what to do."""

    answered: Mapping[int, str | ValueError] = MappingProxyType({})
    """Answers that came before, by the place of their question: they may have been paid for."""


@dataclass(frozen=True)
class Question:
    """What a model is asked."""

    system: str
    """What it is told before."""
    parts: tuple[str | np.ndarray, ...]
    """Texts and pictures, uint8 ``[H, W, 3]``, in the order in which it gets them."""
    seed: int = 0
    """Of what is random in its answer, where a model takes one."""


class Chat(Protocol):
    """A model that answers."""

    def answers(self, questions: Sequence[Question], attempt: int = 0) -> list[str | ValueError]:
        """The model's words, in order; the reason in the place of those to what it cannot take.

        Args:
            attempt: 0 is greedy; each further one has another seed and some warmth.

        Raises Unavailable where no question is at fault.
        """
        ...
