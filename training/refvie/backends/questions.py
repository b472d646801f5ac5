"""What models of language and pictures are asked, and how their answers are read: strictly, or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from string import Template

import numpy as np
from PIL import Image

from ...asking import Question
from ...asking.reading import is_number, one_object, quoted
from ..pairs.pair import CATEGORIES, REFERENCES, SCENE, STYLE, SUBJECT
from . import PROMPTS, Check, Match, Quality, Region, View, closeup

MAX_PIXELS = 512 * 512

THOUSANDTHS, PIXELS = "thousandths", "pixels"
_UNITS = {
    THOUSANDTHS: "thousandths of the frame's width and height, whole numbers from 0 to 1000",
    PIXELS: "pixels of the frame, counted from its upper left corner",
}
_SIDES = {THOUSANDTHS: 32, PIXELS: 28}
"""The sides of frames are multiples of this, so that Qwen's processors leave them as they are."""
_LONGEST_NAME, _LONGEST_REASON = 80, 300


class Asking:
    """What a model is asked with; the classes below say what, subclasses of them how it gets there.

    Args:
        max_pixels: area of a frame as the model sees it. coordinates: what its boxes are measured in: "thousandths" of
            the frame, as Qwen3-VL has learnt, "pixels", as Qwen2.5-VL, or "auto" to go by the model's name.
    """

    def __init__(self, name: str, max_pixels: int, coordinates: str):
        if coordinates not in ("auto", *_UNITS):
            raise ValueError(f"coordinates is {coordinates!r}; use auto, {' or '.join(_UNITS)}.")
        if coordinates == "auto":
            coordinates = PIXELS if "qwen25vl" in re.sub(r"[^a-z0-9]", "", name.lower()) else THOUSANDTHS
        self.min_pixels = 4 * _SIDES[coordinates] ** 2
        if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels is {max_pixels!r}; give a whole number of at least {self.min_pixels}.")
        self.max_pixels, self.coordinates = max_pixels, coordinates

    def answers(self, questions: Sequence[Question], attempt: int) -> list[str | ValueError]:
        """The model's words, in order; the reason in the place of those to what it cannot take."""
        raise NotImplementedError

    def fitted(self, frames: np.ndarray, least: int = 0) -> np.ndarray:
        """Frames ``[T, H, W, 3]`` as the model sees them; enlarged if their area is less than ``least``."""
        from kiwi_core.mllm import smart_size

        limits = max(least, self.min_pixels), self.max_pixels
        height, width = smart_size(*frames.shape[1:3], _SIDES[self.coordinates], *limits)
        if (height, width) == frames.shape[1:3]:
            return frames
        size = width, height
        return np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in frames])

    def _of_pair(self, file: str, view: View) -> Question:
        asked = f"The instruction: {quoted(view.prompt)}"
        if view.category:
            asked += f"\nThe kind of the edit: {view.category}"
        parts = _labelled("source", self.fitted(view.source)) + _labelled("edited", self.fitted(view.target))
        return Question(Template(_text(file)).substitute(units=_UNITS[self.coordinates]), (asked, *parts))


class Judging(Asking):
    """See :class:`training.refvie.backends.Judge`."""

    version, prompts = 1, ("judge.txt",)

    def judge(self, views: Sequence[View], attempt: int = 0) -> list[Quality | ValueError | None]:
        asked = [self._of_pair(*self.prompts, view) for view in views]
        return [_read(quality, one) for one in self.answers(asked, attempt)]


class Grounding(Asking):
    """See :class:`training.refvie.backends.Grounder`."""

    version, prompts = 1, ("locate.txt",)

    def locate(self, views: Sequence[View], attempt: int = 0) -> list[Region | ValueError | None]:
        asked = [self._of_pair(*self.prompts, view) for view in views]
        scales = [
            (1000, 1000) if self.coordinates == THOUSANDTHS else one.parts[-1].shape[1::-1] for one in asked
        ]  # of the last edited frame
        return [_read(region, one, *rest) for one, *rest in zip(self.answers(asked, attempt), views, scales)]


class Verifying(Asking):
    """See :class:`training.refvie.backends.Verifier`."""

    version, prompts = 1, ("verify.txt",)

    def verify(self, checks: Sequence[Check], attempt: int = 0) -> list[Match | ValueError | None]:
        return [_read(match, one) for one in self.answers([self._of_check(check) for check in checks], attempt)]

    def _of_check(self, check: Check) -> Question:
        what = "a background, the place" if check.kind == SCENE else "a subject, the thing"
        asked = f"The picture should show {what}: {quoted(check.name)}\nThe instruction: {quoted(check.prompt)}"
        parts = [asked, "reference picture:", self.fitted(check.reference[None])[0]]
        parts += _labelled("edited", self.fitted(check.target))
        place = closeup.best(check.masks)
        if check.kind == SUBJECT and place is not None:
            near = closeup.around(check.target[place], check.masks[place])
            parts += [f"edited frame {place + 1}, seen closer:", self.fitted(near[None], self.max_pixels // 4)[0]]
        return Question(_text(*self.prompts), tuple(parts))


def _text(file: str) -> str:
    return (PROMPTS / file).read_text(encoding="utf-8").strip()


def _labelled(name: str, frames: np.ndarray) -> list[str | np.ndarray]:
    return [part for number, frame in enumerate(frames, 1) for part in (f"{name} frame {number}:", frame)]


def _read(read: Callable, answer: str | ValueError, *rest):
    return answer if isinstance(answer, ValueError) else read(answer, *rest)


def quality(text: str) -> Quality | None:
    """The scores in a judge's words, None if they are not all there."""
    found = one_object(text)
    scores = _scores(found, "prompt_following", "consistency", "naturalness", "artifacts")
    return scores and Quality(*scores, _reason(found))


def match(text: str) -> Match | None:
    """The scores in a verifier's words, None if they are not all there."""
    found = one_object(text)
    scores = _scores(found, "same", "usable")
    return scores and Match(*scores, _reason(found))


def region(text: str, view: View, scale: tuple[int, int]) -> Region | None:
    """The region in a grounder's words, None if it lacks what is needed.

    Args:
        scale: what the frame's right and lower border are in the coordinates of the boxes. A box that is empty or not
            within the frame is taken for none.
    """
    found = one_object(text)
    if found is None:
        return None
    category, name = view.category or found.get("category"), found.get("name")
    if category not in CATEGORIES or not isinstance(name, str) or len(name) > _LONGEST_NAME:
        return None
    if category == STYLE:  # it is everywhere, whatever the model has drawn
        return Region(category, "", ((0.0, 0.0, 1.0, 1.0),) * len(view.target))
    boxes = _boxes(found.get("boxes"), len(view.target), scale)
    kind, name = REFERENCES.get(category), " ".join(name.split())
    if boxes is None or (kind and not name) or (kind == SUBJECT and not any(boxes)):
        return None
    return Region(category, name if kind else "", boxes)


def _scores(found: dict | None, *names: str) -> list[float] | None:
    values = [(found or {}).get(name) for name in names]
    return [float(value) for value in values] if all(is_number(one) and 0 <= one <= 10 for one in values) else None


def _reason(found: dict) -> str:
    reason = found.get("reason")
    return " ".join(reason.split())[:_LONGEST_REASON] if isinstance(reason, str) else ""


def _boxes(entries: object, count: int, scale: tuple[int, int]) -> tuple | None:
    """For each frame a box or None; None in all where the entries cannot be read."""
    found: dict[int, tuple | None] = {}
    for entry in entries if isinstance(entries, list) else [None]:
        if not isinstance(entry, dict):
            return None
        number, box = entry.get("frame"), entry.get("box")
        if number not in range(1, count + 1) or isinstance(number, bool) or number in found:
            return None
        if box is not None and (not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box))):
            return None
        found[number] = box and _share(box, scale)
    return tuple(found.get(number) for number in range(1, count + 1))


def _share(box: list, scale: tuple[int, int]) -> tuple[float, float, float, float] | None:
    left, top, right, bottom = box
    if not (0 <= left < right <= scale[0] and 0 <= top < bottom <= scale[1]):
        return None
    return left / scale[0], top / scale[1], right / scale[0], bottom / scale[1]
