"""A published training checkpoint (trainable tensors only) on top of the base models it was trained from.

Under its own names: ``mllm.<kind>_queries.q``, the query connector misspelt ``mllm.connetor``, the language model's
LoRA under ``mllm.model.model.language_model``, the DiT whole or as LoRA under ``dit``, embedders under
``vae_condition`` and ``ref_vae_condition``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from ..mllm import VisionLimits
from ..variant import find_variant
from . import dit_keys, files, fp8, qwen_keys, released, single_files
from .lazy import Tensor, apply
from .parts import Parts, Tensors

CHECKPOINT, QWEN, VAE = "checkpoint.safetensors", "qwen", "vae.safetensors"

_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight")  # of an adapter of any name


def is_training(names) -> bool:
    """Whether these are the names of a training checkpoint."""
    return any(_plain(name).startswith(("mllm.connetor.", "mllm.image_queries")) for name in names)


def _plain(name: str) -> str:
    return name.removeprefix("pipe.")


def split(checkpoint: Tensors) -> dict[str, dict[str, Tensor]]:
    """The checkpoint's tensors by what they belong to: dit, mllm, connector, source, reference.

    LoRA tensors keep their ``lora_A`` and ``lora_B``; the language model's names become the published ones.
    """
    parts: dict[str, dict[str, Tensor]]
    parts = {name: {} for name in ("dit", "mllm", "connector", "source", "reference")}
    for original, tensor in checkpoint.items():
        name = _plain(original)
        if name.startswith("mllm.model."):
            parts["mllm"][qwen_keys.to_published(name.removeprefix("mllm.model."))] = tensor
        elif name.startswith(dit_keys.REFERENCE_PREFIX):
            parts["reference"][name.removeprefix(dit_keys.REFERENCE_PREFIX)] = tensor
        elif name.startswith(dit_keys.SOURCE_PREFIX):
            parts["source"][name.removeprefix(dit_keys.SOURCE_PREFIX)] = tensor
        elif name.startswith("mllm."):
            rest = name.removeprefix("mllm.").replace("connetor.", "connector.")
            parts["connector"][rest.removesuffix(".q") if rest.endswith("_queries.q") else rest] = tensor
        else:
            parts["dit"][name.removeprefix("dit.")] = tensor
    return parts


def merge_lora(base: Tensors, lora: Tensors) -> dict[str, Tensor]:
    """Base weights with whole tensors replaced and LoRA pairs added (alpha = rank, so W + B A).

    The sum is taken in float32 and kept in the base's dtype, or in the LoRA's where the base is in float8, which would
    round most of it away.
    """
    merged = dict(base)
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in lora.items():
        match = _LORA.fullmatch(name)
        if match:
            pair = pairs.setdefault(match.group(1) + ".weight", {})
            if match.group(2) in pair:
                raise ValueError(f"The checkpoint holds more than one LoRA for {match.group(1)}; keep one of them.")
            pair[match.group(2)] = tensor
        elif base and name not in base:
            raise ValueError(f"The checkpoint holds {name}, which the base model lacks; use its own base.")
        else:
            merged[name] = tensor
    for name, pair in pairs.items():
        weight, a, b = base.get(name), pair.get("A"), pair.get("B")
        if weight is None or a is None or b is None or (b.shape[0], a.shape[1]) != weight.shape:
            raise ValueError(f"The checkpoint's LoRA for {name} does not fit the base model; use its own base.")
        small = isinstance(weight, fp8.ScaledTensor) or weight.dtype.itemsize == 1
        merged[name] = apply(partial(_add_lora, a.dtype if small else weight.dtype), weight, a, b)
    return merged


def _add_lora(dtype: torch.dtype, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (weight.float() + b.float() @ a.float()).to(dtype)


def read(
    checkpoint: str | os.PathLike,
    mllm: str | os.PathLike,
    vae: str | os.PathLike,
    model: str | os.PathLike | None = None,
    ref_pad_first: bool = False,
    open_file: files.OpenFile = files.load_tensors,
) -> Parts:
    """A checkpoint of stage 2 or 3 and its bases.

    Args:
        mllm: Qwen2.5-VL-3B-Instruct's folder. vae: a Wan VAE safetensors file. model: the base DiT, a file or a folder
            of shards; not needed where the checkpoint holds the whole DiT. ref_pad_first: the checkpoint's, which its
            file does not say.
    """
    given = split(open_file(checkpoint))
    if not given["connector"]:
        raise ValueError(
            f"{checkpoint} is no Kiwi-Edit training checkpoint (mllm.connetor.* is missing); choose one."
        )
    if not given["source"]:
        raise ValueError(f"{checkpoint} is of stage 1, which cannot edit yet; use one of stage 2 or 3.")
    base = load_base(model, open_file) if model is not None else {}
    if not base and not dit_keys.is_original(given["dit"]):
        raise ValueError(f"{checkpoint} does not hold the whole DiT; pass model= the base Wan DiT.")
    dit = merge_lora(base, given["dit"])
    variant = find_variant({name: tensor.shape for name, tensor in dit.items()})

    language, config, tokenizer = read_qwen(mllm, open_file)
    return Parts(
        transformer={dit_keys.to_diffusers(name): tensor for name, tensor in dit.items()},
        transformer_config=variant.transformer_config(),
        source_embedder=given["source"],
        ref_embedder=given["reference"],
        ref_pad_first=ref_pad_first,
        vae=single_files.read_vae(vae, open_file),
        mllm=merge_lora(language, given["mllm"]),
        qwen_config=config,
        connector=given["connector"],
        tokenizer=tokenizer,
        limits=VisionLimits(
            max_object_token=given["connector"]["ref_queries"].shape[0] if "ref_queries" in given["connector"] else 768,
            tokens_per_second=config["vision_config"].get("tokens_per_second", 2),
        ),
        processor_files=released.read_processor(mllm),
    )


def load_base(model: str | os.PathLike, open_file: files.OpenFile = files.load_tensors) -> dict[str, Tensor]:
    """A base DiT under original names, from a file or a folder of shards."""
    path = Path(model)
    tensors = files.load_folder(path, released.WEIGHTS, open_file) if path.is_dir() else open_file(path)
    tensors = fp8.join_scales(single_files.strip_prefix(tensors), path)
    if dit_keys.is_diffusers(tensors):
        return {dit_keys.to_original(name): tensor for name, tensor in tensors.items()}
    return tensors


def read_qwen(
    folder: str | os.PathLike, open_file: files.OpenFile = files.load_tensors
) -> tuple[dict[str, Tensor], Mapping, str]:
    """Qwen2.5-VL's own folder: tensors under published names, config, tokenizer text."""
    folder = Path(folder)
    tensors = qwen_keys.published(fp8.join_scales(files.load_folder(folder, "model", open_file), folder))
    config = files.read_json(folder / "config.json")
    if "vision_config" not in config:
        raise ValueError(f"{folder} holds another language model; use Qwen2.5-VL-3B-Instruct.")
    if "text_config" not in config:  # the published file keeps the text model's settings on top
        vision = config.pop("vision_config")
        text = {**config, "model_type": "qwen2_5_vl_text"}
        config = {"model_type": "qwen2_5_vl", "text_config": text, "vision_config": vision}
    return tensors, config, released.read_tokenizer(folder)


def layout(parts: Parts) -> tuple[dict[str, Tensors], dict[str, str]]:
    """Tensors and texts by their paths: a checkpoint with the whole DiT, its language model and its VAE.

    The language model is whole: a LoRA that was merged into it cannot be taken out again.
    """
    connector = {
        f"mllm.{name}.q" if name.endswith("_queries") else
        "mllm." + (name.replace("connector", "connetor", 1) if name.startswith("connector.") else name): tensor
        for name, tensor in parts.connector.items()
    }  # fmt: skip
    checkpoint = {
        **connector,
        **{f"dit.{dit_keys.to_original(name)}": tensor for name, tensor in parts.transformer.items()},
        **{dit_keys.SOURCE_PREFIX + name: tensor for name, tensor in parts.source_embedder.items()},
        **{dit_keys.REFERENCE_PREFIX + name: tensor for name, tensor in parts.ref_embedder.items()},
    }
    weights = {CHECKPOINT: checkpoint, f"{QWEN}/model.safetensors": parts.mllm, VAE: parts.vae}
    texts = {
        **{f"{QWEN}/{name}": text for name, text in parts.processor_files.items()},
        f"{QWEN}/tokenizer.json": parts.tokenizer,
        f"{QWEN}/config.json": files.json_text(parts.qwen_config),
    }
    return weights, texts
