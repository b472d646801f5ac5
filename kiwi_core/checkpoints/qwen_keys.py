"""Names and sizes of Qwen2.5-VL: published (``model.*``, ``visual.*``, as our files have them) and transformers'."""

from __future__ import annotations

from collections.abc import Mapping

_PREFIXES = (("model.language_model.", "model."), ("language_model.", "model."), ("model.visual.", "visual."))


def to_published(name: str) -> str:
    """Any known name to the published one; newer versions of transformers nest the two halves otherwise."""
    for prefix, published in _PREFIXES:
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    return name


def to_transformers(name: str) -> str:
    """Published name to that of transformers' ``Qwen2_5_VLModel``."""
    return "language_model." + name.removeprefix("model.") if name.startswith("model.") else name


def published(state_dict: Mapping) -> dict:
    """The same tensors under published names, without the output head that Kiwi-Edit does not use."""
    return {to_published(name): tensor for name, tensor in state_dict.items() if name != "lm_head.weight"}


def qwen_config(state_dict: Mapping, given: Mapping | None = None) -> dict:
    """Qwen2.5-VL's config: sizes from the tensors' shapes, the rest as given, or else as published.

    Args:
        state_dict: published names to tensors, or to anything with a ``shape``.
        given: the file's own config, if it has one; its text settings may stand on top.

    Raises:
        ValueError: another model, or one that is not whole.
    """
    for name in ("model.embed_tokens.weight", "visual.patch_embed.proj.weight"):
        if name not in state_dict:
            raise ValueError(
                f"This is not the language model of Kiwi-Edit ({name} is missing); choose a Qwen2.5-VL file."
            )
    given = given or {}
    text, vision = given.get("text_config", given), given.get("vision_config", {})

    def size(name: str, axis: int = 0) -> int:
        if name not in state_dict:
            raise ValueError(f"The language model file is incomplete ({name} is missing); download it again.")
        return state_dict[name].shape[axis]

    def count(prefix: str) -> int:
        return 1 + max((int(name.split(".")[2]) for name in state_dict if name.startswith(prefix)), default=0)

    layer, hidden, depth = "model.layers.0.", size("model.embed_tokens.weight", 1), count("visual.blocks.")
    heads, width = text.get("num_attention_heads"), size("visual.patch_embed.proj.weight")
    head_dim = text.get("head_dim") or (hidden // heads if heads else 128)
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    return {
        "model_type": "qwen2_5_vl",
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": size("model.embed_tokens.weight"),
            "hidden_size": hidden,
            "intermediate_size": size(f"{layer}mlp.gate_proj.weight"),
            "num_hidden_layers": count("model.layers."),
            "num_attention_heads": size(f"{layer}self_attn.q_proj.weight") // head_dim,
            "num_key_value_heads": size(f"{layer}self_attn.k_proj.weight") // head_dim,
            "max_position_embeddings": text.get("max_position_embeddings", 128000),
            "rms_norm_eps": text.get("rms_norm_eps", 1e-6),
            "rope_theta": text.get("rope_theta") or rope.get("rope_theta") or 1000000.0,
            "rope_scaling": {
                "type": "default",
                "rope_type": "default",
                "mrope_section": rope.get("mrope_section", [16, 24, 24]),
            },
            "tie_word_embeddings": True,
        },
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": depth,
            "hidden_size": width,
            "intermediate_size": size("visual.blocks.0.mlp.gate_proj.weight"),
            "num_heads": vision.get("num_heads") or width // 80,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": vision.get("fullatt_block_indexes", list(range(7, depth, 8))),
            "window_size": vision.get("window_size", 112),
            "tokens_per_second": vision.get("tokens_per_second", 2),
        },
    }
