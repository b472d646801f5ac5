"""The released diffusers folder: read without the code it names, and written so that it reads back the same."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from ..connector import DualConnector
from ..mllm import VisionLimits
from . import dit_keys, files, qwen_keys, vae_keys
from .parts import LIMITS, Parts, Tensors, stored_limits

WEIGHTS = "diffusion_pytorch_model"
_FOLDERS = ("transformer", "vae", "mllm_encoder", "processor", "source_embedder")
_PROCESSOR_TEXT = (".json", ".jinja", ".txt")
_OTHER_TEXT = ("tokenizer.json", "qwen_config.json", "config.json", "generation_config.json")


def is_released(folder: str | os.PathLike) -> bool:
    """Whether this is a released Kiwi-Edit folder (complete or not)."""
    folder = Path(folder)
    return (folder / "model_index.json").is_file() and (folder / "mllm_encoder").is_dir()


def check(folder: str | os.PathLike) -> Path:
    """The folder, if every part is there and every file is whole; otherwise an error that says what to do."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; name the downloaded model folder.")
    index = folder / "model_index.json"
    if not index.is_file() and not any((folder / name).is_dir() for name in _FOLDERS):
        raise FileNotFoundError(
            f"{folder} is no released model folder; name the one that holds model_index.json and transformer/."
        )
    named = files.read_json(index).get("ref_embedder") if index.is_file() else None
    wanted = (*_FOLDERS, "ref_embedder") if named and named[0] else _FOLDERS
    missing = [name for name in wanted if not (folder / name).is_dir()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}/; download the model folder again.")
    for name in (*_FOLDERS, "ref_embedder"):
        if name != "processor" and (folder / name).is_dir():
            for path in files.weight_files(folder / name, WEIGHTS):
                files.check_file(path)
    for path in files.weight_files(folder / "mllm_encoder", "model"):
        files.check_file(path)
    return folder


def read_dit(
    folder: str | os.PathLike, open_file: files.OpenFile = files.load_tensors
) -> tuple[dict, dict, dict, dict, bool]:
    """DiT (diffusers names), its config, source embedder, reference embedder (or empty), ``ref_pad_first``."""
    folder = Path(folder)
    config = files.read_json(folder / "transformer" / "config.json")
    dit = files.load_folder(folder / "transformer", WEIGHTS, open_file)
    source = files.load_folder(folder / "source_embedder", WEIGHTS, open_file)
    reference, first = {}, False
    if (folder / "ref_embedder").is_dir():
        reference = files.load_folder(folder / "ref_embedder", WEIGHTS, open_file)
        first = bool(files.read_json(folder / "ref_embedder" / "config.json").get("ref_pad_first", False))
    return dit, config, source, reference, first


def read_vae(folder: str | os.PathLike, open_file: files.OpenFile = files.load_tensors) -> tuple[dict, dict]:
    """VAE tensors (original names) and its config (``latents_mean``, ``latents_std``)."""
    folder = Path(folder) / "vae"
    tensors = files.load_folder(folder, WEIGHTS, open_file)
    return tensors, files.read_json(folder / "config.json")


def read_tokenizer(folder: str | os.PathLike) -> str:
    """The text of ``tokenizer.json`` of a folder, built from its vocabulary if it is not there."""
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        return (folder / "tokenizer.json").read_text(encoding="utf-8")
    if not (folder / "vocab.json").is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer.json; download the model folder again.")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, use_fast=True).backend_tokenizer.to_str()


def read_mllm(folder: str | os.PathLike, open_file: files.OpenFile = files.load_tensors) -> tuple[dict, dict, str]:
    """Language model tensors, Qwen's config and the tokenizer's text."""
    folder = Path(folder)
    return (
        qwen_keys.published(files.load_folder(folder / "mllm_encoder", "model", open_file)),
        files.read_json(folder / "processor" / "qwen_config.json"),
        read_tokenizer(folder / "processor"),
    )


def read_connector(
    folder: str | os.PathLike, open_file: files.OpenFile = files.load_tensors
) -> tuple[dict, VisionLimits]:
    """Connector tensors and what the language model is shown (but for Qwen's own ``tokens_per_second``)."""
    folder = Path(folder) / "mllm_encoder"
    config = files.read_json(folder / "config.json")
    limits = {name: config[name] for name in LIMITS if name in config}
    return files.load_folder(folder, WEIGHTS, open_file), VisionLimits(**limits)


def read(folder: str | os.PathLike, open_file: files.OpenFile = files.load_tensors) -> Parts:
    """All of a released folder."""
    folder = check(folder)
    dit, dit_config, source, reference, first = read_dit(folder, open_file)
    vae, vae_config = read_vae(folder, open_file)
    mllm, qwen_config, tokenizer = read_mllm(folder, open_file)
    connector, limits = read_connector(folder, open_file)
    speed = qwen_config.get("vision_config", {}).get("tokens_per_second", 2)
    return Parts(
        transformer=dit,
        transformer_config={name: value for name, value in dit_config.items() if not name.startswith("_")},
        source_embedder=source,
        ref_embedder=reference,
        ref_pad_first=first,
        vae=vae if vae_keys.is_original_vae(vae) else vae_keys.vae_to_original(vae),
        latents_mean=vae_config.get("latents_mean"),
        latents_std=vae_config.get("latents_std"),
        mllm=mllm,
        qwen_config=qwen_config,
        connector=connector,
        tokenizer=tokenizer,
        limits=replace(limits, tokens_per_second=speed),
        processor_files=read_processor(folder / "processor"),
    )


def read_processor(folder: str | os.PathLike) -> dict[str, str]:
    """The text files beside a tokenizer that other programs read the model with."""
    return {
        path.name: path.read_text(encoding="utf-8")
        for path in sorted(Path(folder).iterdir())
        if path.suffix in _PROCESSOR_TEXT and path.name not in _OTHER_TEXT and not path.name.endswith(".index.json")
    }


def layout(parts: Parts) -> tuple[dict[str, Tensors], dict[str, str]]:
    """Tensors and texts of the released layout by their paths; ``model_index.json`` is the last."""
    channels = parts.source_embedder["patch_embedding.weight"]
    embedder = {
        "_class_name": "ConditionalEmbedder",
        "dim": channels.shape[0],
        "in_dim": channels.shape[1],
        "patch_size": list(channels.shape[2:]),
        "ref_pad_first": parts.ref_pad_first,
        "zero_init": True,
    }
    vae = vae_keys.vae_config(parts.vae, parts.latents_mean, parts.latents_std)
    tensors = {
        "transformer": parts.transformer,
        "source_embedder": parts.source_embedder,
        "ref_embedder": parts.ref_embedder,
        "vae": parts.vae,
        "mllm_encoder": parts.connector,
    }
    configs = {
        "transformer": {"_class_name": "WanTransformer3DModel", **parts.transformer_config},
        "source_embedder": embedder,
        "ref_embedder": embedder,
        "vae": {
            "_class_name": "VAE",
            "z_dim": vae["z_dim"],
            "dim": vae["base_dim"],
            "dec_dim": vae["decoder_base_dim"] or vae["base_dim"],
            "dim_mult": list(vae["dim_mult"]),
            "num_res_blocks": vae["num_res_blocks"],
            "attn_scales": [],
            "temperal_downsample": list(vae["temperal_downsample"]),
            "dropout": 0.0,
            "latents_mean": list(vae["latents_mean"]),
            "latents_std": list(vae["latents_std"]),
            "vae_pth": f"{WEIGHTS}.safetensors",
        },
        "mllm_encoder": {
            "_class_name": "MLLMEncoder",
            "mllm_model_path": ".",
            **DualConnector.sizes_from(parts.connector),
            "max_frames": 16,
            **stored_limits(parts.limits),
        },
    }
    index = {
        "_class_name": "KiwiEditPipeline",
        "processor": ["transformers", "AutoProcessor"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["wan_video_vae", "VAE"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "mllm_encoder": ["mllm_encoder", "MLLMEncoder"],
        "source_embedder": ["conditional_embedder", "ConditionalEmbedder"],
        "ref_embedder": ["conditional_embedder", "ConditionalEmbedder"],
    }
    if not parts.ref_embedder:
        for part in (tensors, configs, index):
            del part["ref_embedder"]
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 5.0}
    weights = {f"{name}/{WEIGHTS}.safetensors": part for name, part in tensors.items()}
    texts = {
        **{f"{name}/config.json": files.json_text(config) for name, config in configs.items()},
        **{f"processor/{name}": text for name, text in parts.processor_files.items()},
        "processor/tokenizer.json": parts.tokenizer,
        "processor/qwen_config.json": files.json_text(parts.qwen_config),
        "scheduler/scheduler_config.json": files.json_text(scheduler),
        "model_index.json": files.json_text(index),
    }
    return {**weights, "mllm_encoder/model.safetensors": parts.mllm}, texts


def leftovers(folder: str | os.PathLike, parts: Parts) -> list[Path]:
    """What another model that was here before would leave beside this one's files."""
    folder = Path(folder)
    stems = {name: WEIGHTS for name in (*_FOLDERS, "ref_embedder") if name != "processor"}
    found = [] if parts.ref_embedder or not (folder / "ref_embedder").exists() else [folder / "ref_embedder"]
    for name, stem in (*stems.items(), ("mllm_encoder", "model")):
        found += [*(folder / name).glob(f"{stem}-*-of-*.safetensors")]
        found += [*(folder / name).glob(f"{stem}.safetensors.index.json")]
    return found


def write(parts: Parts, folder: str | os.PathLike) -> None:
    """Write the released layout; ``model_index.json`` comes last, so that a killed run leaves no model behind."""
    folder = Path(folder)
    (folder / "model_index.json").unlink(missing_ok=True)
    weights, texts = layout(parts)
    for name, tensors in weights.items():
        files.save_tensors(tensors, folder / name)
    for path in leftovers(folder, parts):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    files.save_texts(texts, folder)


def comfyui_dit(folder: str | os.PathLike, open_file: files.OpenFile = files.load_tensors) -> dict[str, torch.Tensor]:
    """The folder's DiT and embedders as a ComfyUI single file would hold them."""
    dit, _, source, reference, first = read_dit(folder, open_file)
    tensors = {dit_keys.to_original(name): tensor for name, tensor in dit.items()}
    return dit_keys.join_embedders(tensors, source, reference, first)
