"""LoRA files: every dialect is read, written and merged to the same weights."""

import json
import logging

import lora_files
import pytest
import random_model
import torch
from safetensors.torch import load_file, save_file

from kiwi_core import KiwiEditPipeline
from kiwi_core.checkpoints import files, lora, lora_merge
from kiwi_core.checkpoints.lora_dialects import DIALECTS

FORMS = lora_files.FORMS
CLOSE = {"atol": 1e-6, "rtol": 1e-5}  # two orders of the same float32 sums


@pytest.fixture(scope="module")
def parts():
    return random_model.random_parts()


@pytest.fixture(scope="module")
def weights(parts):
    return lora_files.weights(parts)


@pytest.fixture(scope="module")
def all_pairs(weights):
    return lora_files.pairs(weights, lora_files.DIT + lora_files.MLLM + lora_files.CONNECTOR)


@pytest.fixture
def pipe(parts):
    """A pipeline that may be changed."""
    return KiwiEditPipeline.from_parts(parts, dtype=torch.float32)


@pytest.fixture
def saved(tmp_path):
    def saved(tensors, metadata=None, name="a.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
        return path

    return saved


def same(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_the_library_merges_every_dialect(pipe, saved, weights, all_pairs, form):
    report = pipe.load_lora(saved(form.file(all_pairs), form.metadata), 0.8, -0.5)
    dit, other = ({m: p for m, p in all_pairs.items() if (m in lora_files.DIT) == part} for part in (True, False))
    merged = lora_files.merge(weights, dit, form.effective_alpha, 0.8)
    same(lora_files.weights(pipe.to_parts()), lora_files.merge(merged, other, form.effective_alpha, -0.5))
    assert report.matched == report.total == len(form.file(all_pairs))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_dialects_are_told_apart(weights, form):
    modules = lora_files.MLLM if form.dialect == "training" else lora_files.DIT
    assert lora.read(form.file(lora_files.pairs(weights, modules))).dialect == form.dialect


@pytest.mark.parametrize("to", DIALECTS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_dialect_becomes_every_other(saved, tmp_path, all_pairs, form, to):
    assert lora.convert(saved(form.file(all_pairs), form.metadata), tmp_path / "b.safetensors", to) == []
    got = load_file(tmp_path / "b.safetensors")
    theirs = FORMS[to]
    for module, pair in all_pairs.items():
        down, up = got.pop(theirs.name(module) + theirs.down), got.pop(theirs.name(module) + theirs.up)
        alpha = got.pop(f"{theirs.name(module)}.alpha", torch.tensor(float(lora_files.RANK))).item()
        delta = alpha / lora_files.RANK * up.flatten(1) @ down.flatten(1)
        expected = pair.merged(torch.zeros(delta.shape), 1.0, form.effective_alpha)
        torch.testing.assert_close(delta, expected, **CLOSE)
    assert not got


def test_image_to_video_parts_are_translated_too(saved, tmp_path):
    halves = ("lora_A", "lora_B")
    source = saved({f"transformer.blocks.3.attn2.add_k_proj.{half}.weight": torch.ones(4, 4) for half in halves})
    names = {
        "comfyui": "diffusion_model.blocks.3.cross_attn.k_img.lora_up.weight",
        "kohya": "lora_unet_blocks_3_cross_attn_k_img.lora_up.weight",
        "peft": "base_model.model.blocks.3.attn2.add_k_proj.lora_B.weight",
    }
    for to, name in names.items():
        assert lora.convert(source, tmp_path / "b.safetensors", to) == []
        assert name in load_file(tmp_path / "b.safetensors")
        source = tmp_path / "b.safetensors"


@pytest.mark.parametrize("to", DIALECTS)
def test_half_precision_keeps_its_deltas(all_pairs, to):
    """An alpha that is no power of two times the rank does not round the pair."""
    pair = all_pairs["blocks.0.ffn.0"]
    half = {"blocks.0.ffn.0": lora_files.Pair(pair.down.bfloat16(), pair.up.bfloat16())}
    first = lora.read(FORMS["kohya"].file(half))
    again = lora.read(first.write(to).tensors)
    zero = torch.zeros(512, 256)
    (one,), (other,) = (opened.changes["dit"].values() for opened in (first, again))
    torch.testing.assert_close(other.apply(zero), one.apply(zero), atol=1e-7, rtol=1e-6)


def other_changes(weights):
    """Everything beside a plain pair, as ComfyUI names it."""
    (pair,) = lora_files.pairs(weights, ["blocks.1.ffn.0"]).values()
    name = "diffusion_model.blocks.1.ffn.0"
    return {
        "dora": FORMS["comfyui"].file({"blocks.1.ffn.0": pair}) | {f"{name}.dora_scale": torch.rand(512, 1) + 0.5},
        "dora columns": FORMS["comfyui"].file({"blocks.1.ffn.0": pair}) | {f"{name}.dora_scale": torch.rand(1, 256)},
        "diff": {f"{name}.diff": torch.rand(512, 256)},
        "bias": {f"{name}.diff_b": torch.rand(512)},
        "modulation": {"diffusion_model.blocks.1.modulation.diff": torch.rand(1, 6, 256)},
        "whole": {"text_encoders.ref_queries.set_weight": torch.rand(8, 256)},
        "other": {f"{name}.lokr_w1": torch.rand(8, 8), f"{name}.lokr_w2": torch.rand(64, 32)},
    }


KEPT = {
    "dora": {"comfyui", "kohya", "diffusers", "peft"},
    "dora columns": {"comfyui", "kohya"},
    "diff": {"comfyui", "kohya"},
    "bias": {"comfyui", "kohya", "diffusers", "peft"},
    "modulation": {"comfyui", "kohya"},
    "whole": {"comfyui", "peft", "diffsynth", "training"},
    "other": {"comfyui", "kohya"},
}  # fmt: skip


@pytest.mark.parametrize("to", DIALECTS)
@pytest.mark.parametrize("kind", KEPT)
def test_what_a_dialect_cannot_hold_is_left_out_and_said(saved, tmp_path, weights, kind, to):
    source = saved(other_changes(weights)[kind])
    output = tmp_path / "b.safetensors"
    ((part, weight, change),) = lora.read(source)
    if to in KEPT[kind]:
        assert lora.convert(source, output, to) == []
        ((again_part, again_weight, again),) = lora.read(output)
        assert (again_part, again_weight) == (part, weight)
        if kind == "other":
            assert all(torch.equal(again.other[key], tensor) for key, tensor in change.other.items())
        else:
            torch.testing.assert_close(again.apply(weights[weight]), change.apply(weights[weight]), **CLOSE)
        return
    with pytest.raises(ValueError, match=f"{to} has no form for anything in a.safetensors"):
        lora.convert(source, output, to)
    assert not output.exists()
    pair = FORMS["comfyui"].file(lora_files.pairs(weights, ["blocks.0.self_attn.q"]))
    assert lora.convert(saved(other_changes(weights)[kind] | pair), output, to) == [weight]
    assert len(load_file(output)) == (3 if to == "kohya" else 2)


@pytest.mark.parametrize("to", ["comfyui", "peft", "diffsynth", "training"])
@pytest.mark.parametrize("stage, whole_dit", [(1, False), (2, False), (2, True), (3, True)])
def test_training_checkpoints(pipe, saved, tmp_path, weights, stage, whole_dit, to):
    tensors, merged = lora_files.training_checkpoint(weights, stage, whole_dit)
    assert lora.convert(saved(tensors), tmp_path / "b.safetensors", to) == []
    if to == "training":
        got = load_file(tmp_path / "b.safetensors")
        assert got.keys() == tensors.keys() and all(torch.equal(got[name], tensors[name]) for name in got)
    report = pipe.load_lora(tmp_path / "b.safetensors")
    same(lora_files.weights(pipe.to_parts()), merged)
    assert report.matched == report.total == len(tensors)


def test_whole_tensors_move_by_the_strength(pipe, saved, weights):
    tensors, merged = lora_files.training_checkpoint(weights, 3, whole_dit=True)
    pipe.load_lora(saved(tensors), 0.25, 0.5)
    got = lora_files.weights(pipe.to_parts())
    names = {"blocks.0.ffn.0.weight": 0.25, "model.layers.0.self_attn.q_proj.weight": 0.5, "ref_queries": 0.5}
    for name, strength in names.items():
        torch.testing.assert_close(got[name], torch.lerp(weights[name], merged[name], strength), **CLOSE)


def test_dora_merges_by_its_own_formula(pipe, saved, weights):
    module = "blocks.1.ffn.0"
    (pair,) = lora_files.pairs(weights, [module]).values()
    changed = pair.merged(weights[f"{module}.weight"], 1.0, lora_files.RANK)
    magnitudes = torch.linspace(0.5, 2, 512)
    tensors = FORMS["peft"].file({module: pair})
    tensors["base_model.model.blocks.1.ffn.net.0.proj.lora_magnitude_vector"] = magnitudes
    pipe.load_lora(saved(tensors))
    expected = magnitudes[:, None] * changed / changed.norm(dim=1, keepdim=True)
    got = lora_files.weights(pipe.to_parts())[f"{module}.weight"]
    torch.testing.assert_close(got, expected, **CLOSE)


CONFIGS = {
    "alpha": ({"r": 4, "lora_alpha": 6.0}, 6.0, 6.0),
    "pattern": ({"lora_alpha": 6.0, "alpha_pattern": {"attn1.to_q": 2.0}}, 2.0, 6.0),
    "expressions": ({"lora_alpha": 6.0, "alpha_pattern": {r".*attn1\.to_q": 2.0, r"^blocks\.\d+": 9.0}}, 2.0, 6.0),
    "the first counts": ({"lora_alpha": 6.0, "alpha_pattern": {"to_q": 2.0, ".*to_q": 9.0, "to_[": 1.0}}, 2.0, 6.0),
    "rank-stabilised": ({"lora_alpha": 6.0, "use_rslora": True}, 12.0, 12.0),
    "says nothing": ({"r": 4}, 4.0, 4.0),
    "damaged": ("{", 4.0, 4.0),
}


@pytest.mark.parametrize("beside", [False, True], ids=["in the file", "beside it"])
@pytest.mark.parametrize("config, alpha, other", CONFIGS.values(), ids=CONFIGS.keys())
def test_alpha_from_the_settings_of_diffusers_and_peft(saved, weights, config, alpha, other, beside):
    modules = ["blocks.0.self_attn.q", "blocks.0.self_attn.k"]
    pairs = lora_files.pairs(weights, modules)
    if beside:
        path = saved(FORMS["peft"].file(pairs), name="lora/adapter_model.safetensors")
        text = config if isinstance(config, str) else json.dumps(config)
        path.with_name("adapter_config.json").write_text(text)
    else:
        text = config if isinstance(config, str) else json.dumps({f"transformer.{k}": v for k, v in config.items()})
        path = saved(FORMS["diffusers"].file(pairs), {"lora_adapter_metadata": text})
    changes = lora.read(path).changes["dit"]
    for module, expected in zip(modules, (alpha, other)):
        delta = changes[f"{module}.weight"].apply(torch.zeros(256, 256))
        torch.testing.assert_close(delta, pairs[module].merged(torch.zeros(256, 256), 1.0, expected))


def test_a_file_of_peft_without_its_settings_is_warned_of(saved, weights, caplog):
    pairs = lora_files.pairs(weights, ["blocks.0.self_attn.q"])
    lora.read(saved(FORMS["peft"].file(pairs), name="style.safetensors"))
    assert "style.safetensors does not say its alpha" in caplog.text
    caplog.clear()
    lora.read(saved(FORMS["kohya"].file(pairs)))
    assert not caplog.records


def test_what_is_written_for_peft_can_be_loaded_by_it(saved, weights, tmp_path):
    peft = pytest.importorskip("peft")
    modules = ["blocks.0.self_attn.q", "blocks.0.self_attn.k"]
    pairs = lora_files.pairs(weights, modules)
    source = saved(FORMS["kohya"].file(pairs), {"ss_tag": "a style", "modelspec.license": "free"})
    output = tmp_path / "peft" / "adapter_model.safetensors"
    assert lora.convert(source, output, "peft") == []
    assert files.read_metadata(output).items() >= {"ss_tag": "a style", "modelspec.license": "free"}.items()
    config = peft.PeftConfig.from_pretrained(str(output.parent))
    assert (config.r, config.lora_alpha) == (lora_files.RANK, lora_files.RANK)
    assert config.target_modules == {"blocks.0.attn1.to_q", "blocks.0.attn1.to_k"}
    again = lora.read(output).changes["dit"]
    for module, change in lora.read(source).changes["dit"].items():
        torch.testing.assert_close(again[module].apply(torch.zeros(256, 256)), change.apply(torch.zeros(256, 256)))
    other = saved(FORMS["kohya"].file(lora_files.pairs(weights, modules[:1])), name="other.safetensors")
    with pytest.raises(ValueError, match="is of another LoRA; choose an output in a folder of its own"):
        lora.convert(other, tmp_path / "peft" / "other.safetensors", "peft")


def test_flat_names_that_nobody_knows_are_left_out(saved, weights, tmp_path):
    tensors = FORMS["kohya"].file(lora_files.pairs(weights, ["blocks.0.self_attn.q"]))
    tensors |= {f"lora_unet_foo_bar.lora_{half}.weight": torch.ones(2, 2) for half in ("up", "down")}
    path = saved(tensors)
    for dialect in ("kohya", "comfyui"):
        assert lora.convert(path, tmp_path / f"{dialect}.safetensors", dialect) == ["lora_unet_foo_bar.weight"]


def test_a_bias_of_peft_is_scaled_with_its_pair(saved, weights):
    tensors = FORMS["diffusers"].file(lora_files.pairs(weights, ["blocks.0.self_attn.q"]))
    tensors["transformer.blocks.0.attn1.to_q.lora_B.bias"] = torch.ones(256)
    path = saved(tensors, {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 2})})
    bias = lora.read(path).changes["dit"]["blocks.0.self_attn.q.bias"]
    assert torch.equal(bias.apply(torch.zeros(256)), torch.full((256,), 0.5))


def test_part_of_a_lora_is_said(pipe, saved, weights, caplog):
    tensors = FORMS["kohya"].file(lora_files.pairs(weights, lora_files.DIT[:2]))
    tensors["lora_unet_blocks_0_cross_attn_k_img.diff"] = torch.zeros(256, 256)
    with caplog.at_level(logging.WARNING):
        report = pipe.load_lora(saved(tensors))
    assert (report.matched, report.total) == (6, 7)
    assert report.unknown == ("lora_unet_blocks_0_cross_attn_k_img.diff",)
    assert caplog.messages == [str(report)] and "6 of 7 keys of a.safetensors are applied" in str(report)


OTHER = {"unet.a.lora_A.weight": torch.ones(4, 4), "unet.a.lora_B.weight": torch.ones(4, 4)}
WIDE = {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4, 5120),
        "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.zeros(5120, 4)}  # fmt: skip
REFUSED = {
    "nothing fits": (OTHER, "None of the 2"),
    "another width": (WIDE, r"made for another model \(blocks.0.self_attn.q.weight is \[5120, 5120\] there"),
    "a whole model": ({"blocks.0.self_attn.q.weight": torch.ones(2, 2)}, "is no LoRA"),
    "nothing": ({}, "is no LoRA"),
    "half a pair": ({"blocks.0.self_attn.q.lora_B.weight": torch.ones(256, 4)}, "no lora_A for blocks.0"),
    "LyCORIS": ({"lora_unet_blocks_0_ffn_0.lokr_w1": torch.ones(2, 2)}, "a kind .* that only ComfyUI applies"),
}  # fmt: skip


@pytest.mark.parametrize("tensors, sentence", REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_and_changes_nothing(pipe, saved, weights, tensors, sentence):
    extra = FORMS["comfyui"].file(lora_files.pairs(weights, lora_files.DIT[:3])) if "lokr" in str([*tensors]) else {}
    with pytest.raises(ValueError, match=sentence) as refused:
        pipe.load_lora(saved(extra | tensors))
    assert str(refused.value).count(". ") == 0
    assert all(torch.equal(tensor, weights[name]) for name, tensor in lora_files.weights(pipe.to_parts()).items())


def test_published_sizes_are_named():
    with pytest.raises(ValueError, match="made for a 14B model and this one is 5B; choose a LoRA for 5B"):
        lora_merge.match(lora.read(WIDE), {"dit": {"blocks.0.self_attn.q.weight": (3072, 3072)}})


@pytest.mark.parametrize("to", DIALECTS)
def test_bad_files_are_refused_and_write_nothing(saved, tmp_path, to):
    path, output = saved({"diffusion_model.a.diff": torch.zeros(8)}), tmp_path / "b.safetensors"
    output.write_bytes(b"what was there")
    path.write_bytes(path.read_bytes()[:-4])
    torch.save({}, tmp_path / "a.pt")
    for source, kind, sentence in (
        (path, ValueError, "damaged or incomplete"),
        (tmp_path / "a.pt", ValueError, "is a pickle"),
        (tmp_path / "none.safetensors", FileNotFoundError, "does not exist"),
    ):
        with pytest.raises(kind, match=sentence):
            lora.convert(source, output, to)
    with pytest.raises(ValueError, match="'webui' is no LoRA dialect; use one of comfyui, kohya"):
        lora.convert(saved({"diffusion_model.a.diff": torch.zeros(8)}), output, "webui")
    assert output.read_bytes() == b"what was there"
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.safetensors", "a.pt", "b.safetensors"}


@pytest.mark.parametrize("tensors", [
    {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(32, 32)},
    {"lokr_w1_a": torch.ones(4, 2), "lokr_w1_b": torch.ones(2, 4), "lokr_w2": torch.ones(32, 32)},
    {f"hada_w{one}_{end}": torch.ones(*size) for one in (1, 2) for end, size in (("a", (128, 2)), ("b", (2, 128)))},
])  # fmt: skip
def test_a_lora_of_lycoris_fits_weights_of_its_own_size_only(tensors):
    read = lora.read({f"lycoris_blocks_0_self_attn_q.{name}": one for name, one in tensors.items()})
    (change,) = [change for changes in read.changes.values() for change in changes.values()]
    assert change.fits((128, 128))
    assert not change.fits((96, 96)) and not change.fits((128, 256))
