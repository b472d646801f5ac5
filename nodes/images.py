"""Between ComfyUI's IMAGE (float 0..1, ``[T, H, W, 3 or 4]``) and the uint8 frames of kiwi_core."""

import comfy.model_management
import numpy as np
import torch

from ..kiwi_core import geometry


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """Frames ``[T, H, W, 3]``; an alpha channel is composited on white."""
    if image.shape[-1] == 4:
        colour, alpha = image[..., :3], image[..., 3:]
        image = colour * alpha + (1 - alpha)
    return (image[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def from_uint8(frames: np.ndarray) -> torch.Tensor:
    """IMAGE of uint8 frames."""
    image = torch.from_numpy(np.ascontiguousarray(frames)).to(comfy.model_management.intermediate_device())
    return image.float() / 255


def check_length(edited: int, original: int) -> None:
    """ValueError for frames that would be cut off: an edit has as many as its source, rounded up to 4k+1."""
    if edited > geometry.padded_frame_count(original):
        raise ValueError(
            f"The edit has {edited} frames and the original {original}; of a batch of variations, choose one with "
            "Latent From Batch before decoding."
        )
