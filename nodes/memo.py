"""What was last computed from inputs that ComfyUI hands over again."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any


class Last:
    """The last result, for as long as what it was computed from lives and is the same objects.

    ComfyUI computes a node again when any input changes; this is for the part that does not depend on that input.
    """

    def __init__(self):
        self._made_of, self._settings, self._result = (), None, None

    def get(self, made_of: Sequence[Any], settings: Any, compute: Callable[[], Any]) -> Any:
        """The result of ``compute``, which depends on the objects ``made_of`` and the value ``settings`` alone."""
        known = [reference() for reference in self._made_of]
        same = len(known) == len(made_of) and all(old is new for old, new in zip(known, made_of))
        if not (same and self._made_of and settings == self._settings):
            self._forget()
            self._result = compute()
            self._made_of, self._settings = tuple(weakref.ref(each, self._forget) for each in made_of), settings
        return self._result

    def _forget(self, _=None) -> None:
        self._made_of, self._result = (), None
