"""LoRA of every dialect, and training checkpoints, on the model, the language model and the connector.

All goes through ComfyUI's own weight patches, so that stacking, offloading and quantised weights are ComfyUI's.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import comfy.lora
import comfy.utils
import comfy.weight_adapter
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from comfy_api.latest import io

from ..kiwi_core.checkpoints import lora, lora_merge
from .loaders import CATEGORY, KiwiConnector, KiwiMLLM, open_tensors

logger = logging.getLogger(__name__)

_RAW = "kiwi_edit_raw_parameters"


class DoRA(comfy.weight_adapter.LoRAAdapter):
    """A pair with magnitudes for the changed weight, as DoRA is trained; ComfyUI measures the unchanged one."""

    def calculate_weight(
        self, weight, key, strength, strength_model, offset, function,
        intermediate_dtype=torch.float32, original_weight=None,
    ):  # fmt: skip
        up, down, alpha, _, magnitudes, _ = (
            part.to(weight.device, torch.float32) if isinstance(part, torch.Tensor) else part for part in self.weights
        )
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        base = weight.float()
        delta = function(scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape))
        return torch.lerp(base, lora.magnify(base + delta, magnitudes), strength).to(weight.dtype)


def _patches(change: lora.Change, key: str) -> list:
    """ComfyUI's patches for the key of a model: low-rank pair or LyCORIS kind, then the difference."""
    found = []
    pair = {"lora_up.weight": change.up, "lora_down.weight": change.down, "dora_scale": change.dora}
    tensors = {f"x.{name}": tensor for name, tensor in pair.items() if tensor is not None}
    if change.down is not None and change.dora is not None and not change.other:
        found.append(DoRA(set(), (change.up, change.down, change.alpha, None, change.dora, None)))
    elif tensors or change.other:
        tensors |= {f"x{ending}": tensor for ending, tensor in change.other.items()}
        if change.alpha is not None:
            tensors["x.alpha"] = torch.tensor(change.alpha)
        found += comfy.lora.load_lora(tensors, {"x": key}, log_missing=False).values()
    if change.diff is not None:
        found.append(("diff", (change.diff,)))
    return found


def patch(patcher: ModelPatcher, changes: dict[str, lora.Change], strength: float, prefix: str = "") -> ModelPatcher:
    """A copy with the changes of the weights (names without ``prefix``); the given one stays as it is.

    Whole tensors move from the model's to their own as the strength goes from 0 to 1.
    """
    if not changes or not strength:
        return patcher
    patched = patcher.clone()
    for name, change in changes.items():
        key = prefix + name
        if change.whole is not None:
            patched.add_patches({key: ("diff", (change.whole,))}, strength, 1 - strength)
        for found in _patches(change, key):
            patched.add_patches({key: found}, strength)
    for each in (patcher, patched):  # the first one too: see below
        if not each.get_callbacks(CallbacksMP.ON_LOAD, _RAW):
            each.add_callback_with_key(CallbacksMP.ON_LOAD, _RAW, _patch_raw)
    return patched


def _patch_raw(patcher: ModelPatcher, device_to, *_) -> None:
    """Patch what ComfyUI's loading passes over: parameters beside submodules, such as modulations and queries, and
    those of modules that are not ComfyUI's own, such as the language model's norms, where it moves only a part.

    Its unloading restores them, as all that is in ``backup``. The dynamic VRAM of ComfyUI 0.18 does not when it goes
    from one patcher of a model to another, so they start from the backup here.
    """
    for key in {**patcher.backup, **patcher.patches}:
        name, _, leaf = key.rpartition(".")
        module = comfy.utils.get_attr(patcher.model, name) if name else patcher.model
        if leaf not in module._parameters:  # a merge of models patches buffers too, which are to stay such
            continue
        inner = any(True for child in module.children() for _ in child.parameters())
        if not inner and hasattr(module, "comfy_cast_weights"):
            continue
        if key in patcher.backup:
            loaded = comfy.utils.get_attr(patcher.model, key)
            comfy.utils.set_attr_param(patcher.model, key, patcher.backup[key].weight.to(loaded))
        patcher.patch_weight_to_device(key, device_to=device_to)


def _shapes(patcher: ModelPatcher, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix(prefix): tuple(parameter.shape)
        for name, parameter in patcher.model.named_parameters()
        if name.startswith(prefix)
    }


def _tell(text: str, node_id: str | None) -> None:
    """A warning in the log and on the node."""
    logger.warning(text)
    if node_id is not None:
        from server import PromptServer

        PromptServer.instance.send_progress_text(text, node_id)


class KiwiEditLoadLoRA(io.ComfyNode):
    """LoRA on all three parts of Kiwi-Edit. The stock LoRA loader takes ComfyUI's and kohya's dialects."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditLoadLoRA",
            display_name="Load LoRA (Kiwi-Edit)",
            category=CATEGORY,
            description="Applies a Wan or Kiwi-Edit LoRA of any kind, or a training checkpoint, from models/loras. "
            "Several can follow each other.",
            search_aliases=["kiwi lora", "lora", "load lora", "apply lora", "training checkpoint", "dora"],
            inputs=[
                io.Model.Input("model"),
                KiwiMLLM.Input(
                    "mllm", optional=True, tooltip="Needed for Kiwi-Edit's own LoRAs; most change the model only."
                ),
                KiwiConnector.Input("connector", optional=True, tooltip="Goes with the MLLM."),
                io.Combo.Input("lora_name", options=folder_paths.get_filename_list("loras")),
                io.Float.Input(
                    "strength", default=1.0, min=-100.0, max=100.0, step=0.01,
                    tooltip="For the video model. Can be negative.",
                ),
                io.Float.Input(
                    "mllm_strength", default=1.0, min=-100.0, max=100.0, step=0.01,
                    tooltip="For the language model, queries and connectors, where the file changes them.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                KiwiMLLM.Output(display_name="mllm"),
                KiwiConnector.Output(display_name="connector"),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, lora_name, strength, mllm_strength, mllm=None, connector=None) -> io.NodeOutput:
        if not strength and not mllm_strength:
            return io.NodeOutput(model, mllm, connector)
        opened = lora.read(folder_paths.get_full_path_or_raise("loras", lora_name), open_file=open_tensors)
        shapes = {"dit": _shapes(model, "diffusion_model.")}
        shapes |= {
            part: _shapes(loaded.patcher)
            for part, loaded in (("mllm", mllm), ("connector", connector))
            if loaded is not None
        }
        taken, report = lora_merge.match(opened, shapes)
        if report.matched < report.total:
            _tell(str(report), cls.hidden.unique_id if cls.hidden else None)
        model = patch(model, taken["dit"], strength, "diffusion_model.")
        mllm, connector = (
            loaded and replace(loaded, patcher=patch(loaded.patcher, taken[part], mllm_strength))
            for part, loaded in (("mllm", mllm), ("connector", connector))
        )
        return io.NodeOutput(model, mllm, connector)


NODES = [KiwiEditLoadLoRA]
