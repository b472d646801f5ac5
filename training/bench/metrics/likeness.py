"""What embeddings of frames tell: how alike neighbours are, and how well a prompt fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...asking.loading import loading
from ...refvie.backends import embedding
from ...refvie.frames import spread
from . import motion

Embed = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Pictures uint8 ``[H, W, 3]`` to float32 ``[N, D]``, each row of length one."""
_FRAMES = 16
"""Of a clip, the prompt is compared with so many at most."""


def consistency(frames: np.ndarray, embed: Embed) -> float | None:
    """Mean cosine of neighbouring frames of uint8 ``[T, H, W, 3]``; None for one frame."""
    firsts = motion.pairs(len(frames))
    if not len(firsts):
        return None
    places = np.union1d(firsts, firsts + 1)
    vectors = embed([frames[place] for place in places])
    one, other = (vectors[np.searchsorted(places, wanted)] for wanted in (firsts, firsts + 1))
    return float((one * other).sum(axis=1).mean())


class Texts:
    """Compares prompts with frames by a model that has learnt both, such as CLIP or SigLIP.

    Args:
        model: name on the Hugging Face hub, or folder. device: without one, the first GPU where there is one.

    Raises Unavailable for a model that cannot be had, ValueError for one that knows no texts.
    """

    def __init__(self, model: str, device: str | None = None):
        self.images = embedding.Embedder(model, device=device)
        if not hasattr(self.images.model, "get_text_features"):
            raise ValueError(f"The model {model} knows pictures but no texts; give one such as CLIP or SigLIP.")
        with loading(model):
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(model)

    def alignment(self, prompt: str, frames: np.ndarray) -> float:
        """Mean cosine of a prompt and frames uint8 ``[T, H, W, 3]``."""
        shown = self.images.embed([frames[place] for place in spread(len(frames), _FRAMES)])
        return float((shown @ self._vector(prompt)).mean())

    def _vector(self, prompt: str) -> np.ndarray:
        import torch

        model = self.images.model
        longest = model.config.text_config.max_position_embeddings
        # SigLIP has only ever seen texts of one length.
        padding = "max_length" if "siglip" in model.config.model_type else False
        inputs = self.tokenizer(
            [prompt], padding=padding, truncation=True, max_length=longest, return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            found = model.get_text_features(**inputs)
        found = found if torch.is_tensor(found) else found.pooler_output
        return torch.nn.functional.normalize(found.float(), dim=-1)[0].cpu().numpy()
