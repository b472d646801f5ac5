"""A small Kiwi-Edit model with random weights in every layout that is read: shows the path, not a picture.

    python tools/random_model.py FOLDER

writes ``released/`` (diffusers folder), ``comfyui/`` (single files in ComfyUI's model folders) and ``training/``
(a stage 3 checkpoint beside its base models). All three hold the same model.
"""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from kiwi_core.checkpoints import files, qwen_keys, released, single_files, training, vae_keys
from kiwi_core.checkpoints.parts import Parts
from kiwi_core.connector import DualConnector
from kiwi_core.mllm import VisionLimits
from training.nano.tokens import SPECIAL

FILES = {
    "model": "diffusion_models/kiwi_edit_random.safetensors",
    "vae": "vae/kiwi_edit_random_vae.safetensors",
    "mllm": "text_encoders/kiwi_edit_random_mllm.safetensors",
    "connector": "text_encoders/kiwi_edit_random_connector.safetensors",
}


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and Qwen's special tokens after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def fill(shapes, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random tensors that keep activations near one: norms are ones, weights scaled by their fan-in."""
    tensors = {}
    for name, shape in shapes.items():
        shape = tuple(shape.shape)
        if name.endswith("gamma") or re.search(r"(norm\w*|ln_q)\.\w+$", name):
            tensors[name] = torch.ones(shape) if not name.endswith("bias") else torch.zeros(shape)
        else:
            fan_in = max(1, torch.Size(shape[1:]).numel()) if len(shape) > 1 else 2500
            tensors[name] = torch.randn(shape, generator=generator) / fan_in**0.5
    return tensors


def random_parts(seed: int = 0, reference: bool = True, ref_pad_first: bool = False) -> Parts:
    """A model of width 256 with the 16-channel VAE of Wan2.1, about 4 million parameters in all."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLWan
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    from kiwi_core.transformer import KiwiTransformer3DModel
    from training import architectures

    generator = torch.Generator().manual_seed(seed)
    tokenizer = byte_tokenizer()
    config = architectures.qwen_config("tiny", tokenizer)
    transformer_config = {
        "num_attention_heads": 2, "attention_head_dim": 128, "in_channels": 16, "out_channels": 16, "text_dim": 4096,
        "freq_dim": 256, "ffn_dim": 512, "num_layers": 2,
    }  # fmt: skip
    with init_empty_weights():
        transformer = KiwiTransformer3DModel(**transformer_config)
        transformer.condition_embedder.text_embedder = None
        vae = AutoencoderKLWan(base_dim=4, z_dim=16)
        qwen = Qwen2_5_VLModel(Qwen2_5_VLConfig(**copy.deepcopy(config)))  # it alters what it is given
        connector = DualConnector(256, 256, 4, 6, 8 if reference else 0)
    embedder = {"patch_embedding.weight": torch.empty(256, 16, 1, 2, 2), "patch_embedding.bias": torch.empty(256)}
    return Parts(
        transformer=fill(transformer.state_dict(), generator),
        transformer_config=transformer_config,
        source_embedder=fill(embedder, generator),
        ref_embedder=fill(embedder, generator) if reference else {},
        ref_pad_first=ref_pad_first,
        vae=vae_keys.vae_to_original(fill(vae.state_dict(), generator)),
        mllm=qwen_keys.published(fill(qwen.state_dict(), generator)),
        qwen_config=config,
        connector=fill(connector.state_dict(), generator),
        tokenizer=tokenizer.to_str(),
        limits=VisionLimits(max_pixels_per_frame=131072, max_object_token=16),
    )


def write_training(parts: Parts, folder: Path) -> dict[str, Path]:
    """A stage 3 checkpoint under the published names, its Qwen folder and its VAE; the language LoRA is zero."""
    weights, texts = training.layout(parts)
    attention = "mllm.model.model.language_model.layers.0.self_attn.q_proj"
    width = parts.mllm["model.layers.0.self_attn.q_proj.weight"].shape
    weights[training.CHECKPOINT] |= {
        f"{attention}.lora_A.default.weight": torch.ones(4, width[1]),
        f"{attention}.lora_B.default.weight": torch.zeros(width[0], 4),
    }
    for name, tensors in weights.items():
        files.save_tensors(tensors, folder / name)
    files.save_texts(texts, folder)
    names = {"checkpoint": training.CHECKPOINT, "mllm": training.QWEN, "vae": training.VAE}
    return {part: folder / name for part, name in names.items()}


def write(folder: str | Path, seed: int = 0) -> None:
    """Write all three layouts under ``folder``."""
    folder = Path(folder)
    parts = random_parts(seed)
    released.write(parts, folder / "released")
    single_files.write(parts, **{name: folder / "comfyui" / path for name, path in FILES.items()})
    write_training(parts, folder / "training")


if __name__ == "__main__":
    write(sys.argv[1])
