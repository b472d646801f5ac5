"""LoRA files of the small random model as their trainers write them, and the weights that they mean.

Names and arithmetic are spelt out here and taken from nothing that is tested.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

WIDTH, RANK, ALPHA = 256, 4, 6.0
DIFFUSERS = {
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0", "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj", "head.head": "proj_out", "patch_embedding": "patch_embedding",
}  # fmt: skip
DIT = [
    *(f"blocks.{block}.{layer}" for block in (0, 1) for layer in [*DIFFUSERS][:10]),
    *[*DIFFUSERS][10:],
    "vae_condition.patch_embedding",
    "ref_vae_condition.patch_embedding",
]
MLLM = [
    *(f"model.layers.{layer}.self_attn.{leaf}_proj" for layer in (0, 1) for leaf in "qkvo"),
    *(f"model.layers.1.mlp.{leaf}_proj" for leaf in ("gate", "up", "down")),
    "visual.blocks.0.attn.qkv",
    "visual.blocks.1.mlp.gate_proj",
]
CONNECTOR = ["connector.0", "connector.2", "ref_connector.0"]


def weights(parts) -> dict[str, torch.Tensor]:
    """All weights of a model (``Parts``) by full name."""
    inverse = {theirs: ours for ours, theirs in DIFFUSERS.items()} | {"norm2": "norm3"}
    found = {}
    for name, tensor in parts.transformer.items():
        prefix, rest = (name[:9], name[9:]) if name.startswith("blocks.") else ("", name)
        for theirs, ours in inverse.items():
            if rest.startswith(f"{theirs}."):
                rest = ours + rest[len(theirs) :]
                break
        rest = rest.replace("attn1", "self_attn").replace("attn2", "cross_attn")
        found[prefix + rest.replace("scale_shift_table", "modulation" if prefix else "head.modulation")] = tensor
    found |= {f"vae_condition.{name}": tensor for name, tensor in parts.source_embedder.items()}
    found |= {f"ref_vae_condition.{name}": tensor for name, tensor in parts.ref_embedder.items()}
    return found | dict(parts.mllm) | dict(parts.connector)


@dataclass
class Pair:
    down: torch.Tensor
    up: torch.Tensor

    def merged(self, weight: torch.Tensor, strength: float, alpha: float) -> torch.Tensor:
        product = (self.up.flatten(1) @ self.down.flatten(1)).reshape(weight.shape)
        return weight + strength * alpha / RANK * product


def pairs(weights, modules, seed: int = 0) -> dict[str, Pair]:
    """A pair for each module, large enough to show in the output."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for module in modules:
        out, *rest = weights[f"{module}.weight"].shape
        down = torch.randn(RANK, *rest, generator=generator) / torch.Size(rest).numel() ** 0.5
        up = torch.randn(out, RANK, *[1] * (len(rest) - 1), generator=generator) * 0.3 / RANK**0.5
        made[module] = Pair(down, up)
    return made


def _diffusers(module: str, embedders: bool = True) -> str:
    for ours, theirs in DIFFUSERS.items():
        module = module.replace(f".{ours}", f".{theirs}") if "blocks." in module else module
        module = theirs if module == ours else module
    if embedders:
        module = module.replace("ref_vae_condition", "ref_embedder").replace("vae_condition", "source_embedder")
    return module


def _component(module: str) -> str:
    """diffusers' name with the part of the pipeline before it."""
    if module.startswith(("model.", "visual.")):
        return "mllm_encoder.model." + module.replace("model.", "language_model.")
    if "connector" in module:
        return f"mllm_encoder.{module}"
    return _diffusers(module) if "vae_condition" in module else f"transformer.{_diffusers(module)}"


def _qwen(module: str) -> str:
    return "model." + module.replace("model.", "language_model.")


def _trained(module: str, dit: str = "dit.") -> str:
    if module.startswith(("model.", "visual.")):
        return f"mllm.model.{_qwen(module)}"
    if "connector" in module:
        return "mllm." + (module if module.startswith("ref") else module.replace("connector", "connetor"))
    return module if "vae_condition" in module else dit + module


def _text(module: str) -> bool:
    return module.startswith(("model.", "visual.")) or "connector" in module


def _comfyui(module: str) -> str:
    return ("text_encoders." if _text(module) else "diffusion_model.") + module


def _kohya(module: str, unet: str = "lora_unet_") -> str:
    return ("lora_te_" if _text(module) else unet) + module.removeprefix("model.").replace(".", "_")


def _peft(module: str) -> str:
    if module.startswith(("model.", "visual.")):
        return f"base_model.model.{_qwen(module)}"
    return "base_model.model." + (f"mllm_encoder.{module}" if "connector" in module else _diffusers(module))


@dataclass
class Form:
    """How one trainer names a pair, and where it keeps alpha: "tensor", "metadata" or "rank" (nowhere)."""

    name: Callable[[str], str]
    down: str
    up: str
    alpha: str
    dialect: str
    stock: bool = False
    """Whether the stock loader takes it."""
    metadata: dict[str, str] = field(default_factory=dict)

    def file(self, pairs: dict[str, Pair]) -> dict[str, torch.Tensor]:
        tensors = {}
        for module, pair in pairs.items():
            tensors[self.name(module) + self.down], tensors[self.name(module) + self.up] = pair.down, pair.up
            if self.alpha == "tensor":
                tensors[f"{self.name(module)}.alpha"] = torch.tensor(ALPHA)
        return tensors

    @property
    def effective_alpha(self) -> float:
        return RANK if self.alpha == "rank" else ALPHA


_AB, _DOWN, _DEFAULT = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
)
_ADAPTER = {
    f"{part}.{key}": value
    for part in ("transformer", "mllm_encoder", "source_embedder", "ref_embedder")
    for key, value in (("r", 32), ("lora_alpha", ALPHA))
}
FORMS = {
    "comfyui": Form(_comfyui, *_DOWN, "tensor", "comfyui", stock=True),
    "comfyui A B": Form(_comfyui, *_AB, "rank", "comfyui", stock=True),
    "comfyui lora.down": Form(_comfyui, ".lora.down.weight", ".lora.up.weight", "tensor", "comfyui", stock=True),
    "kohya": Form(_kohya, *_DOWN, "tensor", "kohya", stock=True),
    "kohya two underscores": Form(lambda module: _kohya(module, "lora_unet__"), *_DOWN, "tensor", "kohya", stock=True),
    "kohya of diffusers": Form(lambda module: _kohya(_diffusers(module, embedders=False)), *_DOWN, "tensor", "kohya"),
    "diffusers": Form(_component, *_AB, "rank", "diffusers"),
    "diffusers with metadata": Form(
        _component, *_AB, "metadata", "diffusers", metadata={"lora_adapter_metadata": json.dumps(_ADAPTER)}
    ),
    "diffusers lora.down": Form(_component, ".lora.down.weight", ".lora.up.weight", "rank", "diffusers"),
    "peft": Form(_peft, *_AB, "rank", "peft"),
    "peft with default": Form(_peft, *_DEFAULT, "rank", "peft"),
    "peft of the pipeline": Form(lambda module: f"base_model.model.{_component(module)}", *_AB, "rank", "peft"),
    "peft of original names": Form(lambda module: f"base_model.model.{module}", *_AB, "rank", "peft"),
    "diffsynth": Form(lambda module: _trained(module, ""), *_DEFAULT, "rank", "diffsynth"),
    "diffsynth pipe": Form(lambda module: f"pipe.{_trained(module)}", *_DEFAULT, "rank", "diffsynth"),
    "diffsynth without default": Form(lambda module: _trained(module, ""), *_AB, "rank", "diffsynth"),
    "training": Form(_trained, *_DEFAULT, "rank", "training"),
}  # fmt: skip


def merge(weights, pairs, alpha, strength=1.0) -> dict[str, torch.Tensor]:
    """The weights with all pairs merged."""
    changed = {f"{module}.weight": pair for module, pair in pairs.items()}
    return {
        name: changed[name].merged(tensor, strength, alpha) if name in changed else tensor
        for name, tensor in weights.items()
    }


def training_checkpoint(weights, stage: int, whole_dit: bool, seed: int = 1) -> tuple[dict, dict]:
    """A checkpoint under the published names, and the weights of the model that it stands for."""
    generator = torch.Generator().manual_seed(seed)
    language = pairs(weights, MLLM[:8], seed)
    whole = {"image_queries": "mllm.image_queries.q"}
    whole |= {f"connector.{n}.{leaf}": f"mllm.connetor.{n}.{leaf}" for n in (0, 2) for leaf in ("weight", "bias")}
    if stage > 1:
        whole |= {"video_queries": "mllm.video_queries.q"}
        whole |= {name: name for name in weights if name.startswith("vae_condition.")}
    if stage > 2:
        whole |= {"ref_queries": "mllm.ref_queries.q"}
        whole |= {name: f"mllm.{name}" for name in weights if name.startswith("ref_connector.")}
        whole |= {name: name for name in weights if name.startswith("ref_vae_condition.")}
    dit = {}
    if stage > 1 and whole_dit:
        whole |= {name: f"dit.{name}" for name in weights if name.startswith(("blocks.", "head.", "time_", "patch_"))}
    elif stage > 1:
        dit = pairs(weights, DIT[:20], seed)
    merged = merge(weights, language | dit, RANK)
    tensors = FORMS["training"].file(language | dit)
    for name, theirs in whole.items():
        noise = torch.randn(weights[name].shape, generator=generator)
        merged[name] = tensors[theirs] = weights[name] + 0.3 * weights[name].std() * noise
    return tensors, merged
