"""What an edit will take on a card, by the estimates that ComfyUI itself plans with. Nothing is run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import comfy.model_management
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..kiwi_core import geometry, windows
from ..kiwi_core.mllm import MAX_FRAMES as SEEN_FRAMES
from ..kiwi_core.mllm import VisionLimits, build_inputs
from . import dit
from .loaders import KiwiConnector, KiwiMLLM
from .vae import decode_bytes, encode_bytes, tiles_for

GIB = 2**30
PUBLISHED_QUERIES = {"image": 256, "video": 512, "ref": 768}


@dataclass(frozen=True)
class Phase:
    """One phase of an edit; ComfyUI moves the models of the others off the card when it needs the room. Bytes."""

    name: str
    weights: int
    working: int
    """Beside the weights, at the tiles that are planned."""
    layer: int
    """Of the largest layers that are there at once where weights are streamed from RAM."""
    card: int
    """Memory of the device on which it runs."""
    on_cpu: bool = False
    how: str = ""

    @property
    def peak(self) -> int:
        """With all weights of the phase on the card."""
        return self.weights + self.needed

    @property
    def least(self) -> int:
        """With all weights streamed."""
        return min(self.weights, self.layer) + self.needed

    @property
    def needed(self) -> int:
        """What ComfyUI keeps free of weights: never less than its minimum, some of it for others on the card."""
        management = comfy.model_management
        return int(max(management.minimum_inference_memory(), self.working + management.extra_reserved_memory()))


def phases(
    model, vae, mllm, connector, width, height, frames, references, card, window_frames=windows.FRAMES
) -> list[Phase]:
    """The phases of one edit, in order.

    Args:
        model, vae: MODEL and VAE. mllm, connector: or None; without an MLLM its phase is left out.
        width, height: pixels that the VAE takes. frames: 4k + 1. references: how many pictures.
        card: bytes to plan for; 0 for what each phase's own device has.
        window_frames: longer clips are sampled in windows of so many; 0: as a whole.
    """
    factor = vae.spacial_compression_decode()
    rows, columns = height // factor, width // factor
    count = geometry.latent_frame_count(frames)

    def device_of(patcher) -> tuple[int, bool]:
        device = patcher.load_device
        return card or int(comfy.model_management.get_total_memory(device)), not card and device.type == "cpu"

    def vae_phase(name: str, cost) -> Phase:
        weights, (there, on_cpu) = vae.patcher.model_size(), device_of(vae.patcher)
        room = there - weights - comfy.model_management.extra_reserved_memory()
        tile = tiles_for(rows, columns, factor, cost, room)[0]
        size = (rows, columns) if tile is None else tuple(map(min, tile.size, (rows, columns)))
        tall, wide = (units * factor for units in size)
        how = "" if tile is None else f"in tiles of {wide}x{tall}"
        return Phase(name, weights, cost(tall, wide), _largest_layers(vae.patcher), there, on_cpu, how)

    def latent(length: int) -> torch.Tensor:
        return torch.empty((1, vae.latent_channels, length, rows, columns), device="meta")

    window = windows.latent_sizes(window_frames, 0)[0] if window_frames else count
    window = count if count <= window else window + windows.ANCHOR
    conds = {dit.REFERENCES: [latent(1)] * references} if references else {}
    shapes = {name: [shape] for name, shape in model.model.extra_conds_shapes(**conds).items()}
    working = int(model.model.memory_required(list(latent(window).shape), cond_shapes=shapes))
    sample = Phase("sample", model.model_size(), working, _largest_layers(model), *device_of(model))
    read = []
    if mllm is not None:
        found = _mllm_sizes(mllm, connector, width, height, frames, references)
        read = [Phase("mllm", *found, _largest_layers(mllm.patcher), *device_of(mllm.patcher))]
    return [
        vae_phase("encode", partial(encode_bytes, vae, frames)),
        *read,
        sample,
        vae_phase("decode", partial(decode_bytes, vae, count)),
    ]


def _mllm_sizes(mllm, connector, width: int, height: int, frames: int, references: int) -> tuple[int, int]:
    """Bytes of weights and of work."""
    queries, limits, weights = PUBLISHED_QUERIES, {}, mllm.patcher.model_size()
    if connector is not None:
        queries, limits = connector.patcher.model.num_queries, connector.limits
        weights += connector.patcher.model_size()
    blank = np.zeros((min(frames, SEEN_FRAMES), height, width, 3), dtype=np.uint8)
    inputs = build_inputs(mllm.tokenizer, "-", blank, blank[0] if references else None, queries, VisionLimits(**limits))
    return weights, int(mllm.patcher.model.activation_bytes(inputs))


def _largest_layers(patcher) -> int:
    """Two of the largest layer: one at work, one on its way."""
    sizes = (
        sum(tensor.numel() * tensor.element_size() for tensor in module.parameters(recurse=False))
        for module in patcher.model.modules()
    )
    return 2 * max(sizes, default=0)


def advice(phase: Phase, pixels: int) -> tuple[bool, str]:
    """Whether a phase fits, and how, in a few words."""
    how, card = [phase.how] if phase.how else [], phase.card
    if phase.on_cpu and phase.peak <= card:
        return True, ", ".join(["on the CPU", *how])
    if phase.peak <= card:
        return True, ", ".join(["fits", *how])
    if phase.least <= card:
        words = [f"fits with {(phase.peak - card) / GIB:.1f} GiB of weights in RAM", *how]
        if phase.name == "sample" and phase.weights > card / 2 and phase.weights / 2 + phase.needed <= card:
            words.append("or as fp8 without")
        return True, ", ".join(words)
    if phase.name == "sample":
        room = card - min(phase.weights, phase.layer) - comfy.model_management.extra_reserved_memory()
        fitting = int(pixels * max(room, 0) / phase.working) // 1024 * 1024
        return False, f"does not fit: lower max_pixels to {fitting}, or window_frames"
    if phase.name == "mllm":
        return False, "does not fit: load it as fp8"
    return False, "does not fit: lower max_pixels or max_frames"


def report(parts: list[Phase], width: int, height: int, frames: int, references: int) -> tuple[str, bool]:
    """The table and whether every phase fits."""
    card = next(phase.card for phase in parts if phase.name == "sample")
    lines = [
        f"{width}x{height}, {frames} frames, {references} reference{'s' * (references != 1)}, "
        f"on a card of {card / GIB:.1f} GiB (all in GiB)",
        f"{'phase':<8}{'weights':>9}{'working':>9}{'resident':>10}{'streamed':>10}  plan",
    ]
    fits = True
    for phase in parts:
        fit, plan = advice(phase, width * height)
        fits = fits and fit
        numbers = [size / GIB for size in (phase.weights, phase.working, phase.peak, phase.least)]
        lines.append("{:<8}{:>9.1f}{:>9.1f}{:>10.1f}{:>10.1f}  {}".format(phase.name, *numbers, plan))
    weights = {("vae" if phase.name in ("encode", "decode") else phase.name): phase.weights for phase in parts}
    ram = sum(weights.values()) + 2 * frames * height * width * 3 * 4
    lines.append(f"RAM: {ram / GIB:.1f} for all weights, and the frames before and after.")
    return "\n".join(lines), fits


class KiwiEditEstimate(io.ComfyNode):
    """A dry run: what each phase takes, and whether it fits."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditEstimate",
            display_name="Estimate Memory (Kiwi-Edit)",
            category="video/kiwi-edit",
            description="Says before a run what each phase takes on the card, and how it will be made to fit. It runs "
            "nothing.",
            search_aliases=["kiwi memory", "vram", "out of memory", "dry run", "oom"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model"),
                io.Vae.Input("vae"),
                io.Int.Input("width", default=1280, min=32, max=16384, step=32),
                io.Int.Input("height", default=704, min=32, max=16384, step=32),
                io.Int.Input("frames", default=81, min=1, max=100000, tooltip="Rounded up to 4k+1."),
                io.Int.Input("references", default=1, min=0, max=100, tooltip="How many reference pictures."),
                io.Float.Input(
                    "card_gb", default=0.0, min=0.0, max=1024.0, step=1.0,
                    tooltip="Memory of the card to plan for, in GiB. 0 is this machine's.",
                ),
                io.Int.Input(
                    "window_frames", default=windows.FRAMES, min=0, max=100000, advanced=True,
                    tooltip="Longer clips are sampled in windows of so many frames; 0 is the clip as a whole.",
                ),
                KiwiMLLM.Input("mllm", optional=True),
                KiwiConnector.Input("connector", optional=True),
            ],
            outputs=[io.String.Output(display_name="report"), io.Boolean.Output(display_name="fits")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, vae, width, height, frames, references, card_gb, window_frames, mllm=None, connector=None
    ) -> io.NodeOutput:
        dit.check_kiwi(model)
        height, width = geometry.fit_size(height, width, height * width, 2 * vae.spacial_compression_decode())
        frames = geometry.padded_frame_count(frames)
        parts = phases(
            model, vae, mllm, connector, width, height, frames, references, int(card_gb * GIB), window_frames
        )
        text, fits = report(parts, width, height, frames, references)
        return io.NodeOutput(text, fits, ui=ui.PreviewText(text))


NODES = [KiwiEditEstimate]
