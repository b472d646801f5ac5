"""``kiwi-edit convert``: every layout to every other, in every precision, and what is refused."""

import dataclasses
import json
import shutil

import pytest
import random_model as random_models
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kiwi_core import KiwiEditPipeline, cli
from kiwi_core.checkpoints import files, fp8, inspect, lazy, lora_dialects, released, single_files, streaming, training
from kiwi_core.checkpoints.convert import cast_parts, convert
from kiwi_core.mllm import VisionLimits

TENSORS = ("transformer", "source_embedder", "ref_embedder", "vae", "mllm", "connector")
LAYOUTS = ("comfyui", "diffusers", "training")


def arguments(folder, layout, name="released", ref_pad_first=False):
    """Source and its other parts, for a layout as ``convert`` writes it under ``folder``."""
    if layout == "diffusers":
        return folder, {}
    if layout == "training":
        extra = {"ref_pad_first": True} if ref_pad_first else {}
        parts = {"mllm": folder / training.QWEN, "vae": folder / training.VAE}
        return folder / training.CHECKPOINT, {**parts, **extra}
    encoders = {part: folder / "text_encoders" / f"{name}_{part}.safetensors" for part in ("mllm", "connector")}
    others = {"vae": folder / "vae" / f"{name}_vae.safetensors", **encoders}
    return folder / "diffusion_models" / f"{name}.safetensors", others


def read(folder, layout, **options):
    source, others = arguments(folder, layout, **options)
    reader = {"diffusers": released.read, "training": training.read, "comfyui": single_files.read}[layout]
    return reader(source, **others)


def assert_same(found, wanted):
    for part in TENSORS:
        a, b = getattr(found, part), getattr(wanted, part)
        assert a.keys() == b.keys(), part
        for name in a:
            assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
            assert torch.equal(a[name], b[name]), name
    assert found.ref_pad_first == wanted.ref_pad_first
    assert found.qwen_config == wanted.qwen_config
    assert found.tokenizer == wanted.tokenizer


@pytest.fixture(scope="module", params=["fp32 with references", "bf16 without", "bf16, references first"])
def model(request, tmp_path_factory):
    """A folder with every layout as the library itself writes it, and the parts."""
    folder = tmp_path_factory.mktemp("model")
    parts = random_models.random_parts(reference="without" not in request.param, ref_pad_first="first" in request.param)
    if "bf16" in request.param:
        parts = cast_parts(parts, "bf16")
    # With the unused text embedding of the published files, and what a processor has beside its tokenizer.
    text = {"linear_1": (256, 4096), "linear_2": (256, 256)}
    dtype = parts.transformer["proj_out.weight"].dtype
    generator = torch.Generator().manual_seed(1)
    unused = {
        f"condition_embedder.text_embedder.{layer}.{leaf}": torch.randn(size, generator=generator).to(dtype)
        for layer, shape in text.items()
        for leaf, size in (("weight", shape), ("bias", shape[:1]))
    }
    parts = dataclasses.replace(
        parts,
        limits=VisionLimits(max_object_token=8 if parts.ref_embedder else 768),  # what a training checkpoint means
        transformer={**parts.transformer, **unused},
        processor_files={"preprocessor_config.json": '{"patch_size": 14}', "chat_template.jinja": "{{ messages }}"},
    )
    released.write(parts, folder / "diffusers")
    source, others = arguments(folder / "comfyui", "comfyui")
    single_files.write(parts, source, **others)
    random_models.write_training(parts, folder / "training")
    return folder, parts


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("then", LAYOUTS)
def test_every_layout_becomes_every_other_bit_by_bit(model, tmp_path, first, then):
    folder, parts = model
    source, others = arguments(folder / first, first, ref_pad_first=parts.ref_pad_first)
    written = convert(source, then, tmp_path / then, **others, **({"name": "released"} if then == "comfyui" else {}))
    assert_same(read(tmp_path / then, then, ref_pad_first=parts.ref_pad_first), parts)
    found = {path for path in (tmp_path / then).rglob("*.safetensors")}
    assert set(written) == found and not list(tmp_path.rglob(".*"))
    for path in written:  # as the library writes it: the same names, order and bytes; but a merged LoRA is gone
        original = folder / then / path.relative_to(tmp_path / then)
        if original.name != training.CHECKPOINT:
            assert path.read_bytes() == original.read_bytes()


def test_a_way_round_all_layouts_ends_where_it_began(model, tmp_path):
    folder, parts = model
    at, layout = folder / "diffusers", "diffusers"
    for step, then in enumerate(("training", "comfyui", "diffusers")):
        source, others = arguments(at, layout, ref_pad_first=parts.ref_pad_first)
        at, layout = tmp_path / str(step), then
        convert(source, then, at, **others, **({"name": "released"} if then == "comfyui" else {}))
    for path in (folder / "diffusers").rglob("*"):
        twin = at / path.relative_to(folder / "diffusers")
        if path.suffix == ".safetensors" or path.name in ("tokenizer.json", "qwen_config.json", "model_index.json"):
            assert twin.read_bytes() == path.read_bytes(), twin
        elif path.name == "config.json" and path.parent.name != "mllm_encoder":
            assert json.loads(twin.read_text()) == json.loads(path.read_text()), twin


def test_shards_are_one_source(model, tmp_path):
    folder, parts = model
    shutil.copytree(folder / "diffusers", tmp_path / "source")
    for part, stem in (("mllm_encoder", "model"), ("transformer", released.WEIGHTS)):
        tensors = sorted(load_file(tmp_path / "source" / part / f"{stem}.safetensors").items())
        (tmp_path / "source" / part / f"{stem}.safetensors").unlink()
        for index in range(3):
            path = tmp_path / "source" / part / f"{stem}-{index + 1:05}-of-00003.safetensors"
            save_file(dict(tensors[index::3]), path)
    convert(tmp_path / "source", "diffusers", tmp_path / "out")
    assert_same(released.read(tmp_path / "out"), parts)


def test_a_lora_is_merged_tensor_by_tensor(random_model, tmp_path):
    checkpoint = load_file(random_model / "training" / "checkpoint.safetensors")
    base = {name[4:]: checkpoint.pop(name) for name in list(checkpoint) if name.startswith("dit.")}
    language = load_file(random_model / "training" / "qwen" / "model.safetensors")
    wanted = {}
    for seed, (prefix, weights, name) in enumerate(
        [("dit.", base, "blocks.1.ffn.0"), ("mllm.model.", language, "model.layers.1.mlp.down_proj")]
    ):
        torch.manual_seed(seed)
        weight = weights[f"{name}.weight"]
        a, b = torch.randn(4, weight.shape[1]), torch.randn(weight.shape[0], 4)
        wanted[name] = weight + b @ a
        name = prefix + name.replace("model.layers", "model.language_model.layers")
        checkpoint |= {f"{name}.lora_A.default.weight": a, f"{name}.lora_B.default.weight": b}
    save_file(checkpoint, tmp_path / "checkpoint.safetensors")
    save_file(base, tmp_path / "base.safetensors")
    others = {"mllm": random_model / "training/qwen", "vae": random_model / "training/vae.safetensors"}
    others["model"] = tmp_path / "base.safetensors"
    convert(tmp_path / "checkpoint.safetensors", "comfyui", tmp_path, **others, name="x")
    found = load_file(tmp_path / "diffusion_models/x.safetensors")
    torch.testing.assert_close(found["blocks.1.ffn.0.weight"], wanted["blocks.1.ffn.0"])
    assert torch.equal(found["blocks.0.ffn.0.weight"], base["blocks.0.ffn.0.weight"])
    found = load_file(tmp_path / "text_encoders/x_mllm.safetensors")
    torch.testing.assert_close(found["model.layers.1.mlp.down_proj.weight"], wanted["model.layers.1.mlp.down_proj"])


def test_the_pipeline_reads_what_becomes_a_training_checkpoint(random_model, tmp_path):
    convert(random_model / "released", "training", tmp_path)
    names = files.read_shapes(tmp_path / training.CHECKPOINT)
    assert {"mllm.connetor.0.weight", "mllm.video_queries.q", "dit.head.modulation"} <= names.keys()
    source, others = arguments(tmp_path, "training")
    pipe = KiwiEditPipeline.from_training_checkpoint(source, **others, dtype=torch.float32)
    wanted = random_models.random_parts()
    found = pipe.to_parts()
    assert all(torch.equal(found.mllm[name], wanted.mllm[name]) for name in wanted.mllm)
    assert all(torch.equal(found.transformer[name], wanted.transformer[name]) for name in wanted.transformer)


# Precision


@pytest.mark.parametrize("dtype, wanted", [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("to", LAYOUTS)
def test_tensors_are_cast(random_model, tmp_path, dtype, wanted, to):
    convert(random_model / "released", to, tmp_path, dtype=dtype, **({"name": "released"} if to == "comfyui" else {}))
    assert_same(read(tmp_path, to), cast_parts(random_models.random_parts(), dtype))
    assert read(tmp_path, to).vae["conv2.weight"].dtype == wanted


def quantised(random_model, folder, dtype="fp8"):
    convert(random_model / "released", "comfyui", folder, dtype=dtype, name="x")
    return folder / "diffusion_models/x.safetensors", folder / "text_encoders/x_mllm.safetensors"


def test_fp8_holds_large_matrices_with_a_scale_and_comfyuis_mark(random_model, tmp_path):
    parts = random_models.random_parts()
    dit, mllm = map(load_file, quantised(random_model, tmp_path))
    attention = [f"{part}.{leaf}" for part in ("self_attn", "cross_attn") for leaf in "qkvo"]
    layers = [f"blocks.{block}.{layer}" for block in range(2) for layer in (*attention, "ffn.0", "ffn.2")]
    assert {name for name, tensor in dit.items() if tensor.dtype == torch.float8_e4m3fn} == {
        f"{layer}.weight" for layer in layers
    }
    halves = [*(f"self_attn.{leaf}_proj" for leaf in "qkvo"), *(f"mlp.{leaf}_proj" for leaf in ("gate", "up", "down"))]
    text = [f"model.layers.{index}.{half}" for index in range(2) for half in halves]
    assert {name for name, tensor in mllm.items() if tensor.dtype == torch.float8_e4m3fn} == {
        f"{layer}.weight" for layer in text
    }
    originals = {**single_files.layout(parts)["model"], **parts.mllm}
    for file, names in ((dit, layers), (mllm, text)):
        for layer in names:
            weight, scale = file[f"{layer}.weight"], file[f"{layer}.weight_scale"]
            assert json.loads(bytes(file[f"{layer}.comfy_quant"].tolist())) == {"format": "float8_e4m3fn"}
            assert scale.shape == () and scale.dtype == torch.float32
            original = originals[f"{layer}.weight"]
            assert scale == original.abs().max() / 448 and weight.float().abs().max() == 448
            # e4m3 has 3 bits after the point: half a step is 1/16 of a normal number, 2**-10 of a subnormal one.
            error = (weight.float() * scale - original).abs()
            assert (error <= torch.maximum(original.abs() / 16, scale * 2**-10) * 1.0001).all()
    kept = single_files.layout(parts)["model"]
    for name in kept.keys() - {f"{layer}.weight" for layer in layers}:
        assert torch.equal(dit[name], kept[name])


def test_the_library_reads_scaled_fp8(random_model, tmp_path):
    quantised(random_model, tmp_path)
    source, others = arguments(tmp_path, "comfyui", name="x")
    pipe = KiwiEditPipeline.from_single_files(source, **others, dtype=torch.float32)
    file = load_file(source)
    wanted = file["blocks.1.ffn.2.weight"].float() * file["blocks.1.ffn.2.weight_scale"]
    assert torch.equal(pipe.transformer.blocks[1].ffn.net[2].weight, wanted)
    file = load_file(others["mllm"])
    wanted = file["model.layers.1.mlp.up_proj.weight"].float() * file["model.layers.1.mlp.up_proj.weight_scale"]
    assert torch.equal(pipe.mllm_encoder.model.language_model.layers[1].mlp.up_proj.weight, wanted)


def test_fp8_becomes_bf16_and_stays_fp8_unrounded(random_model, tmp_path):
    quantised(random_model, tmp_path / "first")
    source, others = arguments(tmp_path / "first", "comfyui", name="x")
    for dtype in ("keep", "fp8"):
        again = convert(source, "comfyui", tmp_path / dtype, **others, dtype=dtype, name="x")
        for path in again:
            assert path.read_bytes() == (tmp_path / "first" / path.relative_to(tmp_path / dtype)).read_bytes()
    convert(source, "diffusers", tmp_path / "bf16", **others, dtype="bf16")
    scaled = single_files.read(source, **others)
    wanted = lazy.load(scaled.transformer["blocks.0.attn2.to_k.weight"]).bfloat16()
    found = released.read(tmp_path / "bf16")
    assert torch.equal(found.transformer["blocks.0.attn2.to_k.weight"], wanted)
    assert all(tensor.dtype == torch.bfloat16 for part in TENSORS for tensor in getattr(found, part).values())
    with pytest.raises(ValueError, match="for ComfyUI's files only; choose --dtype bf16"):
        convert(source, "diffusers", tmp_path / "keep it", **others)


def test_older_scaled_files_are_read(random_model, tmp_path):
    dit, _ = quantised(random_model, tmp_path)
    tensors = load_file(dit)
    old = {
        name.replace(".weight_scale", ".scale_weight"): tensor
        for name, tensor in tensors.items()
        if not name.endswith(".comfy_quant")
    }
    old["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    old |= {name.replace("scale_weight", "scale_input"): torch.ones(()) for name in old if "scale_w" in name}
    save_file(old, tmp_path / "old.safetensors")
    [path] = convert(tmp_path / "old.safetensors", "comfyui", tmp_path / "new.safetensors")
    assert path.read_bytes() == dit.read_bytes()


def test_other_quantisations_are_refused(random_model, tmp_path):
    tensors = load_file(random_model / "comfyui" / random_models.FILES["model"])
    layer = "blocks.0.ffn.0"
    tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].to(torch.uint8)
    tensors[f"{layer}.weight_scale"] = torch.ones(512, 16)
    save_file(tensors, tmp_path / "nvfp4.safetensors")
    with pytest.raises(ValueError, match=r"quantised in a way that cannot be read here .*; choose its fp8 or bf16"):
        convert(tmp_path / "nvfp4.safetensors", "comfyui", tmp_path / "out")


def test_numbers_that_a_dtype_cannot_hold_are_refused_and_leave_nothing(random_model, tmp_path):
    path = random_model / "comfyui" / random_models.FILES["model"]
    tensors = load_file(path)
    for name, value, dtype, words in (
        ("blocks.0.ffn.0.bias", 1e6, "fp16", "too large for fp16; choose --dtype bf16"),
        ("blocks.0.ffn.0.weight", float("nan"), "fp8", "not finite"),
    ):
        changed = tensors[name].clone()
        changed.view(-1)[3] = value
        save_file({**tensors, name: changed}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=words):
            convert(tmp_path / "model.safetensors", "comfyui", tmp_path / "out", dtype=dtype)
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_weight_of_zeros_has_a_scale():
    scaled = fp8.quantise(torch.zeros(4, 4))
    assert lazy.load(scaled.scale) == 1 and not lazy.load(scaled).any()


# One file


@pytest.mark.parametrize("part", random_models.FILES)
def test_one_file_alone(random_model, tmp_path, part):
    source = random_model / "comfyui" / random_models.FILES[part]
    [path] = convert(source, "comfyui", tmp_path)
    assert path.relative_to(tmp_path).as_posix() == random_models.FILES[part]
    assert path.read_bytes() == source.read_bytes()
    [path] = convert(source, "comfyui", tmp_path, dtype="bf16")
    assert path.stem == f"{source.stem}_bf16" and inspect.inspect(path).missing == ()
    [path] = convert(source, "comfyui", tmp_path / "named.safetensors", dtype="bf16")
    assert path == tmp_path / "named.safetensors"
    if part in ("model", "mllm"):
        [path] = convert(source, "comfyui", tmp_path, dtype="fp8", name="small")
        assert path.name == "small.safetensors" and path.stat().st_size < 0.7 * source.stat().st_size
        report, original = inspect.inspect(path), inspect.inspect(source)
        assert report.missing == () and {*report.dtypes} == {"F8_E4M3", "F32"}
        assert (report.parameters, report.variant) == (original.parameters, original.variant)


# LoRA


def test_a_lora_goes_to_another_dialect(tmp_path):
    save_file(
        {
            "diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.randn(4, 256),
            "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.randn(256, 4),
        },
        tmp_path / "lora.safetensors",
    )
    for to in ("kohya", "diffusers", "training"):
        [path] = convert(tmp_path / "lora.safetensors", to, tmp_path / f"{to}.safetensors")
        assert lora_dialects.find(files.read_shapes(path)) in (to, "diffsynth")
    with pytest.raises(ValueError, match=r"is there already; .* --overwrite"):
        convert(tmp_path / "lora.safetensors", "kohya", tmp_path / "kohya.safetensors")
    convert(tmp_path / "lora.safetensors", "kohya", tmp_path / "kohya.safetensors", overwrite=True)
    for options in ({"dtype": "bf16"}, {"vae": tmp_path}, {"name": "x"}):
        with pytest.raises(ValueError, match=f"A LoRA .* without --{next(iter(options))}; leave it out"):
            convert(tmp_path / "lora.safetensors", "kohya", tmp_path / "other.safetensors", **options)
    with pytest.raises(ValueError, match="becomes one file; name it"):
        convert(tmp_path / "lora.safetensors", "kohya", tmp_path / "folder")


# Refusals


def test_the_command_says_what_it_wrote(random_model, tmp_path, capsys):
    arguments = ["convert", str(random_model / "released"), "--to", "comfyui", "--output", str(tmp_path)]
    assert cli.main([*arguments, "--name", "kiwi"]) == 0
    out, err = capsys.readouterr()
    assert [line.partition(" ")[0] for line in out.splitlines()] == [
        str(tmp_path / path)
        for path in (
            *("diffusion_models/kiwi.safetensors", "vae/kiwi_vae.safetensors"),
            *("text_encoders/kiwi_mllm.safetensors", "text_encoders/kiwi_connector.safetensors"),
        )
    ]
    assert "(8.7 MB)" in out and "Writing" in err and "Checking" in err
    assert cli.main([*arguments, "--name", "kiwi"]) == 2
    assert capsys.readouterr().err.endswith("choose another output, or replace it with --overwrite.\n")
    assert cli.main([*arguments, "--name", "kiwi", "--overwrite"]) == 0


REFUSED = {
    "missing": ({"source": "nothing.safetensors"}, "does not exist"),
    "a folder of something else": ({"source": "."}, "is no released model folder; name the one"),
    "not a model": ({"source": "other.safetensors"}, "no part of a Kiwi-Edit model"),
    "a pickle": ({"source": "model.pth"}, "pickle"),
    "parts of a whole model": ({"source": "released", "vae": "comfyui/vae.x"}, "released folder .* without --vae"),
    "no base models": ({"source": "training/checkpoint.safetensors"}, "add --mllm and --vae"),
    "no connector": ({"source": "DIT", "vae": "x", "mllm": "x"}, "add --connector"),
    "flag of another source": ({"source": "released", "ref_pad_first": True}, "without --ref-pad-first"),
    "a dialect for a model": ({"source": "released", "to": "kohya"}, "for LoRA files; choose comfyui, diffusers"),
    "one file as a model": ({"source": "DIT", "to": "diffusers"}, "One file makes no whole model"),
    "fp8 elsewhere": ({"source": "released", "to": "diffusers", "dtype": "fp8"}, "for ComfyUI's files only"),
    "fp8 of a VAE": ({"source": "VAE", "dtype": "fp8"}, "vae file is not used in fp8"),
    "a name elsewhere": ({"source": "released", "to": "training", "name": "x"}, "without --name"),
    "a path for a name": ({"source": "released", "name": "a/b"}, "a name without folders"),
    "a path like a name on the hub": ({"source": "folder/missing.safetensors"}, "does not exist"),
    "a file for a model": ({"source": "released", "output": "x.safetensors"}, "names a file; a whole model"),
    "onto itself": ({"source": "released", "to": "diffusers", "output": "released"}, "is the source itself"),
    "a file onto itself": ({"source": "VAE", "output": "VAE", "overwrite": True}, "is the source itself"),
    "one of the sources": (
        {"source": "comfyui/diffusion_models/kiwi_edit_random.safetensors", "output": "comfyui", "overwrite": True},
        "is the source itself",
    ),
}


@pytest.mark.parametrize("changes, words", REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_go_together_is_refused(random_model, tmp_path, monkeypatch, changes, words):
    (tmp_path / "model.pth").write_bytes(b"\x80\x02}q\x00.")
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    for name in ("released", "training", "comfyui"):
        shutil.copytree(random_model / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    names = {"DIT": f"comfyui/{random_models.FILES['model']}", "VAE": f"comfyui/{random_models.FILES['vae']}"}
    given = {"to": "comfyui", "output": "out", **changes}
    given = {option: names.get(value, value) for option, value in given.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        convert(given.pop("source"), given.pop("to"), given.pop("output"), **given)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_another_model_is_replaced_whole_or_not_at_all(random_model, tmp_path):
    old = random_models.random_parts(seed=1)
    released.write(old, tmp_path / "out")
    stale = tmp_path / "out/transformer" / f"{released.WEIGHTS}-00001-of-00002.safetensors"
    stale.write_bytes(b"old")
    released.write(random_models.random_parts(reference=False), tmp_path / "source")
    with pytest.raises(ValueError, match="is there already"):
        convert(tmp_path / "source", "diffusers", tmp_path / "out")
    assert_same(released.read(tmp_path / "out"), old)
    convert(tmp_path / "source", "diffusers", tmp_path / "out", overwrite=True)
    assert_same(released.read(tmp_path / "out"), random_models.random_parts(reference=False))
    assert not stale.exists()


def test_what_only_one_layout_holds_is_not_lost_in_silence(random_model, tmp_path, caplog):
    parts = dataclasses.replace(random_models.random_parts(ref_pad_first=True), latents_mean=[0.5] * 16)
    released.write(parts, tmp_path / "source")
    convert(tmp_path / "source", "comfyui", tmp_path / "comfyui")
    assert "latents_mean and std are left out" in caplog.text
    convert(tmp_path / "source", "training", tmp_path / "training")
    assert "ref_pad_first" in caplog.text and "max_pixels_per_frame" in caplog.text


# Files


def test_files_are_safetensors_own_to_the_byte(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "ä name": torch.randn(3, 5, generator=generator),
        "b": torch.randn(7, generator=generator).bfloat16(),
        "a": torch.randn(4, generator=generator).bfloat16(),
        "flag": torch.tensor([True, False]),
        "long": torch.arange(3),
        "small": torch.randn(3, generator=generator).to(torch.float8_e4m3fn),
        "number": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    streaming.write_file({**tensors, "ä name": tensors["ä name"].T.contiguous().T}, tmp_path / "ours.safetensors")
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    for name, tensor in lazy.open_tensors(tmp_path / "ours.safetensors").items():
        assert (tensor.shape, tensor.dtype) == (tensors[name].shape, tensors[name].dtype)
        assert torch.equal(tensor.load().float(), tensors[name].float())
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    tensor = files.open_tensors(tmp_path / "model.safetensors")["a"]
    save_file({"a": torch.zeros(20)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="changed while it was being read; start again"):
        tensor.load()
