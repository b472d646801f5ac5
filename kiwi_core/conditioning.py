"""How the source clip and the reference pictures enter the video DiT.

The source is embedded like the noisy latents, scaled by the current noise level and added to them; so it fades
out as the edit becomes clean. References are embedded by a second layer and stand beside the video as further
frames of one token sequence. Both DiT back ends (diffusers', ComfyUI's) do this arithmetic here.
"""

from __future__ import annotations

import torch
from torch import nn


class PatchEmbedder(nn.Module):
    """Latents ``[B, C, F, h, w]`` to a token grid ``[B, dim, F, h / p, w / p]``. Starts at zero.

    Args:
        in_channels: latent channels. dim: width of the DiT. patch_size: (time, height, width).
        conv: class of the layer, so that ComfyUI's weight-casting layer can be used.
    """

    def __init__(self, in_channels: int, dim: int, patch_size=(1, 2, 2), conv=nn.Conv3d, **factory):
        super().__init__()
        self.patch_embedding = conv(in_channels, dim, kernel_size=patch_size, stride=patch_size, **factory)
        if conv is nn.Conv3d:
            nn.init.zeros_(self.patch_embedding.weight)
            nn.init.zeros_(self.patch_embedding.bias)

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.patch_embedding(latents)


def add_source(video: torch.Tensor, source: torch.Tensor | None, sigma: torch.Tensor) -> torch.Tensor:
    """Token grid of the noisy video plus ``sigma`` x that of the source.

    Args:
        video, source: ``[B, dim, F, h, w]``; a source of batch 1 serves the whole batch.
        sigma: the schedule's level, not rounded: ``[B]``, ``[1]`` or scalar.
    """
    if source is None:
        return video
    sigma = sigma.to(device=source.device, dtype=torch.float32).reshape(-1, 1, 1, 1, 1)
    return video + (source * sigma).to(video.dtype)


def join_reference(video: torch.Tensor, reference: torch.Tensor | None, first: bool) -> torch.Tensor:
    """Token sequence of the video and its references.

    Positions follow the sequence: appended references are frames F, F + 1, ...; references put ``first`` are frames
    0, 1, ... and shift the video. So a rotary table over all frames in order fits both.

    Args:
        video: ``[B, dim, F, h, w]``. reference: ``[B or 1, dim, R, h, w]`` or None. first: ``ref_pad_first``.

    Returns:
        ``[B, (F + R) h w, dim]``.
    """
    if reference is not None:
        reference = reference.to(video.dtype).expand(video.shape[0], -1, -1, -1, -1)
        video = torch.cat([reference, video] if first else [video, reference], dim=2)
    return video.flatten(2).transpose(1, 2).contiguous()


def drop_reference(tokens: torch.Tensor, num_reference_tokens: int, first: bool) -> torch.Tensor:
    """Undo :func:`join_reference` after the head: ``[B, N, D]`` to the video's tokens alone."""
    if num_reference_tokens == 0:
        return tokens
    return tokens[:, num_reference_tokens:] if first else tokens[:, :-num_reference_tokens]
