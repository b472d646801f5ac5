"""Presets between the published quality and the least waiting."""

from dataclasses import dataclass

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..kiwi_core import schedule
from . import dit

NO_LORA = "none"
_NEEDS_LORA = "This preset needs a step-distilled LoRA; choose one as lora_name, or another preset."
CACHES = ("EasyCache", "LazyCache")


@dataclass(frozen=True)
class Preset:
    """How to sample. ``reuse_threshold``: the cache's; 0 leaves it out. ``distilled``: with a LoRA, in its steps."""

    steps: int
    reuse_threshold: float = 0.0
    distilled: bool = False
    shift: float = 5.0


PRESETS = {
    "published: 50 steps": Preset(50),
    "balanced: 30 steps, cached": Preset(30, reuse_threshold=0.1),
    "fast: 20 steps, cached": Preset(20, reuse_threshold=0.2),
    "few steps: distilled LoRA": Preset(4, distilled=True),
}


def _lora_names() -> list[str]:
    return [NO_LORA, *folder_paths.get_filename_list("loras")]


class KiwiEditSpeed(io.ComfyNode):
    """Steps, shift and model for a preset, made of ComfyUI's own caching nodes and our LoRA loader."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditSpeed",
            display_name="Speed Preset (Kiwi-Edit)",
            category="model/sampling/kiwi-edit",
            description="Trades quality for time: fewer steps, ComfyUI's EasyCache (which leaves out steps that hardly "
            "change anything), or a step-distilled LoRA. Connect steps and shift to the sampler.",
            search_aliases=["kiwi fast", "easycache", "turbo", "lightning", "few step", "distilled"],
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input("preset", options=list(PRESETS), default=next(iter(PRESETS))),
                io.Combo.Input(
                    "lora_name", options=_lora_names(), default=NO_LORA, optional=True,
                    tooltip="A LoRA that was distilled to a few steps; only that preset loads it.",
                ),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, optional=True),
                io.Int.Input(
                    "lora_steps", default=4, min=1, max=50, optional=True,
                    tooltip="The steps that the LoRA was distilled to; only that preset uses them.",
                ),
                io.Combo.Input(
                    "cache", options=list(CACHES), default=CACHES[0], optional=True, advanced=True,
                    tooltip="LazyCache is for clips that are sampled in windows; EasyCache is better on all others.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.Int.Output(display_name="steps"),
                io.Float.Output(display_name="shift"),
                io.Sigmas.Output(tooltip="The same steps for SamplerCustomAdvanced."),
            ],
            enable_expand=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, preset=None, lora_name=NO_LORA):
        # Naming them here turns ComfyUI's own check of their values off.
        for name, value, options in (("preset", preset, PRESETS), ("lora_name", lora_name, _lora_names())):
            if value is not None and value not in options:
                return f"There is no {name} {value!r}; choose one of the list."
        if preset and PRESETS[preset].distilled and lora_name == NO_LORA:  # None is a link
            return _NEEDS_LORA
        return True

    @classmethod
    def execute(
        cls, model, preset, lora_name=NO_LORA, strength=1.0, lora_steps=4, cache=CACHES[0]
    ) -> io.NodeOutput:
        dit.check_kiwi(model)
        chosen, graph = PRESETS[preset], GraphBuilder()
        steps = lora_steps if chosen.distilled else chosen.steps
        if chosen.distilled and lora_name == NO_LORA:
            raise ValueError(_NEEDS_LORA)
        if chosen.distilled:
            model = graph.node(
                "KiwiEditLoadLoRA", model=model, lora_name=lora_name, strength=strength, mllm_strength=strength
            ).out(0)
        if chosen.reuse_threshold:
            model = graph.node(
                cache, model=model, reuse_threshold=chosen.reuse_threshold,
                start_percent=0.15, end_percent=0.95, verbose=False,
            ).out(0)  # fmt: skip
        sigmas = schedule.flow_sigmas(steps, chosen.shift)
        return io.NodeOutput(model, steps, chosen.shift, sigmas, expand=graph.finalize() or None)


NODES = [KiwiEditSpeed]
