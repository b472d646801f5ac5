"""Long edits with the colours of their source."""

import torch
from comfy_api.latest import io

from ..kiwi_core import colour, masks
from .images import to_uint8
from .mask import is_masked
from .progress import per_frame


class KiwiEditMatchColours(io.ComfyNode):
    """Take back a drift of colours."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditMatchColours",
            display_name="Match Colours (Kiwi-Edit)",
            category="video/kiwi-edit",
            description="Takes back the slow change of brightness and colour in a long edit. It is measured where the "
            "edit left the source as it was; an edit of the whole picture, such as a style, is left alone.",
            search_aliases=["kiwi color match", "colour drift", "color correction", "match colors"],
            inputs=[
                io.Image.Input("frames", tooltip="Decoded frames of the edit."),
                io.Image.Input("source", tooltip="The clip that was edited, of any size."),
                io.Mask.Input("mask", optional=True, tooltip="Where the edit is; without one it is found."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=1.0, step=0.05, tooltip="0 changes nothing, 1 all of it."
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, frames, source, strength, mask=None) -> io.NodeOutput:
        if mask is not None:
            mask = masks.fit(is_masked(mask), min(len(frames), len(source)), spare=masks.SPARE)

        frame_done = per_frame(len(frames))

        def pair(index):
            frame_done()
            last = min(index, len(source) - 1)
            return to_uint8(frames[index : index + 1])[0], to_uint8(source[last : last + 1])[0]

        found = colour.drift(len(frames), pair, mask)
        if found is None:
            return io.NodeOutput(frames)
        gain, offset = (torch.from_numpy(values).to(frames)[:, None, None] for values in found)
        matched = frames[..., :3] * (1 + strength * (gain - 1))
        return io.NodeOutput(matched.add_(strength * offset / 255).clamp_(0, 1))


NODES = [KiwiEditMatchColours]
