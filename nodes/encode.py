"""What steers the edit: the instruction, the source video and reference pictures."""

import logging

import comfy.model_management
import comfy.utils
import node_helpers
import numpy as np
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image

from ..kiwi_core import geometry, windows
from ..kiwi_core.mllm import SHOWN_REFERENCES, sample_frames, shown_references
from .dit import REFERENCES, SOURCE, WINDOW_CONTEXTS
from .images import from_uint8, to_uint8
from .loaders import KiwiConnector, KiwiMLLM
from .memo import Last
from .mllm import encode
from .vae import encode as encode_frames

CATEGORY = "model/conditioning/kiwi-edit"
MAX_REFERENCES = 8
MIN_WINDOW = 5
# In a conditioning, beside what dit.py reads: how many frames the windows were cut from, and how many pictures the
# language model saw.
WINDOW_FRAMES, SHOWN = "kiwi_window_frames", "kiwi_mllm_references"

logger = logging.getLogger(__name__)
# A new instruction makes a new conditioning, but no new latents: the VAE need not come back onto the card for them.
_last_source, _last_references = Last(), Last()


def reference_inputs(tooltip: str, optional: bool = True) -> list:
    """The first reference picture and, to stand last, the growing input of all others."""
    further = io.Autogrow.TemplateNames(
        io.Image.Input("reference"), names=[f"reference_{number}" for number in range(2, MAX_REFERENCES + 1)], min=0
    )
    return [
        io.Image.Input("reference", optional=optional, tooltip=tooltip),
        io.Autogrow.Input("references", template=further, optional=True, tooltip="Further pictures, of any size."),
    ]


def reference_pictures(reference, references: dict | None) -> list[np.ndarray]:
    """The pictures uint8 ``[H, W, 3]`` of both inputs in order; a batch is as many pictures."""
    images = [reference, *(references or {}).values()]
    return [picture for image in images if image is not None for picture in to_uint8(image)]


def mllm_references_input():
    return io.Combo.Input(
        "mllm_references", options=list(SHOWN_REFERENCES), default="first", optional=True, advanced=True,
        tooltip="Of several reference pictures, the language model was trained to see one.",
    )  # fmt: skip


def _window_frames():
    return io.Int.Input(
        "window_frames", default=0, min=0, max=100000, optional=True, advanced=True,
        tooltip="For long clips in context windows: the instruction is also encoded for each window of so many frames, "
        "with half of them shared. 0 encodes the clip as a whole. A negative wants the same.",
    )  # fmt: skip


def _window_problem(window_frames: int | None) -> str | None:
    if window_frames and window_frames < MIN_WINDOW:
        return f"window_frames is {window_frames}; use at least {MIN_WINDOW}, or 0 for the clip as a whole."
    return None


def encode_edit(mllm, connector, prompt, source, pictures, mllm_references="first", window_frames=0, allow_empty=False):
    """CONDITIONING of an instruction on a clip (IMAGE) with reference pictures (uint8 ``[H, W, 3]``)."""
    if problem := _window_problem(window_frames):
        raise ValueError(problem)
    shown = shown_references(pictures, mllm_references)
    spans = windows.split(len(source), window_frames, window_frames // 2) if window_frames else []
    spans = spans if len(spans) > 1 else []
    progress, contexts = comfy.utils.ProgressBar(1 + len(spans)), []
    for span in (range(len(source)), *spans):
        comfy.model_management.throw_exception_if_processing_interrupted()
        # All that is looked at, before copies are made.
        frames = to_uint8(sample_frames(source[span.start : span.stop]))
        contexts.append(encode(mllm, connector, prompt, frames, shown, allow_empty=allow_empty))
        progress.update(1)
    whole, *parts = contexts
    values = {SHOWN: len(shown)}
    if spans:
        centres = ((span.start + span.stop) / 2 / len(source) for span in spans)
        values |= {WINDOW_CONTEXTS: list(zip(centres, parts)), WINDOW_FRAMES: len(source)}
    return [[whole, values]]


def encode_references(vae, pictures, latent) -> list:
    """A latent for each picture, fitted into the frame of a LATENT's samples."""
    factor = vae.spacial_compression_decode()
    height, width = (side * factor for side in latent["samples"].shape[-2:])
    boxed = (np.array(geometry.letterbox(Image.fromarray(picture), height, width)) for picture in pictures)
    return [encode_frames(vae, from_uint8(picture[None])) for picture in boxed]


def warn_of_lost_references(conditioning) -> None:
    """Log a sentence where the language model saw a reference picture that the video model does not get."""
    for _, values in conditioning:
        if values.get(SHOWN) and not values.get(REFERENCES):
            logger.warning(
                "The language model saw a reference picture but the video model gets none; "
                "connect it to Reference Image (Kiwi-Edit) as well."
            )


def _fit_windows(conditioning, count: int):
    """Where the windows lie in the ``count`` frames to edit, which may be fewer than the language model saw."""
    fitted = []
    for context, values in conditioning:
        if WINDOW_CONTEXTS in values:
            scale = values[WINDOW_FRAMES] / count
            kept = [(centre * scale, part) for centre, part in values[WINDOW_CONTEXTS] if centre * scale < 1]
            values = {**values, WINDOW_CONTEXTS: kept or values[WINDOW_CONTEXTS][:1], WINDOW_FRAMES: count}
        fitted.append([context, values])
    return fitted


def _set(conditioning, values: dict, append: bool = False):
    """A negative that is not connected stops only what would use it, with a sentence."""
    if conditioning is None:
        return ExecutionBlocker("There is no negative here; connect Encode Negative (Kiwi-Edit) to the negative input.")
    return node_helpers.conditioning_set_values(conditioning, values, append=append)


class KiwiEditEncodeInstruction(io.ComfyNode):
    """Instruction, clip and reference through the language model; replaces a text encoder."""

    @classmethod
    def define_schema(cls):
        reference, references = reference_inputs(
            "A picture of what is to appear. Connect it to Reference Image as well."
        )
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
                reference,
                mllm_references_input(),
                _window_frames(),
                references,
            ],
            outputs=[io.Conditioning.Output()],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, prompt=None, window_frames=None, references=None):  # the growing input is always given
        if prompt is not None and not prompt.strip():
            return "The instruction is empty; say in a sentence what to change."
        return _window_problem(window_frames) or True

    @classmethod
    def execute(
        cls, mllm, connector, prompt, source, reference=None, mllm_references="first", window_frames=0, references=None
    ) -> io.NodeOutput:
        pictures = reference_pictures(reference, references)
        return io.NodeOutput(encode_edit(mllm, connector, prompt, source, pictures, mllm_references, window_frames))


class KiwiEditEncodeNegative(io.ComfyNode):
    """The other side of guidance: the same clip without an instruction."""

    @classmethod
    def define_schema(cls):
        reference, references = reference_inputs("The picture that Encode Instruction gets, if there is one.")
        return io.Schema(
            node_id="KiwiEditEncodeNegative",
            display_name="Encode Negative (Kiwi-Edit)",
            category=CATEGORY,
            description="The negative for guidance (cfg above 1): an empty instruction on the same clip. Guidance "
            "pushes the edit away from it, towards the instruction, for twice the time.",
            search_aliases=["kiwi negative", "cfg", "guidance", "unconditional"],
            inputs=[
                KiwiMLLM.Input("mllm"),
                KiwiConnector.Input("connector"),
                io.String.Input(
                    "prompt", multiline=True, dynamic_prompts=True, default="", tooltip="Left empty in most cases."
                ),
                io.Image.Input("source", tooltip="The clip at its own size, or a single picture."),
                reference,
                mllm_references_input(),
                _window_frames(),
                references,
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def validate_inputs(cls, window_frames=None, references=None):  # the growing input is always given
        return _window_problem(window_frames) or True

    @classmethod
    def execute(
        cls, mllm, connector, prompt, source, reference=None, mllm_references="first", window_frames=0, references=None
    ) -> io.NodeOutput:
        pictures = reference_pictures(reference, references)
        return io.NodeOutput(
            encode_edit(mllm, connector, prompt, source, pictures, mllm_references, window_frames, allow_empty=True)
        )


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
                io.Conditioning.Input("negative", optional=True, tooltip="For guidance: from Encode Negative."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning"),
                io.Latent.Output(
                    display_name="latent", tooltip="The encoded source: start of sampling when denoise is below 1."
                ),
                io.Conditioning.Output(display_name="negative"),
            ],
        )

    @classmethod
    def execute(cls, conditioning, vae, frames, negative=None) -> io.NodeOutput:
        count, height, width = frames.shape[:3]
        multiple = 2 * vae.spacial_compression_decode()
        if count != geometry.padded_frame_count(count):
            raise ValueError(f"{count} frames were given and the model takes 4k+1; connect Prepare Video (Kiwi-Edit).")
        if height % multiple or width % multiple:
            raise ValueError(
                f"Frames of {width}x{height} were given and the model takes multiples of {multiple}; "
                "connect Prepare Video (Kiwi-Edit)."
            )
        latent = _last_source.get((vae, frames), None, lambda: encode_frames(vae, frames[..., :3]))
        values = {SOURCE: latent}
        fitted = (given if given is None else _fit_windows(given, count) for given in (conditioning, negative))
        conditioning, negative = (_set(given, values) for given in fitted)
        return io.NodeOutput(conditioning, {"samples": latent}, negative)


class KiwiEditReferenceImage(io.ComfyNode):
    """Show the model a picture of what is to appear."""

    @classmethod
    def define_schema(cls):
        reference, references = reference_inputs(
            "A picture of what is to appear. Connect it to Encode Instruction as well.", optional=False
        )
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
                reference,
                io.Conditioning.Input("negative", optional=True, tooltip="For guidance: from Source Video."),
                references,
            ],
            outputs=[io.Conditioning.Output(), io.Conditioning.Output(display_name="negative")],
        )

    @classmethod
    def execute(cls, conditioning, vae, latent, reference, negative=None, references=None) -> io.NodeOutput:
        if any(values.get(SHOWN) == 0 for _, values in conditioning):
            logger.warning(
                "The video model gets a reference picture that the language model did not see; "
                "connect it to Encode Instruction (Kiwi-Edit) as well."
            )
        images = [image for image in (reference, *(references or {}).values()) if image is not None]
        latents = _last_references.get(
            (vae, *images),
            latent["samples"].shape[-2:],
            lambda: encode_references(vae, reference_pictures(reference, references), latent),
        )
        values = {REFERENCES: latents}
        return io.NodeOutput(_set(conditioning, values, append=True), _set(negative, values, append=True))


NODES = [KiwiEditEncodeInstruction, KiwiEditEncodeNegative, KiwiEditSourceVideo, KiwiEditReferenceImage]
