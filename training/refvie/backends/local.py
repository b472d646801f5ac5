"""Judge, grounder and verifier by a model of language and pictures that runs here, on transformers."""

from __future__ import annotations

from ...asking import MAX_NEW_TOKENS
from ...asking.local import LocalChat
from .questions import MAX_PIXELS, PIXELS, Asking, Grounding, Judging, Verifying


class Local(LocalChat, Asking):
    """See :class:`training.asking.local.LocalChat` and :class:`training.refvie.backends.questions.Asking`; what the
    configuration of the model says decides about its coordinates, instead of its name."""

    unkeyed = ("device", "attention")

    def __init__(
        self, model: str, revision: str | None = None, device: str | None = None, dtype: str = "auto",
        max_new_tokens: int = MAX_NEW_TOKENS, max_pixels: int = MAX_PIXELS, attention: str | None = None,
        coordinates: str = "auto",
    ):  # fmt: skip
        LocalChat.__init__(self, model, revision, device, dtype, max_new_tokens, attention)
        Asking.__init__(self, self.model.config.model_type, max_pixels, coordinates)
        # Where coordinates are pixels they are those of the frames that it is given, not of what it would make of them.
        if self.coordinates == PIXELS:
            self.processing = {"size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}}


class LocalJudge(Judging, Local):
    """How good an edit is."""


class LocalGrounder(Grounding, Local):
    """Which region an instruction changes."""


class LocalVerifier(Verifying, Local):
    """Whether a reference picture serves."""
