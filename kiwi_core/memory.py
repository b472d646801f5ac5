"""How much memory an edit takes, and what to change when it is too much."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch

logger = logging.getLogger(__name__)

_ADVICE = {
    "the language model": "call enable_model_cpu_offload()",
    "encoding the video": "call enable_vae_tiling(), or lower height and width",
    "sampling": "call enable_group_offload(...) or enable_model_cpu_offload(), or lower num_frames, height and width",
    "decoding the video": "call enable_vae_tiling() and enable_model_cpu_offload()",
}


def weight_bytes(module: torch.nn.Module | None) -> int:
    """Bytes of a module's parameters."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.parameters()) if module is not None else 0


def dit_bytes(transformer, height: int, width: int, num_frames: int, references: int, spatial_factor: int) -> int:
    """Working memory of one DiT step, of the tensors that live at once in a block (without attention's workspace).

    A block holds its input, the float32 normalised copy, queries, keys, values and output, or the wide feed-forward.
    """
    config = transformer.config
    rows, columns = (side // spatial_factor // 2 for side in (height, width))
    tokens = ((num_frames - 1) // 4 + 1 + references) * rows * columns
    dim = config.num_attention_heads * config.attention_head_dim
    size = next(transformer.parameters()).element_size()
    return tokens * (dim * (2 * 4 + 5 * size) + 2 * config.ffn_dim * size)


def vae_bytes(vae, height: int, width: int, tile, encode: bool) -> int:
    """Working memory of one VAE step at full resolution: four frames, of which about four copies live at once."""
    config = vae.config
    factor = config.scale_factor_spatial
    if tile is not None:
        height, width = (min(side, edge * factor) for side, edge in zip((height, width), tile.size))
    channels = config.base_dim if encode else config.decoder_base_dim or config.base_dim
    pixels = height * width // (config.patch_size or 1) ** 2
    return 4 * 4 * pixels * channels * next(vae.parameters()).element_size()


def estimate(pipeline, height: int, width: int, num_frames: int, references: int = 0) -> dict[str, int]:
    """Bytes by phase, each with the weights that it needs: a phase's peak where the other components are offloaded.

    Args:
        height, width: pixels. num_frames: 4k + 1. references: how many pictures.
    """
    vae, transformer = pipeline.vae, pipeline.transformer
    tile = pipeline.tile_for(height, width)
    factor = vae.config.scale_factor_spatial
    return {
        "encode": weight_bytes(vae) + vae_bytes(vae, height, width, tile, encode=True),
        "mllm": weight_bytes(pipeline.mllm_encoder),
        "sample": weight_bytes(transformer) + dit_bytes(transformer, height, width, num_frames, references, factor),
        "decode": weight_bytes(vae) + vae_bytes(vae, height, width, tile, encode=False),
    }


def report(pipeline, height: int, width: int, num_frames: int, references: int = 0) -> dict[str, int]:
    """Log the estimate, as a warning if the device has less free memory than the largest phase."""
    phases = estimate(pipeline, height, width, num_frames, references)
    text = ", ".join(f"{phase} {size / 2**30:.1f} GiB" for phase, size in phases.items())
    logger.info("%dx%d, %d frames: about %s.", width, height, num_frames, text)
    device = pipeline._execution_device
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        free -= torch.cuda.memory_allocated(device)
        vae = pipeline.vae
        modules = {"encode": vae, "mllm": pipeline.mllm_encoder, "sample": pipeline.transformer, "decode": vae}
        if any(phases[phase] - _weights_there(module) > free for phase, module in modules.items()):
            logger.warning("This edit may not fit (%s; %.1f GiB free).", text, free / 2**30)
    return phases


def _weights_there(module: torch.nn.Module) -> int:
    """Bytes of a module's weights that need no more room: on the device already, or brought there layer by layer."""
    on_device = next(module.parameters()).device.type != "cpu"
    return weight_bytes(module) if on_device or is_offloaded_by_group(module) else 0


def is_offloaded_by_group(module: torch.nn.Module) -> bool:
    """Whether diffusers brings a module's layers to the device in groups."""
    hooks = (getattr(part, "_diffusers_hook", None) for part in module.modules())
    return any(hook is not None and hook.get_hook("group_offloading") is not None for hook in hooks)


@contextlib.contextmanager
def explain(phase: str) -> Iterator[None]:
    """Turn an out-of-memory error of a phase into one that names the setting to change."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:  # of every device; torch 2.4 has no shorter name
        raise MemoryError(f"Out of memory in {phase}: {_ADVICE[phase]}.") from error
