"""One editing pair as the pipeline takes it in."""

from __future__ import annotations

from dataclasses import dataclass

STYLE, BACKGROUND, CHANGE, REMOVE, ADD = (
    "global_style", "background_change", "local_change", "local_remove", "local_add",
)  # fmt: skip
CATEGORIES = (STYLE, BACKGROUND, CHANGE, REMOVE, ADD)
"""The paper's five."""
SUBJECT, SCENE = "subject", "background"
REFERENCES = {CHANGE: SUBJECT, ADD: SUBJECT, BACKGROUND: SCENE}
"""What a reference picture can show, by category; the others have none."""


@dataclass(frozen=True)
class Pair:
    """A source clip, an instruction and the edited clip, or why they cannot be had.

    A pair with a problem is kept, so that the ledger tells of every row that was given.
    """

    id: str
    """Unique among all pairs of a run."""
    source: str
    """Absolute path of the clip (or picture) before the edit; "" if there is none."""
    target: str
    prompt: str
    origin: str
    """Name of the set that it comes from, such as "ditto"."""
    category: str = ""
    """One of :data:`CATEGORIES`, or "" where the set does not say."""
    problem: str = ""
    """One sentence, "" for a pair that can be used."""
