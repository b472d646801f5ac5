"""Every layout on disk holds the same model, and is read without running anything in it."""

import copy
import dataclasses
import json
import shutil

import golden
import numpy as np
import pytest
import random_model as random_models
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from kiwi_core import KiwiEditPipeline
from kiwi_core.checkpoints import dit_keys, files, fp8, qwen_keys, released, single_files, streaming, training
from kiwi_core.checkpoints.hub import MODELS
from kiwi_core.checkpoints.lazy import load
from kiwi_core.conditioning import PatchEmbedder
from kiwi_core.connector import DualConnector
from kiwi_core.transformer import KiwiTransformer3DModel

TENSORS = ("transformer", "source_embedder", "ref_embedder", "vae", "mllm", "connector")


def assert_same(found, wanted):
    for part in TENSORS:
        a, b = getattr(found, part), getattr(wanted, part)
        assert a.keys() == b.keys(), part
        for name in a:
            assert a[name].dtype == b[name].dtype, name
            assert torch.equal(a[name], b[name]), name
    assert found.ref_pad_first == wanted.ref_pad_first
    assert json.loads(found.tokenizer) == json.loads(wanted.tokenizer)
    assert found.qwen_config == wanted.qwen_config


def latents_of(pipe, reference=True):
    pipe.set_progress_bar_config(disable=True)
    video = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    picture = video[0] if reference else None
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "generator": generator, "output_type": "latent"}
    return pipe("Make it red.", video, picture, **options).latents


def comfyui(folder):
    return {name: folder / "comfyui" / path for name, path in random_models.FILES.items()}


def base_models(folder):
    return {"mllm": folder / "training" / "qwen", "vae": folder / "training" / "vae.safetensors"}


# Names


def test_key_maps_are_those_of_the_published_model():
    original, diffusers = golden.load("dit/weights_wan"), golden.load("dit/weights_diffusers")
    dit, source, reference, first = dit_keys.split_embedders(original)
    translated = {dit_keys.to_diffusers(name): tensor for name, tensor in dit.items()}
    assert {dit_keys.to_original(name) for name in translated} == dit.keys()
    found = {
        f"{part}.{name}": tensor
        for part, tensors in (("transformer", translated), ("source_embedder", source), ("ref_embedder", reference))
        for name, tensor in tensors.items()
    }
    assert found.keys() == diffusers.keys()
    assert all(torch.equal(tensor, diffusers[name]) for name, tensor in found.items())
    assert not first


@pytest.mark.parametrize(
    "name",
    [
        *("blocks.0.cross_attn.k_img.weight", "img_emb.proj.0.weight", "blocks.x", "head.head.weight_scale"),
        *("blocks.0.self_attn.q.lora_A.style.weight", "blocks.0.attn1.to_q.comfy_quant"),
    ],
)
def test_a_tensor_of_another_model_has_no_other_name(name):
    for translate in (dit_keys.to_diffusers, dit_keys.to_original):
        with pytest.raises(ValueError, match="not a tensor of a Wan video model"):
            translate(name)


@pytest.mark.parametrize("first", [False, True])
def test_joining_embedders_undoes_splitting_them(first):
    dit, source, reference, _ = dit_keys.split_embedders(golden.load("dit/weights_wan"))
    again = dit_keys.split_embedders(dit_keys.join_embedders(dit, source, reference, first))
    for found, given in zip(again, (dit, source, reference)):
        assert found.keys() == given.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
    assert again[3] is first


# All layouts


def test_all_layouts_hold_the_same_tensors(random_model):
    wanted = random_models.random_parts()
    assert_same(released.read(random_model / "released"), wanted)
    assert_same(single_files.read(**comfyui(random_model)), wanted)
    bases = base_models(random_model)
    assert_same(training.read(random_model / "training" / "checkpoint.safetensors", **bases), wanted)


def test_all_layouts_give_the_same_latents(random_model, random_pipe):
    wanted = latents_of(random_pipe)
    checkpoint = random_model / "training" / "checkpoint.safetensors"
    for pipe in (
        KiwiEditPipeline.from_single_files(**comfyui(random_model), dtype=torch.float32),
        KiwiEditPipeline.from_training_checkpoint(checkpoint, **base_models(random_model), dtype=torch.float32),
    ):
        torch.testing.assert_close(latents_of(pipe), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_pipeline_reads_back_identically(tmp_path, dtype):
    pipe = KiwiEditPipeline.from_pretrained(golden.RELEASE, dtype)
    pipe.save_pretrained(tmp_path)
    assert files.read_json(tmp_path / "processor" / "qwen_config.json") == files.read_json(
        golden.RELEASE / "processor" / "qwen_config.json"
    )
    again = KiwiEditPipeline.from_pretrained(tmp_path, dtype)
    assert_same(again.to_parts(), pipe.to_parts())
    assert again.to_parts().limits == pipe.to_parts().limits
    assert torch.equal(latents_of(again), latents_of(pipe))
    for folder in ("processor", "transformer", "vae", "ref_embedder"):
        original = {path.name for path in (golden.RELEASE / folder).iterdir()}
        assert {path.name for path in (tmp_path / folder).iterdir()} == original
    assert not list(tmp_path.rglob("*.partial*"))


@pytest.mark.parametrize("options", [{"reference": False}, {"ref_pad_first": True}])
def test_settings_of_the_reference_survive_every_layout(tmp_path, options):
    parts = random_models.random_parts(**options)
    released.write(parts, tmp_path / "released")
    single_files.write(parts, **comfyui(tmp_path))
    assert_same(released.read(tmp_path / "released"), parts)
    assert_same(single_files.read(**comfyui(tmp_path)), parts)
    assert (tmp_path / "released" / "ref_embedder").is_dir() == options.get("reference", True)


def test_saving_over_another_model_leaves_none_of_it(tmp_path):
    released.write(random_models.random_parts(seed=1), tmp_path)
    parts = random_models.random_parts(reference=False)
    released.write(parts, tmp_path)
    assert_same(released.read(tmp_path), parts)


# The released folder


def test_code_in_a_released_folder_is_never_run(random_model, tmp_path):
    folder = tmp_path / "released"
    shutil.copytree(random_model / "released", folder)
    trap = "raise SystemExit('this code was run')\n"
    for name in ("pipeline_kiwi_edit", "wan_video_vae", "mllm_encoder", "conditional_embedder"):
        (folder / f"{name}.py").write_text(trap)
        for part in ("transformer", "vae", "mllm_encoder", "source_embedder", "processor"):
            (folder / part / f"{name}.py").write_text(trap)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["pipeline_kiwi_edit", "KiwiEditPipeline"]
    index["vae"] = ["wan_video_vae", "VAE"]
    (folder / "model_index.json").write_text(json.dumps(index))
    pipe = KiwiEditPipeline.from_pretrained(folder, torch.float32)
    assert_same(pipe.to_parts(), random_models.random_parts())


def test_a_model_comes_by_its_name_on_the_hub_and_no_code_with_it(random_model, monkeypatch):
    fetched = []

    def fetch(name, allow_patterns=None):
        there = ["model_index.json", "vae/a.safetensors", "processor/merges.txt", "pipeline.py", "vae/a.bin"]
        fetched.append((name, [*filter_repo_objects(there, allow_patterns=allow_patterns)]))
        return str(random_model / "released")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    wanted = ["model_index.json", "vae/a.safetensors", "processor/merges.txt"]
    for name, full in (("somebody/a-model", "somebody/a-model"), ("instruct", MODELS["instruct"])):
        assert KiwiEditPipeline.from_pretrained(name).dtype == torch.bfloat16
        assert fetched.pop() == (full, wanted)


def test_a_tokenizer_is_built_from_its_vocabulary_where_it_must(tmp_path):
    shutil.copytree(golden.RELEASE / "processor", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    from tokenizers import Tokenizer

    built = Tokenizer.from_str(released.read_tokenizer(tmp_path))
    whole = Tokenizer.from_str(released.read_tokenizer(golden.RELEASE / "processor"))
    for text in ("Make it red.<|im_end|>\n", "<|video_pad|> Grüße, 世界! 123"):
        assert built.encode(text).ids == whole.encode(text).ids


def test_shards_are_joined(random_model, tmp_path):
    folder = tmp_path / "released"
    shutil.copytree(random_model / "released", folder)
    for part, stem in (("mllm_encoder", "model"), ("transformer", released.WEIGHTS)):
        tensors = sorted(load_file(folder / part / f"{stem}.safetensors").items())
        (folder / part / f"{stem}.safetensors").unlink()
        for index in range(3):
            save_file(dict(tensors[index::3]), folder / part / f"{stem}-{index + 1:05}-of-00003.safetensors")
    assert_same(released.read(folder), random_models.random_parts())
    (folder / "mllm_encoder" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has 2 of 3 model files; download the missing ones"):
        released.read(folder)


# Single files


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model."])
def test_prefixes_of_other_savers_are_ignored(random_model, tmp_path, prefix):
    paths = comfyui(random_model)
    tensors = load_file(paths["model"])
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    paths["model"] = tmp_path / "model.safetensors"
    assert_same(single_files.read(**paths), random_models.random_parts())


def test_a_language_model_file_without_a_tokenizer_takes_one(random_model, tmp_path):
    paths = comfyui(random_model)
    tensors = load_file(paths["mllm"])
    config = json.loads(files.tensor_text(tensors.pop(single_files.CONFIG)))
    tokenizer = files.tensor_text(tensors.pop(single_files.TOKENIZER))
    paths["mllm"] = tmp_path / "mllm.safetensors"
    save_file({**tensors, "lm_head.weight": torch.zeros(2, 2)}, paths["mllm"])
    (tmp_path / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (tmp_path / "another_name.json").write_text(tokenizer, encoding="utf-8")
    for given in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "another_name.json"):
        parts = single_files.read(**paths, tokenizer=given)
        assert parts.tokenizer == tokenizer
        assert parts.mllm.keys() == tensors.keys()
        for part, found in parts.qwen_config.items():
            if part.endswith("_config"):
                found = {name: value for name, value in found.items() if name != "fullatt_block_indexes"}
                assert {name: config[part][name] for name in found} == found
    with pytest.raises(ValueError, match="carries no tokenizer; pass tokenizer="):
        single_files.read(**paths)


def test_sizes_of_the_published_language_model_are_read_from_shapes():
    shapes = {
        "model.embed_tokens.weight": (151936, 2048),
        "model.layers.0.mlp.gate_proj.weight": (11008, 2048),
        "model.layers.0.self_attn.q_proj.weight": (2048, 2048),
        "model.layers.0.self_attn.k_proj.weight": (256, 2048),
        "model.layers.35.mlp.gate_proj.weight": (11008, 2048),
        "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
        "visual.blocks.0.mlp.gate_proj.weight": (3420, 1280),
        "visual.blocks.31.mlp.gate_proj.weight": (3420, 1280),
    }
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = qwen_keys.qwen_config(tensors)
    text, vision = config["text_config"], config["vision_config"]
    assert (text["num_hidden_layers"], text["num_attention_heads"], text["num_key_value_heads"]) == (36, 16, 2)
    assert (text["vocab_size"], text["hidden_size"], text["intermediate_size"]) == (151936, 2048, 11008)
    assert (vision["depth"], vision["hidden_size"], vision["num_heads"]) == (32, 1280, 16)
    assert (vision["intermediate_size"], vision["out_hidden_size"]) == (3420, 2048)
    assert vision["fullatt_block_indexes"] == [7, 15, 23, 31]


# Training checkpoints


def lora(weight, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, weight.shape[1], generator=generator)
    b = torch.randn(weight.shape[0], rank, generator=generator)
    return a, b, weight + b @ a


@pytest.fixture
def checkpoint(random_model, tmp_path):
    """Write a changed copy of the stage 3 checkpoint; returns its path and the base models' arguments."""

    def write(change):
        tensors = change(load_file(random_model / "training" / "checkpoint.safetensors"))
        save_file(tensors, tmp_path / "checkpoint.safetensors")
        return {"checkpoint": tmp_path / "checkpoint.safetensors", **base_models(random_model)}

    return write


@pytest.mark.parametrize("suffix", [".default.weight", ".weight"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_lora_is_merged_into_its_base(random_model, checkpoint, tmp_path, suffix, shards):
    wanted, base = {}, {}

    def change(tensors):
        base.update({name[4:]: tensors.pop(name) for name in list(tensors) if name.startswith("dit.")})
        language = load_file(random_model / "training" / "qwen" / "model.safetensors")
        pairs = [
            *(("dit", base, name) for name in ("blocks.0.self_attn.q", "blocks.1.cross_attn.v", "blocks.1.ffn.2")),
            ("mllm.model", language, "model.layers.0.self_attn.q_proj"),
            ("mllm.model", language, "model.layers.1.mlp.up_proj"),
        ]
        for seed, (prefix, weights, name) in enumerate(pairs):
            a, b, wanted[name] = lora(weights[name + ".weight"], 4, seed)
            name = name.replace("model.layers", "model.language_model.layers")
            tensors[f"{prefix}.{name}.lora_A{suffix}"], tensors[f"{prefix}.{name}.lora_B{suffix}"] = a, b
        given = {f"lora_{half}{suffix}" for half in "AB"}  # and not what the checkpoint's own language model had
        return {
            name: one for name, one in tensors.items() if "lora_" not in name or name[name.index("lora_") :] in given
        }

    paths = checkpoint(change)
    names = sorted(base)
    for index in range(shards):
        shard = {name: base[name] for name in names[index::shards]}
        save_file(shard, tmp_path / f"{released.WEIGHTS}-{index + 1:05}-of-{shards:05}.safetensors")
    parts = training.read(**paths, model=tmp_path)
    found = {dit_keys.to_original(name): tensor for name, tensor in parts.transformer.items()} | parts.mllm
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name + ".weight"], tensor, msg=name)
    unchanged = base.keys() - {name + ".weight" for name in wanted}
    assert all(torch.equal(found[name], base[name]) for name in unchanged)

    with pytest.raises(ValueError, match="does not hold the whole DiT; pass model= the base Wan DiT"):
        training.read(**paths)


def test_merging_keeps_the_dtype_of_the_base():
    base = {"a.weight": torch.randn(4, 3).bfloat16(), "b": torch.ones(2)}
    a, b = torch.randn(2, 3).bfloat16(), torch.randn(4, 2).bfloat16()
    merged = training.merge_lora(base, {"a.lora_A.weight": a, "a.lora_B.weight": b, "b": torch.zeros(2)})
    assert torch.equal(merged["a.weight"], (base["a.weight"].float() + b.float() @ a.float()).bfloat16())
    assert not merged["b"].any()


@pytest.mark.parametrize("scaled", [False, True])
def test_a_lora_on_a_float8_base_is_not_rounded_away(random_model, checkpoint, tmp_path, scaled):
    """As for 14B, whose checkpoints are LoRAs and whose bases are often had in float8."""
    base, wanted, name = {}, {}, "blocks.1.ffn.0"

    def change(tensors):
        base.update({each[4:]: tensors.pop(each) for each in list(tensors) if each.startswith("dit.")})
        weight = base[f"{name}.weight"]
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(size, generator=generator) for size in ((4, weight.shape[1]), (weight.shape[0], 4)))
        wanted["delta"] = 0.02 * weight.norm() / (b @ a).norm() * b @ a
        tensors[f"dit.{name}.lora_A.style.weight"] = a.bfloat16()
        tensors[f"dit.{name}.lora_B.style.weight"] = (0.02 * weight.norm() / (b @ a).norm() * b).bfloat16()
        return tensors

    paths = checkpoint(change)
    small = {}
    for each, tensor in base.items():
        if not fp8.is_quantised(each, tensor.shape):
            small[each] = tensor
        elif scaled:
            small |= {key: load(one) for key, one in fp8.split_scale(each, fp8.quantise(tensor)).items()}
        else:
            small[each] = tensor.to(torch.float8_e4m3fn)
    save_file(small, tmp_path / "base.safetensors")
    before = base[f"{name}.weight"].to(torch.float8_e4m3fn).float()
    if scaled:
        before = load(fp8.quantise(base[f"{name}.weight"]))
    parts = training.read(**paths, model=tmp_path / "base.safetensors")
    found = load(parts.transformer[dit_keys.to_diffusers(f"{name}.weight")])
    delta = wanted["delta"].flatten()
    assert found.dtype == torch.bfloat16
    assert ((found.float() - before).flatten() @ delta / delta.norm() ** 2).item() == pytest.approx(1, abs=0.05)


def test_what_the_base_lacks_is_refused():
    base = {"a.weight": torch.ones(4, 3)}
    with pytest.raises(ValueError, match=r"holds a\.alpha, which the base model lacks"):
        training.merge_lora(base, {"a.alpha": torch.ones(())})
    pair = {f"a.lora_{half}.{name}.weight": torch.ones(1, 1) for half in "AB" for name in ("one", "two")}
    with pytest.raises(ValueError, match="more than one LoRA for a"):
        training.merge_lora(base, pair)


@pytest.mark.parametrize("lora", [{"x.lora_A.weight": torch.ones(1, 3)}, {"a.lora_A.weight": torch.ones(1, 3)}])
def test_a_lora_of_another_model_is_refused(lora):
    with pytest.raises(ValueError, match="does not fit the base model; use its own base"):
        training.merge_lora({"a.weight": torch.ones(4, 3)}, lora)


def test_a_lora_of_another_width_is_refused():
    pair = {"a.lora_A.weight": torch.ones(1, 5), "a.lora_B.weight": torch.ones(4, 1)}
    with pytest.raises(ValueError, match="does not fit the base model; use its own base"):
        training.merge_lora({"a.weight": torch.ones(4, 3)}, pair)


def test_names_may_keep_their_pipe_prefix(checkpoint):
    paths = checkpoint(lambda tensors: {f"pipe.{name}": tensor for name, tensor in tensors.items()})
    assert training.is_training(files.read_shapes(paths["checkpoint"]))
    assert_same(training.read(**paths), random_models.random_parts())


def test_a_stage_2_checkpoint_edits_but_refuses_a_reference(checkpoint):
    references = ("mllm.ref", "ref_")
    paths = checkpoint(
        lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(references)}
    )
    pipe = KiwiEditPipeline.from_training_checkpoint(**paths, dtype=torch.float32)
    assert latents_of(pipe, reference=False).isfinite().all()
    with pytest.raises(ValueError, match="trained without reference pictures; use a reference model"):
        latents_of(pipe)


def test_a_stage_1_checkpoint_is_refused(checkpoint):
    paths = checkpoint(
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name.startswith("mllm.")}
    )
    with pytest.raises(ValueError, match="is of stage 1, which cannot edit yet; use one of stage 2 or 3"):
        training.read(**paths)


def test_newer_names_and_the_flat_config_of_qwen_are_read(random_model, tmp_path):
    tensors = load_file(random_model / "training" / "qwen" / "model.safetensors")
    renamed = {
        "model." + (name if name.startswith("visual.") else name.replace("model.", "language_model.", 1)): tensor
        for name, tensor in tensors.items()
    }
    save_file({**renamed, "lm_head.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    config = json.loads((random_model / "training" / "qwen" / "config.json").read_text())
    flat = {**config, **config["text_config"], "model_type": "qwen2_5_vl"}
    del flat["text_config"]
    (tmp_path / "config.json").write_text(json.dumps(flat))
    shutil.copy(random_model / "training" / "qwen" / "tokenizer.json", tmp_path)
    found, settings, _ = training.read_qwen(tmp_path)
    assert found.keys() == tensors.keys()
    assert settings["vision_config"] == config["vision_config"]
    assert {name: settings["text_config"][name] for name in config["text_config"]} == config["text_config"]


# Files


def test_a_header_that_begins_like_a_pickle_is_no_pickle(tmp_path):
    path = tmp_path / "model.safetensors"
    for length in range(1, 700):
        save_file({"a": torch.ones(2)}, path, {"note": "x" * length})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert torch.equal(files.load_tensors(path)["a"], torch.ones(2))
    assert files.read_shapes(path) == {"a": ("F32", (2,))}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    files.save_tensors({"a": torch.ones(2)}, path)

    def fail(layout, file, name, progress):
        file.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(streaming.FileLayout, "write", fail)
    with pytest.raises(OSError, match="the disk is full"):
        files.save_tensors({"a": torch.zeros(2)}, path)
    assert [found.name for found in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(path)["a"].all()


def test_a_folder_half_written_is_not_taken_for_a_model(tmp_path, monkeypatch):
    parts = random_models.random_parts()
    released.write(parts, tmp_path)
    assert released.is_released(tmp_path)
    save_tensors = files.save_tensors

    def fail_late(tensors, path):
        if path.name == "model.safetensors":
            raise OSError("the disk is full")
        save_tensors(tensors, path)

    monkeypatch.setattr(files, "save_tensors", fail_late)
    with pytest.raises(OSError, match="the disk is full"):
        released.write(parts, tmp_path)
    assert not released.is_released(tmp_path)


# Other sizes


@pytest.mark.parametrize(
    "heads, head_dim, layers, queries, first, speed", [(1, 24, 1, (1, 2, 3), False, 2), (3, 32, 3, (9, 5, 7), True, 4)]
)
def test_sizes_other_than_the_stored_ones_are_read_from_the_folder(
    tmp_path, heads, head_dim, layers, queries, first, speed
):
    base, dim = released.read(golden.RELEASE), heads * head_dim
    config = {
        **{"num_attention_heads": heads, "attention_head_dim": head_dim, "num_layers": layers, "ffn_dim": 40},
        **{"in_channels": 48, "out_channels": 48, "text_dim": 16, "freq_dim": 32},
    }
    generator = torch.Generator().manual_seed(heads)
    with torch.device("meta"):
        transformer, connector = KiwiTransformer3DModel(**config), DualConnector(64, dim, *queries)
        embedder = PatchEmbedder(48, dim)
    qwen = copy.deepcopy(base.qwen_config)
    qwen["vision_config"]["tokens_per_second"] = speed
    parts = dataclasses.replace(
        base,
        transformer=random_models.fill(transformer.state_dict(), generator),
        transformer_config=config,
        source_embedder=random_models.fill(embedder.state_dict(), generator),
        ref_embedder=random_models.fill(embedder.state_dict(), generator),
        connector=random_models.fill(connector.state_dict(), generator),
        qwen_config=qwen,
        ref_pad_first=first,
    )
    released.write(parts, tmp_path)
    pipe = KiwiEditPipeline.from_pretrained(tmp_path, torch.float32)
    assert (pipe.config.ref_pad_first, pipe.mllm_encoder.limits.tokens_per_second) == (first, speed)
    video = np.random.default_rng(0).integers(0, 256, (5, 40, 50, 3), dtype=np.uint8)
    for count, clip in zip(queries, (video[:1], video)):
        assert pipe.encode_prompt("Go.", clip).shape == (1, count, dim)
    assert pipe.encode_prompt("Go.", video, video[0]).shape == (1, 2 * 3 + queries[2], dim)
    assert latents_of(pipe).shape == (1, 48, 2, 2, 2)
    assert torch.equal(latents_of(pipe), latents_of(pipe))


def test_saving_over_a_sharded_folder_leaves_none_of_its_files(pipe, tmp_path):
    stale = [
        folder / f"{stem}{suffix}"
        for folder, stem in ((tmp_path / "transformer", released.WEIGHTS), (tmp_path / "mllm_encoder", "model"))
        for suffix in ("-00001-of-00002.safetensors", "-00002-of-00002.safetensors", ".safetensors.index.json")
    ]
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text("old")
    pipe.save_pretrained(tmp_path)
    assert not [path for path in stale if path.exists()]
    assert_same(KiwiEditPipeline.from_pretrained(tmp_path, torch.float32).to_parts(), pipe.to_parts())
