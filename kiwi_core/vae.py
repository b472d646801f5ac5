"""Clips to normalised latents and back with diffusers' ``AutoencoderKLWan``, whole or in overlapping tiles.

The network is diffusers'; the walk over time is ours: nothing is clamped before tiles are blended, each chunk
of frames goes straight to its place in the result, and no feature cache outlives the call. Factors and number
of channels are in the VAE's ``config``: ``scale_factor_spatial``, ``scale_factor_temporal``, ``z_dim``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from diffusers.utils.accelerate_utils import apply_forward_hook

from .checkpoints.vae_keys import is_original_vae, vae_config, vae_to_diffusers
from .tiles import Progress, Tile, assemble, even_tile, scaled

# Larger frames are tiled. Decoding takes about 11 kB a pixel of a tile in bfloat16: 4.4 GB for the largest
# untiled frame, 9.8 GB for 704 x 1280 whole and 2.4 GB in tiles, at 1.42 times the work (overlap a quarter).
UNTILED_PIXELS = 480 * 832
TILE_PIXELS, OVERLAP_PIXELS = 512, 128


def load_vae(
    state_dict: Mapping[str, torch.Tensor],
    latents_mean: Sequence[float] | None = None,
    latents_std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> AutoencoderKLWan:
    """Build the VAE that these weights are of, with them in it, frozen.

    Args:
        state_dict: original or diffusers names; Wan2.1 or Wan2.2 layout.
        latents_mean, latents_std: one number a latent channel; the published ones if not given.

    Raises:
        ValueError: not a Wan VAE, or one whose tensors do not fit together.
    """
    config = vae_config(state_dict, latents_mean, latents_std)
    if is_original_vae(state_dict):
        state_dict = vae_to_diffusers(state_dict)
    with torch.device("meta"):
        vae = AutoencoderKLWan(**config)
    expected = vae.state_dict()
    for name in sorted(expected.keys() | state_dict.keys()):
        wanted, found = (
            list(tensors[name].shape) if name in tensors else "absent" for tensors in (expected, state_dict)
        )
        if wanted != found:
            raise ValueError(f"The VAE's {name} should be {wanted} and is {found}; fetch the file again.")
    vae.load_state_dict({name: tensor.to(dtype) for name, tensor in state_dict.items()}, assign=True)
    return vae.eval().requires_grad_(False)


def default_tile(vae: AutoencoderKLWan, height: int, width: int) -> Tile | None:
    """Tiles for frames of this many pixels: None up to 480 x 832, else equal ones of at most 512 x 512."""
    if height * width <= UNTILED_PIXELS:
        return None
    factor = vae.config.scale_factor_spatial
    return even_tile(height // factor, width // factor, TILE_PIXELS // factor, OVERLAP_PIXELS // factor)


def pixels(frames: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 ``[B, T, H, W, 3]`` to what :func:`encode` takes: float32 ``[B, 3, T, H, W]`` in -1..1."""
    return _centred(torch.as_tensor(frames).permute(0, 4, 1, 2, 3))


def _centred(levels: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in -1..1."""
    return levels.float() / 127.5 - 1


def normalize(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Raw latents ``[B, C, F, h, w]`` to the scale on which the DiT works."""
    mean, scale = _statistics(vae, latents)
    return (latents - mean) * scale


def denormalize(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Inverse of :func:`normalize`."""
    mean, scale = _statistics(vae, latents)
    return latents / scale + mean


@torch.no_grad()
@apply_forward_hook
def encode(
    vae: AutoencoderKLWan,
    /,
    video: torch.Tensor,
    tile: Tile | None = None,
    progress: Progress | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Normalised mean latents of a clip; nothing is drawn at random.

    Args:
        video: ``[B, 3, T, H, W]`` in -1..1, any float dtype, or uint8 frames ``[B, T, H, W, 3]``. Frames beyond the
            last 4k + 1 are dropped, as published.
        device: the VAE's execution device, where a few frames at a time are brought; the video's without.
        tile: encode in tiles of this size. progress: called with (tiles done, tiles).

    Returns:
        ``[B, C, (T - 1) // 4 + 1, H / factor, W / factor]`` in the VAE's dtype.

    Raises:
        ValueError: no frames, or sides that are no multiple of the spatial factor.
    """
    if video.dtype == torch.uint8:
        video = video.permute(0, 4, 1, 2, 3)
    device = video.device if device is None else device
    batch, _, frames, height, width = video.shape
    factor = vae.config.scale_factor_spatial
    if frames == 0:
        raise ValueError("The clip has no frames; give at least one.")
    if height < factor or width < factor or height % factor or width % factor:
        raise ValueError(
            f"The VAE cannot encode frames of {height} x {width}; make both sides multiples of {factor}."
        )

    def read(rows: slice, columns: slice) -> Iterator[torch.Tensor]:
        return _encode_frames(vae, video[..., scaled(rows, factor), scaled(columns, factor)], device)

    latent_frames = (frames - 1) // vae.config.scale_factor_temporal + 1
    shape = (batch, vae.config.z_dim, latent_frames, height // factor, width // factor)
    return assemble(read, shape, 1, tile, progress, device).to(vae.dtype)


@torch.no_grad()
@apply_forward_hook
def decode(
    vae: AutoencoderKLWan,
    /,
    latents: torch.Tensor,
    tile: Tile | None = None,
    progress: Progress | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Clip of normalised latents.

    Args:
        latents: ``[B, C, F, h, w]`` on the VAE's execution device, any float dtype.
        tile: decode in tiles of this size. progress: called with (tiles done, tiles).
        device: where the clip is put together, 12 bytes a pixel; that of the latents without.

    Returns:
        ``[B, 3, 4 (F - 1) + 1, H, W]`` in the VAE's dtype, about -1..1: as published, clamped only if tiled.

    Raises:
        ValueError: another VAE's latents.
    """
    batch, channels, frames, height, width = latents.shape
    config = vae.config
    if channels != config.z_dim:
        raise ValueError(
            f"The latents have {channels} channels, the VAE decodes {config.z_dim}; load the model's own VAE."
        )
    raw = denormalize(vae, latents).to(vae.dtype)

    def read(rows: slice, columns: slice) -> Iterator[torch.Tensor]:
        return _decode_frames(vae, raw[..., rows, columns])

    factor = config.scale_factor_spatial
    colours = config.out_channels // (config.patch_size or 1) ** 2
    frames = (frames - 1) * config.scale_factor_temporal + 1
    shape = (batch, colours, frames, height * factor, width * factor)
    video = assemble(read, shape, factor, tile, progress, raw.device if device is None else device)
    return (video if tile is None else video.clamp_(-1, 1)).to(vae.dtype)


def _statistics(vae: AutoencoderKLWan, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / standard deviation: inverted in float32, then in the latents' dtype, as published."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean.to(latents), (1.0 / std).to(latents)


def _feature_cache(half: torch.nn.Module) -> list:
    return [None] * sum(isinstance(module, WanCausalConv3d) for module in half.modules())


def _encode_frames(vae: AutoencoderKLWan, video: torch.Tensor, device: torch.device) -> Iterator[torch.Tensor]:
    """Normalised latents one frame at a time: of the first frame, then of each whole group of four."""
    cache, group = _feature_cache(vae.encoder), vae.config.scale_factor_temporal
    for stop in range(1, video.shape[2] + 1, group):
        frames = video[:, :, max(0, stop - group) : stop].to(device)
        frames = (_centred(frames) if frames.dtype == torch.uint8 else frames).to(vae.dtype)
        if vae.config.patch_size is not None:
            frames = patchify(frames, vae.config.patch_size)
        hidden = vae.encoder(frames, feat_cache=cache, feat_idx=[0])
        yield normalize(vae, vae.quant_conv(hidden).chunk(2, dim=1)[0])


def _decode_frames(vae: AutoencoderKLWan, raw: torch.Tensor) -> Iterator[torch.Tensor]:
    """Pixels of one latent frame at a time: one frame, then groups of four."""
    cache = _feature_cache(vae.decoder)
    for index in range(raw.shape[2]):
        hidden = vae.post_quant_conv(raw[:, :, index : index + 1])
        frames = vae.decoder(hidden, feat_cache=cache, feat_idx=[0], first_chunk=index == 0)
        yield frames if vae.config.patch_size is None else unpatchify(frames, vae.config.patch_size)
