"""Who scores edits, and what is asked of them.

A judge sees the same sampled moments of source and edit, scores the criteria of the item's kind from 1 to 5, and is
held to the rule that no score is above the first. :func:`open_judge` makes one of what the command line names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ...asking import MAX_NEW_TOKENS
from ..items import CRITERIA, HIGHEST, LOWEST

FRAMES = 8
"""Of a clip that a judge sees."""
GOOGLE, TRANSFORMERS, CLASSICAL = "google-genai", "transformers", "classical"
GOOGLE_MODEL = "gemini-2.5-pro"
"""The published scores' judge."""


@dataclass(frozen=True, eq=False)
class Case:
    """An edit as a judge sees it."""

    kind: str
    """Of :data:`training.bench.items.CRITERIA`."""
    category: str
    prompt: str
    source: np.ndarray
    """uint8 ``[T, H, W, 3]``"""
    edit: np.ndarray
    """uint8 ``[T, H, W, 3]``, at the same moments and of the same size."""
    reference: np.ndarray | None = None
    """uint8 ``[H, W, 3]``"""
    repeat: int = 0
    """Which time it is judged."""


@dataclass(frozen=True)
class Scores:
    """What a judge says of an edit."""

    scores: dict[str, float]
    """By criterion, 1 to 5, none above the first."""
    given: dict[str, float]
    """As they were given."""
    reason: str = ""


class Judge(Protocol):
    """One who scores. ``None`` in the place of an answer that could not be read, an error in that of an edit which it
    does not take. Raises :class:`training.asking.Unavailable` where no edit is at fault."""

    name: str
    """For people, and for the name of a folder."""
    identity: str
    """What its scores are known by: another identity is another judge."""

    def score(self, cases: Sequence[Case], attempt: int = 0) -> list[Scores | ValueError | None]: ...


def ruled(kind: str, given: dict[str, float], reason: str = "") -> Scores:
    """Scores under the rule that none is above the first. ValueError for one that is missing or out of 1 to 5."""
    names = CRITERIA[kind]
    for name in names:
        if name not in given or not LOWEST <= given[name] <= HIGHEST:
            raise ValueError(f"There is no {name} from {LOWEST} to {HIGHEST}.")
    known = {name: float(given[name]) for name in names}
    return Scores({name: min(value, known[names[0]]) for name, value in known.items()}, known, reason)


@dataclass(frozen=True)
class Options:
    """How a judge is asked."""

    model: str = ""
    """Name of the model, for a server that is given by its address."""
    key_variable: str = ""
    """Name of the environment variable with the server's key, if it wants one. Google's key is taken from
    GEMINI_API_KEY."""
    timeout: float = 300.0
    """Seconds without a word."""
    workers: int = 8
    """Requests at once, of a server or Google."""
    frames: int = FRAMES
    """Of source and edit each, that the judge sees."""
    max_pixels: int = 512 * 512
    """A frame's largest area, as the judge sees it."""
    device: str = ""
    """For a model that runs here."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """The longest answer; a model that thinks aloud first needs more."""

    def __post_init__(self):
        if self.frames < 1 or self.max_pixels < 64 * 64:
            raise ValueError(
                f"A judge cannot see {self.frames} frames of {self.max_pixels} pixels; give 1 and 4096 at least."
            )
        if self.max_new_tokens < 64:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; an answer needs 64 at least.")


def open_judge(given: str, options: Options = Options(), cache: Path | None = None) -> Judge:
    """The judge that is meant by an OpenAI-compatible address, "google-genai[:MODEL]", "transformers:MODEL" or
    "classical", which compares pixels and needs no weights.

    Args:
        cache: file in which its answers are kept, so that the same question costs nothing again; None for none.

    Raises ValueError for what cannot be a judge, Unavailable for a model that cannot be loaded.
    """
    from . import classical, rubrics
    from .cache import Cached

    if given == CLASSICAL:
        return classical.ClassicalJudge(options.frames)
    kind, _, model = given.partition(":")
    longest = options.max_new_tokens
    if given.startswith(("http://", "https://")):
        from ...asking.server import ServerChat

        if not options.model:
            raise ValueError("Say by which name the server knows the model: --model NAME.")
        chat = ServerChat(given, options.model, options.timeout, options.workers, options.key_variable, longest)
        known_by, name = f"openai:{options.model}", options.model
    elif kind == GOOGLE:
        from ...asking.google import GoogleChat

        name = model or GOOGLE_MODEL
        chat = GoogleChat(name, options.timeout, options.workers, longest)
        known_by = f"google:{name}"
    elif kind == TRANSFORMERS and model:
        from ...asking.local import LocalChat

        chat = LocalChat(model, device=options.device or None, max_new_tokens=longest)
        known_by, name = f"transformers:{model}", model
    else:
        raise ValueError(
            f"{given!r} is no judge; give a server's address, {GOOGLE}[:MODEL], {TRANSFORMERS}:MODEL or {CLASSICAL}."
        )
    if cache is not None:
        chat = Cached(chat, cache, known_by)
    return rubrics.ChatJudge(chat, name, known_by, options.frames, options.max_pixels)
