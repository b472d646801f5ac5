"""Getting a clip into the shape that the model takes, and the edit back into the clip's."""

import av
from comfy_api.latest import Input, InputImpl, Types, io

from ..kiwi_core import geometry, media
from .images import from_uint8, to_uint8

CATEGORY = "video/kiwi-edit"


def _components(video: Input.Video) -> Types.VideoComponents:
    try:
        components = video.get_components()
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise ValueError(f"The video cannot be read ({error}); load another file, or convert it to mp4.") from None
    if len(components.images) == 0:
        raise ValueError("The video has no frames; load another file, or convert it to mp4.")
    return components


class KiwiEditPrepareVideo(io.ComfyNode):
    """Size and frame count for the model; the clip itself for the language model."""

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
                io.Image.Output(display_name="source", tooltip="At its own size, for Encode Instruction."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, video, max_pixels, max_frames, multiple) -> io.NodeOutput:
        source = _components(video).images if isinstance(video, Input.Video) else video
        height, width = source.shape[1:3]
        media.check_frame_size(height, width)
        # One to three frames more than asked for, if there are any, are better than repeated ones.
        frames = to_uint8(source[: geometry.padded_frame_count(max_frames)])
        frames = geometry.resize_frames(frames, *geometry.fit_size(height, width, max_pixels, multiple))
        frames = geometry.pad_frames(frames, geometry.padded_frame_count(len(frames)))
        return io.NodeOutput(from_uint8(frames), source)


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
                io.Video.Input("original", tooltip="The video that was prepared."),
            ],
            outputs=[io.Video.Output()],
        )

    @classmethod
    def execute(cls, frames, original) -> io.NodeOutput:
        components = _components(original)
        frames = frames[: len(components.images)]
        audio = components.audio
        if audio is not None:
            samples = round(len(frames) / components.frame_rate * audio["sample_rate"])
            audio = {**audio, "waveform": audio["waveform"][..., :samples]}
        finished = Types.VideoComponents(images=frames, audio=audio, frame_rate=components.frame_rate)
        return io.NodeOutput(InputImpl.VideoFromComponents(finished))


NODES = [KiwiEditPrepareVideo, KiwiEditFinishVideo]
