"""Measures an edit by all that needs no judge."""

from __future__ import annotations

import json
import logging
import math

import numpy as np

from kiwi_core import media

from ...refvie import backends
from ...refvie.backends import Unavailable
from ...refvie.frames import flicker
from ...refvie.pairs.pair import BACKGROUND, REMOVE
from .. import clips
from ..folder import FAILED, Edit, Measured
from ..items import Item
from . import colours, likeness, motion, preservation, references, region
from .table import METRICS, VERSION

logger = logging.getLogger(__name__)

_FLICKER_SIDE = 512


class Meter:
    """Numbers of edits that need no judge, see :data:`METRICS`.

    Args:
        images: an image model of transformers such as DINOv2, SigLIP or CLIP, for what frames and references look like,
            by its name on the Hugging Face hub or its folder; "" for a fixed descriptor of colours and edges, on the
            CPU, which sees no more than these.
        texts: a model that has learnt pictures with texts, such as CLIP or SigLIP, for the prompt; "" for none: without
            weights nothing honest can be said of how a picture fits a text, and those values are None.
        device: of the models; without one, the first GPU where there is one.

    Raises Unavailable or ValueError for models that cannot be used.
    """

    def __init__(self, images: str = "", texts: str = "", device: str | None = None):
        backend, options = ("transformers", {"model": images}) if images else ("classical", {})
        self.identity: str = json.dumps([VERSION, backends.identity("embed", backend, options), texts])
        """What the numbers are known by: only those of one identity are to be compared."""
        self._texts = likeness.Texts(texts, device) if texts else None
        if self._texts is not None and images == texts:
            self._embedder = self._texts.images
        else:
            self._embedder = backends.load("embed", backend, options | ({"device": device} if images else {}))
        self._lpips = preservation.Lpips(device)

    def measure(self, item: Item, edit: Edit) -> Measured:
        """All values of an item's edit; for one that cannot be measured, none and why.

        Raises Unavailable where memory is too small for the models, and nothing else.
        """
        if edit.status == FAILED or edit.path is None:
            return self._failed(item, edit.error or "There is no edit to measure.")
        try:
            found = self._values(item, edit)
        except Unavailable:
            raise
        except (ValueError, OSError) as error:
            return self._failed(item, " ".join(str(error).split()))
        except Exception as error:
            logger.warning("%s cannot be measured.", item.id, exc_info=True)
            return self._failed(item, f"It cannot be measured ({type(error).__name__}); the log tells more.")
        return Measured(item.id, {name: _plain(found.get(name)) for name in METRICS}, identity=self.identity)

    def _failed(self, item: Item, why: str) -> Measured:
        return Measured(item.id, {}, why, self.identity)

    def _values(self, item: Item, edit: Edit) -> dict[str, float | None]:
        both = clips.read(item.source, edit.path, edit.align)
        source, made = both.source, both.edit
        if not len(made):
            raise ValueError("No frame of the edit is of a time that the source has; check the rates of both.")
        where = region.of(item, both, edit.align)
        found: dict[str, float | None] = {
            "region_area": float(where.region.mean()), "region_known": float(where.given is not None),
            "flicker": _flicker(source, made),
        }  # fmt: skip
        if where.outside is not None:
            found["preservation_psnr"] = preservation.psnr(source, made, where.outside)
            found["preservation_ssim"] = preservation.ssim(source, made, where.outside)
            found["preservation_lpips"] = self._lpips(source, made, where.outside)
            found["colour_shift"], found["colour_drift"] = colours.shift_and_drift(source, made, where.outside)
        # Elsewhere than in a new background, or where something is gone, the edit should move whenever the source does.
        partly = where.category in (BACKGROUND, REMOVE)
        if where.outside is not None or not partly:
            found["frozen"], found["duplicated"] = motion.repeats(source, made, where.outside if partly else None)
        for name, of in (("consistency", self._consistency), ("warp_error", motion.warp_error)):
            after, before = of(made), of(source)
            found[name], found[f"{name}_gain"] = after, None if after is None or before is None else after - before
        if self._texts is not None:
            found["text_alignment"] = self._texts.alignment(item.prompt, made)
            found["text_gain"] = found["text_alignment"] - self._texts.alignment(item.prompt, source)
        if item.reference is not None:
            picture = np.asarray(media.load_image(item.reference))
            found |= references.compare(picture, where, self._embedder.embed)
        return found

    def _consistency(self, frames: np.ndarray) -> float | None:
        return likeness.consistency(frames, self._embedder.embed)


def _flicker(source: np.ndarray, edit: np.ndarray) -> float | None:
    if len(edit) < 3:
        return None
    step = -(-max(edit.shape[1:3]) // _FLICKER_SIDE)  # not averaged: that would take noise out
    return flicker(source[:, ::step, ::step], edit[:, ::step, ::step])


def _plain(value: float | None) -> float | None:
    """A number that JSON has."""
    return None if value is None or not math.isfinite(value) else float(value)
