"""The published models without their weights, and what they start training with."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from tokenizers import Tokenizer, models
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

from kiwi_core.checkpoints import qwen_keys, vae_keys
from kiwi_core.checkpoints.parts import Parts
from kiwi_core.conditioning import PatchEmbedder
from kiwi_core.connector import DualConnector
from kiwi_core.mllm import QUERY_TOKEN, VisionLimits
from kiwi_core.transformer import KiwiTransformer3DModel

NUM_QUERIES = {"5B": (256, 512, 768), "14B": (256, 512, 384), "tiny": (4, 6, 8), "nano": (8, 12, 16)}
"""Learnable queries for pictures, videos and references."""
MAX_OBJECT_TOKEN = {"5B": 768, "14B": 384, "tiny": 16, "nano": 16}
"""Tokens of a reference."""
_FRAME_PIXELS = {"nano": (112 * 112, 224 * 224)}
"""Smallest and largest frame for the language model, where they are not the published ones."""

_DIT = {
    "5B": {"num_attention_heads": 24, "in_channels": 48, "out_channels": 48, "ffn_dim": 14336, "num_layers": 30},
    "14B": {"num_attention_heads": 40, "in_channels": 16, "out_channels": 16, "ffn_dim": 13824, "num_layers": 40},
    "tiny": {
        "num_attention_heads": 2, "in_channels": 16, "out_channels": 16, "ffn_dim": 512, "num_layers": 2,
    },
    "nano": {"num_attention_heads": 2, "in_channels": 16, "out_channels": 16, "ffn_dim": 640, "num_layers": 5},
}  # fmt: skip
_VAE = {
    "5B": {
        "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
        "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
        "temperal_downsample": [False, True, True], "latents_mean": vae_keys.LATENTS_MEAN[48],
        "latents_std": vae_keys.LATENTS_STD[48],
    },
    "14B": {"base_dim": 96, "z_dim": 16},
    "tiny": {"base_dim": 4, "z_dim": 16},
    "nano": {"base_dim": 8, "z_dim": 16},
}  # fmt: skip
_QWEN_3B = {
    "text": {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2,
    },
    "vision": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048},
    "full_attention": [7, 15, 23, 31],
}  # fmt: skip
_QWEN_NANO = {
    "text": {
        "vocab_size": 640, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 1, "num_key_value_heads": 1,
    },
    "vision": {"depth": 3, "hidden_size": 80, "intermediate_size": 240, "num_heads": 1, "out_hidden_size": 128},
    "full_attention": [0, 1, 2],
}  # fmt: skip
_QWEN_TINY = {
    "text": {
        "vocab_size": 512, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    },
    "vision": {"depth": 2, "hidden_size": 160, "intermediate_size": 192, "num_heads": 2, "out_hidden_size": 256},
    "full_attention": [1],
}  # fmt: skip
_ENDS = {"bos": "<|endoftext|>", "eos": "<|im_end|>"}


def dit_config(architecture: str) -> dict:
    """Arguments of diffusers' ``WanTransformer3DModel``."""
    return {"attention_head_dim": 128, "text_dim": 4096, "freq_dim": 256, **_DIT[architecture]}


def qwen_config(architecture: str, tokenizer: Tokenizer | None = None) -> dict:
    """Qwen2.5-VL's config, with the tokens and the vocabulary of a tokenizer if one is given."""
    sizes = {"tiny": _QWEN_TINY, "nano": _QWEN_NANO}.get(architecture, _QWEN_3B)
    config = {
        "model_type": "qwen2_5_vl",
        "text_config": {
            "model_type": "qwen2_5_vl_text", **sizes["text"], "max_position_embeddings": 128000, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0, "tie_word_embeddings": True,
            "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "model_type": "qwen2_5_vl", **sizes["vision"], "fullatt_block_indexes": sizes["full_attention"],
            "window_size": 112, "tokens_per_second": 2,
        },
    }  # fmt: skip
    if tokenizer is not None:
        ids = {f"{end}_token_id": tokenizer.token_to_id(token) for end, token in _ENDS.items()}
        config["text_config"] |= ids | {"vocab_size": tokenizer.get_vocab_size()}
        config |= ids
        for name in ("image", "video", "vision_start", "vision_end"):
            token = f"<|{name}|>" if name.startswith("vision") else f"<|{name}_pad|>"
            config[f"{name}_token_id"] = tokenizer.token_to_id(token)
    return config


def new_vae(architecture: str) -> AutoencoderKLWan:
    """A VAE with random weights."""
    return AutoencoderKLWan(**_VAE[architecture])


def new_connector(architecture: str, hidden_size: int, dit_dim: int) -> dict[str, torch.Tensor]:
    """Queries and connectors as training starts with: small random queries, connectors that say nothing yet."""
    return dict(DualConnector(hidden_size, dit_dim, *NUM_QUERIES[architecture]).state_dict())


def new_embedder(dim: int, channels: int) -> dict[str, torch.Tensor]:
    """An embedder of source or references as training starts with: zero."""
    return dict(PatchEmbedder(channels, dim).state_dict())


def limits(architecture: str, tokens_per_second: int = 2) -> VisionLimits:
    """What the language model of a new model is shown."""
    frame = dict(zip(("min_pixels_per_frame", "max_pixels_per_frame"), _FRAME_PIXELS.get(architecture, ())))
    return VisionLimits(
        max_object_token=MAX_OBJECT_TOKEN[architecture], tokens_per_second=tokens_per_second, **frame
    )


def meta_parts(architecture: str) -> Parts:
    """A model with all its shapes and no weights, for counting; its tokenizer knows the special tokens only."""
    with torch.device("meta"):
        transformer = KiwiTransformer3DModel(**dit_config(architecture))
        qwen = Qwen2_5_VLModel(Qwen2_5_VLConfig(**qwen_config(architecture)))
        vae = new_vae(architecture)
        width = qwen.config.text_config.hidden_size
        dim = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        connector = new_connector(architecture, width, dim)
        embedder = new_embedder(dim, transformer.config.in_channels)
    special = [QUERY_TOKEN, *(f"<|{kind}_pad|>" for kind in ("image", "video"))]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(special)}, special[0]))
    return Parts(
        transformer=transformer.state_dict(),
        transformer_config=dit_config(architecture),
        source_embedder=embedder,
        ref_embedder=embedder,
        ref_pad_first=False,
        vae=vae_keys.vae_to_original(vae.state_dict()),
        mllm=qwen_keys.published(qwen.state_dict()),
        qwen_config=qwen_config(architecture),
        connector=connector,
        tokenizer=tokenizer.to_str(),
        limits=limits(architecture),
    )


