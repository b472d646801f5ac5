"""The ComfyUI layout: one safetensors file each for the DiT, the VAE, the language model and the connector."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from ..connector import DualConnector
from ..mllm import VisionLimits
from ..variant import find_variant
from . import dit_keys, files, vae_keys
from .parts import Parts

TOKENIZER, CONFIG = "tokenizer_json", "config_json"
LIMITS = ("max_pixels_per_frame", "max_object_token")


def strip_prefix(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Without the ``model.diffusion_model.`` or ``diffusion_model.`` that some savers put before DiT names."""
    for prefix in ("model.diffusion_model.", "diffusion_model."):
        if any(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def qwen_config(tensors: Mapping[str, torch.Tensor]) -> dict:
    """Qwen2.5-VL's config from the shapes of its tensors, with the published head widths (128, vision 80)."""
    if "model.embed_tokens.weight" not in tensors or "visual.patch_embed.proj.weight" not in tensors:
        raise ValueError("This is no Qwen2.5-VL file (model.embed_tokens or visual.* is missing); choose another.")
    vocabulary, hidden = tensors["model.embed_tokens.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("model.layers."))
    depth = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("visual.blocks."))
    vision_hidden = tensors["visual.patch_embed.proj.weight"].shape[0]
    return {
        "model_type": "qwen2_5_vl",
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": tensors["model.layers.0.mlp.gate_proj.weight"].shape[0],
            "num_hidden_layers": layers,
            "num_attention_heads": tensors["model.layers.0.self_attn.q_proj.weight"].shape[0] // 128,
            "num_key_value_heads": tensors["model.layers.0.self_attn.k_proj.weight"].shape[0] // 128,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": True,
        },
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": depth,
            "hidden_size": vision_hidden,
            "intermediate_size": tensors["visual.blocks.0.mlp.gate_proj.weight"].shape[0],
            "num_heads": vision_hidden // 80,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": list(range(7, depth, 8)),
            "window_size": 112,
            "tokens_per_second": 2,
        },
    }  # fmt: skip


def read(
    model: str | os.PathLike,
    vae: str | os.PathLike,
    mllm: str | os.PathLike,
    connector: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
) -> Parts:
    """All four files.

    Args:
        tokenizer: folder or ``tokenizer.json``, for a language model file that carries none.
    """
    for path in (model, vae, mllm, connector):
        files.check_file(path)
    dit, source, reference, first = dit_keys.split_embedders(strip_prefix(files.load_tensors(model)))
    variant = find_variant({name: tensor.shape for name, tensor in dit.items()})
    if not source:
        raise ValueError(
            f"{model} is a plain Wan model without Kiwi-Edit's embedders (vae_condition.*); choose a Kiwi-Edit file."
        )
    language = files.load_tensors(mllm)
    config = language.pop(CONFIG, None)
    config = _parse(config, mllm) if config is not None else qwen_config(language)
    text = language.pop(TOKENIZER, None)
    language.pop("lm_head.weight", None)
    tensors = files.load_tensors(connector)
    limits = {name: int(tensors.pop(name)) for name in LIMITS if name in tensors}
    return Parts(
        transformer={dit_keys.to_diffusers(name): tensor for name, tensor in dit.items()},
        transformer_config=variant.transformer_config(),
        source_embedder=source,
        ref_embedder=reference,
        ref_pad_first=first,
        vae=read_vae(vae),
        mllm=language,
        qwen_config=config,
        connector=tensors,
        tokenizer=files.tensor_text(text) if text is not None else read_tokenizer(tokenizer, mllm),
        limits=VisionLimits(tokens_per_second=config["vision_config"].get("tokens_per_second", 2), **limits),
    )


def _parse(config: torch.Tensor, path: str | os.PathLike) -> dict:
    try:
        return json.loads(files.tensor_text(config))
    except ValueError as error:
        raise ValueError(f"{path} carries damaged settings ({error}); download it again.") from None


def read_vae(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """A Wan VAE file under original names, whichever it has."""
    tensors = files.load_tensors(path)
    return tensors if vae_keys.is_original_vae(tensors) else vae_keys.vae_to_original(tensors)


def read_tokenizer(tokenizer: str | os.PathLike | None, mllm: str | os.PathLike) -> str:
    """The text of a tokenizer given as a folder or file."""
    if tokenizer is None:
        raise ValueError(f"{mllm} carries no tokenizer; pass tokenizer= a folder with Qwen2.5-VL's tokenizer.json.")
    from .released import read_tokenizer as from_folder

    path = Path(tokenizer)
    return path.read_text(encoding="utf-8") if path.is_file() else from_folder(path)


def mllm_file(tensors: Mapping[str, torch.Tensor], config: Mapping, tokenizer: str) -> dict[str, torch.Tensor]:
    """A language model file that stands alone: its config and tokenizer travel as uint8 tensors."""
    return {**tensors, CONFIG: files.text_tensor(json.dumps(config)), TOKENIZER: files.text_tensor(tokenizer)}


def connector_file(tensors: Mapping[str, torch.Tensor], limits: VisionLimits) -> dict[str, torch.Tensor]:
    """A connector file with the limits of what the language model sees."""
    DualConnector.sizes_from(tensors)
    values = (limits.max_pixels_per_frame or 0, limits.max_object_token)
    return {**tensors, **{name: torch.tensor(value) for name, value in zip(LIMITS, values)}}


def write(parts: Parts, model, vae, mllm, connector) -> None:
    """Write the four files. The VAE's own mean and std are not kept: ComfyUI knows the published numbers only."""
    dit = {dit_keys.to_original(name): tensor for name, tensor in parts.transformer.items()}
    files.save_tensors(
        dit_keys.join_embedders(dit, parts.source_embedder, parts.ref_embedder, parts.ref_pad_first), model
    )
    files.save_tensors(parts.vae, vae)
    files.save_tensors(mllm_file(parts.mllm, parts.qwen_config, parts.tokenizer), mllm)
    files.save_tensors(connector_file(parts.connector, parts.limits), connector)
