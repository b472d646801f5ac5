"""Speed presets, made of ComfyUI's own nodes."""

import copy
from types import SimpleNamespace

import edit_graph
import pytest
import torch
from edit_graph import node
from safetensors.torch import load_file, save_file

PUBLISHED, BALANCED, FAST, FEW = (
    "published: 50 steps", "balanced: 30 steps, cached", "fast: 20 steps, cached", "few steps: distilled LoRA",
)  # fmt: skip


@pytest.fixture(scope="module")
def graph(server, tmp_path_factory):
    """On a model whose answer changes as slowly from step to step as a trained one's."""
    graph = edit_graph.EditGraph(server, tmp_path_factory.mktemp("graph"))
    folder = server.models_dir / "diffusion_models"
    tensors = load_file(folder / edit_graph.NAMES["model"])
    for name, tensor in tensors.items():
        if "patch_embedding" in name or name.startswith("time_"):
            tensor *= 0.02
    save_file(tensors, folder / "calm.safetensors")
    calm = graph.prompt()
    calm["model"]["inputs"]["model_name"] = "calm.safetensors"
    graph.prompt = lambda: copy.deepcopy(calm)
    return graph


def with_preset(prompt, preset, **inputs):
    prompt["speed"] = node("KiwiEditSpeed", model=["model", 0], preset=preset, **inputs)
    prompt["sampled"]["inputs"] |= {"model": ["speed", 0], "steps": ["speed", 1], "shift": ["speed", 2]}
    return prompt


def with_steps(prompt, steps, model=("model", 0)):
    prompt["sampled"]["inputs"] |= {"steps": steps, "model": list(model)}
    return prompt


def skipped(graph, before):
    """(steps skipped, steps) that a cache reported after the log was ``before`` long."""
    lines = [line for line in graph.server.log[before:].splitlines() if "Cache - skipped" in line]
    assert len(lines) == 1, lines
    return tuple(map(int, lines[0].split("skipped ")[1].split(" ")[0].split("/")))


def test_the_published_preset_is_the_plain_graph(graph):
    plain = graph.latents(with_steps(graph.prompt(), 50))
    before = len(graph.server.log)
    assert torch.equal(graph.latents(with_preset(graph.prompt(), PUBLISHED)), plain)
    assert "Cache" not in graph.server.log[before:]


@pytest.mark.parametrize(
    "preset, steps, threshold, cache",
    [(BALANCED, 30, 0.1, "EasyCache"), (FAST, 20, 0.2, "EasyCache"), (FAST, 20, 0.2, "LazyCache")],
)
def test_caching_presets_are_the_stock_node_and_skip_model_calls(graph, preset, steps, threshold, cache):
    before = len(graph.server.log)
    found = graph.latents(with_preset(graph.prompt(), preset, cache=cache))
    left_out, total = skipped(graph, before)
    assert total == steps
    assert 0 < left_out < steps
    stock = with_steps(graph.prompt(), steps, ("cache", 0))
    stock["cache"] = node(
        cache, model=["model", 0], reuse_threshold=threshold, start_percent=0.15, end_percent=0.95,
        verbose=False,
    )  # fmt: skip
    assert torch.equal(found, graph.latents(stock))


def test_sigmas_are_those_of_the_steps(graph):
    prompt = with_preset(graph.prompt(), FAST)
    own = prompt["sampled"]["inputs"]
    custom = prompt | {
        "guider": node("BasicGuider", model=["speed", 0], conditioning=own["conditioning"]),
        "noise": node("RandomNoise", noise_seed=edit_graph.SEED),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "custom": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["euler", 0],
            sigmas=["speed", 3], latent_image=own["latent"],
        ),
    }  # fmt: skip
    assert torch.equal(graph.latents(custom, "custom"), graph.latents(prompt))


@pytest.fixture(scope="module")
def lora(server):
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name in ("q", "k", "v", "o"):
        prefix = f"diffusion_model.blocks.0.self_attn.{name}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(4, 256, generator=generator)
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(256, 4, generator=generator) / 16
    folder = server.models_dir / "loras"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "turbo.safetensors")
    return "turbo.safetensors"


def test_the_distilled_preset_loads_the_lora_and_takes_its_steps(graph, lora):
    found = graph.latents(with_preset(graph.prompt(), FEW, lora_name=lora, strength=0.5, lora_steps=6))
    stock = with_steps(graph.prompt(), 6, ("lora", 0))
    stock["lora"] = node("LoraLoaderModelOnly", model=["model", 0], lora_name=lora, strength_model=0.5)
    assert torch.equal(found, graph.latents(stock))
    assert (found - graph.latents(with_steps(graph.prompt(), 6))).abs().max() > 1e-3


def test_other_presets_leave_the_lora_out(graph, lora):
    assert torch.equal(
        graph.latents(with_preset(graph.prompt(), FAST, lora_name=lora)),
        graph.latents(with_preset(graph.prompt(), FAST)),
    )


def test_a_linked_lora_is_taken_and_a_linked_preset_is_checked_in_the_run(pack):
    node = pack.nodes.speed.KiwiEditSpeed
    assert node.validate_inputs(preset=FEW, lora_name=None) is True  # a link
    assert node.validate_inputs(preset=None) is True
    model = SimpleNamespace(model=object.__new__(pack.nodes.dit.KiwiWan))
    with pytest.raises(ValueError, match="needs a step-distilled LoRA"):
        node.execute(model, FEW)


@pytest.mark.parametrize(
    "inputs, sentence",
    [
        ({"preset": FEW}, "needs a step-distilled LoRA; choose one"),
        ({"preset": FEW, "lora_name": "none"}, "needs a step-distilled LoRA; choose one"),
        ({"preset": "warp"}, "no preset 'warp'; choose one of the list"),
        ({"preset": FEW, "lora_name": "nowhere.safetensors"}, "no lora_name 'nowhere.safetensors'; choose"),
    ],
)
def test_a_preset_without_what_it_needs_is_refused_before_the_run(graph, inputs, sentence):
    prompt = with_preset(graph.prompt(), **inputs)
    prompt["saved"] = node("SaveLatent", samples=["sampled", 0], filename_prefix="speed")
    with pytest.raises(RuntimeError, match=sentence):
        graph.server.queue(prompt)
