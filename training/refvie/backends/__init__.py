"""What the stages ask of a model, and by which names models that answer are configured.

Each interface is one method over a batch: as many answers as were asked for, in order; ``None`` for one that could not
be read, which the stage asks again, with the next ``attempt`` and so perhaps another temperature. A sample that a model
cannot take raises ValueError with a sentence about it, or has that error in the place of its answer, which spares the
others of its batch being asked again; :class:`Unavailable` stops the run, since no sample is at fault.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ...asking import Unavailable as Unavailable

PROMPTS = Path(__file__).parents[1] / "prompts"


@dataclass(frozen=True)
class View:
    """A pair as a model sees it: the same sampled frames of both clips, uint8 ``[T, H, W, 3]``."""

    prompt: str
    category: str
    """One of :data:`training.refvie.pairs.pair.CATEGORIES`, or "" if it is not known."""
    source: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Quality:
    """How good an edit is, 0 to 10 each, as EditScore has it: the worst of a kind counts."""

    prompt_following: float
    """Whether what was asked for is there."""
    consistency: float
    """Whether what was not asked for stayed."""
    naturalness: float
    artifacts: float
    """10 where there are none."""
    reason: str = ""

    @property
    def semantic(self) -> float:
        return min(self.prompt_following, self.consistency)

    @property
    def quality(self) -> float:
        return min(self.naturalness, self.artifacts)

    @property
    def overall(self) -> float:
        return (self.semantic * self.quality) ** 0.5


@dataclass(frozen=True)
class Region:
    """What the instruction changes in the target clip."""

    category: str
    """The edit's, one of :data:`training.refvie.pairs.pair.CATEGORIES`; the given one where there was one."""
    name: str
    """What stands there after the edit, in a few words: "red kite", "snowy street". "" if it has no name."""
    boxes: tuple[tuple[float, float, float, float] | None, ...]
    """For each frame left, top, right, bottom of the region as shares of the frame, None where it is not seen.
    Of a background's edit, the box of what stands before it, None if nothing does."""


@dataclass(frozen=True)
class Track:
    """Frames of a clip, uint8 ``[T, H, W, 3]``, the source's beside the target's, and the region in them."""

    source: np.ndarray
    target: np.ndarray
    region: Region


@dataclass(frozen=True)
class Painting:
    """A reference picture to make."""

    kind: str
    """"subject": the thing alone before a plain ground. "background": the scene without what stands before it."""
    name: str
    target: np.ndarray
    """uint8 ``[T, H, W, 3]``"""
    masks: np.ndarray
    """bool ``[T, H, W]``: the subject; of a background, what stands before it."""
    seed: int
    variation: str = ""
    """How the picture should differ from the clip, in words for a model: "seen from the side"; "" for not at all."""


@dataclass(frozen=True)
class Check:
    """A reference picture, uint8 ``[H, W, 3]``, beside the target that it should belong to."""

    kind: str
    name: str
    prompt: str
    reference: np.ndarray
    target: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Match:
    """How well a reference picture serves, 0 to 10 each."""

    same: float
    """Whether it shows what the target shows."""
    usable: float
    """Whether it is whole, sharp and free of other things."""
    reason: str = ""


class Model(Protocol):
    """What all have. A result is known by the version, the prompts' texts and the options, but for the unkeyed."""

    version: int
    """Class attribute, raised whenever the answers change."""
    prompts: tuple[str, ...]
    """Class attribute: files in ``refvie/prompts`` that it uses."""
    unkeyed: tuple[str, ...]
    """Class attribute: options that do not change the answers, such as a device or an address."""


class Judge(Model, Protocol):
    def judge(self, views: Sequence[View], attempt: int = 0) -> list[Quality | ValueError | None]: ...


class Grounder(Model, Protocol):
    def locate(self, views: Sequence[View], attempt: int = 0) -> list[Region | ValueError | None]: ...


class Segmenter(Model, Protocol):
    def track(self, tracks: Sequence[Track]) -> list[np.ndarray]:
        """bool ``[T, H, W]``: the region's pixels in the target; of a background, what stands before it."""
        ...


class Painter(Model, Protocol):
    def paint(self, paintings: Sequence[Painting]) -> list[np.ndarray]:
        """uint8 ``[H, W, 3]``"""
        ...


class Verifier(Model, Protocol):
    def verify(self, checks: Sequence[Check], attempt: int = 0) -> list[Match | ValueError | None]: ...


class Embedder(Model, Protocol):
    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """float32 ``[N, D]``, each row of length one, of pictures uint8 ``[H, W, 3]`` of any size."""
        ...


CLASSES = {
    "classical": {
        "score": "classical:Judge", "locate": "classical:Grounder", "segment": "classical:Segmenter",
        "synthesise": "classical:Painter", "verify": "classical:Verifier", "embed": "classical:Embedder",
    },
    "transformers": {
        "score": "local:LocalJudge", "locate": "local:LocalGrounder", "verify": "local:LocalVerifier",
        "segment": "sam:Segmenter", "embed": "embedding:Embedder",
    },
    "openai": {
        "score": "server:ServerJudge", "locate": "server:ServerGrounder", "verify": "server:ServerVerifier",
    },
    "diffusers": {"synthesise": "editor:Painter"},
}  # fmt: skip
"""By back end and stage, the class in this package that is made with the configured options as keywords. In a config
"package.module:Class" names one of the user's own."""


def find(stage: str, backend: str, options: dict) -> type[Model]:
    """The class that answers a stage, not made yet. ValueError for a name or an option that there is not."""
    module, _, name = backend.partition(":")
    if name:  # one of the user's own
        made = _imported(module, name, backend)
    else:
        if backend not in CLASSES:
            known = ", ".join(CLASSES)
            raise ValueError(f"There is no back end {backend!r} for {stage}; use {known} or your own MODULE:CLASS.")
        if stage not in CLASSES[backend]:
            able = [other for other, stages in CLASSES.items() if stage in stages]
            raise ValueError(f"The back end {backend} cannot {stage}; use {' or '.join(able)}.")
        module, _, name = CLASSES[backend][stage].partition(":")
        made = getattr(importlib.import_module(f".{module}", __name__), name)
    allowed = [key for key in inspect.signature(made).parameters if key not in ("self", "args", "kwargs")]
    for key in options:
        if key not in allowed:
            raise ValueError(f"{stage} by {backend} has no option {key!r}; it has {', '.join(allowed) or 'none'}.")
    return made


def _imported(module: str, name: str, given: str) -> type[Model]:
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The back end {given} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    if missing := [one for one in ("version", "prompts", "unkeyed") if not hasattr(made, one)]:
        raise ValueError(f"The back end {given} has no {' and no '.join(missing)}; give its class these attributes.")
    return made


def identity(stage: str, backend: str, options: dict) -> str:
    """What the answers of a model are known by, as text; an option that is its default is as one that is not given."""
    made = find(stage, backend, options)
    known = inspect.signature(made).parameters.items()
    defaults = {key: one.default for key, one in known if one.default is not one.empty}
    kept = {key: value for key, value in (defaults | options).items() if key not in made.unkeyed}
    kept = {key: float(value) if isinstance(defaults.get(key), float) else value for key, value in kept.items()}
    texts = [hashlib.blake2b((PROMPTS / name).read_bytes(), digest_size=8).hexdigest() for name in made.prompts]
    return json.dumps([backend, made.version, kept, *texts], sort_keys=True)


def load(stage: str, backend: str, options: dict) -> Model:
    """The model that answers a stage. ValueError where an option is missing or a model cannot be had."""
    try:
        return find(stage, backend, options)(**options)
    except TypeError as error:
        raise ValueError(f"{stage} by {backend} was not given what it needs: {error}.") from error
