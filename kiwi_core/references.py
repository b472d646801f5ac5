"""Reference pictures as the model was trained to see them: an object on white, or a whole scene."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter


def cut_out(image: np.ndarray, mask: np.ndarray, margin: float = 0.1, feather: float = 2.0) -> np.ndarray:
    """A subject on white, cropped to it; neither resized nor stretched.

    Args:
        image: uint8 ``[H, W, 3]``. mask: float 0..1 ``[H, W]``, 1 where the subject is.
        margin: white around the subject, as a part of its longer side.
        feather: width of the soft edge in pixels. It lies inside the mask, so that nothing of the old background shows.

    Returns:
        uint8 ``[h, w, 3]``.

    Raises:
        ValueError: a mask of another size, without a subject, or with one thinner than the feather.
    """
    height, width = image.shape[:2]
    if mask.shape != (height, width):
        raise ValueError(
            f"The mask is {mask.shape[1]}x{mask.shape[0]} but the picture {width}x{height}; make a mask of its size."
        )
    if not (mask >= 0.5).any():
        raise ValueError("The mask holds no subject; paint it white over the subject.")
    alpha = mask.astype(np.float32)
    if feather > 0:
        blurred = Image.fromarray((alpha * 255).round().astype(np.uint8)).filter(ImageFilter.GaussianBlur(feather / 2))
        alpha = np.minimum(alpha, np.clip(np.asarray(blurred) / 127.5 - 1, 0, 1))
    if not (alpha >= 0.5).any():
        raise ValueError(f"The subject is thinner than the soft edge of {feather:g} pixels; lower the feather.")

    rows, columns = ((alpha > 1 / 255).any(axis=axis).nonzero()[0] for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    alpha = alpha[box][..., None]
    subject = (image[box] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    border = round(margin * max(subject.shape[:2]))
    return np.pad(subject, ((border, border), (border, border), (0, 0)), constant_values=255)


def crop_to_aspect(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The largest part from the middle of ``[H, W, 3]`` with the shape of ``height`` x ``width``."""
    rows, columns = image.shape[:2]
    kept_rows = min(rows, max(1, round(columns * height / width)))
    kept_columns = min(columns, max(1, round(rows * width / height)))
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    return image[top : top + kept_rows, left : left + kept_columns]
