"""Painter by Qwen-Image-Edit, on diffusers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from string import Template

import numpy as np
from PIL import Image

from ...asking.loading import Portions, device_of, loading
from ..pairs.pair import SCENE, SUBJECT
from . import PROMPTS, Painting, closeup

_PIPELINES = ("QwenImageEditPlusPipeline", "QwenImageEditPipeline")
_FILES = {SUBJECT: "paint_subject.txt", SCENE: "paint_background.txt"}
_SIDES = 32
"""The picture's sides are multiples of this."""


class Painter:
    """Reference pictures that are made anew from the frame which shows most.

    Args:
        model: name on the Hugging Face hub, or folder, such as "Qwen/Qwen-Image-Edit-2509". revision: of the hub's.
            steps: of the sampler. guidance: how much the text counts; up to 1 is without guidance, and takes half the
            time. size: side in pixels of a square of the picture's area. device: without one, the first GPU where there
            is one. dtype: of the weights. offload: keep on the GPU what is at work alone, for less memory.
    """

    version, prompts, unkeyed = 1, tuple(_FILES.values()), ("device", "offload")

    def __init__(
        self, model: str, revision: str | None = None, steps: int = 40, guidance: float = 4.0, size: int = 1024,
        device: str | None = None, dtype: str = "bfloat16", offload: bool = False,
    ):  # fmt: skip
        for name, value, least in (("steps", steps, 1), ("size", size, 2 * _SIDES)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}.")
        with loading(model):
            import torch
            from diffusers import DiffusionPipeline

            kind = DiffusionPipeline.load_config(model, revision=revision).get("_class_name")
            if kind not in _PIPELINES:
                raise ValueError(f"it is a {kind}, and no {' or '.join(_PIPELINES)}")
            self.pipeline = DiffusionPipeline.from_pretrained(
                model, revision=revision, torch_dtype=getattr(torch, dtype), use_safetensors=True
            )
            if offload:
                self.pipeline.enable_model_cpu_offload(device=device_of(device))
            else:
                self.pipeline.to(device_of(device))
        self.pipeline.set_progress_bar_config(disable=True)
        self.steps, self.guidance, self.size = steps, guidance, size
        self.portions = Portions(model, most=1)

    def paint(self, paintings: Sequence[Painting]) -> list[np.ndarray]:
        return self.portions(lambda some: [self._painted(painting) for painting in some], paintings)

    def _painted(self, painting: Painting) -> np.ndarray:
        import torch

        shown = _shown(painting)
        ratio = 1.0 if painting.kind == SUBJECT else shown.shape[1] / shown.shape[0]
        width, height = (
            max(_SIDES, round(self.size * math.sqrt(part) / _SIDES) * _SIDES) for part in (ratio, 1 / ratio)
        )
        made = self.pipeline(
            image=Image.fromarray(shown), prompt=prompt(painting), width=width, height=height,
            negative_prompt=" " if self.guidance > 1 else None, true_cfg_scale=self.guidance,
            num_inference_steps=self.steps, generator=torch.Generator("cpu").manual_seed(painting.seed),
        )  # fmt: skip
        return np.asarray(made.images[0].convert("RGB"))


def prompt(painting: Painting) -> str:
    """What the model is told."""
    text = (PROMPTS / _FILES[painting.kind]).read_text(encoding="utf-8").strip()
    if not painting.variation:
        text = "\n".join(line for line in text.splitlines() if "$variation" not in line)
    name = re.sub(r"^(?:an?|the)\s+", "", _plain(painting.name), flags=re.IGNORECASE)
    return Template(text).substitute(name=name, variation=_plain(painting.variation))


def _plain(words: str) -> str:
    """Words of others without what models take for more than words."""
    return " ".join(re.sub(r"[<>|\[\]{}]", " ", words).split())


def _shown(painting: Painting) -> np.ndarray:
    if painting.kind != SUBJECT:
        return painting.target[closeup.clearest(painting.masks)]
    place = closeup.best(painting.masks)
    if place is None:
        raise ValueError("The subject is masked in no frame, so there is nothing to paint it from.")
    return np.ascontiguousarray(closeup.around(painting.target[place], painting.masks[place]))
