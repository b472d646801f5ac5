"""How a reference picture is to differ from the clip, in words, so that it cannot be pasted instead of understood."""

from __future__ import annotations

import numpy as np

from .pairs.pair import SCENE, SUBJECT

_POSES = (
    "turned a little to its left", "turned a little to its right", "seen half from the side", "seen from behind",
    "leaning to one side", "in another natural pose", "caught in the middle of a movement", "at rest",
)  # fmt: skip
_VIEWS = (
    "from slightly above", "from slightly below", "from a low angle", "from close by", "from further away",
    "from the left", "from the right", "at eye level",
)  # fmt: skip
_SCENE_VIEWS = (
    "from a few steps further left", "from a few steps further right", "from a little higher up", "from lower down",
    "from closer by", "from further away", "at a slight angle", "looking a little to one side",
)  # fmt: skip
_LIGHTS = (
    "in soft light from a window", "in the even light of an overcast day", "in warm evening light",
    "in bright light from the left", "in bright light from the right", "in cool morning light", "lit from behind",
    "in the light of a lamp above",
)  # fmt: skip


def words(kind: str, seed: int) -> str:
    """A variation for a reference of a kind, :data:`training.refvie.pairs.pair.SUBJECT` or
    :data:`training.refvie.pairs.pair.SCENE`; the same for the same seed. ValueError for another kind."""
    rng = np.random.default_rng([seed, 29])
    if kind == SCENE:
        parts = (_SCENE_VIEWS, _LIGHTS)
    elif kind == SUBJECT:
        parts = (_POSES, _VIEWS, _LIGHTS)
    else:
        raise ValueError(f"There is no reference of kind {kind!r}; use {SUBJECT} or {SCENE}.")
    return ", ".join(part[rng.integers(len(part))] for part in parts)
