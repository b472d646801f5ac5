"""The language model inside ComfyUI against transformers', and against the published numbers."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import edit_graph
import numpy as np
import pytest
import torch
from differences import record
from safetensors.torch import load_file

from kiwi_core import mllm
from kiwi_core.checkpoints.single_files import connector_file, mllm_file
from kiwi_core.connector import DualConnector
from kiwi_core.mllm_encoder import MLLMEncoder

GOLDEN = Path(__file__).resolve().parents[1] / "fixtures" / "golden"
RELEASE = GOLDEN / "release"
CONFIG = json.loads((RELEASE / "processor" / "qwen_config.json").read_text())
TOKENIZER = (RELEASE / "processor" / "tokenizer.json").read_text()
LIMITS = mllm.VisionLimits(max_pixels_per_frame=131072, max_object_token=16)
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def node(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.mllm")


@pytest.fixture(scope="module")
def library():
    """The library's encoder with the real head width, random weights, and the same weights as two files."""
    torch.manual_seed(0)
    text = CONFIG["text_config"] | dict(hidden_size=256, intermediate_size=512, num_attention_heads=2)
    text |= dict(num_key_value_heads=1, rope_scaling={"type": "default", "mrope_section": [16, 24, 24]})
    vision = CONFIG["vision_config"] | dict(depth=3, out_hidden_size=256)
    config = CONFIG | dict(text_config=text, vision_config=vision)
    connector = DualConnector(256, 96, 4, 6, 8)
    encoder = MLLMEncoder(config, connector, mllm.load_tokenizer(TOKENIZER), LIMITS)
    for name, parameter in encoder.named_parameters():
        spread = 1.0 if "queries" in name or "embed_tokens" in name else 0.05
        parameter.data = torch.randn_like(parameter) * spread + ("norm" in name or "ln_q" in name)
    encoder.eval().requires_grad_(False)
    weights = {
        name.replace("language_model.", "model."): tensor.clone()
        for name, tensor in encoder.model.state_dict().items()
    }
    files = mllm_file(weights, config, TOKENIZER), connector_file(connector.state_dict(), LIMITS)
    return SimpleNamespace(encoder=encoder, files=files)


@pytest.fixture(scope="module")
def loaded(node, library):
    return node.load_mllm(library.files[0]), node.load_connector(library.files[1])


def edits():
    """prompt, frames, reference of each mode."""
    generator = np.random.default_rng(0)
    frames, reference = (
        generator.integers(0, 256, size, dtype=np.uint8) for size in ((5, 64, 96, 3), (80, 56, 3))
    )
    return {
        "image": ("Make the sky red.", frames[:1], None),
        "video": ("Remove the dog.", frames, None),
        "ref": ("Use this hat.", frames, reference),
    }


def largest_difference(a, b):
    assert a.shape == b.shape
    return (a.float() - b.float()).abs().max().item()


@pytest.mark.parametrize("rounding", ["shipped", "none"])
@pytest.mark.parametrize("edit", edits().values(), ids=edits().keys())
def test_context_equals_transformers(node, library, loaded, edit, rounding):
    expected = library.encoder(library.encoder.prepare(*edit, rounding))
    got = node.encode(*loaded, *edit, rounding)
    assert got.dtype == torch.float32 and got.std() > 0.1
    record("comfy mllm", largest_difference(got, expected), TOLERANCE)


def test_without_pytorchs_attention_scores_are_not_held_at_once(node, library, loaded, monkeypatch):
    """A picture of 12 MP would have 461 GiB of them."""
    if comfy.model_management.pytorch_attention_enabled():
        monkeypatch.setattr(comfy.model_management, "pytorch_attention_enabled", lambda: False)
    used, choose = [], node.optimized_attention_for_device
    monkeypatch.setattr(
        node, "optimized_attention_for_device", lambda *args, **kwargs: used.append(kwargs) or choose(*args, **kwargs)
    )
    for edit in edits().values():
        expected = node.encode(*loaded, *edit)
        assert used and all(kwargs["small_input"] for kwargs in used)
        used.clear()
        with monkeypatch.context() as small:
            small.setattr(node, "_SMALL", 0)
            got = node.encode(*loaded, *edit)
        assert not any(kwargs["small_input"] for kwargs in used) and {kwargs["mask"] for kwargs in used} >= {False}
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
        used.clear()


def golden_edits():
    inputs = {
        name: frames.numpy() for name, frames in load_file(GOLDEN / "mllm" / "inputs.safetensors").items()
    }
    source = inputs["source_frames"]
    big = inputs["big_frames_before_repeat"].repeat(8, axis=1).repeat(8, axis=2)
    return {
        "image": (source[:1], None),
        "video": (source, None),
        "long": (inputs["long_frames"], None),
        "ref": (source, inputs["ref_image_big"]),
        "single_ref": (source[:1], inputs["ref_image"]),
        "big": (big, None),
    }


@pytest.fixture(scope="module")
def released(node):
    """The goldens' own model, whose heads are 16 wide."""
    weights, connector = (
        load_file(RELEASE / "mllm_encoder" / f"{name}.safetensors")
        for name in ("model", "diffusion_pytorch_model")
    )
    model = node.load_mllm(mllm_file(weights, CONFIG, TOKENIZER))
    return model, node.load_connector(connector_file(connector, LIMITS))


@pytest.mark.parametrize("rounding, variant", [("none", "context"), ("shipped", "context_pixel_bf16")])
@pytest.mark.parametrize("mode", golden_edits())
def test_goldens(node, released, mode, rounding, variant):
    prompt = json.loads((GOLDEN / "manifest.json").read_text())["config"]["prompts"][mode]
    expected = load_file(GOLDEN / "mllm" / "golden.safetensors")[f"{mode}.{variant}"]
    got = node.encode(*released, prompt, *golden_edits()[mode], rounding)
    record("comfy mllm, published numbers", largest_difference(got, expected), 4e-5)


def relative_error(got, expected):
    return ((got.float() - expected).square().mean() / expected.square().mean()).sqrt().item()


def quantised(weights):
    """A file in ComfyUI's older scaled fp8 layout."""
    file = weights | {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, weight in weights.items():
        if "_proj.weight" in name:
            scale = weight.abs().max() / 448
            file[name] = (weight / scale).to(torch.float8_e4m3fn)
            file[f"{name.removesuffix('weight')}scale_weight"] = scale
    return file


def in_bfloat16(weights):
    return {
        name: weight.bfloat16() if weight.is_floating_point() else weight for name, weight in weights.items()
    }


@pytest.mark.parametrize("convert, allowed", [(in_bfloat16, 0.02), (quantised, 0.2)])
def test_other_dtypes(node, library, loaded, convert, allowed):
    edit = edits()["ref"]
    model = node.load_mllm(convert(library.files[0]))
    assert model.patcher.model_size() < 0.8 * loaded[0].patcher.model_size()
    connector = node.load_connector(in_bfloat16(library.files[1]))
    error = relative_error(node.encode(model, connector, *edit), node.encode(*loaded, *edit))
    assert error > 0
    record(f"comfy mllm {convert.__name__} (relative rms)", error, allowed)


@pytest.mark.parametrize("share", [0, 0.3, 0.7])
def test_partially_loaded_is_fully_loaded(node, library, loaded, share, monkeypatch):
    edit = edits()["ref"]
    expected = node.encode(*loaded, *edit)
    partial = node.load_mllm(library.files[0]), node.load_connector(library.files[1])
    for part in partial:
        edit_graph.load_share(part.patcher, share)
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *args, **kwargs: None)
    assert torch.equal(node.encode(*partial, *edit), expected)


def test_newer_names_and_a_head_for_words(node, library, loaded):
    file = {
        name.replace("model.", "model.language_model.") if name.startswith("model.") else name: tensor
        for name, tensor in library.files[0].items()
    }
    file = {f"model.{name}" if name.startswith("visual.") else name: tensor for name, tensor in file.items()}
    model = node.load_mllm(file | {"lm_head.weight": torch.zeros(414, 256)})
    edit = edits()["image"]
    assert torch.equal(node.encode(model, loaded[1], *edit), node.encode(*loaded, *edit))


def test_published_sizes_without_a_config(node, library):
    """Shapes of Qwen2.5-VL-3B, thinned: heads, rotary sections and tokenizer are the published ones."""
    weights = {name: tensor for name, tensor in library.files[0].items() if not name.endswith("_json")}
    visual = "visual.blocks.0."
    for block in [name for name in weights if name.startswith("visual.")]:
        del weights[block]
    hidden = 160
    shapes = {
        "visual.patch_embed.proj.weight": (hidden, 3, 2, 14, 14),
        "visual.merger.ln_q.weight": (hidden,),
        "visual.merger.mlp.0.weight": (4 * hidden, 4 * hidden), "visual.merger.mlp.0.bias": (4 * hidden,),
        "visual.merger.mlp.2.weight": (256, 4 * hidden), "visual.merger.mlp.2.bias": (256,),
        f"{visual}norm1.weight": (hidden,), f"{visual}norm2.weight": (hidden,),
        f"{visual}attn.qkv.weight": (3 * hidden, hidden), f"{visual}attn.qkv.bias": (3 * hidden,),
        f"{visual}attn.proj.weight": (hidden, hidden), f"{visual}attn.proj.bias": (hidden,),
        f"{visual}mlp.gate_proj.weight": (32, hidden), f"{visual}mlp.gate_proj.bias": (32,),
        f"{visual}mlp.up_proj.weight": (32, hidden), f"{visual}mlp.up_proj.bias": (32,),
        f"{visual}mlp.down_proj.weight": (hidden, 32), f"{visual}mlp.down_proj.bias": (hidden,),
    }  # fmt: skip
    weights |= {name: torch.zeros(shape) for name, shape in shapes.items()}
    model = node.load_mllm(weights)
    config, vision = model.patcher.model.model.config, model.patcher.model.visual
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    assert (config.head_dim, config.rope_dims, config.rope_theta) == (128, [16, 24, 24], 1e6)
    assert (vision.blocks[0].attn.num_heads, vision.window_size, model.tokens_per_second) == (2, 112, 2)
    assert model.tokenizer.token_to_id("<|object_ref_start|>") == 151646
    assert model.tokenizer.encode("<|image_pad|>Remove 12", add_special_tokens=False).ids == [
        151655, 13021, 220, 16, 17,
    ]  # fmt: skip


def without(file, *names):
    return {name: tensor for name, tensor in file.items() if not name.startswith(names)}


def test_other_files_are_refused(node, library):
    model, connector = library.files
    dit = {"blocks.0.self_attn.q.weight": torch.zeros(2, 2), "head.modulation": torch.zeros(1, 2, 2)}
    for file, sentence in (
        (dit, "not the language model of Kiwi-Edit"),
        (without(model, "visual."), "visual.patch_embed.proj.weight is missing"),
        (without(model, "model.norm"), "incomplete"),
        (without(model, "visual.blocks.1.mlp"), "incomplete"),
    ):
        with pytest.raises(ValueError, match=sentence):
            node.load_mllm(file)
    for file, sentence in (
        (dit, "no Kiwi-Edit connector"),
        (without(connector, "connector.2"), "incomplete"),
    ):
        with pytest.raises(ValueError, match=sentence):
            node.load_connector(file)


def test_what_does_not_fit_is_refused(node, library, loaded, released):
    model, connector = loaded
    prompt, frames, reference = edits()["ref"]
    with pytest.raises(ValueError, match="64 wide but this one is 256 wide"):
        node.encode(model, released[1], prompt, frames)
    with pytest.raises(ValueError, match="instruction is empty"):
        node.encode(model, connector, " ", frames)
    early = node.load_connector(without(library.files[1], "ref_"))
    with pytest.raises(ValueError, match="not trained for reference pictures"):
        node.encode(model, early, prompt, frames, reference)
