"""Instructions that leave to the reference picture what they would otherwise name.

An instruction that names the thing can be followed without looking at the picture, and a model that is trained on such
alone need not learn to look.
"""

from __future__ import annotations

import re

from ..pairs.pair import SCENE, SUBJECT

_PHRASES = {
    SUBJECT: (
        "the object in the reference picture", "the object of the picture", "what the reference picture shows",
        "the object from the reference",
    ),
    SCENE: (
        "the background of the reference picture", "the one in the picture", "what the reference shows",
        "the background of the picture",
    ),
}  # fmt: skip


def refer(prompt: str, name: str, kind: str, lot: int) -> str:
    """The instruction with the picture in the place of the name; as it is where the name does not stand in it once.

    Args:
        kind: "subject" or "background". lot: which of several phrases, any number.
    """
    if not name.strip():
        return prompt
    words = r"\s+".join(map(re.escape, name.split()))
    noun = r"(?:\s+(?:background|backdrop|scene|setting|one))?" if kind == SCENE else ""
    found = [*re.finditer(rf"\b(?:(?:an?|the|some)\s+)?{words}{noun}\b", prompt, re.IGNORECASE)]
    if len(found) != 1:
        return prompt
    begin, end = found[0].span()
    phrase = _PHRASES[kind][lot % len(_PHRASES[kind])]
    return prompt[:begin] + (phrase[0].upper() + phrase[1:] if begin == 0 else phrase) + prompt[end:]
