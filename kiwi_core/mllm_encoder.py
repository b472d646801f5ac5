"""The language model and its connector on transformers' Qwen2.5-VL."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate import init_empty_weights
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

from . import mllm
from .checkpoints import qwen_keys
from .checkpoints.parts import fill
from .connector import DualConnector


class MLLMEncoder(torch.nn.Module):
    """Instruction, clip and reference to the DiT's context.

    Args:
        config: Qwen2.5-VL's, as a dict (the released ``processor/qwen_config.json``).
        connector: its queries and connectors. tokenizer: Qwen2.5's. limits: what the checkpoint was trained to see.
    """

    def __init__(self, config: Mapping, connector: DualConnector, tokenizer: Tokenizer, limits: mllm.VisionLimits):
        super().__init__()
        self.qwen_config = dict(config)
        self.model = Qwen2_5_VLModel(Qwen2_5_VLConfig(**copy.deepcopy(self.qwen_config)))  # which alters its parts
        self.connector = connector
        self.tokenizer = tokenizer
        self.limits = limits

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, torch.Tensor], config: Mapping, **parts) -> MLLMEncoder:
        """Build around Qwen weights under their published names (``model.*``, ``visual.*``), without copying them."""
        with init_empty_weights(include_buffers=False):
            encoder = cls(config, **parts)
        weights = {qwen_keys.to_transformers(name): tensor for name, tensor in state_dict.items()}
        fill(encoder.model, weights, "language model")
        return encoder.eval()

    def published_state_dict(self) -> dict[str, torch.Tensor]:
        """Qwen's weights under their published names."""
        return qwen_keys.published(self.model.state_dict())

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    def _apply(self, fn, recurse=True):
        # Rotary frequencies stay float32 in every dtype, as in the published runs.
        exact = {module: module.inv_freq for module in self.modules() if "inv_freq" in module._buffers}
        super()._apply(fn, recurse)
        for module, frequencies in exact.items():
            module.inv_freq = frequencies.to(module.inv_freq.device)
        return self

    def prepare(
        self,
        prompt: str,
        frames: np.ndarray,
        reference: np.ndarray | Sequence[np.ndarray] | None = None,
        rounding: str = "shipped",
        allow_empty: bool = False,
    ) -> mllm.MLLMInputs:
        """See :func:`kiwi_core.mllm.build_inputs`."""
        return mllm.build_inputs(
            self.tokenizer, prompt, frames, reference, self.connector.num_queries, self.limits, rounding, allow_empty
        )

    def encode_vision(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Features ``[tokens, D]`` of a picture or clip; see :class:`kiwi_core.mllm.Vision`."""
        features = self.model.visual(pixels.to(self.dtype), grid_thw=grid)
        return getattr(features, "pooler_output", features)  # transformers 5 wraps them

    def forward(self, inputs: mllm.MLLMInputs | Sequence[mllm.MLLMInputs]) -> torch.Tensor:
        """Context ``[B, N, dit_dim]`` of one sample, or of several whose contexts are of one length."""
        text = self.model.language_model

        def language_model(embeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            # An explicit mask keeps transformers 4.57 from taking the positions for packed sequences.
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
            states = text(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
            return states.last_hidden_state

        batch = [inputs] if isinstance(inputs, mllm.MLLMInputs) else inputs
        device = text.embed_tokens.weight.device  # the vision tower is elsewhere where its features are cached
        return mllm.run(batch, self.connector, text.embed_tokens, self.encode_vision, language_model, device)
