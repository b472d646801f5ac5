"""The published schedule and a sampler with the published defaults, on ComfyUI's own sampling."""

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy_api.latest import io

from ..kiwi_core import schedule
from . import dit

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


class KiwiEditSampler(io.ComfyNode):
    """Edit: Euler over the published schedule, one model call a step (no guidance)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditSampler",
            display_name="Sampler (Kiwi-Edit)",
            category=CATEGORY,
            description="Edits the clip with the published settings: 50 Euler steps, shift 5, no guidance. The same as "
            "Scheduler (Kiwi-Edit) with SamplerCustomAdvanced.",
            search_aliases=["kiwi sampler", "ksampler", "edit video"],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("conditioning"),
                io.Latent.Input("latent"),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
                _steps(),
                _shift(),
                _denoise(),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, model, conditioning, latent, seed, steps, shift, denoise) -> io.NodeOutput:
        dit.check_kiwi(model)
        dit.check_channels(model.model, latent["samples"])
        samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        sigmas = schedule.flow_sigmas(steps, shift, denoising_strength=denoise)
        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": conditioning})
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
        return io.NodeOutput({**latent, "samples": edited.to(samples)})


NODES = [KiwiEditScheduler, KiwiEditSampler]
