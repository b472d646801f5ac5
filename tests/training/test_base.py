"""What a run can start from: every layout of the model, and checkpoints of runs before it."""

from pathlib import Path

import pytest
import random_model
import torch
import training_data
from safetensors.torch import load_file

from training import base, model, names, trainer


def config(recipe, output, **changes):
    changes = {"model": "", "data": ()} | changes
    return training_data.config(recipe, "", "", output).replace(**changes)


@pytest.fixture
def layouts(tiny_model):
    """The same model as each layout gives it."""
    single = {part: str(tiny_model / "comfyui" / path) for part, path in random_model.FILES.items()}
    bases = tiny_model / "training"
    return {
        "released": {"model": str(tiny_model / "released")},
        "comfyui": {"model": single["model"], "vae": single["vae"], "mllm": single["mllm"],
                    "connector": single["connector"]},
        "bases": {"model": str(bases / "checkpoint.safetensors"), "mllm": str(bases / "qwen"),
                  "vae": str(bases / "vae.safetensors")},
    }  # fmt: skip


def test_the_released_folder_and_comfyuis_files_are_the_same_model(layouts, tmp_path):
    found = []
    for name in ("released", "comfyui"):
        parts, start = base.read(config("tiny_stage3", tmp_path, **layouts[name]))
        assert start is None
        built = model.from_parts(parts, config("tiny_stage3", tmp_path), start)
        found.append({name: tensor for name, tensor in built.state_dict().items() if "lora_" not in name})
    assert found[0].keys() == found[1].keys()
    assert all(found[0][name].equal(found[1][name]) for name in found[0])


def test_bases_are_completed_with_parts_that_say_nothing_yet(layouts, tmp_path, tiny_model):
    dit = random_model.random_parts().transformer
    from kiwi_core.checkpoints import dit_keys, files

    plain = tmp_path / "wan.safetensors"
    files.save_tensors({dit_keys.to_original(name): tensor for name, tensor in dit.items()}, plain)
    given = layouts["bases"] | {"model": str(plain)}
    parts, _ = base.read(config("tiny_stage3", tmp_path, **given))
    assert not parts.source_embedder["patch_embedding.weight"].any()
    assert not parts.ref_embedder["patch_embedding.weight"].any()
    assert not parts.connector["connector.2.weight"].any()
    assert not parts.connector["ref_connector.2.weight"].any()
    shapes = [tuple(parts.connector[f"{kind}_queries"].shape) for kind in ("image", "video", "ref")]
    assert shapes == [(4, 256), (6, 256), (8, 256)]
    again, _ = base.read(config("tiny_stage3", tmp_path, **given))
    assert parts.connector["image_queries"].equal(again.connector["image_queries"])
    other, _ = base.read(config("tiny_stage3", tmp_path, seed=1, **given))
    assert not parts.connector["image_queries"].equal(other.connector["image_queries"])


@pytest.mark.parametrize("missing, said", [
    ({"model": ""}, "pass --model"), ({"mllm": ""}, "pass --mllm"), ({"vae": ""}, "pass --vae"),
    ({"start": "/nowhere.safetensors"}, "/nowhere.safetensors does not exist"),
    ({"start": "."}, "has no exports/training.safetensors"),
])  # fmt: skip
def test_what_is_missing_is_named(layouts, tmp_path, missing, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        base.read(config("tiny_stage3", tmp_path, **layouts["bases"] | missing))


def test_a_stage_goes_on_with_the_adapters_and_tensors_of_the_one_before(quick):
    first = quick("tiny_stage2", output="first", steps=2, lr=1e-2)
    trainer.train(first)
    saved = load_file(Path(first.output) / "exports" / "training.safetensors")
    second = quick("tiny_stage3", output="second", start=first.output)
    parts, start = base.read(second)
    built = model.from_parts(parts, second, start)
    trained = {names.key(name): parameter for name, parameter in built.trained().items()}
    for name, tensor in saved.items():
        key = names.key(name.replace("connetor", "connector"))
        if "text_embedding" not in name:
            assert trained[key].to(torch.bfloat16).equal(tensor), name
    # An adapter that was trained is not where it started.
    assert any(tensor.any() for name, tensor in saved.items() if "lora_B" in name)


def test_adapters_that_are_not_trained_here_are_merged(quick):
    first = quick("tiny_stage2", output="first", steps=2, lr=1e-1)
    trainer.train(first)
    style = quick("tiny_style_lora", output="style", start=first.output, cache="")
    parts, start = base.read(style)
    built = model.from_parts(parts, style, start)
    untouched = model.from_parts(*base.read(style.replace(start=""))[:1], style)
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    saved = load_file(Path(first.output) / "exports" / "training.safetensors")
    stem = "mllm.model.model.language_model.layers.0.self_attn.q_proj"
    down, up = (saved[f"{stem}.lora_{half}.default.weight"].float() for half in "AB")
    wanted = untouched.mllm.get_parameter(name) + up @ down
    torch.testing.assert_close(built.mllm.get_parameter(name), wanted)


def test_another_rank_than_that_of_the_start_is_refused(quick):
    first = quick("tiny_stage2", output="first", steps=1)
    trainer.train(first)
    second = quick("tiny_stage3", output="second", start=first.output, mllm_rank=8)
    with pytest.raises(ValueError, match="rank 4; set --mllm-rank 4"):
        model.from_parts(*_swap(base.read(second), second))


def _swap(read, config):
    parts, start = read
    return parts, config, start


def test_a_dora_is_exported_for_comfyui_and_can_be_gone_on_with(quick):
    first = quick("tiny_style_lora", output="first", steps=2, adapter="dora", lr=1e-2, kinds=("video",), cache="")
    made = trainer.train(first)
    assert [path.name for path in made] == ["first.safetensors"]
    saved = load_file(made[0])
    assert any(name.endswith("dora_scale") for name in saved)
    second = quick("tiny_style_lora", output="second", start=str(made[0]), adapter="dora", cache="")
    built = model.from_parts(*_swap(base.read(second), second))
    trained = {names.key(name): parameter for name, parameter in built.trained().items()}
    for name, tensor in saved.items():
        if not name.endswith("alpha"):
            parameter = trained[names.key(name)]
            assert parameter.to(torch.bfloat16).flatten().equal(tensor.flatten()), name


@pytest.mark.parametrize("alphas", [(32.0, 0.0), (0.0, 32.0), (32.0, 32.0)])
def test_a_start_does_the_same_whatever_alpha_it_had(quick, alphas):
    first = quick("tiny_style_lora", output="first", steps=2, alpha=alphas[0], lr=1e-2, kinds=("video",), cache="")
    trainer.train(first)
    second = quick("tiny_style_lora", output="second", start=first.output, alpha=alphas[1], cache="")
    built = model.from_parts(*_swap(base.read(second), second))
    layer = built.dit.blocks[0].attn1.to_q
    saved = load_file(Path(first.output) / "exports" / "training.safetensors")
    down, up = (saved[f"dit.blocks.0.self_attn.q.lora_{half}.default.weight"].float() for half in "AB")
    torch.testing.assert_close(layer.get_delta_weight("default"), up @ down, rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("kinds", [("dora", "lora"), ("lora", "dora")])
def test_a_start_of_another_kind_of_adapter_is_refused(quick, kinds):
    first = quick("tiny_style_lora", output="first", steps=1, adapter=kinds[0], kinds=("video",), cache="")
    trainer.train(first)
    start = Path(first.output) / "exports" / "first.safetensors"
    second = quick("tiny_style_lora", output="second", start=str(start), adapter=kinds[1], cache="")
    with pytest.raises(ValueError, match=f"adapters of the kind {kinds[0]}; set --adapter {kinds[0]}"):
        model.from_parts(*_swap(base.read(second), second))


def test_the_teacher_of_a_distilled_model_has_the_adapters_of_the_start(quick):
    first = quick("tiny_style_lora", output="first", steps=2, lr=1e-1, kinds=("video",), cache="")
    trainer.train(first)
    second = quick("tiny_distill", output="second", start=first.output, cache="")
    built = model.from_parts(*_swap(base.read(second), second))
    plain = model.from_parts(*_swap(base.read(second.replace(start="")), second))
    saved = load_file(Path(first.output) / "exports" / "training.safetensors")
    down, up = (saved[f"dit.blocks.0.self_attn.q.lora_{half}.default.weight"].float() for half in "AB")
    layers = [each.dit.blocks[0].attn1.to_q for each in (built, plain)]
    torch.testing.assert_close(layers[0].base_layer.weight, layers[1].base_layer.weight + up @ down)
    assert not layers[0].get_delta_weight("default").any()  # the student begins as its teacher


def test_what_a_start_adds_to_weights_without_adapters_is_in_the_whole_model_too(tiny_model):
    from kiwi_core.checkpoints import lora, released
    from kiwi_core.checkpoints.lazy import load
    from training import export

    parts = released.read(tiny_model / "released")
    added = torch.full((256, 256), 0.5)
    start = lora.read({"diffusion_model.blocks.0.self_attn.q.diff": added})
    merged = export.merged(parts, names.as_lora({}), start)
    name = "blocks.0.attn1.to_q.weight"
    torch.testing.assert_close(load(merged.transformer[name]), parts.transformer[name] + added)


def test_a_frame_below_the_models_smallest_is_refused_by_the_settings_name(layouts, tmp_path):
    with pytest.raises(ValueError, match="mllm_max_pixels is 50176; this model is shown frames of 100352"):
        base.read(config("tiny_stage3", tmp_path, **layouts["released"], mllm_max_pixels=224 * 224))


def test_a_run_that_exported_something_else_is_told_by_its_file(tmp_path):
    """As one of DoRA does, which the training layout does not know."""
    (tmp_path / "exports").mkdir()
    with pytest.raises(FileNotFoundError, match="let that run end first"):
        base.start_file(tmp_path)
    (tmp_path / "exports" / "style.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"name .*style\.safetensors\."):
        base.start_file(tmp_path)
