"""A look at an edit on a few frames, before the whole clip is rendered."""

import comfy.model_management
import numpy as np
import torch
from comfy_api.latest import Input, io, ui

from ..kiwi_core import geometry, media
from . import dit, encode, footage
from .images import from_uint8, to_uint8
from .loaders import KiwiConnector, KiwiMLLM
from .sampling import KiwiEditSampler
from .vae import decode
from .video import KiwiEditPrepareVideo

MAX_FRAMES = 4
FRAME_SIZE = 480


def chosen_frames(count: int, total: int) -> list[int]:
    """At most ``count`` evenly spread frames of ``total``, with both ends; of one, the middle."""
    if count == 1:
        return [(total - 1) // 2]
    return sorted(set(np.linspace(0, total - 1, count).round().astype(int).tolist()))


class KiwiEditPreview(io.ComfyNode):
    """The edit of one to four frames as single pictures, in one batch."""

    @classmethod
    def define_schema(cls):
        reference, references = encode.reference_inputs("A picture of what is to appear.")
        return io.Schema(
            node_id="KiwiEditPreview",
            display_name="Preview Edit (Kiwi-Edit)",
            category="video/kiwi-edit",
            description="Tries an instruction on one to four frames of the clip, each edited as a picture, in a small "
            "part of the time of the whole clip. It shows what the model understood, not the motion.",
            search_aliases=["kiwi preview", "try", "contact sheet", "test prompt"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model"),
                io.Vae.Input("vae"),
                KiwiMLLM.Input("mllm"),
                KiwiConnector.Input("connector"),
                io.MultiType.Input("video", [io.Video, io.Image], tooltip="A video, its frames, or one picture."),
                io.String.Input(
                    "prompt", multiline=True, dynamic_prompts=True,
                    tooltip="An instruction in a sentence, such as: Replace the dog with a red panda.",
                ),
                io.Int.Input(
                    "frames", default=3, min=1, max=MAX_FRAMES,
                    tooltip="How many frames, spread evenly over what is to be edited; of one, the middle.",
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="20 are enough for a look."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
                io.Int.Input(
                    "max_pixels", default=480 * 832, min=16384, max=4096 * 4096, step=1024,
                    tooltip="Width x height of a frame is brought below this; less is faster.",
                ),
                reference,
                io.Int.Input(
                    "max_frames", default=geometry.MAX_FRAMES, min=1, max=100000, optional=True, advanced=True,
                    tooltip="Frames from the start that the edit is to have, as in Prepare Video.",
                ),
                references,
            ],
            outputs=[io.Image.Output(display_name="sheet")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, prompt=None, references=None):
        return encode.KiwiEditEncodeInstruction.validate_inputs(prompt)

    @classmethod
    def execute(
        cls, model, vae, mllm, connector, video, prompt, frames, steps, seed, max_pixels, reference=None,
        max_frames=geometry.MAX_FRAMES, references=None,
    ) -> io.NodeOutput:  # fmt: skip
        dit.check_kiwi(model)
        multiple = 2 * vae.spacial_compression_decode()
        found = footage.first_frames(video, max_frames).images if isinstance(video, Input.Video) else video[:max_frames]
        numbers = chosen_frames(frames, len(found))
        source = found[numbers]  # a copy, so that a decoded clip is not held while these are edited
        del found
        pictures = encode.reference_pictures(reference, references)

        contexts, latents, before = [], [], []
        for frame in source.split(1):
            comfy.model_management.throw_exception_if_processing_interrupted()
            before.append(KiwiEditPrepareVideo.execute(frame, max_pixels, 1, multiple)[0])
            conditioning = encode.encode_edit(mllm, connector, prompt, frame, pictures)
            contexts.append(conditioning[0][0])
            latents.append(encode.encode_frames(vae, before[-1]))

        # One batch, in which each frame has the noise of a picture that is edited alone with this seed.
        latent = {"samples": torch.cat(latents), "batch_index": [0] * len(numbers)}
        values = {dit.SOURCE: latent["samples"]}
        if pictures:
            values[dit.REFERENCES] = encode.encode_references(vae, pictures, latent)
        edited = KiwiEditSampler.execute(
            model, [[torch.cat(contexts), values]], latent, seed=seed, steps=steps, shift=5.0, denoise=1.0
        )[0]
        after = decode(vae, edited["samples"])
        sheet = media.contact_sheet(
            {"Source": to_uint8(torch.cat(before)), "Edit": to_uint8(after)},
            names=[f"frame {number}" for number in numbers],
            box=FRAME_SIZE,
        )
        image = from_uint8(np.asarray(sheet)[None])
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


NODES = [KiwiEditPreview]
