"""A drawn clip, and the shipped workflows with the random model in them, for tests and for trying things."""

import json
from fractions import Fraction
from pathlib import Path

import comfyui
import numpy as np
import random_model
from PIL import Image, ImageDraw

FRAMES, HEIGHT, WIDTH, RATE = 33, 128, 192, Fraction(24000, 1001)
NAMES = {
    "model_name": "model",
    "vae_name": "vae",
    "mllm_name": "mllm",
    "connector_name": "connector",
}


def draw_clip() -> np.ndarray:
    """A ball that bounces before hills at dusk: uint8 ``[33, 128, 192, 3]``."""
    scale = 4
    height, width = HEIGHT * scale, WIDTH * scale
    dusk = np.linspace((250, 190, 130), (70, 80, 140), height)[::-1]
    backdrop = Image.fromarray(np.repeat(dusk[:, None], width, axis=1).astype(np.uint8))
    x = np.linspace(0, 1, 129)
    frames = []
    for time_ in np.linspace(0, 1, FRAMES):
        frame = backdrop.copy()
        draw = ImageDraw.Draw(frame)
        for depth, colour in ((0.55, (90, 95, 120)), (0.7, (60, 80, 80)), (0.85, (35, 60, 45))):
            hills = depth + 0.06 * np.sin(9 * x / depth + 4 * depth + depth * time_)
            points = [(width * a, height * b) for a, b in zip(x, hills)]
            draw.polygon([*points, (width, height), (0, height)], fill=colour)
        centre = width * (0.12 + 0.76 * time_), height * (0.72 - 0.5 * abs(np.sin(3 * np.pi * time_)))
        draw.circle(centre, height * 0.11, fill=(215, 70, 50))
        draw.circle([side - height * 0.03 for side in centre], height * 0.035, fill=(245, 150, 120))
        frames.append(np.asarray(frame.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)))
    return np.stack(frames)


def workflow(name: str, inputs: dict[str, str]) -> dict:
    """A shipped workflow with the random model's files and these inputs (widget name -> value)."""
    prompt = json.loads((comfyui.REPO / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    values = {widget: Path(random_model.FILES[part]).name for widget, part in NAMES.items()} | inputs
    for node in prompt.values():
        node["inputs"] |= {widget: value for widget, value in values.items() if widget in node["inputs"]}
    return prompt
