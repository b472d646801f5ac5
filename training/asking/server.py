"""Models behind a server that speaks OpenAI's protocol for chats with pictures, such as vLLM's."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
from PIL import Image

from . import MAX_NEW_TOKENS, TEMPERATURE, Question, Unavailable
from .remote import Later, Remote, check_workers, seconds

_PASSING = frozenset((408, 425, 429))
_THIS_ONE = frozenset((400, 413, 422))
_QUALITY = 95
_MOST = 1 << 24
"""Bytes of a reply that are read."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address would be sent the key."""

    def redirect_request(self, *args):
        return None


class ServerChat(Remote):
    """A model behind ``/chat/completions``. It must take two pictures for each frame of a clip (vLLM has a limit).

    Args:
        url: where it is, up to "/v1". model: the name that it knows it by. timeout: seconds without a word from it.
        workers: requests at once. key_variable: name of the environment variable with the key, if it wants one; the key
            itself is kept nowhere else. max_new_tokens: the longest answer.

    Raises ValueError for an address, a number or a variable that cannot be used.
    """

    def __init__(
        self, url: str, model: str, timeout: float = 300.0, workers: int = 8, key_variable: str = "",
        max_new_tokens: int = MAX_NEW_TOKENS,
    ):  # fmt: skip
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or set(url) & set("@?#"):
            raise ValueError("url is no plain address; give one such as http://localhost:8000/v1, without a key.")
        check_workers(workers, timeout)
        self.url, self.model, self.timeout, self.workers = url.rstrip("/"), model, timeout, workers
        self.key_variable, self.max_new_tokens = key_variable, max_new_tokens
        self.where = f"The server {self.url}"
        self._key()
        self._opener = urllib.request.build_opener(_NoRedirect)

    def _key(self) -> str:
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():  # the name is not told: it may be a key by mistake
            raise ValueError("key_variable names no environment variable with a key; set that, or leave key_variable.")
        return key

    def words(self, question: Question, attempt: int) -> str:
        body = json.dumps({
            "model": self.model, "messages": _messages(question), "max_tokens": self.max_new_tokens,
            "temperature": TEMPERATURE if attempt else 0, "seed": question.seed + attempt,
        }).encode()  # fmt: skip
        return _words(self._sent(body))

    def _sent(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.url}/chat/completions"
        request = urllib.request.Request(address, body, headers)  # noqa: S310 - its scheme was checked
        try:
            with self._opener.open(request, timeout=self.timeout) as reply:
                return reply.read(_MOST)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, key) from None  # it has more of the server's words than are told
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Later(" ".join(str(reason).split()) or type(reason).__name__) from error

    def _refusal(self, error: urllib.error.HTTPError, key: str) -> Exception:
        code = error.code
        if code in _PASSING or code >= 500:
            return Later(f"it says {code}", seconds(error.headers.get("Retry-After", "")))
        if code in _THIS_ONE:
            return ValueError(f"The server refuses the request ({code}): {_complaint(error, key)}.")
        if code in (401, 403):
            return Unavailable(
                f"The server {self.url} lets nobody in without a right key ({code}); set an environment variable to it "
                "and give the variable's name as key_variable."
            )
        if code == 404:
            return Unavailable(f"{self.url} has no model {self.model} ({code}); correct model, and url up to /v1.")
        return Unavailable(f"The server {self.url} does not take requests as OpenAI's do ({code}); correct url.")


def _messages(question: Question) -> list[dict]:
    content = [
        {"type": "image_url", "image_url": {"url": _data(part)}} if isinstance(part, np.ndarray)
        else {"type": "text", "text": part}
        for part in question.parts
    ]  # fmt: skip
    return [{"role": "system", "content": question.system}, {"role": "user", "content": content}]


def _data(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _words(reply: bytes) -> str:
    try:
        words = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return words if isinstance(words, str) else ""


def _complaint(error: urllib.error.HTTPError, key: str) -> str:
    """What the server says of a request, in one line and without the key."""
    try:
        said = error.read(_MOST).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return "it says no more"
    try:
        found = json.loads(said)
        said = str(found.get("error", found).get("message") or said)
    except (ValueError, AttributeError):
        pass
    said = said.replace(key, "...") if key else said
    return " ".join(said.split())[:200].rstrip(".") or "it says no more"
