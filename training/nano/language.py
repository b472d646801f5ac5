"""The small Qwen2.5-VL, trained from nothing to see the world and to say what an instruction asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn
from torch.utils.data import Dataset
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from kiwi_core import mllm

from .. import architectures
from . import edits, feed, words, world

_QUESTIONS = {"picture": "Describe the picture.", "video": "Describe the video."}
LENGTHS = (1, 1, 1, 5)
"""Frames of the clips that it is shown."""
PORTRAITS, SCENES = 0.4, 0.15
"""Shares of questions about a reference alone, and about a whole scene; all others are instructions."""
_ANSWERS = "<|im_start|>assistant\n"


def new(tokenizer: Tokenizer) -> Qwen2_5_VLModel:
    """A model with random weights."""
    return Qwen2_5_VLModel(Qwen2_5_VLConfig(**architectures.qwen_config("nano", tokenizer)))


@dataclass
class Batch:
    """Questions with answers, filled up to one length."""

    ids: torch.Tensor
    """int64 ``[B, L]``."""
    positions: torch.Tensor
    """int64 ``[3, B, L]``."""
    labels: torch.Tensor
    """int64 ``[B, L]``: the next token where it is of an answer, else -100."""
    pixels: torch.Tensor
    """float32 ``[N, 1176]`` of all pictures in order."""
    grids: torch.Tensor
    """int64 ``[pictures, 3]``."""


class QuestionFeed(Dataset):
    """Clips with questions: what is to be seen, and what will be after an instruction."""

    def __init__(self, tokenizer: Tokenizer, size: int, seed: int):
        self.tokenizer, self.size, self.seed = tokenizer, size, seed
        self.limits = architectures.limits("nano")

    def __getitem__(self, step: int) -> Batch:
        rows, pixels, grids = [], [], []
        for number in range(self.size):
            seed = feed.training_seed("language", self.seed, step, number)
            row, pictures = self._question(seed)
            rows.append(row)
            for patches, grid in pictures:
                pixels.append(patches)
                grids.append(grid)
        length = max(row[0].shape[0] for row in rows)
        ids, positions, labels = (
            torch.stack([F.pad(part, (0, length - part.shape[-1]), value=fill) for part in parts])
            for parts, fill in zip(zip(*rows), (0, 0, -100))
        )
        return Batch(ids, positions.transpose(0, 1), labels, torch.cat(pixels), torch.cat(grids))

    def _question(self, seed: int):
        rng = np.random.default_rng(seed)
        frames, question = int(rng.choice(LENGTHS)), rng.random()
        category = edits.REFERENCE_CATEGORIES[int(rng.random() < 0.25)] if question < PORTRAITS else None
        edit = edits.draw(category, seed) if category else feed.random_edit(seed, frames)
        reference = edit.reference_picture()
        if question < PORTRAITS:
            mode, prompt = "image", _QUESTIONS["picture"]
            shown = edit.reference
            answer = words.describe_ground(shown) if isinstance(shown, world.Ground) else words.describe_thing(shown)
            pictures = [mllm.patchify_source(reference[None], mode, self.limits)]
        else:
            mode = mllm.mode_of(frames, int(reference is not None))
            pictures = [mllm.patchify_source(world.render(edit.before), mode, self.limits)]
            prompt, answer = edit.prompt, words.outcome(edit)
            if question < PORTRAITS + SCENES and reference is None:
                prompt, answer = _QUESTIONS["video"], words.describe(edit.before)
            if reference is not None:
                pictures.append(mllm.patchify_reference(reference, self.limits))
        grids = [grid for _, grid in pictures]
        asked = mllm.assemble(self.tokenizer, prompt, mode, 0, grids, self.limits.tokens_per_second)
        said = [self.tokenizer.encode(text, add_special_tokens=False).ids for text in (_ANSWERS, f"{answer}<|im_end|>")]
        ids = torch.cat([asked.input_ids[0], torch.tensor(said[0] + said[1])])
        labels = torch.full_like(ids, -100)
        labels[-len(said[1]) - 1 : -1] = ids[-len(said[1]) :]
        # Text goes on counting from the highest position.
        following = torch.arange(len(said[0]) + len(said[1])) + int(asked.position_ids.max()) + 1
        positions = torch.cat([asked.position_ids[:, 0], following.expand(3, -1)], dim=1)
        return (ids, positions, labels), pictures


class _Patches(nn.Module):
    """The convolution over patches that do not overlap, as the product that it is."""

    def __init__(self, stock: nn.Module):
        super().__init__()
        self.stock = stock

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        weight = self.stock.proj.weight
        return F.linear(pixels.to(weight.dtype), weight.flatten(1))


class _Windows(nn.Module):
    """Attention in all windows of one length at once; transformers computes them one by one."""

    def __init__(self, stock: nn.Module):
        super().__init__()
        self.stock = stock

    def forward(self, hidden_states, cu_seqlens, position_embeddings=None, **kwargs) -> torch.Tensor:
        stock, lengths = self.stock, cu_seqlens.diff()
        qkv = stock.qkv(hidden_states).unflatten(-1, (3, stock.num_heads, -1))
        query, key, value = qkv.unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        own = lengths.repeat_interleave(lengths)  # of each token's window
        made = torch.empty_like(value)
        for length in lengths.unique().tolist():
            here = own == length
            parts = (part[here].unflatten(0, (-1, length)).transpose(1, 2) for part in (query, key, value))
            made[here] = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(0, 1)
        return stock.proj(made.flatten(1))


@contextmanager
def windows_at_once(visual: nn.Module) -> Iterator[None]:
    """Within it, a vision tower computes the same from many small pictures in few operations."""
    stock = visual.patch_embed, [block.attn for block in visual.blocks]
    visual.patch_embed = _Patches(stock[0])
    for block in visual.blocks:
        block.attn = _Windows(block.attn)
    try:
        yield
    finally:
        visual.patch_embed = stock[0]
        for block, attention in zip(visual.blocks, stock[1]):
            block.attn = attention


class Objective(nn.Module):
    """Cross-entropy of the answers.

    Args:
        pad_ids: tokens that pictures stand at. bf16: compute in bfloat16 by autocast.
    """

    def __init__(self, model: Qwen2_5_VLModel, pad_ids: list[int], bf16: bool = True):
        super().__init__()
        self.model, self.pad_ids, self.bf16 = model, pad_ids, bf16

    def forward(self, batch: Batch, device: torch.device) -> tuple[torch.Tensor, dict]:
        """Loss of a batch, and the share of tokens that are right."""
        ids, labels = batch.ids.to(device), batch.labels.to(device)
        text = self.model.language_model
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=self.bf16),
            windows_at_once(self.model.visual),
        ):
            features = self.model.visual(batch.pixels.to(device), grid_thw=batch.grids.to(device))
            features = getattr(features, "pooler_output", features)
            embeds = text.embed_tokens(ids)
            slots = sum(ids == kind for kind in self.pad_ids).bool()
            embeds = embeds.masked_scatter(slots.unsqueeze(-1), features.to(embeds.dtype))
            mask = torch.ones_like(ids)
            states = text(
                inputs_embeds=embeds, attention_mask=mask, position_ids=batch.positions.to(device), use_cache=False
            ).last_hidden_state
            counted = labels >= 0
            logits = states[counted] @ text.embed_tokens.weight.T
        logits, wanted = logits.float(), labels[counted]
        right = (logits.argmax(-1) == wanted).float().mean()
        return F.cross_entropy(logits, wanted), {"accuracy": right.detach()}


def pad_ids(tokenizer: Tokenizer) -> list[int]:
    """Tokens that pictures stand at."""
    return [tokenizer.token_to_id(f"<|{kind}_pad|>") for kind in ("image", "video")]
