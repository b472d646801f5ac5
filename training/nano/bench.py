"""nano-bench: how often a model does what it is told in the toy world, beside what bounds it from both sides.

Every system is measured on the same items. Results are kept item by item, so that a killed run goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from kiwi_core.atomic import replacing
from kiwi_core.checkpoints.lazy import load
from kiwi_core.checkpoints.parts import Parts
from kiwi_core.pipeline import KiwiEditPipeline

from ..intervals import wilson
from ..metrics import read_lines, write_lines
from . import edits, measure, settings, world
from .edits import Edit

COUNTS = {"seen": 40, "composition": 40, "wording": 20, "shape": 20, "colour": 20}
"""Items of a category by split."""
STEPS = 20
CATEGORIES = (*edits.CATEGORIES, *edits.REFERENCE_CATEGORIES)
RESULTS, REPORT, SETTINGS = "results.jsonl", "report.md", "settings.json"

System = Callable[["Item"], np.ndarray]


@dataclass(frozen=True)
class Item:
    """One edit of the benchmark."""

    name: str
    """Such as "local_add/seen/007"."""
    seed: int
    edit: Edit


def items(counts: dict[str, int] = COUNTS, categories: Sequence[str] = CATEGORIES) -> list[Item]:
    """The items: always the same, from seeds that training never draws."""
    found = []
    for category in categories:
        for split, count in counts.items():
            for number in range(count):
                seed = edits.BENCH_SEEDS + number
                found.append(Item(f"{category}/{split}/{number:03d}", seed, edits.draw(category, seed, split)))
    return found


def copy(item: Item) -> np.ndarray:
    """A system that changes nothing."""
    return world.render(item.edit.before)


def ceiling(pipe: KiwiEditPipeline) -> System:
    """A system that knows the target and has only to put it through the VAE."""

    def run(item: Item) -> np.ndarray:
        return pipe._decode(pipe.encode_video(world.render(item.edit.after)))

    return run


def model(pipe: KiwiEditPipeline, steps: int = STEPS, references: dict[str, np.ndarray] | None = None) -> System:
    """A pipeline as a system.

    Args:
        references: pictures by item's name, in place of the items' own.
    """

    def run(item: Item) -> np.ndarray:
        reference = item.edit.reference_picture() if references is None else references[item.name]
        return pipe(
            item.edit.prompt,
            world.render(item.edit.before),
            None if reference is None else Image.fromarray(reference),
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(item.seed),
        ).frames

    return run


def shuffled(parts: Parts, seed: int = 0) -> Parts:
    """The model with the numbers of every tensor but the VAE's in random order: of the right size, and meaningless."""
    generator = torch.Generator().manual_seed(seed)

    def mixed(tensors):
        whole = {name: load(tensor) for name, tensor in tensors.items()}
        return {
            name: tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view(tensor.shape)
            for name, tensor in whole.items()
        }

    names = ("transformer", "source_embedder", "ref_embedder", "mllm", "connector")
    return dataclasses.replace(parts, **{name: mixed(getattr(parts, name)) for name in names})


def wrong_references(chosen: Sequence[Item]) -> dict[str, np.ndarray]:
    """For each item with a reference, the picture of the next one of its category that shows something else.

    Of all items the same for each, however many of them are measured.
    """
    found = {}
    for category in edits.REFERENCE_CATEGORIES:
        alike = [item for item in chosen if item.edit.category == category]
        for place, item in enumerate(alike):
            others = (*alike[place + 1 :], *alike[:place])
            found[item.name] = next(
                other.edit.reference_picture() for other in others if _shows(other.edit) != _shows(item.edit)
            )
    return found


def _shows(edit: Edit) -> tuple[str, str]:
    shown = edit.reference
    return (shown.colour, shown.pattern if isinstance(shown, world.Ground) else shown.shape)


def run(folder: Path, name: str, system: System, chosen: Iterable[Item]) -> list[dict]:
    """Measure a system; what ``folder`` holds of it is not done again. Returns its results."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULTS
    lines = read_lines(path)
    write_lines(path, lines)
    known = {line["item"]: line for line in lines if line["system"] == name}
    results = []
    with path.open("a", encoding="utf-8") as file:
        for item in tqdm(list(chosen), desc=name, unit="item", mininterval=2, dynamic_ncols=True):
            if item.name not in known:
                score = measure.score(item.edit, system(item))
                line = {"system": name, "item": item.name} | dataclasses.asdict(score)
                known[item.name] = line | {"passed": score.passed}
                file.write(json.dumps(known[item.name]) + "\n")
                file.flush()
            results.append(known[item.name])
    return results


def keep_settings(folder: Path, model: str, steps: int) -> None:
    """Bind a folder of results to a model (its digest), to steps, and to the items, which differ when the world does.

    Raises:
        ValueError: it holds results of others.
    """
    drawn = "".join(f"{item.name}: {item.edit}\n" for item in items())
    found = {"model": model, "steps": steps, "items": hashlib.sha256(drawn.encode()).hexdigest()[:16]}
    settings.keep(folder / SETTINGS, found)


def rate(results: Sequence[dict], field: str = "success") -> str:
    """"92% (80 to 97)" """
    good, count = sum(result[field] for result in results), len(results)
    if not count:
        return "-"
    low, high = wilson(good, count)
    return f"{100 * good / count:.0f}% ({100 * low:.0f} to {100 * high:.0f})"


def mean(results: Sequence[dict], field: str) -> str:
    """Mean in dB with the half width of its 95% interval."""
    values = [result[field] for result in results if math.isfinite(result[field])]
    if not values:
        return "-"
    spread = 1.96 * float(np.std(values)) / math.sqrt(len(values))
    return f"{np.mean(values):.1f} ± {spread:.1f}"


def report(folder: Path) -> str:
    """The tables of all that was measured in ``folder``, in Markdown; also written there."""
    by_system: dict[str, list[dict]] = {}
    for line in read_lines(folder / RESULTS):
        by_system.setdefault(line["system"], []).append(line)
    parts = ["# nano-bench", "", "Success by category and split, with the 95% interval.", ""]
    for system, results in by_system.items():
        columns = ("category", *edits.SPLITS)
        parts += [f"## {system}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for category in CATEGORIES:
            cells = [rate(_of(results, category, split)) for split in edits.SPLITS]
            if set(cells) != {"-"}:
                parts.append(f"| {category} | " + " | ".join(cells) + " |")
        parts.append("")
    parts += [
        "# Seen and composition together", "",
        "In dB: how near the edit is to its target where it was asked for, how near all else to the source, "
        "the changes from frame to frame to the target's, and what a reference shows to the target.", "",
        "| system | category | success | all else preserved | edit | preservation | stability | reference |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for system, results in by_system.items():
        for category in CATEGORIES:
            chosen = _of(results, category, "seen") + _of(results, category, "composition")
            if chosen:
                cells = [rate(chosen), rate(chosen, "preserved"), *(
                    mean(chosen, f"{name}_psnr") for name in ("region", "preservation", "stability", "reference")
                )]  # fmt: skip
                parts.append(f"| {system} | {category} | " + " | ".join(cells) + " |")
    text = "\n".join(parts) + "\n"
    with replacing(folder / REPORT) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _of(results: Sequence[dict], category: str, split: str) -> list[dict]:
    return [result for result in results if result["item"].startswith(f"{category}/{split}/")]
