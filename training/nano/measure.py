"""How good an edit of the toy world is, against its exact target: no judge, no learned metric.

The thresholds were fixed before the first model was trained.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import world
from .edits import Edit, replaced
from .world import Ground, Scene

MIN_FRAMES = 0.75
"""Share of the frames in which the target must be the nearest of the alternatives."""
MIN_REGION_PSNR = 16.0
"""dB between edit and target where the edit is."""
MIN_PRESERVATION_PSNR = 20.0
"""dB between edit and source (of a style, its target) where nothing was asked."""
_MARGIN = 2


@dataclass(frozen=True)
class Score:
    """What was measured of one edit. PSNR in dB over all pixels, frames and colours of a region."""

    success: bool
    """The asked attribute is there, in the asked place: of all alternatives (other colours, shapes, grounds or styles,
    no edit at all) the target is the nearest in enough frames, and it is near enough."""
    preserved: bool
    """What was not asked for stays."""
    nearest: str
    """The alternative that the edit is nearest to over all frames; "target" if it is right."""
    region_psnr: float
    preservation_psnr: float
    stability_psnr: float
    """Of the changes from frame to frame, against the target's; infinite for a picture."""
    reference_psnr: float
    """Inside what the reference shows, against the target; NaN without a reference."""

    @property
    def passed(self) -> bool:
        """Success, and all else preserved."""
        return self.success and self.preserved


def score(edit: Edit, frames: np.ndarray) -> Score:
    """Measure an edited clip, uint8 ``[T, 64, 64, 3]``."""
    source, target = world.render(edit.before), world.render(edit.after)
    if frames.shape != target.shape:
        raise ValueError(f"The edit has shape {frames.shape}, its target {target.shape}; compare like with like.")
    made, region = frames.astype(np.float32), region_of(edit)
    errors = {
        name: _frame_errors(made, world.render(scene), region)
        for name, scene in alternatives(edit)
    }
    wanted = _frame_errors(made, target, region)
    others = np.stack(list(errors.values()))
    names, totals = list(errors), others.mean(axis=1)
    nearest = "target" if wanted.mean() < totals.min() else names[int(totals.argmin())]
    region_psnr = _psnr(wanted.mean())
    near = nearest == "target" and (wanted < others.min(axis=0)).mean() >= MIN_FRAMES
    kept = kept_of(edit)
    unchanged = target if edit.category == "global_style" else source
    preservation = _psnr(_error(made, unchanged, kept)) if kept.any() else math.inf
    steps = np.diff(made, axis=0) - np.diff(target.astype(np.float32), axis=0)
    return Score(
        success=bool(near and region_psnr >= MIN_REGION_PSNR),
        preserved=preservation >= MIN_PRESERVATION_PSNR,
        nearest=nearest,
        region_psnr=region_psnr,
        preservation_psnr=preservation,
        stability_psnr=_psnr(float(np.square(steps).mean())) if len(steps) else math.inf,
        reference_psnr=_psnr(_error(made, target, _shown_of(edit))) if edit.reference is not None else math.nan,
    )


def region_of(edit: Edit) -> np.ndarray:
    """Where the edit is: bool ``[T, 64, 64]``."""
    if edit.category == "global_style":
        return np.ones((edit.after.frames, world.SIZE, world.SIZE), bool)
    if edit.thing is None:
        return ~_widened(world.cover(edit.after) > 0.02, 1)
    return _widened(_changed(edit) > 0.02, _MARGIN)


def kept_of(edit: Edit) -> np.ndarray:
    """Where nothing was asked for; of a style everywhere, since all that it keeps is in its target."""
    if edit.category == "global_style":
        return np.ones((edit.after.frames, world.SIZE, world.SIZE), bool)
    if edit.thing is None:
        return world.cover(edit.after) > 0.95
    return ~_widened(_changed(edit) > 0.02, 2 * _MARGIN)


def alternatives(edit: Edit) -> Iterator[tuple[str, Scene]]:
    """What else a model could have made, by name: each scene differs from the target in what was asked for."""
    yield "source", edit.before
    after = edit.after
    if edit.category == "global_style":
        for style in (*world.STYLES, None):
            if style not in (after.style, edit.before.style):
                yield f"style {style}", dataclasses.replace(after, style=style)
        return
    if edit.thing is None:
        for colour in world.GROUNDS:
            for pattern in world.PATTERNS:
                if (colour, pattern) != (after.ground.colour, after.ground.pattern):
                    ground = Ground(colour, pattern, after.ground.phase)
                    yield f"{colour} {pattern}", dataclasses.replace(after, ground=ground)
        return
    if edit.task == "remove":
        scene, place = edit.before, edit.thing
    else:
        scene, place = after, edit.thing
        yield "removed", replaced(scene, place, None)
    thing = scene.things[place]
    for colour in world.COLOURS:
        if colour != thing.colour:
            yield f"colour {colour}", replaced(scene, place, dataclasses.replace(thing, colour=colour))
    for shape in world.SHAPES:
        if shape != thing.shape:
            yield f"shape {shape}", replaced(scene, place, dataclasses.replace(thing, shape=shape))


def _changed(edit: Edit) -> np.ndarray:
    """Cover of the thing that changes, before and after."""
    covers = []
    if edit.thing < len(edit.before.things) and edit.task not in ("add", "reference_add"):
        covers.append(world.covered(edit.before.things[edit.thing], edit.before))
    if edit.task != "remove":
        covers.append(world.covered(edit.after.things[edit.thing], edit.after))
    return np.max(covers, axis=0)


def _shown_of(edit: Edit) -> np.ndarray:
    if edit.thing is None:
        return region_of(edit)
    return world.covered(edit.after.things[edit.thing], edit.after) > 0.9


def _widened(mask: np.ndarray, pixels: int) -> np.ndarray:
    padded = np.pad(mask, ((0, 0), (pixels, pixels), (pixels, pixels)))
    rows = np.lib.stride_tricks.sliding_window_view(padded, 2 * pixels + 1, axis=1).any(axis=-1)
    return np.lib.stride_tricks.sliding_window_view(rows, 2 * pixels + 1, axis=2).any(axis=-1)


def _frame_errors(made: np.ndarray, other: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Mean squared error of each frame within a region."""
    squared = np.square(made - other).mean(axis=-1) * region
    return squared.sum(axis=(1, 2)) / np.maximum(region.sum(axis=(1, 2)), 1)


def _error(made: np.ndarray, other: np.ndarray, region: np.ndarray) -> float:
    return float(np.square(made - other)[region].mean()) if region.any() else 0.0


def _psnr(error: float) -> float:
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
