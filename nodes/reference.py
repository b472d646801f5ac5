"""Making reference pictures."""

import numpy as np
from comfy_api.latest import io

from ..kiwi_core import references
from .images import from_uint8, to_uint8


class KiwiEditMakeReference(io.ComfyNode):
    """A reference picture out of a frame, in the form that the model was trained on."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditMakeReference",
            display_name="Make Reference (Kiwi-Edit)",
            category="image/kiwi-edit",
            description="Makes a reference picture as the model knows them: a subject cut out by a mask and set on "
            "white, or a whole scene as the new background.",
            search_aliases=["kiwi reference", "cut out", "remove background", "crop by mask", "plate"],
            inputs=[
                io.Image.Input("image", tooltip="A picture, or a clip of which one frame is taken."),
                io.Combo.Input("kind", options=["subject", "background"], default="subject"),
                io.Int.Input("frame", default=0, min=0, max=100000, tooltip="Which frame of a clip, from 0."),
                io.Float.Input(
                    "margin", default=0.1, min=0.0, max=1.0, step=0.01,
                    tooltip="White around a subject, as a part of its longer side.",
                ),
                io.Float.Input(
                    "feather", default=2.0, min=0.0, max=100.0, step=0.5,
                    tooltip="Soft edge of a subject in pixels, inside the mask.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="Where the subject is: one mask, or one for each frame."),
                io.Image.Input("clip", optional=True, tooltip="The clip to edit: a background is cut to its shape."),
            ],
            outputs=[io.Image.Output(display_name="reference")],
        )  # fmt: skip

    @classmethod
    def execute(cls, image, kind, frame, margin, feather, mask=None, clip=None) -> io.NodeOutput:
        if frame >= len(image):
            raise ValueError(f"There is no frame {frame}; the clip has {len(image)}, counted from 0.")
        if kind == "subject" and mask is None:
            raise ValueError("A subject is cut out by a mask; connect one, or choose background.")
        if kind == "background" and mask is not None:
            raise ValueError("A background is a whole picture, without holes; disconnect the mask, or choose subject.")
        picture = to_uint8(image[frame : frame + 1])[0]
        if mask is not None:
            masks = mask.reshape(-1, *mask.shape[-2:])
            of_frame = masks[frame if len(masks) == len(image) else 0]
            picture = references.cut_out(picture, of_frame.float().cpu().numpy(), margin, feather)
        elif clip is not None:
            picture = references.crop_to_aspect(picture, *clip.shape[1:3])
        return io.NodeOutput(from_uint8(np.asarray(picture)[None]))


NODES = [KiwiEditMakeReference]
