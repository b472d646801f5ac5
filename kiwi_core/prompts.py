"""Instructions that also say what must stay: one sentence of guidance for each kind of edit.

The model was trained on instructions of one sentence, so little is added to it.
"""

from __future__ import annotations

GUIDANCE = {
    "none": "",
    "style": "Give every frame this same look; the shapes, the motion and the camera stay as they are.",
    "background": "The people and things in front keep their shape, motion and clean edges, in light that fits the new "
    "surroundings.",
    "change": "It keeps its place, size and motion, and everything around it stays as it is.",
    "remove": "Show what lies behind it, steady from frame to frame, with no shadow or reflection left over.",
    "add": "It stands firmly in the scene, at a fitting size and in the light of the scene, and moves with the camera; "
    "everything else stays as it is.",
}
TASKS = tuple(GUIDANCE)
_ENDS = tuple(".!?…。！？")


def guided_prompt(task: str, instruction: str, keep: str = "") -> str:
    """An instruction with the guidance of its task.

    Args:
        task: one of :data:`TASKS`; "none" adds nothing. instruction: what to change, in a sentence.
        keep: what must not change, in a few words, such as "her face and the dress".

    Raises:
        ValueError: an unknown task, or an empty instruction.
    """
    if task not in GUIDANCE:
        raise ValueError(f"There is no task {task!r}; use one of {', '.join(TASKS)}.")
    if not instruction.strip():
        raise ValueError("The instruction is empty; say in a sentence what to change.")
    keep = keep.strip().rstrip(".")
    sentences = [instruction.strip(), GUIDANCE[task], f"Keep {keep} unchanged." if keep else ""]
    if len([sentence for sentence in sentences if sentence]) > 1 and not sentences[0].endswith(_ENDS):
        sentences[0] += "."
    return " ".join(filter(None, sentences))
