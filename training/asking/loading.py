"""How models with weights are loaded, and how they get on with little memory."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from . import Unavailable

Item, Answer = TypeVar("Item"), TypeVar("Answer")
_LONGEST = 200


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Whatever fails while a model is loaded becomes one sentence, as :class:`Unavailable`."""
    try:
        if Path(model).is_absolute() and not Path(model).is_dir():
            raise FileNotFoundError("there is no such folder")
        yield
    except Exception as error:  # of every kind: the libraries have no common one
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        reason = textwrap.shorten(first, _LONGEST, placeholder="...").rstrip(".:")
        raise Unavailable(
            f"The model {model} cannot be loaded ({reason}); give the name of a fitting model on the Hugging Face hub "
            "or the folder of one, and a device and dtype that there is memory for."
        ) from error


def device_of(given: str | None) -> str:
    """The given device; of None, the first GPU where there is one."""
    import torch

    return given or ("cuda" if torch.cuda.is_available() else "cpu")


class Portions:
    """Gives a model as many items at once as memory has been seen to take: after each time that it ran out, half."""

    def __init__(self, model: str, most: int | None = None):
        self.model, self.most = model, most

    def __call__(self, call: Callable[[Sequence[Item]], Sequence[Answer]], items: Sequence[Item]) -> list[Answer]:
        """The answers to all items, in order. Raises Unavailable where memory is too small for one."""
        import torch

        answers: list[Answer] = []
        while len(answers) < len(items):
            portion = items[len(answers) :][: self.most]
            try:
                answers.extend(call(portion))
                continue
            except torch.cuda.OutOfMemoryError:
                pass  # what the error holds on to is free after this block
            if len(portion) == 1:
                raise Unavailable(
                    f"The GPU's memory is too small for one sample with {self.model}; use a smaller model, fewer or "
                    "smaller frames, or a larger GPU."
                )
            torch.cuda.empty_cache()
            self.most = len(portion) // 2
        return answers
