"""The files that the shipped workflows name, so that they run as they are: a random model, clips, pictures."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import random_model
import sample_graph
import torch
from PIL import Image

from kiwi_core import media
from kiwi_core.checkpoints import files

MODEL = "kiwi-edit-5b-instruct-reference-diffusers"
FRAMES = 9
LONG_FRAMES = 97


def place(base: Path) -> None:
    """Put them all into ComfyUI's base directory ``base``."""
    models, inputs = base / "models", base / "input"
    with tempfile.TemporaryDirectory() as folder:
        random_model.write(folder)
        shutil.copytree(Path(folder) / "released", models / "diffusers" / MODEL, dirs_exist_ok=True)
    files.save_tensors(_lora(), models / "loras" / "kiwi_edit_style.safetensors")

    clip = sample_graph.draw_clip()
    small, there_and_back = clip[:FRAMES, ::2, ::2], [*range(len(clip)), *range(len(clip) - 2, 0, -1)]
    (inputs / "clips").mkdir(parents=True, exist_ok=True)
    media.save_video(inputs / "clip.mp4", small, sample_graph.RATE)
    for name, frames in {"first": small, "second": small[::-1]}.items():
        media.save_video(inputs / "clips" / f"{name}.mp4", frames, sample_graph.RATE)
    long = [clip[there_and_back[index % len(there_and_back)], ::2, ::2] for index in range(LONG_FRAMES)]
    media.save_video(inputs / "long_clip.mp4", np.stack(long), sample_graph.RATE)
    # The ball is all that is red.
    red = (small[..., 0].astype(int) - small[..., 2] > 100) & (small[..., 1] < 100)
    mask = np.repeat(255 * red[..., None].astype(np.uint8), 3, axis=-1)
    media.save_video(inputs / "mask.mp4", mask, sample_graph.RATE)
    pictures = {"picture": clip[0], "reference": clip[16, 8:104, 80:176], "background": clip[32, :, ::-1]}
    for name, picture in pictures.items():
        image = Image.fromarray(picture)
        image.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS).save(inputs / f"{name}.png")


def _lora() -> dict[str, torch.Tensor]:
    """A LoRA for the random model's first block."""
    generator = torch.Generator().manual_seed(0)
    key = "diffusion_model.blocks.0.self_attn.q"
    return {f"{key}.{name}.weight": torch.randn(shape, generator=generator) / 16
            for name, shape in {"lora_A": (4, 256), "lora_B": (256, 4)}.items()}  # fmt: skip
