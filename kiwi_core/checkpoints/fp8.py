"""Weights in float8 (e4m3) with one scale a tensor, as ComfyUI marks and computes with them.

A layer ``X`` has ``X.weight`` in float8, ``X.weight_scale`` (one float32) and ``X.comfy_quant`` (JSON as uint8).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import torch

from .lazy import LazyTensor, Tensor, load

SCALE, SETTINGS = ".weight_scale", ".comfy_quant"
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
# Older files: another name for the scale, a mark for the whole file; the scales of inputs are not needed.
_OLD_SCALE, _OLD_MARK = ".scale_weight", "scaled_fp8"
_DROPPED = (SETTINGS, ".input_scale", ".scale_input")
# The matrices of the DiT's blocks and of the language model's layers, which are nearly all of both.
_QUANTISED = re.compile(r"(blocks|model\.layers)\.\d+\..+\.weight")


@dataclass(frozen=True, eq=False)
class ScaledTensor(LazyTensor):
    """A scaled float8 weight; ``load`` gives it in float32."""

    weight: Tensor
    scale: Tensor


def join_scales(tensors: dict[str, Tensor], path) -> dict[str, Tensor]:
    """The tensors of a file with each scaled weight as one :class:`ScaledTensor`; ``path`` is what an error names.

    ValueError if it is quantised in another way.
    """
    scales, joined = {}, {}
    for name, tensor in tensors.items():
        if name.endswith((SCALE, _OLD_SCALE)):
            scales[name.rpartition(".")[0] + ".weight"] = tensor
        elif name != _OLD_MARK and not name.endswith(_DROPPED):
            joined[name] = tensor
    for name, scale in scales.items():
        weight = joined.get(name)
        if weight is None or weight.dtype not in _FLOAT8 or scale.shape.numel() != 1:
            raise ValueError(
                f"{path} is quantised in a way that cannot be read here ({name}); choose its fp8 or bf16 version."
            )
        joined[name] = _scaled(weight, scale)
    return joined


def split_scale(name: str, tensor: ScaledTensor) -> dict[str, Tensor]:
    """The tensors of a file that a scaled weight stands for."""
    layer, format = name.removesuffix(".weight"), str(tensor.weight.dtype).removeprefix("torch.")
    settings = json.dumps({"format": format}).encode()
    return {
        name: tensor.weight,
        layer + SCALE: tensor.scale,
        layer + SETTINGS: torch.frombuffer(bytearray(settings), dtype=torch.uint8),
    }


def is_quantised(name: str, shape: torch.Size) -> bool:
    """Whether a float8 file holds this weight in float8."""
    return len(shape) == 2 and _QUANTISED.fullmatch(name) is not None


def quantise(tensor: Tensor) -> ScaledTensor:
    """A weight in scaled float8. Making the weight keeps its scale, so that writing both reads it once."""
    kept: list[torch.Tensor] = []

    def make_weight(weight: torch.Tensor) -> torch.Tensor:
        kept[:] = [_scale_of(weight)]
        scaled = weight.to(torch.float32, copy=True).div_(kept[0])
        return scaled.clamp_(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)

    def make_scale() -> torch.Tensor:
        return kept[0] if kept else _scale_of(load(tensor))

    sources = _sources(tensor)
    weight = LazyTensor(tensor.shape, torch.float8_e4m3fn, lambda: make_weight(load(tensor)), sources)
    return _scaled(weight, LazyTensor(torch.Size(()), torch.float32, make_scale, sources))


def _scaled(weight: Tensor, scale: Tensor) -> ScaledTensor:
    def dequantise() -> torch.Tensor:
        return load(weight).float() * load(scale).float().reshape(())

    return ScaledTensor(weight.shape, torch.float32, dequantise, _sources(weight) | _sources(scale), weight, scale)


def _sources(tensor: Tensor) -> frozenset:
    return tensor.sources if isinstance(tensor, LazyTensor) else frozenset()


def _scale_of(weight: torch.Tensor) -> torch.Tensor:
    low, high = weight.aminmax()
    largest = torch.maximum(-low, high).float()
    if not largest.isfinite():
        raise ValueError("A weight is not finite, so it has no float8 form; the file is damaged, download it again.")
    return largest / _LARGEST if largest else torch.ones(())
