"""What a benchmark asks: one edit an item, and the criteria that it is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

INSTRUCTION, SUBJECT, BACKGROUND = "instruction", "subject", "background"
CRITERIA = {
    INSTRUCTION: ("instruction_following", "preservation", "visual_quality"),
    SUBJECT: ("identity", "temporal", "physical"),
    BACKGROUND: ("reference_similarity", "matting", "video_quality"),
}
"""By an item's kind, what is scored from 1 to 5. No score may be above the first: a picture that is not what was asked
for gains nothing by its beauty."""
LOWEST, HIGHEST = 1, 5
STYLES = ("global_style",)
"""Categories whose edit is everywhere in the frame."""
BACKGROUNDS = ("background", "background_change", "background_reference")
"""Categories whose edit is everywhere but before the background."""


@dataclass(frozen=True)
class Item:
    """One edit to make and to score."""

    id: str
    """Fit to be a file's name."""
    category: str
    """As the benchmark names it, such as "local_add" or "subject"."""
    prompt: str
    source: Path
    """The clip to edit."""
    reference: Path | None = None
    """A picture of what is to appear."""
    region: Path | None = None
    """Where the edit is to be, if the benchmark knows: a clip or picture as large as the source, white where."""
    seed: int = 0
    """Of the noise that a model begins with."""

    @property
    def kind(self) -> str:
        """Which of :data:`CRITERIA` it is judged by."""
        if self.reference is None:
            return INSTRUCTION
        return BACKGROUND if self.category in BACKGROUNDS else SUBJECT

    @property
    def criteria(self) -> tuple[str, ...]:
        return CRITERIA[self.kind]
