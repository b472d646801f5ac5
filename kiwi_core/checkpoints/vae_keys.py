"""Names and sizes of the Wan VAEs: original (also ComfyUI's) and diffusers' ``AutoencoderKLWan``.

Wan2.1 numbers its blocks flat (``encoder.downsamples.N``); Wan2.2 nests them in stages
(``encoder.downsamples.i.downsamples.j``), which diffusers calls ``is_residual``. Only names and shapes count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple

# Per-channel statistics of the published latents, by channel count: Wan2.1 (16) and Wan2.2 (48).
LATENTS_MEAN = {
    16: (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    48: (
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
        -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
        -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
        -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
        0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ),
}  # fmt: skip
LATENTS_STD = {
    16: (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ),
    48: (
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
        0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
        0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
        0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
        0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ),
}  # fmt: skip

# (original, diffusers) within one part.
_RESIDUAL = (
    ("residual.0", "norm1"),
    ("residual.2", "conv1"),
    ("residual.3", "norm2"),
    ("residual.6", "conv2"),
    ("shortcut", "conv_shortcut"),
)
_RESAMPLE = (("resample.1", "resample.1"), ("time_conv", "time_conv"))
_ATTENTION = (("norm", "norm"), ("to_qkv", "to_qkv"), ("proj", "proj"))
_ENDS = (
    ("conv1", "conv_in"),
    *((f"middle.0.{a}", f"mid_block.resnets.0.{b}") for a, b in _RESIDUAL),
    *((f"middle.1.{a}", f"mid_block.attentions.0.{b}") for a, b in _ATTENTION),
    *((f"middle.2.{a}", f"mid_block.resnets.1.{b}") for a, b in _RESIDUAL),
    ("head.0", "norm_out"),
    ("head.2", "conv_out"),
)
_OPTIONAL = ("shortcut", "time_conv")  # depends on the widths, and on which stages change the frame rate
_ADVICE = "choose a file such as wan2.2_vae.safetensors or wan_2.1_vae.safetensors"


class _Layout(NamedTuple):
    nested: bool  # Wan2.2
    stages: int
    blocks: int  # residual blocks in an encoder stage; the decoder has one more


def _part(root: str, unit: str, nested: bool, blocks: int, stage: int, block: int) -> str:
    """Name of a block; in a stage of ``blocks`` the one after the last is the resampling."""
    return f"{root}.{stage}.{unit}.{block}" if nested else f"{root}.{stage * (blocks + 1) + block}"


def _layout(names: Mapping, original: bool) -> _Layout:
    if original:
        root, unit, first = "encoder.downsamples", "downsamples", "residual.0.gamma"
    else:
        root, unit, first = "encoder.down_blocks", "resnets", "norm1.gamma"
    nested = f"{root}.0.{unit}.0.{first}" in names

    def number(part: Callable[[int], str]) -> int:
        return next(i for i in count() if f"{part(i)}.{first}" not in names)

    blocks = number(lambda block: _part(root, unit, nested, 0, 0, block))
    stages = number(lambda stage: _part(root, unit, nested, blocks, stage, 0))
    return _Layout(nested, stages, blocks)


def _modules(layout: _Layout) -> Iterator[tuple[str, str]]:
    """(original, diffusers) of every module that may hold tensors."""
    yield "conv1", "quant_conv"
    yield "conv2", "post_quant_conv"
    for half, old, new, sampler, blocks in (
        ("encoder", "downsamples", "down_blocks", "downsampler", layout.blocks),
        ("decoder", "upsamples", "up_blocks", "upsampler", layout.blocks + 1),
    ):
        for a, b in _ENDS:
            yield f"{half}.{a}", f"{half}.{b}"
        for stage in range(layout.stages):
            for block in range(blocks + (stage < layout.stages - 1)):  # the last stage keeps its size
                resamples = block == blocks
                original = _part(f"{half}.{old}", old, layout.nested, blocks, stage, block)
                if half == "encoder" and not layout.nested:
                    diffusers = _part(f"{half}.{new}", "", False, blocks, stage, block)
                elif resamples:
                    diffusers = f"{half}.{new}.{stage}.{sampler}{'' if layout.nested else 's.0'}"
                else:
                    diffusers = f"{half}.{new}.{stage}.resnets.{block}"
                for a, b in _RESAMPLE if resamples else _RESIDUAL:
                    yield f"{original}.{a}", f"{diffusers}.{b}"


def _rename(state_dict: Mapping, original: bool) -> dict:
    names = {}
    for pair in _modules(_layout(state_dict, original)):
        norm = pair[1].rpartition(".")[2].startswith("norm")
        for leaf in ("gamma",) if norm else ("weight", "bias"):
            names[f"{pair[not original]}.{leaf}"] = f"{pair[original]}.{leaf}"
    for name in names:
        if name not in state_dict and not any(part in name for part in _OPTIONAL):
            raise ValueError(f"This is not a complete Wan VAE: {name} is missing; {_ADVICE}.")
    for name in state_dict:
        if name not in names:
            raise ValueError(f"This is not a Wan VAE: {name} does not belong in one; {_ADVICE}.")
    return {names[name]: value for name, value in state_dict.items()}


def is_original_vae(keys: Iterable[str]) -> bool:
    """Whether these are the original names of a Wan VAE (rather than diffusers')."""
    return {"conv2.weight", "encoder.conv1.weight", "decoder.middle.0.residual.0.gamma"} <= set(keys)


def vae_to_diffusers(state_dict: Mapping) -> dict:
    """Original names to ``AutoencoderKLWan``'s, values untouched; ValueError for any other VAE."""
    return _rename(state_dict, original=True)


def vae_to_original(state_dict: Mapping) -> dict:
    """Exact inverse of :func:`vae_to_diffusers`."""
    return _rename(state_dict, original=False)


def vae_config(
    state_dict: Mapping,
    latents_mean: Sequence[float] | None = None,
    latents_std: Sequence[float] | None = None,
) -> dict:
    """Constructor arguments of ``AutoencoderKLWan``, read from the shapes.

    Args:
        state_dict: names of either kind to tensors, or to anything with a ``shape``, or to the shape itself.
        latents_mean, latents_std: one number a latent channel; the published ones if not given.

    Raises:
        ValueError: not a Wan VAE, or statistics that do not fit it or are needed.
    """
    if not is_original_vae(state_dict):
        state_dict = vae_to_original(state_dict)
    vae_to_diffusers(state_dict)  # refuses what is not whole
    layout = _layout(state_dict, original=True)

    def shape(name: str) -> tuple[int, ...]:
        return tuple(getattr(state_dict[name], "shape", state_dict[name]))

    def encoder_part(stage: int, block: int) -> str:
        return _part("encoder.downsamples", "downsamples", layout.nested, layout.blocks, stage, block)

    z_dim = shape("conv2.weight")[0]
    base_dim = shape("encoder.conv1.weight")[0]
    last = layout.blocks - 1
    dim_mult = [
        shape(f"{encoder_part(stage, last)}.residual.6.weight")[0] // base_dim
        for stage in range(layout.stages)
    ]
    resampled = range(layout.stages - 1)
    temporal = [f"{encoder_part(stage, layout.blocks)}.time_conv.weight" in state_dict for stage in resampled]
    patch_size = 2 if layout.nested else None  # only Wan2.2 folds 2 x 2 pixels into channels

    mean = LATENTS_MEAN.get(z_dim) if latents_mean is None else latents_mean
    std = LATENTS_STD.get(z_dim) if latents_std is None else latents_std
    if mean is None or std is None:
        raise ValueError(
            f"No latent statistics are known for a VAE of {z_dim} channels; give its latents_mean and std."
        )
    if len(mean) != z_dim or len(std) != z_dim:
        raise ValueError(
            f"The VAE has {z_dim} latent channels, latents_mean has {len(mean)} and latents_std {len(std)}; "
            f"take those of the VAE's own config.json."
        )
    return {
        "base_dim": base_dim,
        "decoder_base_dim": shape("decoder.conv1.weight")[0] // dim_mult[-1],
        "z_dim": z_dim,
        "dim_mult": dim_mult,
        "num_res_blocks": layout.blocks,
        "temperal_downsample": temporal,
        "latents_mean": [float(value) for value in mean],
        "latents_std": [float(value) for value in std],
        "is_residual": layout.nested,
        "in_channels": shape("encoder.conv1.weight")[1],
        "out_channels": shape("decoder.head.2.weight")[0],
        "patch_size": patch_size,
        "scale_factor_temporal": 2 ** sum(temporal),
        "scale_factor_spatial": 2 ** len(resampled) * (patch_size or 1),
    }
