"""The small VAE, in the layout of Wan2.1's, trained from nothing on clips of the world."""

from __future__ import annotations

import functools
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan
from torch import nn

from kiwi_core.checkpoints import vae_keys

from .. import architectures


def new() -> AutoencoderKLWan:
    """A VAE with random weights."""
    return architectures.new_vae("nano")


class _WholeResample(nn.Module):
    """A resampling layer that takes all frames at once and gives what the walk over chunks of frames gives."""

    def __init__(self, layer: autoencoder_kl_wan.WanResample):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, feat_cache=None, feat_idx=None) -> torch.Tensor:
        layer = self.layer
        if layer.mode == "upsample3d" and x.shape[2] > 1:
            # The first frame stays one; those after it become two each and never look at it.
            doubled = layer.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))
            doubled = doubled.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
            x = torch.cat([x[:, :, :1], doubled], dim=2)
        frames = x.shape[2]
        x = layer.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, frames)).transpose(1, 2)
        if layer.mode == "downsample3d" and frames > 1:
            x = torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)
        return x


class _FusedBlock(nn.Module):
    """A residual block whose norms and activations are one kernel each: most of the time goes there."""

    def __init__(self, layer: autoencoder_kl_wan.WanResidualBlock):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, feat_cache=None, feat_idx=None) -> torch.Tensor:
        layer = self.layer
        hidden = layer.conv1(_norm_silu()(x, layer.norm1.gamma))
        return layer.conv2(_norm_silu()(hidden, layer.norm2.gamma)) + layer.conv_shortcut(x)


@functools.cache
def _norm_silu():
    # One graph for each shape: four resolutions of pictures and clips.
    torch._dynamo.config.recompile_limit = 64

    @torch.compile(dynamic=False)
    def norm_silu(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        value = x.float()
        value = value * torch.rsqrt(value.square().mean(dim=1, keepdim=True) + 1e-12)
        return F.silu(value * gamma.float()).to(x.dtype)

    return norm_silu


@contextmanager
def whole_clips(vae: AutoencoderKLWan, fused: bool = False):
    """Within it, ``vae.encoder`` and ``vae.decoder`` take clips of 4k + 1 frames whole, in one pass with gradients.

    Args:
        fused: with compiled norms, which needs a C++ compiler (or Triton on a GPU).
    """
    stand_ins = {autoencoder_kl_wan.WanResample: _WholeResample}
    if fused:
        stand_ins[autoencoder_kl_wan.WanResidualBlock] = _FusedBlock
    places = [
        (module, name, child)
        for module in vae.modules()
        for name, child in module.named_children()
        if type(child) in stand_ins
    ]
    for module, name, child in places:
        module._modules[name] = stand_ins[type(child)](child)
    try:
        yield
    finally:
        for module, name, child in places:
            module._modules[name] = child


class Objective(nn.Module):
    """Reconstruction of clips, with latents kept near a normal distribution.

    Args:
        kl: weight of the divergence, a mean over latents. things: how much more what is in front weighs.
        bf16: compute in bfloat16 by autocast. fused: see :func:`whole_clips`.
    """

    def __init__(
        self, vae: AutoencoderKLWan, kl: float = 1e-4, things: float = 3.0, bf16: bool = True, fused: bool = True
    ):
        super().__init__()
        self.vae, self.kl, self.things, self.bf16, self.fused = vae, kl, things, bf16, fused

    def forward(self, video: torch.Tensor, things: torch.Tensor) -> tuple[torch.Tensor, dict]:
        """Loss of a batch, and numbers to log.

        Args:
            video: ``[B, 3, T, H, W]`` in -1..1. things: ``[B, 1, T, H, W]``, 1 where something is in front.
        """
        if video.device.type == "cpu":
            video = video.contiguous(memory_format=torch.channels_last_3d)  # twice as fast there
        with whole_clips(self.vae, self.fused), torch.autocast(video.device.type, torch.bfloat16, enabled=self.bf16):
            mean, log_variance = self.vae.quant_conv(self.vae.encoder(video)).float().chunk(2, dim=1)
            log_variance = log_variance.clamp(-20, 10)
            latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            made = self.vae.decoder(self.vae.post_quant_conv(latents)).float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss, numbers = _reconstruction(made, video, things, self.things)
        return loss + self.kl * divergence, numbers | {"divergence": divergence.detach()}


class DecoderObjective(nn.Module):
    """Reconstruction by the decoder alone, out of latents that are a little off, as those of an edit are.

    What the encoder gives stays as it is, and with it all that was cached and trained on it.

    Args:
        off: greatest standard deviation of what is added, in those of the latents. Others: see :class:`Objective`.
    """

    def __init__(
        self, vae: AutoencoderKLWan, off: float = 0.1, things: float = 3.0, bf16: bool = True, fused: bool = True
    ):
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        self.whole = (vae,)  # not a module of this one, whose parameters are what is trained
        self.off, self.things, self.bf16, self.fused = off, things, bf16, fused

    def forward(self, video: torch.Tensor, things: torch.Tensor) -> tuple[torch.Tensor, dict]:
        """As :meth:`Objective.forward`."""
        (vae,) = self.whole
        if video.device.type == "cpu":
            video = video.contiguous(memory_format=torch.channels_last_3d)
        with whole_clips(vae, self.fused), torch.autocast(video.device.type, torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                latents = vae.quant_conv(vae.encoder(video)).float().chunk(2, dim=1)[0]
                each = self.off * torch.rand(len(latents), 1, 1, 1, 1, device=latents.device)
                std = torch.tensor(vae_keys.LATENTS_STD[latents.shape[1]], device=latents.device).view(1, -1, 1, 1, 1)
                latents = latents + each * std * torch.randn_like(latents)
            made = self.decoder(self.post_quant_conv(latents)).float()
        return _reconstruction(made, video, things, self.things)


def _reconstruction(made, video, things, extra: float) -> tuple[torch.Tensor, dict]:
    """How far pixels are off, with those of things counted ``extra`` times more; and in dB."""
    error, weight = made - video, 1 + extra * things
    squared = error.square()
    psnr = -10 * (squared.detach().mean() / 4).log10()
    inside = -10 * ((squared.detach() * things).sum() / (4 * 3 * things.sum().clamp(min=1))).log10()
    return ((error.abs() + 2 * squared) * weight).mean(), {"psnr": psnr, "psnr_things": inside}


@torch.no_grad()
def fold_statistics(vae: AutoencoderKLWan, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Make the published statistics, which ComfyUI fixes, those of this VAE's latents, which have others.

    The layers around the latent are changed so that nothing else does.

    Args:
        mean, std: of the VAE's own latents, ``[z]``.
    """
    wanted_mean, wanted_std = (
        torch.tensor(values) for values in (vae_keys.LATENTS_MEAN[16], vae_keys.LATENTS_STD[16])
    )
    scale = wanted_std / std
    shift = wanted_mean - mean * scale
    before, after = vae.quant_conv, vae.post_quant_conv
    z = len(scale)
    before.weight[:z] *= scale.view(-1, 1, 1, 1, 1)
    before.bias[:z] = before.bias[:z] * scale + shift
    columns = after.weight[:, :, 0, 0, 0]
    after.bias -= columns @ (shift / scale)
    after.weight /= scale.view(1, -1, 1, 1, 1)
