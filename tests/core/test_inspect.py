"""Telling checkpoints apart by the names and shapes of their tensors."""

import json
import math
import os
import shutil

import golden
import lora_files
import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi_core.checkpoints import vae_keys
from kiwi_core.checkpoints.inspect import inspect

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def comfyui(random_model):
    folder = random_model / "comfyui"
    return {
        "dit": folder / "diffusion_models/kiwi_edit_random.safetensors",
        "vae": folder / "vae/kiwi_edit_random_vae.safetensors",
        "mllm": folder / "text_encoders/kiwi_edit_random_mllm.safetensors",
        "connector": folder / "text_encoders/kiwi_edit_random_connector.safetensors",
    }


@pytest.fixture
def checkpoint(random_model):
    return load_file(random_model / "training/checkpoint.safetensors")


@pytest.fixture
def released(random_model, tmp_path):
    """A copy that may be harmed."""
    return shutil.copytree(random_model / "released", tmp_path / "released")


@pytest.fixture
def saved(tmp_path):
    """Inspect a file of these tensors. Its name says something else."""

    def saved(tensors):
        path = tmp_path / "wan2.1_14B_vae.safetensors"
        save_file(tensors, path)
        return inspect(path)

    return saved


@pytest.fixture
def headed(tmp_path):
    """Inspect a file of these shapes in bfloat16, with a hole where the tensors would be."""

    def headed(shapes):
        header, end = {}, 0
        for name, shape in shapes.items():
            start, end = end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(path, 8 + len(text) + end)
        report = inspect(path)
        path.unlink()
        return report

    return headed


def published(shapes, dim, ffn, layers, channels):
    """The random model's DiT in a published size; only its first block, so that it fits any machine."""
    sizes = {256: dim, 512: ffn, 1536: 6 * dim, 16: channels, 64: 4 * channels}
    scaled = {name: [sizes.get(size, size) for size in shape] for name, shape in shapes.items()}
    block = only(shapes, "blocks.0.")
    further = range(1, layers)
    return scaled | {name.replace("0", str(i), 1): shape for i in further for name, shape in block.items()}


def only(tensors, *prefixes):
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}


def without(tensors, *prefixes):
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def test_whole_released_folder(random_model):
    folder = random_model / "released"
    report = inspect(folder)
    assert report.layout == "released folder" and not report.missing
    assert report.parts == (
        "DiT", "source embedder", "reference embedder", "VAE", "language model", "connector", "tokenizer"
    )  # fmt: skip
    assert report.variant == "custom"
    assert {"dim": 256, "layers": 2, "latent channels": 16, "ref queries": 8}.items() <= report.dims.items()
    tensors = [tensor for path in folder.rglob("*.safetensors") for tensor in load_file(path).values()]
    assert report.parameters == sum(tensor.numel() for tensor in tensors)
    assert report.dtypes == ("F32",)


def test_the_golden_release_is_whole():
    assert inspect(golden.RELEASE).missing == ()


def test_report_reads_as_aligned_lines(random_model):
    report = inspect(random_model / "released")
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines] == ["path", "layout", "variant", "tensors", "parts", "missing"]
    assert all(line[8] == " " and line[9] != " " for line in lines)
    assert f"{report.parameters:,} parameters, F32" in lines[3]


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ("transformer", "DiT: "),
        ("source_embedder", "source embedder: "),
        ("vae", "VAE: "),
        ("mllm_encoder/model.safetensors", "language model: "),
        (f"mllm_encoder/{WEIGHTS}", "connector: "),
        ("vae/config.json", "vae/config.json"),
        ("processor", "processor/tokenizer.json"),
        ("model_index.json", "model_index.json"),
    ],
)
def test_released_folder_says_which_part_is_missing(released, removed, words):
    path = released / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    report = inspect(released)
    assert report.layout == "released folder"
    assert any(text.startswith(words) for text in report.missing)
    assert words.removesuffix(": ") not in report.parts


def test_released_folder_without_references_is_whole(released):
    shutil.rmtree(released / "ref_embedder")
    report = inspect(released)
    assert not report.missing and "no reference embedder" in report.notes[0]


def test_released_folder_says_which_file_is_truncated(released):
    path = released / "transformer" / WEIGHTS
    os.truncate(path, path.stat().st_size - 1)
    (problem,) = inspect(released).missing
    assert problem.startswith("DiT: ") and str(path) in problem and "damaged" in problem


def test_released_folder_says_how_many_shards_are_missing(released):
    path = released / "mllm_encoder/model.safetensors"
    path.rename(path.with_name("model-00001-of-00002.safetensors"))
    (problem,) = inspect(released).missing
    assert "1 of 2" in problem


def test_released_folder_with_the_vae_of_another_variant(released):
    shutil.copytree(golden.RELEASE / "vae", released / "vae", dirs_exist_ok=True)
    (problem,) = inspect(released).missing
    assert problem.startswith("VAE: ") and "48" in problem and "16" in problem


def test_released_folder_with_something_else_in_place_of_the_language_model(released):
    shutil.copy(released / "vae" / WEIGHTS, released / "mllm_encoder/model.safetensors")
    assert any(text.startswith("language model: ") for text in inspect(released).missing)


def test_kiwi_dit(comfyui):
    report = inspect(comfyui["dit"])
    assert report.layout == "Kiwi-Edit DiT" and not report.missing and not report.notes
    assert report.parts == ("DiT", "source embedder", "reference embedder")


def test_kiwi_dit_without_references(comfyui, saved):
    report = saved(without(load_file(comfyui["dit"]), "ref_"))
    assert report.parts == ("DiT", "source embedder") and not report.missing
    assert "no reference embedder" in report.notes[0]


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_plain_wan_dit_lacks_the_embedders(comfyui, saved, prefix):
    tensors = without(load_file(comfyui["dit"]), "ref_", "vae_condition.")
    report = saved({prefix + name: tensor for name, tensor in tensors.items()})
    assert report.layout == "plain Wan DiT" and report.parts == ("DiT",)
    assert "source embedder (vae_condition.*)" in report.missing[0]


def test_dit_under_diffusers_names(random_model):
    report = inspect(random_model / "released/transformer" / WEIGHTS)
    assert report.layout == "plain Wan DiT" and "diffusers" in report.notes[0]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("5B", (3072, 14336, 30, 48)), ("14B", (5120, 13824, 40, 16)), ("custom", (3072, 14336, 2, 16))],
)
def test_published_sizes_are_named(comfyui, headed, name, sizes):
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(comfyui["dit"]).items()}
    report = headed(published(shapes, *sizes))
    assert report.variant == name and not report.missing
    assert tuple(report.dims.values()) == (sizes[0], sizes[2], sizes[1], sizes[3])
    assert report.dtypes == ("BF16",)


def test_dit_with_a_tensor_missing(comfyui, saved):
    report = saved(without(load_file(comfyui["dit"]), "blocks.1.cross_attn.k.weight", "blocks.1.ffn.2."))
    assert report.missing == ("blocks.1.cross_attn.k.weight and 2 more tensors",)
    report = saved(without(load_file(comfyui["dit"]), "patch_embedding."))
    assert len(report.missing) == 1 and "patch_embedding.weight" in report.missing[0]


def test_scales_of_some_blocks_only_are_no_gap(comfyui, saved):
    tensors = load_file(comfyui["dit"])
    tensors["blocks.1.ffn.0.weight"] = tensors["blocks.1.ffn.0.weight"].to(torch.float8_e4m3fn)
    report = saved({**tensors, "blocks.1.ffn.0.scale_weight": torch.ones(1)})
    assert not report.missing and report.dtypes == ("F32", "F8_E4M3")


def test_vae_of_both_kinds(comfyui, saved):
    report = inspect(comfyui["vae"])
    assert (report.layout, report.variant, report.missing) == ("Wan VAE", "Wan2.1", ())
    assert report.dims == {"latent channels": 16, "space": 8, "time": 4}
    report = inspect(golden.RELEASE / "vae" / WEIGHTS)
    assert (report.layout, report.variant, report.missing) == ("Wan VAE", "Wan2.2", ())
    assert report.dims["space"] == 16
    report = saved(vae_keys.vae_to_diffusers(load_file(comfyui["vae"])))
    assert (report.layout, report.variant) == ("Wan VAE", "Wan2.1") and "diffusers" in report.notes[0]


def test_vae_with_a_tensor_missing(comfyui, saved):
    report = saved(without(load_file(comfyui["vae"]), "decoder.head.2.weight"))
    assert report.layout == "Wan VAE" and "decoder.head.2.weight" in report.missing[0]


def test_mllm_with_and_without_tokenizer(comfyui, saved):
    report = inspect(comfyui["mllm"])
    assert (report.layout, report.variant, report.missing) == ("MLLM", "custom", ())
    assert report.parts == ("language model", "vision tower", "tokenizer") and not report.notes
    report = saved(without(load_file(comfyui["mllm"]), "tokenizer_json"))
    assert "tokenizer" not in report.parts and "no tokenizer" in report.notes[0] and not report.missing


def test_mllm_that_is_not_whole(comfyui, saved):
    tensors = load_file(comfyui["mllm"])
    assert "vision tower" in saved(without(tensors, "visual.")).missing[0]
    assert "shards" in saved(without(tensors, "model.norm.")).missing[0]
    name = "model.layers.1.mlp.up_proj.weight"
    assert saved(without(tensors, name)).missing == (name,)


def test_qwen_is_named_by_its_size(headed):
    block = "model.layers.{}.self_attn.q_proj.weight"
    shapes = {"model.embed_tokens.weight": (151936, 2048), "model.norm.weight": (2048,)}
    report = headed(shapes | {block.format(i): (2048, 2048) for i in range(36)})
    assert report.variant == "Qwen2.5-VL-3B"


def test_connector(comfyui, saved):
    report = inspect(comfyui["connector"])
    assert report.layout == "Kiwi-Edit connector" and not report.missing and not report.notes
    queries = {"image queries": 4, "video queries": 6, "ref queries": 8}
    assert report.dims == {"hidden": 256, "dim": 256, **queries}
    tensors = load_file(comfyui["connector"])
    report = saved(without(tensors, "ref_", "video_queries"))
    assert report.parts == ("query connector",) and not report.missing
    assert report.notes == ("not trained for videos", "not trained for reference pictures")
    assert "ref_connector.0.weight" in saved(without(tensors, "ref_connector.")).missing[0]


@pytest.mark.parametrize("prefix", ["", "pipe."])
def test_training_checkpoint_of_every_stage(checkpoint, saved, prefix):
    def report(tensors):
        return saved({prefix + name: tensor for name, tensor in tensors.items()})

    third = report(checkpoint)
    assert third.layout == "training checkpoint, stage 3" and not third.missing
    assert third.parts == (
        "query connector", "reference connector", "language model LoRA of rank 4 on q_proj", "whole DiT",
        "source embedder", "reference embedder",
    )  # fmt: skip
    assert {"layers": 2, "ref queries": 8}.items() <= third.dims.items()
    assert "base Wan DiT" not in third.notes[0]

    second = report(without(checkpoint, "mllm.ref_", "ref_"))
    assert second.layout == "training checkpoint, stage 2" and not second.missing
    assert "reference embedder" not in second.parts

    first = report(only(checkpoint, "mllm.image_queries", "mllm.connetor", "mllm.model"))
    assert first.layout == "training checkpoint, stage 1"
    assert "source embedder" in first.missing[0] and "base Wan DiT" in first.notes[0]


def test_training_checkpoint_of_the_14b_lora(headed):
    layer = "mllm.model.model.language_model.layers.0.mlp.gate_proj.lora_{}.default.weight"
    block = "dit.blocks.{}.cross_attn.k.lora_{}.default.weight"
    report = headed(
        {
            "mllm.image_queries.q": (256, 2048),
            "mllm.video_queries.q": (512, 2048),
            "mllm.connetor.0.weight": (5120, 2048),
            "mllm.connetor.0.bias": (5120,),
            "mllm.connetor.2.weight": (5120, 5120),
            "mllm.connetor.2.bias": (5120,),
            layer.format("A"): (256, 2048),
            layer.format("B"): (11008, 256),
            **{block.format(i, "A"): (128, 5120) for i in range(40)},
            **{block.format(i, "B"): (5120, 128) for i in range(40)},
            "vae_condition.patch_embedding.weight": (5120, 16, 1, 2, 2),
            "vae_condition.patch_embedding.bias": (5120,),
        }
    )
    assert report.layout == "training checkpoint, stage 2" and report.variant == "14B" and not report.missing
    assert "language model LoRA of rank 256 on gate_proj" in report.parts
    assert "DiT LoRA of rank 128 on cross_attn.k" in report.parts
    assert "base Wan DiT" in report.notes[0]


@pytest.mark.parametrize("form", lora_files.FORMS.values(), ids=lora_files.FORMS.keys())
def test_lora_of_every_dialect(random_model, saved, form):
    weights = load_file(random_model / "comfyui/diffusion_models/kiwi_edit_random.safetensors")
    modules = [f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("self_attn.q", "ffn.0")]
    tensors = form.file(lora_files.pairs(weights, modules + ["time_embedding.0"]))
    report = saved(tensors)
    dialect = "diffsynth" if form.dialect == "training" else form.dialect  # with the DiT alone they are the same
    assert report.layout == "LoRA" and not report.missing
    assert report.parts == ("DiT of rank 4 on ffn.0, self_attn.q, time_embedding.0 (5 in all)",)
    assert report.notes == (f"{len(tensors)} keys in the {dialect} dialect",)
    assert report.variant == "custom" and report.dims == {"dim": 256}


def test_lora_of_the_14b_with_a_half_missing(headed):
    name = "base_model.model.blocks.7.attn1.to_q"
    language = "base_model.model.model.language_model.layers.3.mlp.up_proj"
    shapes = {f"{name}.lora_A.weight": (128, 5120), f"{name}.lora_B.weight": (5120, 128)}
    report = headed(shapes | {f"{language}.lora_A.weight": (16, 2048)})
    assert report.variant == "14B"
    assert report.parts == (
        "DiT of rank 128 on self_attn.q (1 in all)", "language model of rank 16 on mlp.up_proj (1 in all)"
    )  # fmt: skip
    assert report.missing == ("lora_B of model.layers.3.mlp.up_proj.weight",)


def test_lora_of_differences(headed):
    report = headed({"diffusion_model.blocks.0.modulation.diff": (1, 6, 3072)})
    assert report.parts == ("DiT on modulation (1 in all)",) and report.variant == ""


def test_unknown_file_shows_its_names(saved):
    report = saved({"some.weight": torch.zeros(2, 3)})
    assert report.layout == "unknown" and report.parameters == 6 and "some.weight" in report.notes[0]


def test_what_is_no_checkpoint_is_refused(comfyui, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        inspect(tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match="is a folder"):
        inspect(tmp_path)
    damaged = shutil.copy(comfyui["dit"], tmp_path / "damaged.safetensors")
    os.truncate(damaged, 5000)
    with pytest.raises(ValueError, match="damaged"):
        inspect(damaged)
    for name in ("model.pth", "model.safetensors"):
        torch.save({"weight": torch.zeros(1)}, tmp_path / name)
        with pytest.raises(ValueError, match="pickle"):
            inspect(tmp_path / name)
