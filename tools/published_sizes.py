"""The published 5B model inside ComfyUI without its weights: every tensor on torch's meta device.

For memory estimates only. ComfyUI and the pack must be loaded, see :func:`load_pack`.
"""

import asyncio
import contextlib
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import comfyui
import torch

DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
GIB = 2**30


def load_pack(base: Path) -> ModuleType:
    """The pack in this process's ComfyUI, which has its models, input and output under ``base``, on the CPU."""
    sys.path.insert(0, str(comfyui.fetch()))
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = str(base)
    import nodes

    link = Path(base) / "custom_nodes" / comfyui.PACK
    link.parent.mkdir(parents=True)
    link.symlink_to(comfyui.REPO, target_is_directory=True)
    assert asyncio.run(nodes.load_custom_node(str(link)))
    return sys.modules[str(link).replace(".", "_x_")]


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """ComfyUI's estimates as on an NVIDIA card, where PyTorch's attention needs no score matrix."""
    import comfy.model_management

    with mock.patch.object(comfy.model_management, "pytorch_attention_flash_attention", lambda: True):
        yield


@dataclass
class Published:
    """What the loaders give: MODEL, VAE, KIWI_MLLM, KIWI_CONNECTOR."""

    model: Any
    vae: Any
    mllm: Any
    connector: Any


def published_5b(pack: ModuleType, dtype: str = "bf16") -> Published:
    """The 5B model with references; ``dtype`` is that of the DiT and the language model, all else is bfloat16."""
    mllm = importlib.import_module(f"{pack.__name__}.nodes.mllm")
    weights = DTYPES[dtype]
    patcher = _text_patcher(mllm, weights)
    connector = mllm.DualConnector(2048, 3072, 256, 512, 768, device="meta").to(torch.bfloat16)
    return Published(
        _model(weights), _vae(), mllm.KiwiMLLM(patcher, mllm._bundled_tokenizer(), 2),
        mllm.KiwiConnector(_patcher(connector), {"max_pixels_per_frame": 262144, "max_object_token": 768}),
    )  # fmt: skip


def _patcher(model: torch.nn.Module):
    import comfy.model_patcher

    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def _model(weights: torch.dtype):
    import comfy.model_detection

    from kiwi_core.checkpoints import dit_keys
    from kiwi_core.conditioning import PatchEmbedder
    from kiwi_core.transformer import KiwiTransformer3DModel

    with torch.device("meta"):
        dit = KiwiTransformer3DModel(
            num_attention_heads=24, in_channels=48, out_channels=48, ffn_dim=14336, num_layers=30
        )
        embedder = PatchEmbedder(48, 3072)
    file = {dit_keys.to_original(name): tensor for name, tensor in dit.state_dict().items()}
    for prefix in (dit_keys.SOURCE_PREFIX, dit_keys.REFERENCE_PREFIX):
        file |= {prefix + name: tensor for name, tensor in embedder.state_dict().items()}
    config = comfy.model_detection.model_config_from_unet(file, "")
    config.set_inference_dtype(weights, None if weights == torch.bfloat16 else torch.bfloat16)
    return _patcher(config.get_model(file, "", device=torch.device("meta")))


def _vae():
    import comfy.sd
    from diffusers import AutoencoderKLWan

    from kiwi_core.checkpoints import vae_keys

    with torch.device("meta"):
        vae = AutoencoderKLWan(
            base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, in_channels=12, out_channels=12,
            patch_size=2, scale_factor_spatial=16, temperal_downsample=[False, True, True],
            latents_mean=vae_keys.LATENTS_MEAN[48], latents_std=vae_keys.LATENTS_STD[48],
        )  # fmt: skip
        return comfy.sd.VAE(sd=vae_keys.vae_to_original(vae.state_dict()), dtype=torch.bfloat16)


def _text_patcher(mllm: ModuleType, weights: torch.dtype):
    import comfy.ops
    from comfy.text_encoders import llama

    vision = {
        "hidden_size": 1280, "output_hidden_size": 2048, "intermediate_size": 3420, "num_heads": 16, "num_layers": 32,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    return _patcher(
        mllm.QwenVL(llama.Qwen25_3BConfig(), vision, dtype=weights, device="meta", ops=comfy.ops.manual_cast)
    )
