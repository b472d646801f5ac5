"""Where to edit: a mask for sampling, and the edit put back into the untouched source."""

import torch
from comfy_api.latest import io

from ..kiwi_core import geometry, masks
from .images import check_length, from_uint8, to_uint8
from .progress import per_frame


def is_masked(mask: torch.Tensor) -> torch.Tensor:
    """bool ``[T, H, W]`` of a MASK."""
    return (mask[None] if mask.ndim == 2 else mask).cpu() >= 0.5


class KiwiEditMask(io.ComfyNode):
    """Sampling limited to a mask."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditMask",
            display_name="Edit Mask (Kiwi-Edit)",
            category="model/conditioning/kiwi-edit",
            description="Limits the edit to a mask: what is outside is sampled as the source. Connect the mask to "
            "Composite (Kiwi-Edit) too, which brings back the source's own pixels there.",
            search_aliases=["kiwi mask", "inpaint", "set latent noise mask", "video mask"],
            inputs=[
                io.Latent.Input("latent", tooltip="From Source Video."),
                io.Mask.Input("mask", tooltip="One for all frames, or one a frame; of any size."),
                io.Int.Input(
                    "grow", default=masks.GROW, min=0, max=512,
                    tooltip="Pixels by which the mask is widened for sampling, so that the edit reaches its edge.",
                ),
            ],
            outputs=[io.Latent.Output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, latent, mask, grow) -> io.NodeOutput:
        if latent["samples"].ndim != 5:
            raise ValueError("This latent is not of a video model; connect the latent of Source Video (Kiwi-Edit).")
        frames, height, width = latent["samples"].shape[2:]
        mask = masks.fit(is_masked(mask), 4 * frames - 3, spare=masks.SPARE)
        cells = masks.latent_mask(mask, frames, height, width, grow, per_frame(len(mask)))
        return io.NodeOutput({**latent, "noise_mask": cells.float()})


class KiwiEditComposite(io.ComfyNode):
    """The edit inside a mask, the source around it."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditComposite",
            display_name="Composite (Kiwi-Edit)",
            category="video/kiwi-edit",
            description="Puts the edit into the source inside a mask. Outside of it every pixel is the source's own; "
            "the seam lies within the mask.",
            search_aliases=["kiwi composite", "paste back", "image composite masked", "stitch"],
            inputs=[
                io.Image.Input("frames", tooltip="Decoded frames of the edit, of any size."),
                io.Image.Input("source", tooltip="The clip at its own size: the second output of Prepare Video."),
                io.Mask.Input("mask", tooltip="One for all frames, or one a frame; of any size."),
                io.Int.Input(
                    "feather", default=masks.FEATHER, min=0, max=512,
                    tooltip="Pixels over which the edit fades in from the edge of the mask inwards. Keep it below "
                    "half the width of what is masked.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="At the size of the source, as long as the edit.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, frames, source, mask, feather) -> io.NodeOutput:
        check_length(len(frames), len(source))
        count = min(len(frames), len(source))
        mask = masks.fit(is_masked(mask), count, spare=masks.SPARE)
        result = source[:count, ..., :3].clone()
        height, width = result.shape[1:3]
        frame_done = per_frame(count)
        for target, frame, alpha in zip(result, frames, masks.alphas(mask, count, height, width, feather)):
            if frame.shape[:2] != (height, width):
                frame = from_uint8(geometry.resize_frames(to_uint8(frame[None]), height, width))[0]
            alpha = alpha.to(target)[..., None]
            target.copy_(torch.where(alpha > 0, torch.lerp(target, frame[..., :3].to(target), alpha), target))
            frame_done()
        return io.NodeOutput(result)


NODES = [KiwiEditMask, KiwiEditComposite]
