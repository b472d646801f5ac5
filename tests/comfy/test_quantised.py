"""Files in scaled float8, as ``kiwi-edit convert`` writes them, through ComfyUI's own loaders and ours."""

import importlib

import comfy.ops
import comfy.sd
import comfy.utils
import numpy as np
import pytest
import random_model as random_models
import torch
from differences import record

from kiwi_core.checkpoints import files, fp8, lazy, single_files
from kiwi_core.checkpoints.convert import convert

LAYERS = 2 * (8 + 2)  # of the DiT: attention and feed-forward of two blocks
TEXT_LAYERS = 2 * (4 + 3)
# The same weights in the same float32 arithmetic: what a few orders of summation make of 2**-24.
SAME = 1e-5
# A weight with three bits after its first is off by 1/8/sqrt(12) of its octave at most; errors of independent
# matrices add up in squares.
ROUNDING = 1 / 8 / 12**0.5


@pytest.fixture(scope="module", autouse=True)  # importing it is what makes the stock loader know our files
def dit(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.dit")


@pytest.fixture(scope="module")
def node(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.mllm")


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def converted(request, tmp_path_factory):
    """Paths of three files each for DiT and language model: as they were, in float8, and that dequantised."""
    folder, parts = tmp_path_factory.mktemp(request.param), random_models.random_parts()
    whole = {part: folder / path for part, path in random_models.FILES.items()}
    single_files.write(parts, **whole)
    for part in ("model", "mllm"):
        if request.param == "bf16":
            convert(whole[part], "comfyui", folder, dtype="bf16", name=part)
            whole[part] = whole[part].with_name(f"{part}.safetensors")
    paths = {"whole": whole}
    for kind, dtype in (("fp8", "fp8"), ("dequantised", "fp32")):
        paths[kind] = {}
        for part in ("model", "mllm"):
            source = whole[part] if kind == "fp8" else paths["fp8"][part]
            [paths[kind][part]] = convert(source, "comfyui", folder, dtype=dtype, name=f"{part}_{kind}")
    return paths


def predict(path, precision=torch.float32):
    """One forward of the DiT behind the stock loader; and how many of its layers are quantised."""
    patcher = comfy.sd.load_diffusion_model(str(path))
    model = patcher.model.diffusion_model
    generator = torch.Generator().manual_seed(0)
    x, source = (torch.randn(1, 16, 3, 8, 12, generator=generator) for _ in range(2))
    reference, context = (torch.randn(*size, generator=generator) for size in ((1, 16, 1, 8, 12), (1, 11, 256)))
    sigma = torch.tensor([0.6])
    with torch.no_grad():
        out = model(
            *(tensor.to(precision) for tensor in (x, sigma * 1000)),
            context=context.to(precision),
            transformer_options={"sigmas": sigma},
            source_latents=source.to(precision),
            reference_latents=reference.to(precision),
        )
    return out.float(), quantised_layers(model)


def quantised_layers(model):
    return sum(hasattr(module, "quant_format") for module in model.modules())


def relative_rms(a, b):
    return ((a - b).square().mean() / b.square().mean()).sqrt().item()


def test_the_stock_loader_takes_a_scaled_dit(converted):
    whole, none = predict(converted["whole"]["model"])
    exact, also_none = predict(converted["dequantised"]["model"])
    got, layers = predict(converted["fp8"]["model"])
    assert (none, also_none, layers) == (0, 0, LAYERS)
    record("scaled dit to dequantised (relative rms)", relative_rms(got, exact), SAME)
    assert relative_rms(got, whole) > 1e-3
    record("scaled dit to whole (relative rms)", relative_rms(got, whole), ROUNDING * LAYERS**0.5)


def test_our_loader_takes_a_scaled_language_model(converted, node):
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), dtype=np.uint8)
    connector = node.load_connector(files.load_tensors(converted["whole"]["connector"]))
    contexts = {}
    for kind in ("whole", "dequantised", "fp8"):
        tensors = comfy.utils.load_torch_file(str(converted[kind]["mllm"]), return_metadata=True)
        model = node.load_mllm(*tensors)
        assert quantised_layers(model.patcher.model) == (TEXT_LAYERS if kind == "fp8" else 0)
        contexts[kind] = node.encode(model, connector, "Make it red.", frames, frames[0])
    exact, rounded = (relative_rms(contexts["fp8"], contexts[kind]) for kind in ("dequantised", "whole"))
    record("scaled mllm to dequantised (relative rms)", exact, SAME)
    assert rounded > 1e-3
    record("scaled mllm to whole (relative rms)", rounded, ROUNDING * TEXT_LAYERS**0.5)


def test_dequantised_weights_are_comfyuis(converted):
    scaled = fp8.join_scales(files.open_tensors(converted["fp8"]["model"]), "")
    model = comfy.sd.load_diffusion_model(str(converted["fp8"]["model"])).model.diffusion_model
    for index, block in enumerate(model.blocks):
        for name, layer in (("self_attn.q", block.self_attn.q), ("ffn.2", block.ffn[2])):
            theirs = layer.weight.dequantize()
            ours = lazy.load(scaled[f"blocks.{index}.{name}.weight"]).to(theirs.dtype)
            assert torch.equal(theirs, ours)
