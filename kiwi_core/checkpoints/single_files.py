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
from . import dit_keys, files, fp8, qwen_keys, vae_keys
from .lazy import Tensor, load
from .parts import LIMITS, Parts, Tensors, stored_limits

TOKENIZER, CONFIG = "tokenizer_json", "config_json"


def strip_prefix(tensors: Tensors) -> Tensors:
    """Without the ``model.diffusion_model.`` or ``diffusion_model.`` that some savers put before DiT names."""
    for prefix in ("model.diffusion_model.", "diffusion_model."):
        if any(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def read(
    model: str | os.PathLike,
    vae: str | os.PathLike,
    mllm: str | os.PathLike,
    connector: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
    open_file: files.OpenFile = files.load_tensors,
) -> Parts:
    """All four files; weights in scaled float8 become lazy float32.

    Args:
        tokenizer: folder or ``tokenizer.json``, for a language model file that carries none.
    """
    for path in (model, vae, mllm, connector):
        files.check_file(path)
    weights = fp8.join_scales(strip_prefix(open_file(model)), model)
    dit, source, reference, first = dit_keys.split_embedders(weights)
    variant = find_variant({name: tensor.shape for name, tensor in dit.items()})
    if not source:
        raise ValueError(
            f"{model} is a plain Wan model without Kiwi-Edit's embedders (vae_condition.*); choose a Kiwi-Edit file."
        )
    language = qwen_keys.published(fp8.join_scales(open_file(mllm), mllm))
    config = language.pop(CONFIG, None)
    config = _parse(load(config), mllm) if config is not None else qwen_keys.qwen_config(language)
    text = language.pop(TOKENIZER, None)
    tensors = open_file(connector)
    limits = {name: int(load(tensors.pop(name))) for name in LIMITS if name in tensors}
    like = dit["patch_embedding.weight"].dtype
    return Parts(
        transformer={dit_keys.to_diffusers(name): tensor for name, tensor in dit.items()},
        transformer_config=variant.transformer_config(),
        source_embedder={name: _narrow(tensor, like) for name, tensor in source.items()},
        ref_embedder={name: _narrow(tensor, like) for name, tensor in reference.items()},
        ref_pad_first=first,
        vae=read_vae(vae, open_file),
        mllm=language,
        qwen_config=config,
        connector=tensors,
        tokenizer=files.tensor_text(load(text)) if text is not None else read_tokenizer(tokenizer, mllm),
        limits=VisionLimits(tokens_per_second=config["vision_config"].get("tokens_per_second", 2), **limits),
    )


def _parse(config: torch.Tensor, path: str | os.PathLike) -> dict:
    try:
        return json.loads(files.tensor_text(config))
    except ValueError as error:
        raise ValueError(f"{path} carries damaged settings ({error}); download it again.") from None


def _narrow(tensor: Tensor, dtype: torch.dtype) -> torch.Tensor:
    """An embedder's tensor in the DiT's dtype if that loses nothing: these files have it in float32."""
    wide = load(tensor)
    narrow = wide.to(dtype)
    return narrow if torch.equal(narrow.to(wide.dtype), wide) else wide


def read_vae(path: str | os.PathLike, open_file: files.OpenFile = files.load_tensors) -> dict[str, Tensor]:
    """A Wan VAE file under original names, whichever it has."""
    tensors = open_file(path)
    return tensors if vae_keys.is_original_vae(tensors) else vae_keys.vae_to_original(tensors)


def read_tokenizer(tokenizer: str | os.PathLike | None, mllm: str | os.PathLike) -> str:
    """The text of a tokenizer given as a folder or file."""
    if tokenizer is None:
        raise ValueError(f"{mllm} carries no tokenizer; pass tokenizer= a folder with Qwen2.5-VL's tokenizer.json.")
    from .released import read_tokenizer as from_folder

    path = Path(tokenizer)
    return path.read_text(encoding="utf-8") if path.is_file() else from_folder(path)


def mllm_file(tensors: Tensors, config: Mapping, tokenizer: str) -> dict[str, Tensor]:
    """A language model file that stands alone: its config and tokenizer travel as uint8 tensors."""
    return {**tensors, CONFIG: files.text_tensor(json.dumps(config)), TOKENIZER: files.text_tensor(tokenizer)}


def connector_file(tensors: Tensors, limits: VisionLimits) -> dict[str, Tensor]:
    """A connector file with the limits of what the language model sees."""
    DualConnector.sizes_from(tensors)
    return {**tensors, **{name: torch.tensor(value or 0) for name, value in stored_limits(limits).items()}}


def layout(parts: Parts) -> dict[str, dict[str, Tensor]]:
    """Tensors of the four files: model, vae, mllm, connector.

    The VAE's own mean and std are not kept: ComfyUI knows the published numbers only.
    """
    dit = {dit_keys.to_original(name): tensor for name, tensor in parts.transformer.items()}
    return {
        "model": dit_keys.join_embedders(dit, parts.source_embedder, parts.ref_embedder, parts.ref_pad_first),
        "vae": dict(parts.vae),
        "mllm": mllm_file(parts.mllm, parts.qwen_config, parts.tokenizer),
        "connector": connector_file(parts.connector, parts.limits),
    }


def write(parts: Parts, model, vae, mllm, connector) -> None:
    """Write the four files."""
    paths = {"model": model, "vae": vae, "mllm": mllm, "connector": connector}
    for name, tensors in layout(parts).items():
        files.save_tensors(tensors, paths[name])
