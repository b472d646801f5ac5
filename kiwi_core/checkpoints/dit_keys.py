"""Names of the DiT's tensors: original Wan (also ComfyUI's) and diffusers.

The two embedders stand beside the DiT. Under the original convention they are ``vae_condition.*`` (source) and
``ref_vae_condition.*`` (reference), as in the training checkpoints and in the ComfyUI single file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from .lazy import Tensor, apply, load

SOURCE_PREFIX, REFERENCE_PREFIX = "vae_condition.", "ref_vae_condition."
REFERENCE_FIRST = "ref_pad_first"

# (original, diffusers): whole names outside the blocks, then parts of names within a block. norm2 and norm3 swap.
_OUTSIDE = (
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
    ("patch_embedding", "patch_embedding"),
)
_INSIDE = (
    *(
        (f"{original}.{a}", f"{diffusers}.{b}")
        for original, diffusers in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for a, b in (
            *(("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")),
            *(("norm_q", "norm_q"), ("norm_k", "norm_k")),
        )
    ),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("norm3", "norm2"),
    ("modulation", "scale_shift_table"),
)
_BLOCK = re.compile(r"(blocks\.\d+\.)(.+)")


def _translate(name: str, source: int) -> str:
    block = _BLOCK.fullmatch(name)
    prefix, rest = block.groups() if block else ("", name)
    for pair in _INSIDE if block else _OUTSIDE:
        found = pair[source]
        if rest in (found, f"{found}.weight", f"{found}.bias"):
            return prefix + pair[1 - source] + rest[len(found) :]
    raise ValueError(f"{name} is not a tensor of a Wan video model; check that the file is the one meant.")


def to_diffusers(name: str) -> str:
    """Original Wan name to diffusers'; ValueError for any other."""
    return _translate(name, 0)


def to_original(name: str) -> str:
    """diffusers name to original Wan's; ValueError for any other."""
    return _translate(name, 1)


def is_original(names: Iterable[str]) -> bool:
    """Whether these are original Wan names (rather than diffusers')."""
    names = set(names)
    return "head.modulation" in names and "blocks.0.self_attn.q.weight" in names


def is_diffusers(names: Iterable[str]) -> bool:
    names = set(names)
    return "proj_out.weight" in names and "blocks.0.attn1.to_q.weight" in names


def with_time_axis(tensor: Tensor) -> Tensor:
    """A patch embedder's weight as Conv3d has it; anything else as it is. See :func:`join_embedders`."""
    return apply(lambda weight: weight.unsqueeze(2), tensor) if len(tensor.shape) == 4 else tensor


def _without_time_axis(tensor: Tensor) -> Tensor:
    return apply(lambda weight: weight.float().squeeze(2) if weight.ndim == 5 else weight.float(), tensor)


def split_embedders(state_dict: Mapping) -> tuple[dict, dict, dict, bool]:
    """Take a ComfyUI single file apart: DiT, source embedder, reference embedder, ``ref_pad_first``."""
    source, reference, dit = {}, {}, {}
    for name, tensor in state_dict.items():
        if name.startswith(REFERENCE_PREFIX):
            reference[name.removeprefix(REFERENCE_PREFIX)] = with_time_axis(tensor)
        elif name.startswith(SOURCE_PREFIX):
            source[name.removeprefix(SOURCE_PREFIX)] = with_time_axis(tensor)
        elif name != REFERENCE_FIRST:
            dit[name] = tensor
    first = state_dict.get(REFERENCE_FIRST)
    return dit, source, reference, first is not None and bool(load(first).item())


def join_embedders(dit: Mapping, source: Mapping, reference: Mapping, first: bool) -> dict:
    """The inverse: one state dict under original names, made so that the usual GGUF tools can convert it.

    They know a Wan model by its (here unused) text embedding, take one tensor of five dimensions, the patch
    embedding, and turn bfloat16 into raw bytes: the embedders are in float32, without their time axis of one frame.
    """
    return {
        **dit,
        **{SOURCE_PREFIX + name: _without_time_axis(tensor) for name, tensor in source.items()},
        **{REFERENCE_PREFIX + name: _without_time_axis(tensor) for name, tensor in reference.items()},
        **({REFERENCE_FIRST: torch.tensor([first], dtype=torch.uint8)} if reference else {}),
    }
