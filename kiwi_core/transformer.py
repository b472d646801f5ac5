"""diffusers' Wan transformer, steered by the connector's context, a source clip and reference pictures."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from . import conditioning, schedule


class KiwiTransformer3DModel(WanTransformer3DModel):
    """The video DiT. Weights, configuration and hooks are :class:`diffusers.WanTransformer3DModel`'s.

    The text embedding is kept with the weights but not used: the context already has the width of the DiT.
    """

    # The published model runs in one dtype; diffusers' float32 islands would break its linears.
    _keep_in_fp32_modules = None

    def _apply(self, fn, recurse=True):
        # Rotary angles stay float32 in every dtype: in 16 bits far positions would fall together.
        exact = {name: buffer for name, buffer in self.rope.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            setattr(self.rope, name, buffer.to(getattr(self.rope, name).device))
        return self

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        source: torch.Tensor | None = None,
        source_sigma: torch.Tensor | None = None,
        reference: torch.Tensor | None = None,
        reference_first: bool = False,
        rounding: str = "shipped",
        return_dict: bool = True,
    ):
        """Predict the velocity (noise minus clean).

        Args:
            hidden_states: noisy latents ``[B, C, F, h, w]``.
            timestep: ``[B]`` or ``[1]``, 0..1000, not rounded.
            encoder_hidden_states: context ``[B, N, dim]``, or None (the video then attends to itself, as published).
            source: embedded source latents ``[B or 1, dim, F, h / p, w / p]``. source_sigma: its scale.
            reference: embedded reference latents ``[B or 1, dim, R, h / p, w / p]``.
            reference_first: ``ref_pad_first`` of the checkpoint.
            rounding: see :func:`kiwi_core.schedule.round_timestep`.

        Returns:
            ``Transformer2DModelOutput`` with ``sample`` of ``hidden_states``' shape.
        """
        batch, _, frames, height, width = hidden_states.shape
        dtype = hidden_states.dtype
        references = 0 if reference is None else reference.shape[2]

        whole = hidden_states[:, :1, :1].expand(-1, -1, frames + references, -1, -1)  # the rope reads the shape only
        rotary = self.rope(whole)
        video = conditioning.add_source(self.patch_embedding(hidden_states), source, source_sigma)
        grid = video.shape[2:]
        tokens = conditioning.join_reference(video, reference, reference_first)

        embedder = self.condition_embedder
        sinusoid = schedule.timestep_embedding(timestep, self.config.freq_dim, rounding)
        time = embedder.time_embedder(sinusoid.to(dtype)).expand(batch, -1)
        modulation = embedder.time_proj(embedder.act_fn(time)).unflatten(1, (6, -1))

        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, encoder_hidden_states, modulation, rotary)
            else:
                tokens = block(tokens, encoder_hidden_states, modulation, rotary)

        shift, scale = (self.scale_shift_table + time.unsqueeze(1)).chunk(2, dim=1)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).to(dtype)
        tokens = self.proj_out(tokens)
        tokens = conditioning.drop_reference(tokens, references * grid[1] * grid[2], reference_first)

        patch = self.config.patch_size
        sample = tokens.unflatten(1, grid).unflatten(-1, (*patch, -1)).permute(0, 7, 1, 4, 2, 5, 3, 6)
        sample = sample.reshape(batch, -1, frames, height, width)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
