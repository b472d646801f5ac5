"""Judge, grounder and verifier by a server that speaks OpenAI's protocol for chats with pictures, such as vLLM's."""

from __future__ import annotations

from ...asking import MAX_NEW_TOKENS
from ...asking.server import ServerChat
from .questions import MAX_PIXELS, Asking, Grounding, Judging, Verifying


class Server(ServerChat, Asking):
    """See :class:`training.asking.server.ServerChat` and :class:`training.refvie.backends.questions.Asking`."""

    unkeyed = ("url", "timeout", "workers", "key_variable")

    def __init__(
        self, url: str, model: str, timeout: float = 300.0, workers: int = 8, key_variable: str = "",
        max_new_tokens: int = MAX_NEW_TOKENS, max_pixels: int = MAX_PIXELS, coordinates: str = "auto",
    ):  # fmt: skip
        Asking.__init__(self, model, max_pixels, coordinates)
        ServerChat.__init__(self, url, model, timeout, workers, key_variable, max_new_tokens)


class ServerJudge(Judging, Server):
    """How good an edit is."""


class ServerGrounder(Grounding, Server):
    """Which region an instruction changes."""


class ServerVerifier(Verifying, Server):
    """Whether a reference picture serves."""
