"""What steers the edit: the instruction, the source video and reference pictures."""

import node_helpers
import numpy as np
from comfy_api.latest import io
from PIL import Image

from ..kiwi_core import geometry
from ..kiwi_core.mllm import sample_frames
from .images import from_uint8, to_uint8
from .loaders import KiwiConnector, KiwiMLLM
from .mllm import encode

CATEGORY = "model/conditioning/kiwi-edit"


class KiwiEditEncodeInstruction(io.ComfyNode):
    """Instruction, clip and reference through the language model; replaces a text encoder."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditEncodeInstruction",
            display_name="Encode Instruction (Kiwi-Edit)",
            category=CATEGORY,
            description="Says what to change. The language model reads the instruction while looking at the clip and, "
            "if there is one, at the reference picture.",
            search_aliases=["kiwi prompt", "instruction", "clip text encode", "edit prompt"],
            inputs=[
                KiwiMLLM.Input("mllm"),
                KiwiConnector.Input("connector"),
                io.String.Input(
                    "prompt", multiline=True, dynamic_prompts=True,
                    tooltip="An instruction in a sentence, such as: Replace the dog with a red panda.",
                ),
                io.Image.Input("source", tooltip="The clip at its own size, or a single picture."),
                io.Image.Input(
                    "reference", optional=True,
                    tooltip="A picture of what is to appear. Connect it to Reference Image as well.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, prompt=None):
        if prompt is not None and not prompt.strip():
            return "The instruction is empty; say in a sentence what to change."
        return True

    @classmethod
    def execute(cls, mllm, connector, prompt, source, reference=None) -> io.NodeOutput:
        picture = to_uint8(reference[:1])[0] if reference is not None else None
        frames = to_uint8(sample_frames(source))  # all that is looked at, before copies are made
        return io.NodeOutput([[encode(mllm, connector, prompt, frames, picture), {}]])


class KiwiEditSourceVideo(io.ComfyNode):
    """Encode the clip that is edited."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditSourceVideo",
            display_name="Source Video (Kiwi-Edit)",
            category=CATEGORY,
            description="Shows the model the clip to edit, and gives the latent of its size for the sampler.",
            search_aliases=["kiwi source", "video to video", "vae encode"],
            inputs=[
                io.Conditioning.Input("conditioning"),
                io.Vae.Input("vae"),
                io.Image.Input("frames", tooltip="From Prepare Video: 4k+1 frames, sides that the model takes."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning"),
                io.Latent.Output(
                    display_name="latent", tooltip="The encoded source: start of sampling when denoise is below 1."
                ),
            ],
        )

    @classmethod
    def execute(cls, conditioning, vae, frames) -> io.NodeOutput:
        count, height, width = frames.shape[:3]
        multiple = 2 * vae.spacial_compression_decode()
        if count != geometry.padded_frame_count(count):
            raise ValueError(f"{count} frames were given and the model takes 4k+1; connect Prepare Video (Kiwi-Edit).")
        if height % multiple or width % multiple:
            raise ValueError(
                f"Frames of {width}x{height} were given and the model takes multiples of {multiple}; "
                "connect Prepare Video (Kiwi-Edit)."
            )
        latent = vae.encode(frames[..., :3])
        values = {"kiwi_source_latent": latent}
        return io.NodeOutput(node_helpers.conditioning_set_values(conditioning, values), {"samples": latent})


class KiwiEditReferenceImage(io.ComfyNode):
    """Show the model a picture of what is to appear."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditReferenceImage",
            display_name="Reference Image (Kiwi-Edit)",
            category=CATEGORY,
            description="Gives the video model a picture of the object or background that is to appear. It is fitted "
            "into the frame on white, not stretched. Needs a model trained with references.",
            search_aliases=["kiwi reference", "reference latent", "subject"],
            inputs=[
                io.Conditioning.Input("conditioning"),
                io.Vae.Input("vae"),
                io.Latent.Input("latent", tooltip="From Source Video: gives the size."),
                io.Image.Input("reference"),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, conditioning, vae, latent, reference) -> io.NodeOutput:
        factor = vae.spacial_compression_decode()
        height, width = (side * factor for side in latent["samples"].shape[-2:])
        pictures = [np.asarray(geometry.letterbox(Image.fromarray(p), height, width)) for p in to_uint8(reference)]
        latents = [vae.encode(from_uint8(picture[None])) for picture in pictures]
        return io.NodeOutput(
            node_helpers.conditioning_set_values(conditioning, {"kiwi_reference_latents": latents}, append=True)
        )


NODES = [KiwiEditEncodeInstruction, KiwiEditSourceVideo, KiwiEditReferenceImage]
