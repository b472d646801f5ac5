"""Google's models, by its package ``google-genai``."""

from __future__ import annotations

import io
import json
import os

import numpy as np
from PIL import Image

from . import TEMPERATURE, Question, Unavailable
from .remote import Later, Remote, check_workers, one_line, seconds

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
"""Environment variables that may have the key; it is kept nowhere else."""
MAX_NEW_TOKENS = 8192
"""Of an answer with what the model thinks before."""
_PASSING = frozenset((408, 425, 429))
_THIS_ONE = frozenset((400, 413, 422))


class GoogleChat(Remote):
    """A model such as "gemini-2.5-pro".

    Args:
        model: its name. timeout: seconds without a word. workers: requests at once. max_new_tokens: the longest answer.
        url: of another place that speaks as Google does.

    Raises ValueError where the package or the key is missing.
    """

    def __init__(
        self, model: str, timeout: float = 300.0, workers: int = 4, max_new_tokens: int = MAX_NEW_TOKENS, url: str = ""
    ):
        check_workers(workers, timeout)
        key = next((os.environ[name].strip() for name in KEYS if os.environ.get(name, "").strip()), "")
        if not key or not key.isascii() or not key.isprintable():
            raise ValueError(f"No key for Google's models is set; put it into the environment variable {KEYS[0]}.")
        try:
            from google import genai
            from google.genai import errors, types
        except ImportError as error:
            raise ValueError("The package google-genai is not installed: pip install 'kiwi-edit[bench]'.") from error
        self.model, self.workers, self.max_new_tokens = model, workers, max_new_tokens
        self.where = f"Google's {model}"
        self._types, self._errors = types, errors
        options = types.HttpOptions(timeout=round(1000 * timeout), base_url=url or None)
        self._client = genai.Client(api_key=key, vertexai=False, http_options=options)
        self._key = key

    def __repr__(self) -> str:
        return f"GoogleChat({self.model!r})"

    def words(self, question: Question, attempt: int) -> str:
        config = self._types.GenerateContentConfig(
            system_instruction=question.system, temperature=TEMPERATURE if attempt else 0,
            seed=question.seed + attempt, max_output_tokens=self.max_new_tokens,
        )  # fmt: skip
        parts = [self._part(part) for part in question.parts]
        try:
            reply = self._client.models.generate_content(model=self.model, contents=parts, config=config)
        except self._errors.APIError as error:
            raise self._refusal(error) from None  # it has more of the reply than is told
        except (self._errors.UnknownApiResponseError, json.JSONDecodeError):
            raise Later("its reply cannot be read") from None
        except (OSError, *_transport_errors()) as error:
            raise Later(self._told(error) or type(error).__name__) from None
        return _text(reply)

    def _part(self, part: str | np.ndarray):
        if isinstance(part, str):
            return self._types.Part.from_text(text=part)
        file = io.BytesIO()
        Image.fromarray(part).save(file, "JPEG", quality=95, subsampling=0)
        return self._types.Part.from_bytes(data=file.getvalue(), mime_type="image/jpeg")

    def _refusal(self, error) -> Exception:
        code = error.code or 500
        if code in _PASSING or code >= 500:
            return Later(f"it says {code}", _delay(getattr(error, "details", None)))
        said = self._told(getattr(error, "message", "") or "")[:200].rstrip(".") or "it says no more"
        if code in (401, 403) or "api key" in said.lower():
            return Unavailable(f"Google lets nobody in without a right key ({code}); set {KEYS[0]} to it.")
        if code in _THIS_ONE:
            return ValueError(f"{self.where} refuses the request ({code}): {said}.")
        if code == 404:
            return Unavailable(f"Google has no model {self.model} ({code}); correct its name.")
        return Unavailable(f"{self.where} does not take requests ({code}): {said}.")

    def _told(self, text: object) -> str:
        return one_line(text).replace(self._key, "...")


def _delay(details: object) -> float:
    """Seconds that the reply to a refused request asks to wait for, 0 if it does not."""
    told = details.get("error", details) if isinstance(details, dict) else {}
    for one in told.get("details") or () if isinstance(told, dict) else ():
        if isinstance(one, dict) and isinstance(one.get("retryDelay"), str):
            return seconds(one["retryDelay"].removesuffix("s"))
    return 0.0


def _transport_errors() -> tuple[type[Exception], ...]:
    """Of whichever HTTP library the package uses."""
    import importlib

    found = []
    for name in ("httpx", "httpx2"):
        try:
            found.append(importlib.import_module(name).HTTPError)
        except ImportError:
            continue
    return tuple(found)


def _text(reply) -> str:
    """The words of the first candidate; "" where there are none, as when an answer is held back."""
    candidates = reply.candidates or []
    parts = (candidates[0].content.parts if candidates and candidates[0].content else None) or []
    return "".join(part.text for part in parts if part.text and not part.thought)
