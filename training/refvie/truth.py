"""Pairs of the toy world whose truth is known, some of them broken on purpose, and how results compare with it.

:func:`make` writes clips, a table of pairs for the pipeline, and what is true of each pair for the comparisons.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kiwi_core import media
from kiwi_core.atomic import replacing

from ..nano import edits, measure, world
from ..nano.edits import Edit
from . import frames as frame_files
from . import likeness
from .pairs.pair import ADD, BACKGROUND, CATEGORIES, CHANGE, REMOVE, STYLE

PAIRS, TRUTH = "pairs.jsonl", "truth.jsonl"
BROKEN = (
    "no edit", "other target", "wrong edit", "other prompt", "noise", "flicker", "truncated", "empty prompt",
)  # fmt: skip
"""What is wrong with a broken pair: the target is the source, encoded anew; is another pair's; shows an edit of the
kind that was asked for, but another colour, shape, ground or style; the prompt is another edit of the category's; the
target is noisy; its light flickers; its file is cut off; there is no prompt."""
COPIES = ("copy", "recompressed")
"""Of a good pair: the same bytes, or the same clips encoded anew, at a lower quality."""

_RATE = 8
_LOSSLESS, _ANEW, _WORSE = 0, 18, 24
"""Quality of clips as x264 counts it. At 0 the frames that are read are the same every time, whatever the machine."""
_NOISE, _FLICKER = 22.0, 0.22


def make(folder: str | Path, count: int, seed: int = 0, broken: float = 0.3, size: int = world.SIZE) -> None:
    """Write ``count`` pairs with the categories by turns, the share ``broken`` of them broken or copies.

    Args:
        seed: other pairs for every seed. size: pixels of the clips' sides; larger ones are enlarged smoothly.

    Writes ``pairs.jsonl`` (id, src_video, tgt_video, prompt, category), ``truth.jsonl`` (see :class:`Truth`), the clips
    and masks of what the edit shows in the target. The same arguments give the same pairs. Raises ValueError for
    arguments that make no sense.
    """
    if count < 1 or size < media.MIN_SIDE or size % 2 or not 0 <= broken <= 1:
        raise ValueError("Give a count of at least 1, an even size of at least 16 and a share broken of 0 to 1.")
    folder = Path(folder)
    rng = np.random.default_rng([seed, 71])
    faults = _faults(rng, count, broken)
    found: list[Truth] = []
    for number, fault in enumerate(faults):
        kind, draw = CATEGORIES[number % len(CATEGORIES)], seed * 100_000 + number
        if fault in COPIES:
            whole = [one for one in found if not one.broken and not one.copy_of]
            found.append(_copied(folder, number, whole[rng.integers(len(whole))], fault))
        else:
            found.append(_made(folder, number, kind, draw, fault, rng, size))
    for name, rows in ((PAIRS, map(_pair, found)), (TRUTH, map(dataclasses.asdict, found))):
        with replacing(folder / name) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is true of one pair; a line of ``truth.jsonl``."""

    id: str
    category: str
    prompt: str
    source: str
    """Paths of the clips in the folder."""
    target: str
    broken: str = ""
    """One of :data:`BROKEN`, or "" if nothing is wrong."""
    copy_of: str = ""
    """Id of the pair that this is a copy of, "" for none."""
    copied: str = ""
    """How, one of :data:`COPIES`."""
    masks: str = ""
    """Path of the region in the target: the thing that was added or changed; where one was removed; of a background,
    what stands before it; of a style, everything. See :func:`region`."""
    boxes: tuple[tuple[float, float, float, float] | None, ...] = ()
    """The same for each frame as left, top, right, bottom in shares of the frame."""
    shows: dict = dataclasses.field(default_factory=dict)
    """What a reference picture should show: shape, colour and texture of a thing or colour and pattern of a ground, as
    :mod:`training.nano.world` calls them; {} where no picture can."""


def read(folder: str | Path) -> dict[str, Truth]:
    """What :func:`make` wrote, by id."""
    lines = (Path(folder) / TRUTH).read_text(encoding="utf-8").splitlines()
    return {one.id: one for one in (Truth(**json.loads(line)) for line in lines)}


def region(folder: str | Path, truth: Truth) -> np.ndarray:
    """Bool ``[T, H, W]`` of all frames, see :attr:`Truth.masks`."""
    return frame_files.load_masks(Path(folder) / truth.masks)


def region_iou(masks: np.ndarray, true: np.ndarray) -> float:
    """Area that two masks share over the area of both, over all frames; 1 where both are empty.

    Args:
        masks: bool ``[T, H, W]``, perhaps of fewer frames: those that :func:`training.refvie.frames.take` samples.
    """
    places = frame_files.spread(len(true), len(masks))
    both, either = (masks & true[places]).sum(), (masks | true[places]).sum()
    return float(both / either) if either else 1.0


def box_iou(boxes: Sequence, true: Sequence) -> float:
    """The mean over frames for boxes as in :attr:`Truth.boxes`; frames where neither has one count as 1."""
    places = frame_files.spread(len(true), len(boxes))
    return float(np.mean([_overlap(box, true[place]) for box, place in zip(boxes, places)]))


def _overlap(one: Sequence[float] | None, other: Sequence[float] | None) -> float:
    if one is None or other is None:
        return float(one is other)
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    both = float(np.prod(np.maximum(sides, 0)))
    areas = [float(np.prod(np.subtract(box[2:], box[:2]))) for box in (one, other)]
    return both / max(sum(areas) - both, 1e-9)


def reference_match(picture: np.ndarray, truth: Truth) -> bool:
    """Whether a reference picture, uint8 ``[H, W, 3]``, shows what it should: of all shapes and colours of things, or
    patterns and colours of grounds, the right ones are nearest. False where no picture can show the edit."""
    if not truth.shows:
        return False
    found = likeness.ground(picture) if "pattern" in truth.shows else likeness.subject(picture)
    return bool(found) and all(truth.shows[name] == value for name, value in found.items())


def selection(kept: Collection[str], truths: dict[str, Truth]) -> tuple[float, float]:
    """Precision and recall of what was kept, among the pairs that a reference picture can show.

    A copy stands for what it is a copy of: keeping either is right, keeping both is one too many. NaN where there is
    nothing to take the share of.
    """
    good = {one.id for one in truths.values() if one.shows and not one.broken and not one.copy_of}
    right = {truths[name].copy_of or name for name in kept} & good
    return (
        len(right) / len(kept) if kept else math.nan,
        len(right) / len(good) if good else math.nan,
    )


def _faults(rng: np.random.Generator, count: int, share: float) -> list[str]:
    """For each pair what is wrong with it; every kind as often as the others. Copies come after whole pairs."""
    wrong = list(itertools.islice(itertools.cycle((*BROKEN, *COPIES)), round(share * count)))
    places = rng.permutation(np.arange(len(CATEGORIES), count))[: len(wrong)]
    faults = [""] * count
    for place, fault in zip(places, wrong):
        faults[place] = fault
    return faults


def _made(folder: Path, number: int, kind: str, draw: int, fault: str, rng: np.random.Generator, size: int) -> Truth:
    edit = edits.draw(kind, draw)
    name, prompt = f"{number:06d}", edit.prompt
    source, target = world.render(edit.before), world.render(edit.after)
    if fault == "no edit":
        target = source
    elif fault == "other target":
        target = world.render(edits.draw(kind, draw + 50_000).after)
    elif fault == "wrong edit":
        target = world.render(_other(edit, rng))
    elif fault == "other prompt":
        others = (edits.draw(kind, draw + 50_000 + further) for further in itertools.count())
        prompt = next(other.prompt for other in others if _asked(other) != _asked(edit))
    elif fault == "noise":
        target = np.clip(target + rng.normal(0, _NOISE, target.shape), 0, 255).astype(np.uint8)
    elif fault == "flicker":
        light = 1 + _FLICKER * rng.choice([-1, 1], len(target)) * rng.uniform(0.6, 1.4, len(target))
        target = np.clip(target * light[:, None, None, None], 0, 255).astype(np.uint8)
    elif fault == "empty prompt":
        prompt = ""
    paths = [f"clips/{name}-{side}.mp4" for side in ("source", "target")]
    for path, clip in zip(paths, (source, target)):
        quality = _ANEW if fault == "no edit" and path == paths[1] else _LOSSLESS
        media.save_video(folder / path, _enlarged(clip, size), _RATE, crf=quality)
    if fault == "truncated":
        whole = (folder / paths[1]).read_bytes()
        with replacing(folder / paths[1]) as temporary:
            temporary.write_bytes(whole[: len(whole) // 2])
    masks = np.stack([_enlarged_mask(mask, size) for mask in _region(edit)])
    frame_files.save_masks(folder / f"masks/{name}.npz", masks)
    boxes = tuple(_box(mask) for mask in masks)
    return Truth(name, kind, prompt, *paths, fault, masks=f"masks/{name}.npz", boxes=boxes, shows=_shows(edit))


def _copied(folder: Path, number: int, of: Truth, how: str) -> Truth:
    name, paths = f"{number:06d}", []
    for side, path in (("source", of.source), ("target", of.target)):
        paths.append(f"clips/{name}-{side}.mp4")
        if how == "copy":
            with replacing(folder / paths[-1]) as temporary:
                shutil.copyfile(folder / path, temporary)
        else:
            clip = media.load_video(folder / path)
            media.save_video(folder / paths[-1], clip.frames, clip.frame_rate, crf=_WORSE)
    return dataclasses.replace(of, id=name, source=paths[0], target=paths[1], copy_of=of.id, copied=how)


def _pair(truth: Truth) -> dict:
    return {
        "id": truth.id, "src_video": truth.source, "tgt_video": truth.target, "prompt": truth.prompt,
        "category": truth.category,
    }  # fmt: skip


def _other(edit: Edit, rng: np.random.Generator) -> world.Scene:
    """What could have been made instead of what was asked for; other than doing nothing."""
    others = [scene for name, scene in measure.alternatives(edit) if name not in ("source", "removed")]
    return others[rng.integers(len(others))]


def _asked(edit: Edit) -> tuple:
    """What tells two instructions of a category apart."""
    if edit.category == STYLE:
        return (edit.after.style,)
    if edit.category == BACKGROUND:
        return edit.after.ground.colour, edit.after.ground.pattern
    thing = (edit.before if edit.category == REMOVE else edit.after).things[edit.thing]
    return thing.colour, thing.shape


def _region(edit: Edit) -> np.ndarray:
    if edit.category == STYLE:
        return measure.region_of(edit).astype(float)
    if edit.category == BACKGROUND:
        return world.cover(edit.after)
    scene = edit.before if edit.category == REMOVE else edit.after
    return world.covered(scene.things[edit.thing], scene)


def _shows(edit: Edit) -> dict:
    if edit.category in (CHANGE, ADD):
        thing = edit.after.things[edit.thing]
        return {"shape": thing.shape, "colour": thing.colour, "texture": thing.texture}
    if edit.category == BACKGROUND:
        return {"colour": edit.after.ground.colour, "pattern": edit.after.ground.pattern}
    return {}


def _enlarged(clip: np.ndarray, size: int) -> np.ndarray:
    if size == clip.shape[1]:
        return clip
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in clip])


def _enlarged_mask(cover: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(cover.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)) > 0.5


def _box(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
