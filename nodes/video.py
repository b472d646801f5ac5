"""Getting a clip into the shape that the model takes, and the edit back into the clip's."""

import logging
from fractions import Fraction

import comfy.model_management
import torch
from comfy_api.latest import Input, InputImpl, Types, io

from ..kiwi_core import geometry, media
from . import footage
from .images import check_length, from_uint8, to_uint8
from .progress import per_frame

CATEGORY = "video/kiwi-edit"
logger = logging.getLogger(__name__)


def _resized(target: torch.Tensor, source: torch.Tensor) -> None:
    """Fill frames with others of any size, one by one: a long clip is here twice at most."""
    frame_done = per_frame(len(target))
    for to, frame in zip(target, source):
        to.copy_(from_uint8(geometry.resize_frames(to_uint8(frame[None]), *to.shape[:2]))[0])
        frame_done()


def original_size_input():
    """The input of that name."""
    return io.Boolean.Input(
        "original_size", default=False, optional=True, advanced=True,
        tooltip="Resizes the edit to the original's width and height. The model takes multiples of 32, so most clips "
        "come back a little smaller, and squashed by some percent.",
    )  # fmt: skip


class KiwiEditPrepareVideo(io.ComfyNode):
    """Size and frame count for the model; the same frames as they are for the language model."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditPrepareVideo",
            display_name="Prepare Video (Kiwi-Edit)",
            category=CATEGORY,
            description="Resizes a clip or picture to what the model takes, and repeats its last frame up to the next "
            "4k+1. Finish Video takes the repeated frames away again.",
            search_aliases=["kiwi resize", "4n+1", "video to images", "get video components"],
            inputs=[
                io.MultiType.Input("video", [io.Video, io.Image], tooltip="A video, its frames, or one picture."),
                io.Int.Input(
                    "max_pixels", default=geometry.MAX_PIXELS, min=16384, max=4096 * 4096, step=1024,
                    tooltip="Width x height is brought below this: 921600 is 720p, 409600 is 480p.",
                ),
                io.Int.Input(
                    "max_frames", default=geometry.MAX_FRAMES, min=1, max=100000,
                    tooltip="Frames from the start, rounded up to 4k+1; the model was trained up to 81.",
                ),
                io.Int.Input(
                    "multiple", default=32, min=16, max=64, step=16, advanced=True,
                    tooltip="Sides are multiples of this: 32 for 5B, 16 suffices for 14B.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="For Source Video."),
                io.Image.Output(display_name="source", tooltip="The same at their own size, for Encode Instruction."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, video, max_pixels, max_frames, multiple) -> io.NodeOutput:
        # One to three frames more than asked for, if there are any, are better than repeated ones.
        count = geometry.padded_frame_count(max_frames)
        found = footage.first_frames(video, count + 1).images if isinstance(video, Input.Video) else video
        height, width = found.shape[1:3]
        media.check_frame_size(height, width)
        source = found[:count]
        if len(found) > count:
            logger.warning(
                "The clip is longer than %d frames and the first ones are edited; raise max_frames for more, in "
                "windows where memory does not suffice.", count,
            )  # fmt: skip
        size = geometry.fit_size(height, width, max_pixels, multiple)
        frames = torch.empty(
            (geometry.padded_frame_count(len(source)), *size, 3), device=comfy.model_management.intermediate_device()
        )
        _resized(frames[: len(source)], source)
        frames[len(source) :] = frames[len(source) - 1]
        return io.NodeOutput(frames, source)


class KiwiEditFinishVideo(io.ComfyNode):
    """The edit with the length, frame rate and sound of the clip that it came from."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditFinishVideo",
            display_name="Finish Video (Kiwi-Edit)",
            category=CATEGORY,
            description="Makes a video of edited frames with the length, frame rate and sound of the original.",
            search_aliases=["kiwi video", "create video", "images to video", "video combine"],
            inputs=[
                io.Image.Input("frames", tooltip="Decoded frames of the edit."),
                io.MultiType.Input("original", [io.Video, io.Image], tooltip="What was prepared."),
                io.Float.Input(
                    "frame_rate", default=15.0, min=1.0, max=240.0, step=0.01, optional=True, advanced=True,
                    tooltip="Where the original is frames, which have none; published edits have 15 a second.",
                ),
                original_size_input(),
            ],
            outputs=[io.Video.Output(), io.Image.Output(display_name="frames")],
        )  # fmt: skip

    @classmethod
    def execute(cls, frames, original, frame_rate=15.0, original_size=False) -> io.NodeOutput:
        if isinstance(original, Input.Video):
            components = footage.first_frames(original, len(frames))
        else:
            components = Types.VideoComponents(images=original, audio=None, frame_rate=Fraction(str(frame_rate)))
        check_length(len(frames), len(components.images))
        height, width = components.images.shape[1:3]
        frames = frames[: len(components.images)]
        if original_size and frames.shape[1:3] != (height, width):
            edit, frames = frames, frames.new_empty((len(frames), height, width, 3))
            _resized(frames, edit)
        audio = components.audio
        if audio is not None:
            samples = round(len(frames) / components.frame_rate * audio["sample_rate"])
            audio = {**audio, "waveform": audio["waveform"][..., :samples]}
        height, width = (side // 2 * 2 for side in frames.shape[1:3])  # H.264 takes no odd sides
        images = frames[:, :height, :width]
        finished = Types.VideoComponents(images=images, audio=audio, frame_rate=components.frame_rate)
        return io.NodeOutput(InputImpl.VideoFromComponents(finished), frames)


NODES = [KiwiEditPrepareVideo, KiwiEditFinishVideo]
