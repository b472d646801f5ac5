"""What nano-bench knows of an edit exactly, since the toy world knows the target of each item."""

from __future__ import annotations

import dataclasses
import functools
import math

from kiwi_core import media

from ..nano import bench as nano_bench
from ..nano import edits, measure
from .folder import Edit
from .items import Item
from .metrics.table import MORE, Metric
from .suites import NANO_COUNTS

METRICS = {
    "nano_success": Metric(
        "Success", "", MORE, "Share of edits in which what was asked for is there, in the asked place; exact."
    ),
    "nano_preserved": Metric("All else preserved", "", MORE, "Share of edits in which all else stayed; exact."),
    "nano_region_psnr": Metric("Region, PSNR", "dB", MORE, "How near the edit is to its target where that is."),
    "nano_preservation_psnr": Metric(
        "All else, PSNR", "dB", MORE, "How near the edit is to the source elsewhere, by the true region."
    ),
}
_MOST = 100.0
"""dB of what is the same to the bit."""


def measure_exactly(item: Item, edit: Edit) -> dict[str, float]:
    """The numbers of :data:`METRICS` for an item of nano-bench. ValueError for a clip of another size or length."""
    score = measure.score(_edits()[item.id], media.load_video(edit.path).frames)
    told = dataclasses.asdict(score)
    return {
        "nano_success": float(score.success), "nano_preserved": float(score.preserved),
        **{f"nano_{name}": _bounded(told[name]) for name in ("region_psnr", "preservation_psnr")},
    }  # fmt: skip


def _bounded(value: float) -> float:
    return _MOST if math.isinf(value) else min(value, _MOST)


@functools.cache
def _edits() -> dict[str, edits.Edit]:
    return {one.name.replace("/", "-"): one.edit for one in nano_bench.items(NANO_COUNTS)}
