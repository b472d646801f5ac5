"""LoRA in ComfyUI: what comes out with patches is what comes out of a model with merged weights."""

import importlib
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import edit_graph
import folder_paths
import lora_files
import numpy as np
import pytest
import random_model
import torch
from safetensors.torch import save_file

import nodes
from kiwi_core.checkpoints import dit_keys, single_files

FORMS = lora_files.FORMS
# Both sides compute in float32: weights are rounded in another order only.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def node(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.lora")


@pytest.fixture(scope="module")
def mllm(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.mllm")


@pytest.fixture(scope="module")
def parts():
    return random_model.random_parts()


@pytest.fixture(scope="module")
def weights(parts):
    return lora_files.weights(parts)


@pytest.fixture(scope="module")
def load(mllm, parts, weights):
    """MODEL, MLLM and connector of these weights."""
    dit = {dit_keys.to_original(name) for name in parts.transformer}

    def load(changed=weights, convert=dict, dtype=torch.float32):
        file = {name: tensor for name, tensor in changed.items() if name in dit or "vae_condition" in name}
        options = {"dtype": dtype} if dtype else {}
        language, connector = ({name: changed[name] for name in part} for part in (parts.mllm, parts.connector))
        return (
            comfy.sd.load_diffusion_model_state_dict(convert(file), model_options=options),
            mllm.load_mllm(single_files.mllm_file(language, parts.qwen_config, parts.tokenizer)),
            mllm.load_connector(single_files.connector_file(connector, parts.limits)),
        )

    return load


@pytest.fixture(scope="module")
def base(load):
    return load()


@pytest.fixture(scope="module")
def run(mllm):
    """The DiT's output and the language model's context, as the sampler and the encoder get them."""
    generator = torch.Generator().manual_seed(1)
    x, source, reference = (torch.randn(1, 16, frames, 8, 8, generator=generator) for frames in (2, 2, 1))
    context = torch.randn(1, 7, 256, generator=generator)
    frames, picture = (
        np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8) for size in ((5, 64, 64, 3), (56, 56, 3))
    )

    def run(model, language=None, connector=None, loading=True):
        if loading:
            comfy.model_management.load_models_gpu([model])
        dtype = model.model.get_dtype_inference()
        sigma = torch.tensor([0.7])
        with torch.no_grad():
            out = model.model.diffusion_model(
                x.to(dtype), sigma * 1000, context=context.to(dtype), transformer_options={"sigmas": sigma},
                source_latents=source.to(dtype), reference_latents=reference.to(dtype),
            ).float()  # fmt: skip
        if language is None:
            return (out,)
        return out, mllm.encode(language, connector, "Use this hat.", frames, picture)

    return run


@pytest.fixture(scope="module")
def saved():
    """Save a LoRA where the loaders look for one."""
    folder = Path(folder_paths.models_dir) / "loras"
    folder.mkdir(parents=True, exist_ok=True)

    def saved(tensors, metadata=None, name="test.safetensors"):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / name, metadata)
        folder_paths.filename_list_cache.clear()
        return name

    return saved


@pytest.fixture(scope="module")
def apply(node, saved):
    def apply(loaded, tensors, strength=1.0, mllm_strength=1.0, metadata=None):
        model, *others = loaded
        result = node.KiwiEditLoadLoRA.execute(model, saved(tensors, metadata), strength, mllm_strength, *others)
        return result.args[: len(loaded)]

    return apply


def same(got, expected):
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


def differ(got, expected):
    return [bool((one - other).abs().max() > 0.02) for one, other in zip(got, expected, strict=True)]


@pytest.fixture(scope="module")
def all_pairs(weights):
    return lora_files.pairs(weights, lora_files.DIT + lora_files.MLLM + lora_files.CONNECTOR)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_dialect_equals_merged_weights(base, load, run, apply, weights, all_pairs, form, caplog):
    merged = lora_files.merge(weights, all_pairs, form.effective_alpha, 0.8)
    expected = run(*load(merged))
    assert differ(expected, run(*base)) == [True, True]
    same(run(*apply(base, form.file(all_pairs), 0.8, 0.8, form.metadata)), expected)
    assert "keys of" not in caplog.text


@pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form].stock])
def test_the_stock_loader_agrees(base, run, apply, saved, weights, form):
    pairs = lora_files.pairs(weights, lora_files.DIT)
    file = FORMS[form].file(pairs)
    (stock,) = nodes.LoraLoaderModelOnly().load_lora_model_only(base[0], saved(file), 0.7)
    ours = apply(base[:1], file, 0.7)
    assert differ(run(stock), run(base[0])) == [True]
    same(run(*ours), run(stock))


Q, FFN, NORM = "blocks.0.self_attn.q", "blocks.1.ffn.2", "blocks.0.norm3"


def doubled(weights, module, size=0.3):
    """A difference, as large as it takes to be seen."""
    noise = torch.randn(weights[module].shape, generator=torch.Generator().manual_seed(5))
    return weights[module] + size * noise, size * noise


def dora(weights, module, pair, rows=True):
    """Merged weight and magnitudes: DoRA's own formula."""
    changed = pair.merged(weights[f"{module}.weight"], 1.0, lora_files.ALPHA)
    axis = 1 if rows else 0
    magnitudes = torch.linspace(0.5, 2.0, changed.shape[1 - axis])
    magnitudes = magnitudes[:, None] if rows else magnitudes[None]
    return magnitudes * changed / changed.norm(dim=axis, keepdim=True), magnitudes


def form_cases(weights):
    """File and merged weights of each form beside the plain pair."""
    cases = {}
    for name, (key, weight) in {
        "diff": (f"diffusion_model.{Q}.diff", f"{Q}.weight"),
        "diff_b": (f"diffusion_model.{FFN}.diff_b", f"{FFN}.bias"),
        "kohya diff_b": ("lora_unet_blocks_1_ffn_2.diff_b", f"{FFN}.bias"),
        "diff of a norm": (f"diffusion_model.{NORM}.diff", f"{NORM}.weight"),
        "w_norm": (f"diffusion_model.{NORM}.w_norm", f"{NORM}.weight"),
        "diff of a modulation": ("diffusion_model.blocks.1.modulation.diff", "blocks.1.modulation"),
        "diff_m": ("diffusion_model.blocks.1.diff_m", "blocks.1.modulation"),
        "diff of the head's modulation": ("diffusion_model.head.modulation.diff", "head.modulation"),
        "kohya modulation": ("lora_unet_blocks_1_modulation.diff", "blocks.1.modulation"),
        "lora_B.bias": ("transformer.blocks.1.ffn.net.2.lora_B.bias", f"{FFN}.bias"),
        "diff of queries": ("text_encoders.ref_queries.diff", "ref_queries"),
        "diff of a connector's bias": ("text_encoders.connector.2.diff_b", "connector.2.bias"),
    }.items():
        whole, diff = doubled(weights, weight)
        cases[name] = {key: diff}, {weight: whole}
    for name, key, weight in (
        ("set_weight", "diffusion_model.vae_condition.patch_embedding", "vae_condition.patch_embedding.weight"),
        ("set_weight of queries", "text_encoders.ref_queries", "ref_queries"),
    ):
        whole, _ = doubled(weights, weight)
        cases[name] = {f"{key}.set_weight": whole}, {weight: whole}
    for module in (Q, "blocks.1.ffn.0"):  # square or not
        pair = lora_files.pairs(weights, [module])[module]
        names = {f"{module}.weight": None}
        for label, file, rows in (
            ("rows", "dora_scale", True), ("columns", "dora_scale", False), ("peft", "lora_magnitude_vector", True),
            ("peft with default", "lora_magnitude_vector.default.weight", True),
        ):  # fmt: skip
            whole, magnitudes = dora(weights, module, pair, rows)
            form = FORMS["comfyui" if file == "dora_scale" else "peft"]
            tensors = form.file({module: pair})
            if file != "dora_scale":  # no place for an alpha
                tensors = {key: t * (1.5 if "lora_B" in key else 1) for key, t in tensors.items()}
                magnitudes = magnitudes.flatten()
            tensors[f"{form.name(module)}.{file}"] = magnitudes
            cases[f"DoRA {label} {module}"] = tensors, {name: whole for name in names}
    module, w = "blocks.1.ffn.0", weights["blocks.1.ffn.0.weight"]
    generator = torch.Generator().manual_seed(6)
    a, b, c, d = (torch.randn(s, generator=generator) * 0.2 for s in ((512, 4), (4, 256), (512, 4), (4, 256)))
    hada = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(8.0)}
    cases["LoHa"] = (
        {f"lora_unet_blocks_1_ffn_0.{n}": t for n, t in hada.items()},
        {f"{module}.weight": w + 2 * (a @ b) * (c @ d)},
    )
    w1, w2 = torch.randn(8, 8, generator=generator) * 0.2, torch.randn(64, 32, generator=generator) * 0.2
    cases["LoKr of diffusers"] = (
        {"transformer.blocks.1.ffn.net.0.proj.lokr_w1": w1, "transformer.blocks.1.ffn.net.0.proj.lokr_w2": w2},
        {f"{module}.weight": w + torch.kron(w1, w2)},
    )
    return cases


CASES = [*form_cases(lora_files.weights(random_model.random_parts()))]


@pytest.mark.parametrize("case", CASES)
def test_every_form_equals_merged_weights(base, load, run, apply, weights, case):
    file, changed = form_cases(weights)[case]
    expected = run(*load(weights | changed))
    assert any(differ(expected, run(*base)))
    same(run(*apply(base, file)), expected)


@pytest.mark.parametrize(
    "stage, whole_dit", [(1, False), (2, False), (2, True), (3, True)], ids=["1", "2 LoRA", "2", "3"]
)
def test_a_training_checkpoint_is_the_model_that_was_trained(base, load, run, apply, weights, stage, whole_dit, caplog):
    tensors, merged = lora_files.training_checkpoint(weights, stage, whole_dit)
    got = run(*apply(base, tensors))
    same(got, run(*load(merged)))
    assert differ(got, run(*base)) == [stage > 1, True]
    assert "keys of" not in caplog.text


def test_strengths_are_separate_and_whole_tensors_are_blended(base, load, run, apply, weights):
    tensors, merged = lora_files.training_checkpoint(weights, 3, whole_dit=True)
    half = {name: torch.lerp(weights[name], merged[name], 0.5) for name in weights}
    dit, context = run(*load(half))
    plain = run(*base)
    same(run(*apply(base, tensors, 0.5, 0.0)), (dit, plain[1]))
    same(run(*apply(base, tensors, 0.0, 0.5)), (plain[0], context))
    assert apply(base, tensors, 0.0, 0.0) == base


def test_loras_stack_and_leave_the_model_as_it_was(base, load, run, apply, weights, all_pairs):
    plain = run(*base)
    other = lora_files.pairs(weights, lora_files.DIT[::2] + lora_files.MLLM[::3], seed=9)
    modulation = {"diffusion_model.blocks.0.modulation.diff": torch.ones(1, 6, 256)}
    first = apply(base, FORMS["diffusers"].file(all_pairs))
    second = apply(first, FORMS["kohya"].file(other) | modulation, 0.5, -0.5)
    once = lora_files.merge(weights, all_pairs, lora_files.RANK)
    twice = lora_files.merge(once, {m: p for m, p in other.items() if m in lora_files.DIT}, lora_files.ALPHA, 0.5)
    twice = lora_files.merge(twice, {m: p for m, p in other.items() if m in lora_files.MLLM}, lora_files.ALPHA, -0.5)
    twice["blocks.0.modulation"] = twice["blocks.0.modulation"] + 0.5
    expected = [run(*load(once)), run(*load(twice))]
    for _ in range(2):  # each while another one is loaded
        same(run(*second), expected[1])
        same(run(*first), expected[0])
        assert all(torch.equal(*pair) for pair in zip(run(*base), plain))
        same(run(*second), expected[1])
        comfy.model_management.unload_all_models()


def test_a_later_node_keeps_the_patches(base, run, apply, weights):
    """A clone with the same patches takes the place of the loaded one."""
    tensors, _ = lora_files.training_checkpoint(weights, 3, whole_dit=True)
    (patched,) = apply(base[:1], tensors)
    expected = run(patched)
    assert torch.equal(run(patched.clone())[0], expected[0])


@pytest.mark.parametrize("share", [0, 0.3, 0.7])
def test_partially_loaded_is_fully_loaded(load, run, apply, weights, share):
    pair = lora_files.pairs(weights, [Q])[Q]
    whole, magnitudes = dora(weights, Q, pair)
    file = FORMS["comfyui"].file({Q: pair}) | {f"diffusion_model.{Q}.dora_scale": magnitudes}
    file["diffusion_model.head.modulation.diff"] = torch.ones(1, 2, 256)
    checkpoint, trained = lora_files.training_checkpoint(weights, 3, whole_dit=True)
    for tensors, merged in (
        (checkpoint, trained),
        (file, weights | {f"{Q}.weight": whole, "head.modulation": weights["head.modulation"] + 1}),
    ):
        (part,) = apply(load()[:1], tensors)
        edit_graph.load_share(part, share)
        same(run(part, loading=False), run(load(merged)[0]))


@pytest.mark.parametrize("share", [0, 0.3, 0.7, 1])
def test_norms_of_the_language_model_are_patched_however_much_of_it_is_loaded(load, apply, weights, share):
    """They are none of ComfyUI's layers, which its loading passes over once the room is used up."""
    name = "model.layers.1.post_attention_layernorm.weight"
    whole, change = doubled(weights, name)
    plain = load()
    changed = apply(plain, {f"text_encoders.{name.removesuffix('.weight')}.diff": change})
    for part, expected in ((changed, whole), (plain, weights[name]), (changed, whole)):
        edit_graph.load_share(part[1].patcher, share)
        torch.testing.assert_close(comfy.utils.get_attr(part[1].patcher.model, name), expected)


@pytest.mark.parametrize("moved", ["whole", "dynamically"])
def test_a_merge_after_a_lora_leaves_buffers_what_they_are(load, apply, weights, monkeypatch, moved):
    """A merging node patches all that a model's state has, the mark of a reference's place too."""
    models = [load()[0] for _ in range(2)]
    if moved == "dynamically":
        models = [dynamic(model, monkeypatch) for model in models]
    name = "blocks.1.modulation"
    whole, change = doubled(weights, name)
    (changed,) = apply((models[0],), {f"diffusion_model.{name}.diff": change})
    merged = changed.clone()
    for key, patch in models[1].get_key_patches("diffusion_model.").items():
        merged.add_patches({key: patch}, 0.5, 0.5)
    for model, expected in ((merged, (whole + weights[name]) / 2), (merged, (whole + weights[name]) / 2),
                            (models[0], weights[name])):  # fmt: skip
        model.load(model.load_device) if moved == "dynamically" else model.partially_load(model.load_device, 1e10)
        assert "ref_pad_first" in model.model.diffusion_model._buffers
        torch.testing.assert_close(comfy.utils.get_attr(model.model, f"diffusion_model.{name}"), expected)


def dynamic(patcher, monkeypatch):
    """The patcher that ComfyUI takes on a card with dynamic VRAM; its own constructor refuses to on a CPU."""
    kind = comfy.model_patcher.ModelPatcherDynamic
    monkeypatch.setattr(kind, "__new__", lambda cls, *_, **__: object.__new__(cls))
    monkeypatch.setattr(kind, "unpin_all_weights", lambda self: None)
    if host_buffer := getattr(comfy.model_patcher.comfy_aimdo, "host_buffer", None):
        monkeypatch.setattr(host_buffer, "HostBuffer", lambda *_: SimpleNamespace(size=0))
    return kind(patcher.model, patcher.load_device, patcher.offload_device)


def test_with_dynamic_vram_parameters_that_its_loading_passes_over_are_patched(load, apply, weights, monkeypatch):
    model, *others = load()
    model = dynamic(model, monkeypatch)
    language, connector = (replace(part, patcher=dynamic(part.patcher, monkeypatch)) for part in others)
    file, expected = {}, {}
    for name, prefix in (
        ("blocks.1.modulation", "diffusion_model."), ("model.layers.0.input_layernorm.weight", "text_encoders."),
        ("ref_queries", "text_encoders."),
    ):  # fmt: skip
        whole, file[f"{prefix}{name.removesuffix('.weight')}.diff"] = doubled(weights, name)
        expected[f"{prefix}{name}".removeprefix("text_encoders.")] = weights[name], whole

    plain = model, language, connector
    once, twice = (apply(plain, file, size, size) for size in (1.0, 2.0))
    for chosen, size in ((once, 1), (once, 1), (twice, 2), (plain, 0), (once, 1)):
        patchers = [chosen[0], *(part.patcher for part in chosen[1:])]
        for patcher, (key, (before, whole)) in zip(patchers, expected.items(), strict=True):
            patcher.load(patcher.load_device)
            got = comfy.utils.get_attr(patcher.model, key)
            torch.testing.assert_close(got, before + size * (whole - before), msg=f"{key} at {size}")


def quantised(file):
    """ComfyUI's older scaled fp8 layout."""
    file = file | {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, weight in list(file.items()):
        if name.startswith("blocks.") and weight.dim() == 2:
            scale = weight.abs().max() / 448
            file[name] = (weight / scale).to(torch.float8_e4m3fn)
            file[f"{name.removesuffix('weight')}scale_weight"] = scale
    return file


def test_scaled_fp8(load, run, apply, weights):
    pairs = lora_files.pairs(weights, lora_files.DIT)
    expected = run(load(lora_files.merge(weights, pairs, lora_files.RANK))[0])[0]
    model = load(convert=quantised, dtype=None)[:1]
    plain, got = run(*model)[0], run(*apply(model, FORMS["diffusers"].file(pairs)))[0]

    def error(out):
        return ((out - expected).square().mean() / expected.square().mean()).sqrt().item()

    # What fp8 costs a model without LoRA is a tenth at most (see test_dit.py); the LoRA's own share is far above.
    assert error(got) < 0.1 < 0.5 < error(plain)


def test_saving_keeps_the_patches(base, run, apply, weights, tmp_path):
    tensors, _ = lora_files.training_checkpoint(weights, 3, whole_dit=True)
    (patched,) = apply(base[:1], tensors)
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), patched)
    again = comfy.sd.load_diffusion_model(str(tmp_path / "saved.safetensors"), {"dtype": torch.float32})
    same(run(again), run(patched))


def test_part_of_a_lora_is_told_once(base, apply, weights, caplog):
    pairs = lora_files.pairs(weights, lora_files.DIT[:3] + lora_files.MLLM[:2])
    file = FORMS["comfyui A B"].file(pairs)
    for name in ("blocks.0.cross_attn.k_img", "blocks.40.ffn.0", "vace_blocks.0.ffn.0"):
        file |= {f"diffusion_model.{name}.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}
    file["diffusion_model.patch_embedding.diff"] = torch.zeros(256, 36, 1, 2, 2)  # of image to video
    file["diffusion_model.text_embedding.0.diff_b"] = torch.zeros(256)  # Kiwi-Edit has no use for it
    with caplog.at_level(logging.WARNING):
        apply(base[:1], file)
    (record,) = [record for record in caplog.records if record.name.endswith("nodes.lora")]
    assert "6 of 17 keys of test.safetensors" in record.message
    assert "7 have no place in this model (diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight, " in record.message
    assert "4 are for the language model, which is not connected" in record.message


def test_all_of_a_lora_says_nothing(base, apply, weights, caplog):
    pairs = lora_files.pairs(weights, lora_files.DIT[:3])
    with caplog.at_level(logging.WARNING):
        apply(base[:1], FORMS["diffusers"].file(pairs))  # peft's says a word about its alpha
    assert not caplog.records


def test_the_warning_stands_on_the_node(node, base, saved, weights, monkeypatch):
    sent = []
    server = SimpleNamespace(send_progress_text=lambda *given: sent.append(given))
    module = SimpleNamespace(PromptServer=SimpleNamespace(instance=server))
    monkeypatch.setitem(sys.modules, "server", module)
    monkeypatch.setattr(node.KiwiEditLoadLoRA, "hidden", SimpleNamespace(unique_id="7"), raising=False)
    tensors, _ = lora_files.training_checkpoint(weights, 2, whole_dit=False)
    node.KiwiEditLoadLoRA.execute(base[0], saved(tensors), 1.0, 1.0)
    ((text, unique_id),) = sent
    assert unique_id == "7" and "42 of 64 keys" in text and "connector, which is not connected" in text


def refusals(weights):
    pairs = lora_files.pairs(weights, lora_files.DIT[:4])
    file = FORMS["comfyui"].file(pairs)
    q = f"diffusion_model.{Q}.lora_"
    wide = {f"{q}A.weight": torch.zeros(4, 5120), f"{q}B.weight": torch.zeros(5120, 4)}
    other = {"unet.mid.0.lora_A.weight": torch.ones(4, 4), "unet.mid.0.lora_B.weight": torch.ones(4, 4)}
    language = FORMS["training"].file(lora_files.pairs(weights, lora_files.MLLM))
    return {
        "nothing matches": (other, r"None of the 2 keys of test.safetensors fits this model \(the first is unet.mid.0"),
        "another width": (wide, r"made for another model \(blocks.0.self_attn.q.weight is \[5120, 5120\] there"),
        "no LoRA": ({"blocks.0.self_attn.q.weight": torch.ones(2, 2)}, "is no LoRA"),
        "half of a pair": ({name: file[name] for name in file if name != f"{q}up.weight"}, f"no lora_B for {Q}.weight"),
        "other ranks": (file | {f"{q}up.weight": torch.zeros(256, 3)}, f"halves for {Q}.weight do not belong together"),
        "language model only": (language, "changes only the language model; connect the MLLM and the connector"),
        "two in one": (file | {f"{q}A.weight": torch.zeros(4, 256)}, "more than one change"),
    }  # fmt: skip


REFUSED = [*refusals(lora_files.weights(random_model.random_parts()))]


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_a_sentence(base, apply, weights, case):
    file, sentence = refusals(weights)[case]
    with pytest.raises(ValueError, match=sentence) as refused:
        apply(base[:1], file)
    assert str(refused.value).count(". ") == 0


def test_pickles_and_damaged_files_are_refused(node, base, saved):
    name = saved({"a.diff": torch.zeros(8)})
    path = Path(folder_paths.get_full_path("loras", name))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged or incomplete"):
        node.KiwiEditLoadLoRA.execute(base[0], name, 1.0, 1.0)
    torch.save({"a.diff": torch.zeros(8)}, path.with_suffix(".pt"))
    folder_paths.filename_list_cache.clear()
    with pytest.raises(ValueError, match="is a pickle"):
        node.KiwiEditLoadLoRA.execute(base[0], path.with_suffix(".pt").name, 1.0, 1.0)
