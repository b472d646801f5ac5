"""A model's words as JSON: the one object that they are, or nothing."""

from __future__ import annotations

import json
import re


def one_object(text: str) -> dict | None:
    """The one JSON object that a text is, perhaps in a code fence; what a model has thought before is left out."""
    text = text.rpartition("</think>")[2].strip()
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n\s*```", text, re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else text, parse_constant=_refused, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)  # which Python takes for a number


def quoted(text: str) -> str:
    """Words of others as a JSON string: nothing in it ends the string, and none of it is a model's special token."""
    return re.sub(r"[<\[|]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def _refused(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _once(pairs: list[tuple[str, object]]) -> dict:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a field is there twice")
    return dict(pairs)
