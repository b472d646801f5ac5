"""Names in LoRA files: from every dialect to one form, and back.

A name is a weight and what is done to it (``.lora_A.weight``, ``.diff``, ``.alpha``). Weights of the DiT and its
embedders come out under original Wan names, those of the language model under Qwen's published names, queries and
connectors under the released ones. "comfyui" is ``diffusion_model.*``, "kohya" ``lora_unet_*`` (musubi-tuner too),
"diffusers" ``transformer.*``, "peft" ``base_model.model.*``, "diffsynth" and "training" are bare ``blocks.*`` and
``dit.blocks.*`` with ``.default.`` and whole tensors.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from . import dit_keys

DIALECTS = ("comfyui", "kohya", "diffusers", "peft", "diffsynth", "training")
DIT, MLLM, CONNECTOR = "dit", "mllm", "connector"
PARTS = {DIT: "video model", MLLM: "language model", CONNECTOR: "connector"}

# The forms that a dialect has beside the low-rank pair.
FORMS = {
    "comfyui": {"alpha", "dora", "diff", "bias", "whole", "other"},
    "kohya": {"alpha", "dora", "diff", "bias", "other"},
    "diffusers": {"magnitude", "bias"},
    "peft": {"magnitude", "bias", "whole"},
    "diffsynth": {"whole"},
    "training": {"whole"},
}

_KINDS = {  # the first that fits
    "bias": r"\.diff_b|\.b_norm|\.lora_B(?:\.\w+)?\.bias",
    "down": r"\.lora_(?:A|down)(?:\.\w+)?(?:\.weight)?|[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight",
    "up": r"\.lora_(?:B|up)(?:\.\w+)?(?:\.weight)?|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight",
    "alpha": r"\.alpha",
    "dora": r"\.dora_scale|\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?",
    "diff": r"\.diff|\.w_norm",
    "modulation": r"\.diff_m",
    "whole": r"\.set_weight",
    "other": r"\.(?:lora_mid\.weight|reshape_weight|lokr_\w+|hada_\w+|oft_blocks|rescale|[ab][12]\.weight)",
}
_NAME = re.compile("(.+?)(?:{})".format("|".join(f"(?P<{kind}>{form})" for kind, form in _KINDS.items())))

_ATTENTION = ("q", "k", "v", "o", "norm_q", "norm_k")
_MODULES = {  # with # for the number of the block or layer
    DIT: (
        *(f"blocks.#.{attention}.{leaf}" for attention in ("self_attn", "cross_attn") for leaf in _ATTENTION),
        *(f"blocks.#.cross_attn.{leaf}" for leaf in ("k_img", "v_img", "norm_k_img")),
        *(f"blocks.#.{leaf}" for leaf in ("ffn.0", "ffn.2", "norm3", "modulation")),
        *("patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"),
        *("time_projection.1", "head.head", "head.modulation", *(f"img_emb.proj.{index}" for index in (0, 1, 3, 4))),
        *(f"{prefix}patch_embedding" for prefix in (dit_keys.SOURCE_PREFIX, dit_keys.REFERENCE_PREFIX)),
    ),
    MLLM: (
        *(f"model.layers.#.self_attn.{leaf}_proj" for leaf in "qkvo"),
        *(f"model.layers.#.{leaf}_layernorm" for leaf in ("input", "post_attention")),
        *(f"{part}.#.mlp.{leaf}_proj" for part in ("model.layers", "visual.blocks") for leaf in ("gate", "up", "down")),
        *(f"visual.blocks.#.{leaf}" for leaf in ("attn.qkv", "attn.proj", "norm1", "norm2")),
        *("visual.patch_embed.proj", "visual.merger.ln_q", "visual.merger.mlp.0", "visual.merger.mlp.2"),
    ),
    CONNECTOR: ("connector.0", "connector.2", "ref_connector.0", "ref_connector.2"),
}
# Image-to-video parts, which a Kiwi-Edit model lacks.
_IMAGE = {"attn2.add_k_proj": "cross_attn.k_img", "attn2.add_v_proj": "cross_attn.v_img",
          "attn2.norm_added_k": "cross_attn.norm_k_img"}  # fmt: skip
_PEFT = "base_model.model."
_LAYER = r"\d+\.(?:self_attn|mlp|input_layernorm|post_attention_layernorm)\b.*"
_RULES = tuple(
    (re.compile(r"(?:.*\.)?" + pattern), part, name)
    for pattern, part, name in (
        (rf"layers\.({_LAYER})", MLLM, r"model.layers.\1"),
        (r"(visual\..+)", MLLM, r"\1"),
        (r"model\.(?:language_model\.)?((?:embed_tokens|norm)(?:\.weight)?)", MLLM, r"model.\1"),
        (r"((?:image|video|ref)_queries)(?:\.q)?", CONNECTOR, r"\1"),
        (r"((?:ref_)?conne)c?tor\.(.+)", CONNECTOR, r"\1ctor.\2"),
        (r"(?:source_embedder|vae_condition)\.(.+)", DIT, dit_keys.SOURCE_PREFIX + r"\1"),
        (r"(?:ref_embedder|ref_vae_condition)\.(.+)", DIT, dit_keys.REFERENCE_PREFIX + r"\1"),
    )
)
_WRAPPERS = re.compile(r"(?:base_model\.model\.|pipe\.|(?:model\.)?diffusion_model\.|transformer\.|dit\.)+")
_KOHYA = re.compile(r"(?:lora_unet_+|lora_transformer_|lycoris_(?:unet_)?|lora_te\d?_)(.+)")
_NUMBER = re.compile(r"(?<=_)\d+(?=_)")
_BARE = re.compile(r".*(?:\.(?:weight|bias|modulation)|_queries)")


def split(name: str) -> tuple[str, str, str, str]:
    """A file's name as part of the model, full name of the weight, kind, and the ending as it stands.

    Kinds are "down", "up", "alpha", "dora", "diff", "whole" and "other" (LyCORIS and the like). A name with none of
    the known endings is a whole tensor, with an empty ending.
    """
    match = _NAME.fullmatch(name)
    if not match:
        part, weight = _canonical(name)
        return part, weight, "whole", ""
    kind = match.lastgroup
    part, module = _canonical(match[1])
    if kind == "modulation":
        return part, f"{module}.modulation", "diff", match[kind]
    if kind == "bias":
        return part, f"{module}.bias", "diff", match[kind]
    return part, module if _BARE.fullmatch(module) else f"{module}.weight", kind, match[kind]


def find(names: Iterable[str]) -> str:
    """The dialect of a file; an empty string if these are no LoRA's names."""
    names = list(names)
    if any(name.removeprefix("pipe.").startswith("mllm.") for name in names):
        return "training"
    if not any(_NAME.fullmatch(name) or name.startswith(_PEFT) for name in names):
        # A training checkpoint of a whole DiT alone.
        return "training" if any(name.startswith("dit.blocks.") for name in names) else ""
    for dialect, prefix in (
        ("kohya", "lora_unet_|lora_transformer_|lycoris_|lora_te"),
        ("comfyui", r"(model\.)?diffusion_model\.|text_encoders\."),
        ("peft", re.escape(_PEFT)),
        ("diffusers", r"transformer\.|mllm_encoder\.|.*\.attn[12]\."),
    ):
        if any(re.match(prefix, name) for name in names):
            return dialect
    return "diffsynth"


def name_of(part: str, module: str, dialect: str) -> str | None:
    """What a dialect calls a module or parameter, or None if it has no name for it."""
    if part == DIT and module.startswith(("lora_", "lycoris_")):  # a flat name that nobody knows
        return None
    if dialect == "kohya":
        flat = module.removeprefix("model.").replace(".", "_")
        return {DIT: "lora_unet_", MLLM: "lora_te_", CONNECTOR: "lora_te_"}[part] + flat
    if dialect == "comfyui":
        return ("diffusion_model." if part == DIT else "text_encoders.") + module
    if dialect in ("diffusers", "peft"):
        name = _diffusers_name(part, module, dialect)
        return _PEFT + name if dialect == "peft" and name else name
    if part == MLLM:
        return "mllm.model.model." + module.replace("model.", "language_model.", 1)
    if part == CONNECTOR:
        return "mllm." + (f"{module}.q" if module.endswith("_queries") else re.sub("^connector", "connetor", module))
    embedder = module.startswith((dit_keys.SOURCE_PREFIX, dit_keys.REFERENCE_PREFIX))
    return module if embedder or dialect == "diffsynth" else f"dit.{module}"


def _diffusers_name(part: str, module: str, dialect: str) -> str | None:
    if part == MLLM:
        prefix = "model." if dialect == "peft" else "mllm_encoder.model."
        return prefix + module.replace("model.", "language_model.", 1)
    if part == CONNECTOR:
        return f"mllm_encoder.{module}"
    for prefix, name in ((dit_keys.SOURCE_PREFIX, "source_embedder."), (dit_keys.REFERENCE_PREFIX, "ref_embedder.")):
        if module.startswith(prefix):
            return name + module.removeprefix(prefix)
    name = _to_diffusers(module)
    return name if name is None or dialect == "peft" else f"transformer.{name}"


def _to_diffusers(module: str) -> str | None:
    for theirs, ours in _IMAGE.items():
        module = module.replace(ours, theirs)
    if any(name in module for name in _IMAGE):
        return module
    try:
        return dit_keys.to_diffusers(module)
    except ValueError:
        return None


def _canonical(name: str) -> tuple[str, str]:
    """Part and name of a module or parameter. Unknown names stay as they are, under the DiT."""
    flat = _KOHYA.fullmatch(name)
    if flat:
        known = _flat_names()
        flat = re.sub(r"^(?:model_)*(?:language_model_)?(?=layers_|visual_)", "", flat[1])
        number = _NUMBER.search(flat)
        found = known.get(flat) or known.get(_NUMBER.sub("#", flat, count=1))
        return (found[0], found[1].replace("#", number[0] if number else "")) if found else (DIT, name)
    for rule, part, replacement in _RULES:
        if rule.fullmatch(name):
            return part, rule.sub(replacement, name)
    wrapper = _WRAPPERS.match(name)
    name = name[wrapper.end() :] if wrapper else name
    for theirs, ours in _IMAGE.items():
        name = name.replace(theirs, ours)
    try:
        return DIT, dit_keys.to_original(name)
    except ValueError:  # original already, or nobody's
        return DIT, name


@functools.cache
def _flat_names() -> dict[str, tuple[str, str]]:
    """Part and module by the name with underscores, of original and of diffusers' modules."""
    names = {}
    for part, modules in _MODULES.items():
        for module in modules:
            other = _to_diffusers(module.replace("#", "7")) if part == DIT else None
            for name in filter(None, (other and other.replace(".7.", ".#."), module)):
                names[name.removeprefix("model.").replace(".", "_")] = part, module
    return names
