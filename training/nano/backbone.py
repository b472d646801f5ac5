"""The small video DiT, trained from nothing to make clips of the world out of descriptions: what Wan is to Kiwi-Edit.

Descriptions come through a text encoder as small as can be, a table of tokens, which is left behind afterwards.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import nn

from kiwi_core import vae as vae_ops
from kiwi_core.transformer import KiwiTransformer3DModel

from .. import architectures, flow_match
from . import feed, words

TOKENS = 64
"""Longest description."""


def new() -> KiwiTransformer3DModel:
    """A DiT with random weights and without Wan's own text embedding, which Kiwi-Edit passes by."""
    transformer = KiwiTransformer3DModel(**architectures.dit_config("nano"))
    transformer.condition_embedder.text_embedder = None
    return transformer


class Objective(nn.Module):
    """The loss of the published training, on clips with descriptions."""

    def __init__(self, transformer: KiwiTransformer3DModel, vae, tokenizer: Tokenizer, bf16: bool = True):
        super().__init__()
        self.transformer, self.bf16 = transformer, bf16
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self.table = nn.Embedding(tokenizer.get_vocab_size(), width)
        self.places = nn.Parameter(torch.randn(TOKENS, width) * 0.02)
        nn.init.normal_(self.table.weight, std=0.5)
        object.__setattr__(self, "vae", vae)  # not trained with it
        object.__setattr__(self, "tokenizer", tokenizer)

    def forward(self, clips: feed.Clips, device: torch.device) -> tuple[torch.Tensor, dict]:
        """Loss of a batch."""
        latents = vae_ops.encode(self.vae, feed.pixels(clips, device).to(self.vae.dtype)).float()
        ids = [self.tokenizer.encode(words.describe(scene), add_special_tokens=False).ids for scene in clips.scenes]
        padded = torch.tensor([(row + [0] * TOKENS)[:TOKENS] for row in ids], device=device)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (len(latents),))
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            context = self.table(padded) + self.places
            losses = flow_match.losses(self.transformer, None, None, latents, noise, timesteps, context)
        return losses.mean(), {}
