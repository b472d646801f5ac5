"""Embedder by an image model of transformers, such as DINOv2, SigLIP or CLIP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ...asking.loading import Portions, device_of, loading


class Embedder:
    """What pictures look like, as vectors.

    Args:
        model: name on the Hugging Face hub, or folder. revision: of the hub's. device: without one, the first GPU where
            there is one. dtype: such as "float32", "auto" for the weights' own.
    """

    version, prompts, unkeyed = 1, (), ("device",)

    def __init__(self, model: str, revision: str | None = None, device: str | None = None, dtype: str = "auto"):
        with loading(model):
            from transformers import AutoImageProcessor, AutoModel

            self.processor = AutoImageProcessor.from_pretrained(model, revision=revision)
            self.model = AutoModel.from_pretrained(
                model, revision=revision, dtype=dtype, device_map=device_of(device), use_safetensors=True
            ).eval()
        self.portions = Portions(model)

    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(self.portions(self._vectors, pictures))

    def _vectors(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        images = [Image.fromarray(picture) for picture in pictures]
        inputs = self.processor(images=images, return_tensors="pt").to(self.model.device, self.model.dtype)
        # Models that have also learnt texts have vectors that are meant for comparing.
        call = getattr(self.model, "get_image_features", self.model)
        with torch.inference_mode():
            found = call(**inputs)
        if not torch.is_tensor(found):
            pooled = getattr(found, "pooler_output", None)
            found = found.last_hidden_state.mean(dim=1) if pooled is None else pooled
        return torch.nn.functional.normalize(found.flatten(1).float(), dim=1).cpu().numpy()
