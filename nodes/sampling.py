"""The published schedule, a sampler with the published defaults, and long clips, on ComfyUI's own sampling."""

import math

import comfy.context_windows
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy_api.latest import io

from ..kiwi_core import schedule, windows
from . import dit
from .encode import warn_of_lost_references

CATEGORY = "model/sampling/kiwi-edit"


def _steps():
    return io.Int.Input("steps", default=50, min=1, max=1000, tooltip="More is finer and slower; published with 50.")


def _shift():
    return io.Float.Input(
        "shift", default=5.0, min=0.1, max=100.0, step=0.1, tooltip="Published with 5: more steps at high noise."
    )


def _denoise():
    return io.Float.Input(
        "denoise", default=1.0, min=0.01, max=1.0, step=0.01, tooltip="Below 1 starts from the noised source."
    )


def _window_frames(**options):
    return io.Int.Input(
        "window_frames", default=windows.FRAMES, max=100001, advanced=True, **options,
        tooltip="Longer clips are sampled in windows of so many frames (rounded up to 4k+1), in the memory of one "
        "window. The model was trained up to 81.",
    )  # fmt: skip


def _window_overlap(**options):
    return io.Int.Input(
        "window_overlap", default=windows.OVERLAP, min=0, max=100000, step=4, advanced=True, **options,
        tooltip="Frames that a window shares with the next, to fade from one to the other.",
    )  # fmt: skip


def _check_one_clip(clips: int) -> None:
    if clips > 1:
        raise ValueError(
            f"{clips} clips were given and windows take one; choose one with Latent From Batch, or sample them "
            "without windows."
        )


class _Windows(comfy.context_windows.IndexListContextHandler):
    """Says what ComfyUI's fails at: several clips at once."""

    def execute(self, calc_cond_batch, model, conds, x_in, *args, **kwargs):
        _check_one_clip(len(x_in))
        return super().execute(calc_cond_batch, model, conds, x_in, *args, **kwargs)


def _add_windows(model, window_frames, window_overlap):
    """A clone of a MODEL that samples in windows, with ComfyUI's own context windows."""
    length, overlap = windows.latent_sizes(window_frames, window_overlap)
    model = model.clone()
    # Of its ways to blend, the pyramid fades linearly over all of an overlap, and over a wider last one too;
    # overlap-linear gives an overlap's first and last frame no weight, and cannot do without overlap.
    model.model_options["context_handler"] = _Windows(
        context_schedule=comfy.context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=comfy.context_windows.get_matching_fuse_method("pyramid"),
        context_length=length,
        context_overlap=overlap,
        dim=2,
    )
    comfy.context_windows.create_prepare_sampling_wrapper(model)
    return model


class KiwiEditScheduler(io.ComfyNode):
    """The noise levels of the published runs, for Sampler Custom nodes."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditScheduler",
            display_name="Scheduler (Kiwi-Edit)",
            category=CATEGORY,
            description="The noise levels of the published runs, for SamplerCustom and SamplerCustomAdvanced. "
            "ComfyUI's simple scheduler ends a little lower.",
            search_aliases=["kiwi sigmas", "flow match scheduler"],
            inputs=[
                _steps(),
                _shift(),
                _denoise(),
                io.Float.Input(
                    "sigma_min", default=schedule.SIGMA_MIN, min=0.0, max=0.5, step=0.0001, round=False, advanced=True,
                    tooltip="Last level before the shift; 0 is the schedule of training.",
                ),
            ],
            outputs=[io.Sigmas.Output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, steps, shift, denoise, sigma_min) -> io.NodeOutput:
        return io.NodeOutput(schedule.flow_sigmas(steps, shift, sigma_min, denoise))


class KiwiEditContextWindows(io.ComfyNode):
    """Long clips with any sampler."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditContextWindows",
            display_name="Context Windows (Kiwi-Edit)",
            category=CATEGORY,
            description="Makes any sampler take a clip longer than the model was trained on in overlapping windows. "
            "Sampler (Kiwi-Edit) does so by itself.",
            search_aliases=["kiwi long video", "context window", "wan context windows"],
            inputs=[io.Model.Input("model"), _window_frames(min=5), _window_overlap()],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, window_frames, window_overlap) -> io.NodeOutput:
        dit.check_kiwi(model)
        return io.NodeOutput(_add_windows(model, window_frames, window_overlap))


class KiwiEditSampler(io.ComfyNode):
    """Edit: Euler over the published schedule, one model call a step unless guidance or windows ask for more."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditSampler",
            display_name="Sampler (Kiwi-Edit)",
            category=CATEGORY,
            description="Edits the clip with the published settings: 50 Euler steps, shift 5, no guidance. The same as "
            "Scheduler (Kiwi-Edit) with SamplerCustomAdvanced. A clip of more than 81 frames is sampled in windows.",
            search_aliases=["kiwi sampler", "ksampler", "edit video"],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("conditioning"),
                io.Latent.Input("latent"),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
                _steps(),
                _shift(),
                _denoise(),
                io.Float.Input(
                    "cfg", default=1.0, min=0.0, max=100.0, step=0.1, optional=True,
                    tooltip="Above 1 follows the instruction harder, at twice the time; the model was trained for 1. "
                    "Needs a negative.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="What to push away from: an empty instruction on the same clip."
                ),
                _window_frames(min=0, optional=True),
                _window_overlap(optional=True),
            ],
            outputs=[io.Latent.Output()],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, window_frames=None, window_overlap=None):
        # Naming them here turns ComfyUI's own check of their range off.
        if window_frames is None or window_overlap is None or window_frames == 0:
            return True
        try:
            windows.latent_sizes(window_frames, window_overlap)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, model, conditioning, latent, seed, steps, shift, denoise, cfg=1.0, negative=None,
        window_frames=windows.FRAMES, window_overlap=windows.OVERLAP,
    ) -> io.NodeOutput:  # fmt: skip
        dit.check_kiwi(model)
        dit.check_channels(model.model, latent["samples"])
        for _, values in (*conditioning, *(negative or ())):
            dit.check_source(values)
        warn_of_lost_references(conditioning)
        if negative is None and not math.isclose(cfg, 1.0):
            raise ValueError(
                f"cfg is {cfg:g} but there is no negative; connect Encode Negative (Kiwi-Edit), through Source Video, "
                "or set cfg to 1."
            )
        samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        frames = samples.shape[2]
        length = windows.latent_sizes(window_frames, window_overlap)[0] if window_frames else frames
        if frames > length and model.model_options.get("context_handler") is None:
            model = _add_windows(model, window_frames, window_overlap)
        handler = model.model_options.get("context_handler")
        if handler is not None and frames > getattr(handler, "context_length", frames):
            _check_one_clip(len(samples))
        sigmas = schedule.flow_sigmas(steps, shift, denoising_strength=denoise)
        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": conditioning} | ({"negative": negative} if negative is not None else {}))
        guider.set_cfg(cfg)
        edited = guider.sample(
            comfy.sample.prepare_noise(samples, seed, latent.get("batch_index")),
            samples,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=latent_preview.prepare_callback(model, steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        if not edited.isfinite().all():
            raise FloatingPointError(
                "The model's numbers overflowed, and the video would be black; lower the strength of LoRAs, or start "
                "ComfyUI with --bf16-unet or --fp32-unet."
            )
        return io.NodeOutput({**latent, "samples": edited.to(samples)})


NODES = [KiwiEditScheduler, KiwiEditSampler, KiwiEditContextWindows]
