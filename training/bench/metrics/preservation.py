"""How near an edit is to its source where nothing was asked for, over all such pixels of all frames.

Clips are uint8 ``[T, H, W, 3]``, ``outside`` is bool ``[T, H, W]`` with at least one pixel.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from pathlib import Path

import numpy as np

from ...asking.loading import device_of
from ...refvie.backends import pixels
from ...refvie.frames import spread

logger = logging.getLogger(__name__)

HIGHEST_PSNR = 100.0
"""dB that the same pixels have: JSON knows no infinity."""
_SIGMA, _RADIUS = 1.5, 5
"""Of SSIM's window in pixels, as its authors have it."""
_MEAN_FLOOR, _DEVIATION_FLOOR = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_FRAMES = 16
"""LPIPS looks at so many at most."""


def psnr(source: np.ndarray, edit: np.ndarray, outside: np.ndarray) -> float:
    """In dB, up to :data:`HIGHEST_PSNR`."""
    total = 0.0
    for before, after, mask in zip(source, edit, outside):
        apart = before[mask].astype(np.int32) - after[mask]
        total += float(np.square(apart).sum())
    if total == 0:
        return HIGHEST_PSNR
    return min(HIGHEST_PSNR, 10 * math.log10(255**2 * 3 * outside.sum() / total))


def ssim(source: np.ndarray, edit: np.ndarray, outside: np.ndarray) -> float:
    """Mean structural similarity of the luma, -1 to 1; windows see nothing but what is outside."""
    total = 0.0
    for before, after, mask in zip(source, edit, outside):
        if mask.any():
            total += float(_similarity(pixels.grey(before), pixels.grey(after), mask)[mask].sum(dtype=float))
    return total / int(outside.sum())


def _similarity(one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> np.ndarray:
    import cv2

    def blurred(values: np.ndarray) -> np.ndarray:
        side = 2 * _RADIUS + 1
        return cv2.GaussianBlur(values, (side, side), _SIGMA, borderType=cv2.BORDER_REFLECT_101)

    shown = mask.astype(np.float32)
    weights = np.maximum(blurred(shown), 1e-6)
    # About the middle of the range, since squares of large numbers lose what small differences are.
    one, other = (one - 127.5) * shown, (other - 127.5) * shown
    mean, mean_too = blurred(one) / weights, blurred(other) / weights
    spread_one = blurred(one * one) / weights - mean * mean
    spread_other = blurred(other * other) / weights - mean_too * mean_too
    shared = blurred(one * other) / weights - mean * mean_too
    mean, mean_too = mean + 127.5, mean_too + 127.5
    light = (2 * mean * mean_too + _MEAN_FLOOR) / (mean * mean + mean_too * mean_too + _MEAN_FLOOR)
    return light * (2 * shared + _DEVIATION_FLOOR) / (spread_one + spread_other + _DEVIATION_FLOOR)


class Lpips:
    """Learned perceptual distance by the package ``lpips``, where it and AlexNet's weights are on this machine."""

    def __init__(self, device: str | None = None):
        self.device, self._model, self._tried = device, None, False

    def __call__(self, source: np.ndarray, edit: np.ndarray, outside: np.ndarray) -> float | None:
        """0 for the same; None if there is no such model, which the log tells once."""
        if not self._tried:
            self._tried, self._model = True, self._loaded()
        if self._model is None:
            return None
        import torch

        total, count = 0.0, 0
        for place in spread(len(source), _FRAMES):
            mask = outside[place]
            # What the edit shows in its region is hidden: the network sees far.
            after = np.where(mask[..., None], edit[place], source[place])
            pair = torch.from_numpy(np.stack([source[place], after])).permute(0, 3, 1, 2).to(self._device) / 127.5 - 1
            with torch.inference_mode():
                found = self._model(pair[:1], pair[1:])[0, 0].float().cpu().numpy()
            total, count = total + float(found[mask].sum(dtype=float)), count + int(mask.sum())
        return total / count if count else None

    @property
    def _device(self) -> str:
        return device_of(self.device)

    def _loaded(self):
        if importlib.util.find_spec("lpips") is None:
            logger.info("LPIPS is not measured; it takes: pip install lpips torchvision.")
            return None
        import torch

        if not list(Path(torch.hub.get_dir(), "checkpoints").glob("alexnet-*.pth")):
            logger.warning("LPIPS is not measured: AlexNet's weights are not in %s/checkpoints.", torch.hub.get_dir())
            return None
        try:
            import lpips

            return lpips.LPIPS(net="alex", spatial=True, verbose=False).eval().to(self._device)
        except Exception as error:  # of every kind: the package's own, torchvision's, of the weights
            logger.warning("LPIPS is not measured, it cannot be loaded: %s", error)
            return None
