"""Scores that others have published. They are quoted: other clips were shown to another judge by other scripts."""

from __future__ import annotations

from dataclasses import dataclass

from .suites import OPENVE, REFVIE

PAPER = "arXiv 2603.02175"
JUDGES = {OPENVE: "Gemini-2.5-Pro", REFVIE: "not told in what we know of it"}
"""By benchmark, who scored."""
NOTES = {
    OPENVE: "Only the overall is quoted: two of the published columns by category look swapped.",
    REFVIE: "",
}


@dataclass(frozen=True)
class Quoted:
    """A published overall score, 1 to 5."""

    bench: str
    system: str
    score: float
    source: str = PAPER


QUOTED = (
    Quoted(OPENVE, "Bernini", 4.04, "published after the paper"),
    Quoted(OPENVE, "Runway Aleph", 3.49),
    Quoted(OPENVE, "Kiwi-Edit, stage 3", 3.02),
    Quoted(OPENVE, "Kiwi-Edit, stage 2", 2.98),
    Quoted(OPENVE, "OpenVE-Edit", 2.50),
    Quoted(OPENVE, "Lucy-Edit", 2.22),
    Quoted(OPENVE, "ICVE", 2.18),
    Quoted(OPENVE, "DITTO", 2.13),
    Quoted(OPENVE, "VACE-14B", 1.57),
    Quoted(OPENVE, "InsViE", 1.45),
    Quoted(OPENVE, "OmniVideo", 1.19),
    Quoted(REFVIE, "Kling-O1", 3.99),
    Quoted(REFVIE, "Kiwi-Edit, reference-only", 3.31),
    Quoted(REFVIE, "Runway Aleph", 3.29),
    Quoted(REFVIE, "Kiwi-Edit, instruct-reference", 2.96),
    Quoted(REFVIE, "ReCo", 2.48),
)


def of(bench: str) -> list[Quoted]:
    """What is quoted of a benchmark, the best first."""
    return sorted((one for one in QUOTED if one.bench == bench), key=lambda one: -one.score)
