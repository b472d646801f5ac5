"""Sizes and frame counts that the model accepts, and getting there and back."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 720 * 1280
MAX_FRAMES = 81


def fit_size(height: int, width: int, max_pixels: int = MAX_PIXELS, multiple: int = 32) -> tuple[int, int]:
    """Largest size of about this shape that keeps to the pixel budget and is not larger than the input.

    Sides are floored to ``multiple`` as in training (720 x 1280 becomes 704 x 1280) and are at least one multiple.
    """
    scale = min(1.0, math.sqrt(max_pixels / (height * width)))
    return tuple(max(multiple, int(side * scale + 1e-6) // multiple * multiple) for side in (height, width))


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple not below ``value``."""
    return -(-value // multiple) * multiple


def padded_frame_count(num_frames: int) -> int:
    """Smallest 4k + 1 not below ``num_frames``: what the VAE's time compression needs."""
    return (num_frames + 2) // 4 * 4 + 1 if num_frames > 1 else 1


def latent_frame_count(num_frames: int) -> int:
    """Latent frames of a 4k + 1 clip."""
    return (num_frames - 1) // 4 + 1


def pad_frames(frames: np.ndarray, count: int) -> np.ndarray:
    """Repeat the last frame until there are ``count``; ``[T, H, W, C]``."""
    missing = count - len(frames)
    return frames if missing <= 0 else np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])


def resize_frames(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Lanczos-resize uint8 ``[T, H, W, 3]``; the aspect is not kept."""
    if frames.shape[1:3] == (height, width):
        return frames
    resized = np.empty((len(frames), height, width, 3), dtype=np.uint8)
    for target, frame in zip(resized, frames):
        target[:] = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))
    return resized


def letterbox(image: Image.Image, height: int, width: int) -> Image.Image:
    """Fit a reference into the frame without stretching, centred on white, as the model was trained to see it."""
    return ImageOps.pad(image, (width, height), method=Image.Resampling.BICUBIC, color=(255, 255, 255))
