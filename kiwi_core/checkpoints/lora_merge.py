"""How much of a LoRA a model takes, and merging it into weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from .lora import Change, Lora
from .lora_dialects import PARTS

Changes = dict[str, dict[str, Change]]
_WIDTHS = {3072: "5B", 5120: "14B", 1536: "1.3B"}
_UNUSED = "text_embedding."  # of Wan; Kiwi-Edit's context passes it by


@dataclass(frozen=True)
class Report:
    """How much of a LoRA a model takes."""

    name: str
    matched: int
    total: int
    """Keys of the file that change the model, and all. Wan's text embedding, which is not used, counts in neither."""
    unknown: tuple[str, ...] = ()
    """Keys with no place in the model."""
    absent: Mapping[str, int] = field(default_factory=dict)
    """Number of keys by the part that was not given."""

    def __str__(self) -> str:
        text = f"{self.matched} of {self.total} keys of {self.name} are applied"
        if self.unknown:
            more = ", ..." if len(self.unknown) > 3 else ""
            text += f"; {len(self.unknown)} have no place in this model ({', '.join(self.unknown[:3])}{more})"
        for part, count in self.absent.items():
            text += f"; {count} are for the {PARTS[part]}, which is not connected"
        return text + "."


def match(lora: Lora, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> tuple[Changes, Report]:
    """The changes that a model takes, and how many they are.

    Args:
        shapes: of the weights by name, for each part that is there.

    Raises:
        ValueError: nothing fits, or the LoRA was made for a model of other sizes.
    """
    taken: Changes = {}
    unknown, absent, total = [], {}, 0
    for part, changes in lora.changes.items():
        changes = {weight: change for weight, change in changes.items() if not weight.startswith(_UNUSED)}
        total += (size := sum(len(change.names) for change in changes.values()))
        if part not in shapes:
            if size:
                absent[part] = size
            continue
        known = {weight: change for weight, change in changes.items() if weight in shapes[part]}
        taken[part] = {weight: change for weight, change in known.items() if change.fits(shapes[part][weight])}
        misfits = [weight for weight in known if weight not in taken[part]]
        if len(misfits) > len(taken[part]):
            raise ValueError(_misfit(lora.name, misfits[0], known[misfits[0]], shapes[part][misfits[0]]))
        unknown += [name for weight, change in changes.items() if weight not in taken[part] for name in change.names]
    matched = total - len(unknown) - sum(absent.values())
    if not matched:
        if not total:
            raise ValueError(f"{lora.name} changes only Wan's text embedding, which Kiwi-Edit does not use.")
        if not unknown:
            parts = " and ".join(PARTS[part] for part in absent)
            raise ValueError(f"{lora.name} changes only the {parts}; connect the MLLM and the connector too.")
        raise ValueError(
            f"None of the {total} keys of {lora.name} fits this model (the first is {unknown[0]}); choose a LoRA "
            "for Wan or Kiwi-Edit."
        )
    return taken, Report(lora.name, matched, total, tuple(unknown), absent)


def _misfit(name: str, weight: str, change: Change, shape: tuple[int, ...]) -> str:
    """An error for a LoRA of another model, by its width where that tells it."""
    found = next(tensor for tensor in (change.whole, change.diff, change.down) if tensor is not None)
    theirs = list(found.shape) if change.down is None else [change.up.shape[0], *found.shape[1:]]
    sizes = [set(map(_WIDTHS.get, size)) & set(_WIDTHS.values()) for size in (theirs, shape)]
    if all(len(size) == 1 for size in sizes) and sizes[0] != sizes[1]:
        (wanted,), (given,) = sizes
        return f"{name} was made for a {wanted} model and this one is {given}; choose a LoRA for {given}."
    return (
        f"{name} was made for another model ({weight} is {theirs} there and {list(shape)} here); choose one for "
        "this model."
    )


@torch.no_grad()
def merge(
    lora: Lora, weights: Mapping[str, Mapping[str, torch.Tensor]], strengths: Mapping[str, float] | None = None
) -> Report:
    """Change a model's weights in place, in float32 and rounded to their own dtype.

    Args:
        weights: tensors by name for each part. strengths: by part; 1 where none is given.

    Raises:
        ValueError: as :func:`match`, and for kinds that only ComfyUI applies; then nothing was changed.
    """
    shapes = {part: {name: tuple(tensor.shape) for name, tensor in part_.items()} for part, part_ in weights.items()}
    taken, report = match(lora, shapes)
    for change in (change for changes in taken.values() for change in changes.values()):
        if change.other:
            change.apply(torch.empty(0))  # the error that says so, before anything is changed
    for part, changes in taken.items():
        strength = (strengths or {}).get(part, 1.0)
        for name, change in changes.items() if strength else ():
            weight = weights[part][name]
            weight.data = change.apply(weight, strength).to(weight.dtype)
    return report
