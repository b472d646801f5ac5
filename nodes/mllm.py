"""The language model and its connector inside ComfyUI, from ComfyUI's own Qwen2.5-VL classes.

Loading, offloading, dtypes and quantised files are ComfyUI's. What the model is shown, and where, is
:mod:`kiwi_core.mllm`'s, so positions and resized frames are the library's to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import numpy as np
import torch
from comfy.ldm.modules.attention import optimized_attention_for_device
from comfy.text_encoders import llama, qwen_vl
from tokenizers import Tokenizer

from ..kiwi_core import mllm
from ..kiwi_core.checkpoints import qwen_keys
from ..kiwi_core.checkpoints.files import tensor_text
from ..kiwi_core.checkpoints.parts import LIMITS
from ..kiwi_core.checkpoints.single_files import CONFIG, TOKENIZER
from ..kiwi_core.connector import DualConnector

# Bytes of attention's scores that may be held at once, where PyTorch's own attention is not to be had.
_SMALL = 2**28
_INCOMPLETE = "The language model file is incomplete ({}); download it again."


class VisionTower(qwen_vl.Qwen2VLVisionTransformer):
    """Qwen2.5-VL's vision tower; its features come in the order of the patches.

    ComfyUI 0.18 leaves them in the order of the attention windows.
    """

    def forward(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Rows ``[N, 1176]`` and their grid ``[1, 3]`` to features ``[N / 4, D]``."""
        grid = grid.cpu()
        time, rows, columns = grid[0].tolist()
        attention = _attention(pixels.device, rows * columns, self.blocks[0].attn.num_heads, mask=False)
        order, windows = self.get_window_index(grid)
        windows = torch.tensor(windows).unique_consecutive()
        frames = torch.arange(time + 1) * rows * columns

        def reorder(patches: torch.Tensor) -> torch.Tensor:
            neighbours = patches.unflatten(0, (-1, self.spatial_merge_size**2))
            return neighbours[order.to(patches.device)].flatten(0, 1)

        states = reorder(self.patch_embed(pixels))
        angles = reorder(self.get_position_embeddings(grid, pixels.device)).repeat(1, 2)
        rotary = (angles.cos(), angles.sin())
        for index, block in enumerate(self.blocks):
            bounds = frames if index in self.fullatt_block_indexes else windows
            states = block(states, rotary, bounds, optimized_attention=attention)
        return self.merger(states)[order.argsort().to(states.device)]


class QwenVL(torch.nn.Module):
    """Both halves under their released names, ``model.*`` and ``visual.*``."""

    def __init__(self, text: llama.Qwen25_3BConfig, vision: Mapping, **factory):
        super().__init__()
        self.model = llama.Llama2_(text, **factory)
        vision = dict(vision)
        full_attention = vision.pop("fullatt_block_indexes")
        self.visual = VisionTower(**vision, **factory)
        self.visual.fullatt_block_indexes = full_attention
        for layer in (*self.model.layers, *self.visual.blocks):
            layer.register_forward_pre_hook(_stop_if_cancelled)
        for layer in self.model.layers:
            layer.register_forward_pre_hook(_attend_in_parts, with_kwargs=True)

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_tokens(ids, out_dtype=torch.float32)

    def encode_vision(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return self.visual(pixels, grid)

    def language_model(self, embeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.model(None, embeds=embeds, position_ids=positions.squeeze(1))[0]

    def activation_bytes(self, inputs: mllm.MLLMInputs) -> int:
        """What one pass needs beside the weights, roughly: the wider half, with its feed-forward layer."""
        config, visual = self.model.config, self.visual
        tokens, patches = inputs.input_ids.shape[1], max(len(part.pixel_values) for part in inputs.vision)
        text = tokens * (8 * config.hidden_size + 3 * config.intermediate_size) + 2 * tokens**2
        mlp = visual.blocks[0].mlp.gate_proj.out_features
        scores = 0 if comfy.model_management.pytorch_attention_enabled() else _SMALL
        return 4 * max(text, patches * (8 * visual.hidden_size + 3 * mlp)) + scores


def _stop_if_cancelled(*_) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def _attention(device: torch.device, tokens: int, heads: int, mask: bool):
    """The way to attend to so many tokens at once; the one for small inputs may hold all scores, twice in float32."""
    small = comfy.model_management.pytorch_attention_enabled() or 2 * 4 * heads * tokens**2 <= _SMALL
    return optimized_attention_for_device(device, mask=mask, small_input=small)


def _attend_in_parts(layer, args, kwargs):
    """A hook of the text layers, for which ComfyUI takes any input for a small one."""
    states = args[0] if args else kwargs["x"]
    if kwargs.get("optimized_attention") is not None:
        mask = kwargs.get("attention_mask") is not None
        kwargs["optimized_attention"] = _attention(states.device, states.shape[1], layer.self_attn.num_heads, mask)
    return args, kwargs


@dataclass
class KiwiMLLM:
    """A loaded language model: ComfyUI's patcher around a :class:`QwenVL`, and its tokenizer."""

    patcher: comfy.model_patcher.ModelPatcher
    tokenizer: Tokenizer
    tokens_per_second: int

    @property
    def hidden_size(self) -> int:
        return self.patcher.model.model.config.hidden_size

    def get_ram_usage(self) -> int:
        """Bytes, which the cache of ComfyUI 0.18 asks for."""
        return self.patcher.get_ram_usage()

    def encode(self, inputs: mllm.MLLMInputs, connector: KiwiConnector) -> torch.Tensor:
        """Context ``[1, N, dit_dim]``, float32, where ComfyUI keeps intermediate results."""
        model, device = self.patcher.model, self.patcher.load_device
        comfy.model_management.load_models_gpu(
            [self.patcher, connector.patcher], memory_required=model.activation_bytes(inputs)
        )
        context = mllm.run(
            [inputs],
            connector.patcher.model,
            model.embed_tokens,
            model.encode_vision,
            model.language_model,
            device,
        )
        return context.to(comfy.model_management.intermediate_device(), torch.float32)


@dataclass
class KiwiConnector:
    """Loaded queries and connectors: ComfyUI's patcher around a :class:`DualConnector`."""

    patcher: comfy.model_patcher.ModelPatcher
    limits: dict[str, int] = field(default_factory=dict)
    """Arguments of :class:`kiwi_core.mllm.VisionLimits` that the file gives."""

    def get_ram_usage(self) -> int:
        """As of :class:`KiwiMLLM`."""
        return self.patcher.get_ram_usage()


def encode(
    model: KiwiMLLM,
    connector: KiwiConnector,
    prompt: str,
    frames: np.ndarray,
    reference: np.ndarray | Sequence[np.ndarray] | None = None,
    rounding: str = "shipped",
    allow_empty: bool = False,
) -> torch.Tensor:
    """Context ``[1, N, dit_dim]`` of one edit; arguments as in :func:`kiwi_core.mllm.build_inputs`.

    ValueError as there, and if the connector belongs to another language model.
    """
    dual = connector.patcher.model
    if dual.hidden_size != model.hidden_size:
        raise ValueError(
            f"The connector is for a language model {dual.hidden_size} wide but this one is "
            f"{model.hidden_size} wide; load the two that were published together."
        )
    limits = mllm.VisionLimits(**connector.limits, tokens_per_second=model.tokens_per_second)
    inputs = mllm.build_inputs(
        model.tokenizer, prompt, frames, reference, dual.num_queries, limits, rounding, allow_empty
    )
    return model.encode(inputs, connector)


def load_mllm(state_dict: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> KiwiMLLM:
    """Language model from a single file's tensors.

    Args:
        state_dict: Qwen2.5-VL under its published names, with optional uint8 texts ``config_json`` (Qwen's
            config.json; sizes that shapes tell are not read from it) and ``tokenizer_json``.
        metadata: of the file; older quantised ones need it.

    Raises:
        ValueError: another model, or tensors missing.
    """
    texts = {name: tensor_text(state_dict[name]) for name in (CONFIG, TOKENIZER) if name in state_dict}
    weights = qwen_keys.published(state_dict)
    config = qwen_keys.qwen_config(weights, json.loads(texts.get(CONFIG, "{}")))
    if "model.norm.weight" not in weights:
        raise ValueError(_INCOMPLETE.format("model.norm.weight is missing"))
    tokenizer = mllm.load_tokenizer(texts[TOKENIZER]) if TOKENIZER in texts else _bundled_tokenizer()

    # As ComfyUI loads a text encoder: weights stay in the file's dtype and are cast to float32 activations.
    weights, _ = comfy.utils.convert_old_quants(weights, "", dict(metadata or {}))
    dtype = weights["model.norm.weight"].dtype
    operations = comfy.ops.manual_cast
    quantised = comfy.utils.detect_layer_quantization(weights, "")
    if quantised is not None:
        operations = comfy.ops.mixed_precision_ops(quantised, dtype, full_precision_mm=True)
    offload_device = comfy.model_management.text_encoder_offload_device()
    model = QwenVL(*_arguments(config), dtype=dtype, device=offload_device, ops=operations)
    patcher = _patcher(model, dtype)
    missing, _ = model.load_state_dict(weights, strict=False, assign=patcher.is_dynamic())
    if missing:
        raise ValueError(_INCOMPLETE.format(f"{missing[0]} and {len(missing) - 1} more are missing"))
    return KiwiMLLM(patcher, tokenizer, config["vision_config"]["tokens_per_second"])


def load_connector(state_dict: Mapping[str, torch.Tensor]) -> KiwiConnector:
    """Queries and connectors from a single file's tensors.

    Args:
        state_dict: named as in the released ``mllm_encoder/diffusion_pytorch_model.safetensors``; optional
            scalars ``max_pixels_per_frame``, ``max_object_token`` and ``min_pixels_per_frame`` tell what the
            checkpoint is used to.

    Raises:
        ValueError: another file, or tensors missing.
    """
    weights = dict(state_dict)
    limits = {name: int(weights.pop(name)) for name in LIMITS if name in weights}
    model = DualConnector(
        **DualConnector.sizes_from(weights), linear=comfy.ops.manual_cast.Linear, device="meta"
    )
    missing, _ = model.load_state_dict(weights, strict=False, assign=True)
    if missing:
        raise ValueError(f"The connector file is incomplete ({missing[0]} is missing); download it again.")
    return KiwiConnector(_patcher(model, model.connector[0].weight.dtype), limits)


def _patcher(model: torch.nn.Module, dtype: torch.dtype) -> comfy.model_patcher.ModelPatcher:
    """ComfyUI's memory management for a text encoder."""
    model.eval().requires_grad_(False)
    load_device = comfy.model_management.text_encoder_device()
    offload_device = comfy.model_management.text_encoder_offload_device()
    if not comfy.model_management.supports_cast(load_device, dtype):
        load_device = offload_device
    comfy.model_management.archive_model_dtypes(model)
    patcher = comfy.model_patcher.CoreModelPatcher(
        model, load_device=load_device, offload_device=offload_device
    )
    patcher.set_model_compute_dtype(torch.float32)
    patcher.is_clip = True
    return patcher


def _arguments(config: Mapping) -> tuple[llama.Qwen25_3BConfig, dict]:
    """Qwen's config as ComfyUI's two classes take it."""
    said, seen = config["text_config"], config["vision_config"]
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "rms_norm_eps", "rope_theta")  # fmt: skip
    text = llama.Qwen25_3BConfig(**{name: said[name] for name in names})
    text.head_dim = said["hidden_size"] // said["num_attention_heads"]
    text.rope_dims = said["rope_scaling"]["mrope_section"]
    names = ("hidden_size", "intermediate_size", "num_heads", "window_size", "fullatt_block_indexes")
    vision = {"output_hidden_size": seen["out_hidden_size"], "num_layers": seen["depth"]}
    return text, vision | {name: seen[name] for name in names}


def _bundled_tokenizer() -> Tokenizer:
    """The Qwen2.5 tokenizer that comes with ComfyUI."""
    from transformers import Qwen2TokenizerFast

    folder = Path(qwen_vl.__file__).with_name("qwen25_tokenizer")
    return Qwen2TokenizerFast.from_pretrained(folder).backend_tokenizer
