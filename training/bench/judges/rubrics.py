"""Models of language and pictures as judges: our rubrics as questions, and their answers read strictly."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...asking import Chat, Question
from ...asking.reading import is_number, one_object, quoted
from ..items import CRITERIA, SUBJECT
from . import Case, Scores, ruled

logger = logging.getLogger(__name__)

PROMPTS = Path(__file__).parent / "prompts"
PAIRWISE = "pairwise"
FIRST, SECOND, TIE = "first", "second", "tie"
VERSION = 1
"""Raised when questions are put otherwise, though their texts stay."""
_LEAST_SIDE = 224
"""Smaller frames are enlarged: a model sees little in a thumbnail."""
_LONGEST_REASON = 300
_SHOWN = 200


class ChatJudge:
    """A judge that is a model of language and pictures.

    Args:
        name: of the model. known_by: what its answers are known by, the model and who runs it. frames: of a clip that
            it is shown. max_pixels: a frame's largest area.
    """

    def __init__(self, chat: Chat, name: str, known_by: str, frames: int, max_pixels: int):
        self.chat, self.name, self.frames, self.max_pixels = chat, name, frames, max_pixels
        texts = {kind: hashlib.blake2b(_text(kind).encode(), digest_size=8).hexdigest() for kind in CRITERIA}
        self.identity = json.dumps([known_by, VERSION, frames, max_pixels, texts], sort_keys=True)

    def score(self, cases: Sequence[Case], attempt: int = 0) -> list[Scores | ValueError | None]:
        answers = self.chat.answers([self._question(case) for case in cases], attempt)
        return [_read(answer, partial(read_scores, case.kind)) for case, answer in zip(cases, answers)]

    def prefer(self, pairs: Sequence[tuple[Case, Case]], attempt: int = 0) -> list[tuple[str, str] | ValueError | None]:
        """Which edit of each pair is better, "first", "second" or "tie", and why."""
        answers = self.chat.answers([self._both(*pair) for pair in pairs], attempt)
        return [_read(answer, read_preference) for answer in answers]

    def _question(self, case: Case) -> Question:
        parts = [*self._asked(case), *self._labelled("source", case.source), *self._labelled("edited", case.edit)]
        return Question(_text(case.kind), tuple(parts), case.repeat)

    def _both(self, first: Case, second: Case) -> Question:
        parts = [*self._asked(first), *self._labelled("source", first.source)]
        parts += [*self._labelled("first edit", first.edit), *self._labelled("second edit", second.edit)]
        return Question(_text(PAIRWISE), tuple(parts), first.repeat)

    def _asked(self, case: Case) -> list[str | np.ndarray]:
        parts: list[str | np.ndarray] = [f"The task: {quoted(case.prompt)}"]
        if case.reference is not None:
            shown = "subject" if case.kind == SUBJECT else "place"
            parts += [f"reference picture of the {shown}:", self._fitted(case.reference)]
        return parts

    def _labelled(self, name: str, frames: np.ndarray) -> list[str | np.ndarray]:
        return [
            part for number, frame in enumerate(frames, 1) for part in (f"{name} frame {number}:", self._fitted(frame))
        ]

    def _fitted(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        scale = min(1.0, (self.max_pixels / (height * width)) ** 0.5)
        if min(height, width) < _LEAST_SIDE:
            least = -(-_LEAST_SIDE // min(height, width))
            scale = min(least, max(1.0, (self.max_pixels / (height * width)) ** 0.5))
        if scale == 1:
            return frame
        size = max(1, round(width * scale)), max(1, round(height * scale))
        return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def _read(answer: str | ValueError, read: Callable):
    """What an answer says, by a reader; one that it cannot read is shown, for that is how a setting is found wrong."""
    if isinstance(answer, ValueError):
        return answer
    found = read(answer)
    if found is None:
        logger.warning("An answer cannot be read (%d characters): %s", len(answer), quoted(answer[-_SHOWN:]))
    return found


def read_scores(kind: str, text: str) -> Scores | None:
    """The scores in a judge's words, None if they are not all there as numbers from 1 to 5."""
    found = one_object(text)
    if found is None or not all(is_number(found.get(name)) for name in CRITERIA[kind]):
        return None
    try:
        return ruled(kind, {name: found[name] for name in CRITERIA[kind]}, _reason(found))
    except ValueError:
        return None


def read_preference(text: str) -> tuple[str, str] | None:
    """Which is better and why, None if that cannot be read."""
    found = one_object(text)
    if found is None or found.get("better") not in (FIRST, SECOND, TIE):
        return None
    return found["better"], _reason(found)


def _reason(found: dict) -> str:
    reason = found.get("reason")
    text = " ".join(reason.split())[:_LONGEST_REASON] if isinstance(reason, str) else ""
    return text.encode("utf-8", "backslashreplace").decode()  # half characters can be sent, but not be written


def _text(kind: str) -> str:
    return (PROMPTS / f"{kind}.txt").read_text(encoding="utf-8").strip()
