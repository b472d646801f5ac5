"""Frames to latents and back on ComfyUI's VAE: whole if memory allows, else in tiles, with progress and cancel.

A tile is cut in space only and holds all frames: the Wan VAE is causal and carries its state over time, so a cut in
time would show. It works through the frames in small chunks, so of its memory only the clip itself grows with time.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..kiwi_core.tiles import Tile, assemble, even_tile, scaled, tile_count

logger = logging.getLogger(__name__)

EDGES = (1024, 768, 512, 384, 256, 128)
"""Sides of tiles in pixels, tried in turn where a whole frame is too much. A quarter of a tile overlaps the next."""
# How often a whole clip is on the card at once: joined out of chunks and brought into pixel order, or the reverse.
ENCODE_COPIES, DECODE_COPIES = 2, 3


@torch.inference_mode()
def encode(vae, frames: torch.Tensor, edge: int = 0) -> torch.Tensor:
    """Raw latent ``[1, C, F, h, w]`` of an IMAGE, as ``vae.encode`` gives it.

    Args:
        edge: longest side of the tiles in pixels; 0 takes as large ones as fit, or the whole frame.

    Raises:
        ValueError: a VAE for pictures. MemoryError: even the smallest tiles do not fit.
    """
    _check_video(vae)
    pixels = vae.vae_encode_crop_pixels(frames).movedim(-1, 0)
    count, height, width = pixels.shape[1:]
    factor = vae.spacial_compression_encode()

    def read(rows: slice, columns: slice) -> torch.Tensor:
        part = pixels[..., scaled(rows, factor), scaled(columns, factor)]
        taken = torch.empty((1, *part.shape), dtype=vae.vae_dtype, device=vae.device)
        for some, target in zip(part.split(16, dim=1), taken[0].split(16, dim=1)):
            target.copy_(vae.process_input(some))
        return vae.first_stage_model.encode(taken)

    latent_frames = (count - 1) // vae.temporal_compression_decode() + 1
    shape = (1, vae.latent_channels, latent_frames, height // factor, width // factor)
    return _walk(vae, "encoder", read, shape, 1, count, partial(encode_bytes, vae, count), edge)


@torch.inference_mode()
def decode(vae, latent: torch.Tensor, edge: int = 0) -> torch.Tensor:
    """IMAGE of a raw latent ``[B, C, F, h, w]``, clips one after the other, as the stock VAE Decode gives it.

    Args:
        edge: as in :func:`encode`.

    Raises:
        ValueError: another VAE's latent. MemoryError: even the smallest tiles do not fit.
    """
    _check_video(vae)
    if latent.ndim != 5 or latent.shape[1] != vae.latent_channels:
        raise ValueError(
            f"The latent is {list(latent.shape)} but this VAE decodes videos of {vae.latent_channels} channels; "
            "use the VAE that belongs to the model."
        )
    factor = vae.spacial_compression_decode()
    frames, height, width = latent.shape[2:]
    count = (frames - 1) * vae.temporal_compression_decode() + 1

    def clip(number: int) -> torch.Tensor:
        def read(rows: slice, columns: slice) -> torch.Tensor:
            part = latent[number : number + 1, ..., rows, columns]
            return vae.first_stage_model.decode(part.to(vae.device, vae.vae_dtype))

        shape = (1, vae.output_channels, count, height * factor, width * factor)
        video = _walk(vae, "decoder", read, shape, factor, frames, partial(decode_bytes, vae, frames), edge)
        return vae.process_output(video)[0].movedim(0, -1)

    clips = [clip(number) for number in range(len(latent))]
    return clips[0] if len(clips) == 1 else torch.cat(clips)


def encode_bytes(vae, frames: int, height: int, width: int) -> int:
    """Working memory on the card to encode so many frames of this size in pixels, by ComfyUI's estimate."""
    size = comfy.model_management.dtype_size(vae.vae_dtype)
    clip = vae.output_channels * frames * height * width * size
    return int(vae.memory_used_encode((1, 3, frames, height, width), vae.vae_dtype)) + ENCODE_COPIES * clip


def decode_bytes(vae, latent_frames: int, height: int, width: int) -> int:
    """Working memory on the card to decode so many latent frames to this size in pixels, by ComfyUI's estimate."""
    size = comfy.model_management.dtype_size(vae.vae_dtype)
    factor = vae.spacial_compression_decode()
    shape = (1, vae.latent_channels, latent_frames, height // factor, width // factor)
    frames = (latent_frames - 1) * vae.temporal_compression_decode() + 1
    clip = vae.output_channels * frames * height * width * size
    return int(vae.memory_used_decode(shape, vae.vae_dtype)) + DECODE_COPIES * clip


def tiles_for(
    height: int, width: int, factor: int, cost: Callable[[int, int], int], room: float, edge: int = 0
) -> list[Tile | None]:
    """Ways through a frame, the first one the largest that fits; the rest are smaller, for when it does not.

    Args:
        height, width: of the frame in latent units. factor: pixels of each.
        cost: bytes for a (height, width) in pixels. room: bytes there are.
        edge: longest side of the tiles; 0: by cost.

    Returns:
        None for the whole frame. Never empty: the smallest is tried even where it should not fit.
    """
    longest = max(height, width) * factor
    edges = [edge or longest, *(smaller for smaller in EDGES if smaller < (edge or longest))]
    tiles = []
    for number, side in enumerate(edges):
        units = max(2, side // factor)
        tile = None if side >= longest else even_tile(height, width, units, max(1, units // 4))
        size = (height, width) if tile is None else map(min, tile.size, (height, width))
        last = number == len(edges) - 1
        if tiles or edge or last or cost(*(units * factor for units in size)) <= room:
            tiles.append(tile)
    return tiles


def room_for(vae) -> float:
    """Bytes for the VAE's work once ComfyUI has moved all other models off the card."""
    management = comfy.model_management
    free = management.get_free_memory(vae.device)
    if management.is_device_cpu(vae.device):
        return free
    free -= vae.patcher.model_size() + management.extra_reserved_memory()
    loaded = (model for model in management.loaded_models() if model is not None)
    return free + sum(
        model.loaded_size()
        for model in loaded
        if model.load_device == vae.device and (model.offload_device != vae.device or model is vae.patcher)
    )


def _check_video(vae) -> None:
    vae.throw_exception_if_invalid()
    if vae.latent_dim != 3:
        raise ValueError("This VAE is for pictures; load the Wan VAE that belongs to the model.")


def _walk(vae, half: str, read, shape, factor: int, frames: int, cost, edge: int) -> torch.Tensor:
    """What ``read(rows, columns)`` gives of the whole frame, or of tiles, on ComfyUI's output device.

    Args:
        half: "encoder" or "decoder". frames: how many go into it.
        shape, factor: as in :func:`assemble`. cost: bytes for a (height, width) in pixels.
    """
    management, dtype = comfy.model_management, vae.vae_output_dtype()
    height, width = shape[3] // factor, shape[4] // factor
    unit = vae.spacial_compression_decode()
    on_device = getattr(management, "cuda_device_context", contextlib.nullcontext)
    for tile in tiles_for(height, width, unit, cost, room_for(vae), edge):
        size = (height, width) if tile is None else map(min, tile.size, (height, width))
        needed = cost(*(units * unit for units in size))
        management.load_models_gpu([vae.patcher], memory_required=needed, force_full_load=vae.disable_offload)

        def blend(*part: slice) -> Iterator[torch.Tensor]:
            yield read(*part).to(vae.output_device, torch.float32)

        try:
            tiles = 1 if tile is None else tile_count(height, width, tile)
            with on_device(vae.device), _watch(vae, half, frames, tiles) as progress:
                if tile is None:
                    return read(slice(0, height), slice(0, width)).to(vae.output_device, dtype, copy=True)
                return assemble(blend, shape, factor, tile, progress, vae.output_device).to(dtype)
        except Exception as error:
            management.raise_non_oom(error)
        # Only here, when the error and what it holds on to are gone.
        logger.warning("The VAE's %s ran out of memory; trying smaller tiles.", half)
    raise MemoryError(
        f"Memory ran out in the VAE's {half} even with small tiles; lower max_pixels or max_frames in Prepare Video "
        "(Kiwi-Edit), or close what else uses the card."
    )


@contextlib.contextmanager
def _watch(vae, half: str, frames: int, tiles: int) -> Iterator[Callable[[int, int], None]]:
    """Progress and cancel with every chunk of frames; yields what :func:`assemble` calls after a tile."""
    interrupted = comfy.model_management.throw_exception_if_processing_interrupted
    interrupted()
    bar = comfy.utils.ProgressBar(frames * tiles)
    module, hooks = getattr(vae.first_stage_model, half, None), []
    if module is not None:
        hooks.append(module.register_forward_pre_hook(lambda *_: interrupted()))
        hooks.append(module.register_forward_hook(lambda _, args, __: bar.update(args[0].shape[2])))

    def after_tile(done: int, _) -> None:
        interrupted()
        bar.update_absolute(done * frames)

    try:
        yield after_tile
    finally:
        for hook in hooks:
            hook.remove()


class KiwiEditDecode(io.ComfyNode):
    """Latents to frames."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditDecode",
            display_name="Decode (Kiwi-Edit)",
            category="video/kiwi-edit",
            description="Turns the edited latent into frames. It takes tiles by itself where the card is too small "
            "for whole frames, and smaller ones if memory runs out. VAE Decode works too.",
            search_aliases=["kiwi decode", "vae decode", "vae decode tiled", "latent to image"],
            inputs=[
                io.Latent.Input("latent"),
                io.Vae.Input("vae"),
                io.Int.Input(
                    "tile", default=0, min=0, max=4096, step=64, optional=True, advanced=True,
                    tooltip="Longest side of the tiles in pixels. 0: whole frames if they fit, else large tiles.",
                ),
            ],
            outputs=[io.Image.Output(display_name="frames")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, tile=None):
        return f"A tile of {tile} is too small; use at least 128, or 0." if tile and tile < 128 else True

    @classmethod
    def execute(cls, latent, vae, tile=0) -> io.NodeOutput:
        return io.NodeOutput(decode(vae, latent["samples"], tile))


NODES = [KiwiEditDecode]
