"""The short path: everything of a model in one node, and a whole edit in another."""

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..kiwi_core import geometry, masks
from . import loaders
from .encode import KiwiEditEncodeInstruction
from .loaders import KiwiConnector, KiwiMLLM
from .video import original_size_input

NOTHING_HERE = "(no downloaded model)"


class KiwiEditLoadAll(io.ComfyNode):
    """The four parts of a released folder."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditLoadAll",
            display_name="Load All (Kiwi-Edit)",
            category=loaders.CATEGORY,
            description="Loads video model, VAE, language model and connector of a downloaded folder in "
            "models/diffusers. For single files there are the four loaders.",
            search_aliases=["kiwi", "kiwi edit", "load checkpoint", "video edit model"],
            inputs=[
                io.Combo.Input(
                    "model_name", options=[*loaders.folders()] or [NOTHING_HERE],
                    tooltip="A downloaded folder in models/diffusers.",
                ),
                io.Combo.Input(
                    "weight_dtype", options=list(loaders.DTYPES), default="default", advanced=True,
                    tooltip="Of the video model: fp8 halves the memory of its weights for a little quality.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.Vae.Output(),
                KiwiMLLM.Output(display_name="mllm"),
                KiwiConnector.Output(display_name="connector"),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, model_name=None):
        return loaders.check_name(model_name)

    @classmethod
    def execute(cls, model_name, weight_dtype) -> io.NodeOutput:
        if model_name not in loaders.folders():
            raise ValueError(cls.validate_inputs(model_name))
        return io.NodeOutput(
            loaders.KiwiEditLoadModel.execute(model_name, weight_dtype)[0],
            loaders.KiwiEditLoadVAE.execute(model_name)[0],
            loaders.KiwiEditLoadMLLM.execute(model_name)[0],
            loaders.KiwiEditLoadConnector.execute(model_name)[0],
        )


class KiwiEditEditVideo(io.ComfyNode):
    """A whole edit: it stands for the single nodes, which ComfyUI runs, caches and cancels one by one."""

    @classmethod
    def define_schema(cls):
        # Links are passed on unopened, so that the nodes behind this one know what they depend on.
        return io.Schema(
            node_id="KiwiEditEditVideo",
            display_name="Edit Video (Kiwi-Edit)",
            category="video/kiwi-edit",
            description="Edits a video, its frames or a picture by an instruction, with the published settings. Only "
            "what a change concerns is computed again.",
            search_aliases=["kiwi", "kiwi edit", "video to video", "instruct edit", "edit image"],
            enable_expand=True,
            inputs=[
                io.Model.Input("model", raw_link=True),
                io.Vae.Input("vae", raw_link=True),
                KiwiMLLM.Input("mllm", raw_link=True),
                KiwiConnector.Input("connector", raw_link=True),
                io.MultiType.Input(
                    "video", [io.Video, io.Image], raw_link=True, tooltip="A video, its frames, or one picture."
                ),
                io.String.Input(
                    "prompt", multiline=True, dynamic_prompts=True,
                    tooltip="An instruction in a sentence, such as: Replace the dog with a red panda.",
                ),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
                io.Int.Input(
                    "steps", default=50, min=1, max=1000, tooltip="More is finer and slower; published with 50."
                ),
                io.Int.Input(
                    "max_pixels", default=geometry.MAX_PIXELS, min=16384, max=4096 * 4096, step=1024,
                    tooltip="Width x height is brought below this: 921600 is 720p, 409600 is 480p.",
                ),
                io.Int.Input(
                    "max_frames", default=geometry.MAX_FRAMES, min=1, max=100000,
                    tooltip="Frames from the start, rounded up to 4k+1; more than 81 are edited in windows.",
                ),
                io.Image.Input(
                    "reference", optional=True, raw_link=True, tooltip="A picture of what is to appear."
                ),
                io.Mask.Input(
                    "mask", optional=True, raw_link=True,
                    tooltip="Where to edit; everything outside stays the source's own.",
                ),
                original_size_input(),
            ],
            outputs=[
                io.Video.Output(tooltip="With the frame rate and sound of the original."),
                io.Image.Output(display_name="frames", tooltip="For a picture, or further nodes."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, prompt=None):
        return KiwiEditEncodeInstruction.validate_inputs(prompt)

    @classmethod
    def execute(
        cls, model, vae, mllm, connector, video, prompt, seed, steps, max_pixels, max_frames, reference=None, mask=None,
        original_size=False,
    ) -> io.NodeOutput:  # fmt: skip
        graph = GraphBuilder()
        prepared = graph.node(
            "KiwiEditPrepareVideo", video=video, max_pixels=max_pixels, max_frames=max_frames, multiple=32
        )
        frames, source = prepared.out(0), prepared.out(1)
        picture = {} if reference is None else {"reference": reference}
        instruction = graph.node(
            "KiwiEditEncodeInstruction", mllm=mllm, connector=connector, prompt=prompt, source=source, **picture
        )
        encoded = graph.node("KiwiEditSourceVideo", conditioning=instruction.out(0), vae=vae, frames=frames)
        conditioning, latent = encoded.out(0), encoded.out(1)
        if reference is not None:
            conditioning = graph.node(
                "KiwiEditReferenceImage", conditioning=conditioning, vae=vae, latent=latent, reference=reference
            ).out(0)
        if mask is not None:
            latent = graph.node("KiwiEditMask", latent=latent, mask=mask, grow=masks.GROW).out(0)
        edited = graph.node(
            "KiwiEditSampler", model=model, conditioning=conditioning, latent=latent, seed=seed, steps=steps,
            shift=5.0, denoise=1.0,
        )  # fmt: skip
        frames = graph.node("KiwiEditDecode", latent=edited.out(0), vae=vae).out(0)
        if mask is not None:
            frames = graph.node(
                "KiwiEditComposite", frames=frames, source=source, mask=mask, feather=masks.FEATHER
            ).out(0)
        finished = graph.node("KiwiEditFinishVideo", frames=frames, original=video, original_size=original_size)
        return io.NodeOutput(finished.out(0), finished.out(1), expand=graph.finalize())


NODES = [KiwiEditLoadAll, KiwiEditEditVideo]
