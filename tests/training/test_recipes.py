"""The recipes against the published runs, and what a recipe says about itself."""

import dataclasses
import math

import pytest
import torch

from training import describe, names, recipes
from training.config import OFFICIAL, Config

GIB = 2**30

# As published: kinds, largest area, frames, learning rate, updates.
STAGES = {
    "stage1_align": (("image",), 1024 * 1024, 1, 1e-5, 30_000),
    "stage2_480p": (("image", "video"), 600 * 600, 81, 1e-5, 20_000),
    "stage2_720p": (("image", "video"), 720 * 1280, 81, 1e-5, 20_000),
    "stage3_mix": (("image", "video", "ref"), 720 * 1280, 81, 5e-6, 15_000),
    "stage3_reference": (("ref",), 720 * 1280, 81, 5e-6, 30_000),
    "stage1_align_14b": (("image",), 1024 * 1024, 1, 1e-5, 30_000),
    "stage2_480p_14b": (("image", "video"), 600 * 600, 49, 1e-5, 20_000),
    "stage2_720p_14b": (("image", "video"), 720 * 1280, 49, 5e-6, 20_000),
    # Ours: the stages above with the frames of the 14B model.
    "stage3_mix_14b": (("image", "video", "ref"), 720 * 1280, 49, 5e-6, 15_000),
    "stage3_reference_14b": (("ref",), 720 * 1280, 49, 5e-6, 30_000),
}
QKVO, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")

# Sizes of the published models: width, feed-forward, blocks, latent channels, reference queries.
SIZES = {"5B": (3072, 14336, 30, 48, 768), "14B": (5120, 13824, 40, 16, 384)}
HIDDEN, KEYS, INTERMEDIATE, LAYERS = 2048, 256, 11008, 36


def queries(*kinds, reference=768):
    lengths = {"image": 256, "video": 512, "ref": reference}
    return {f"mllm.{kind}_queries.q": (lengths[kind], HIDDEN) for kind in kinds}


def mlp(prefix, dim):
    return {
        f"{prefix}.0.weight": (dim, HIDDEN), f"{prefix}.0.bias": (dim,),
        f"{prefix}.2.weight": (dim, dim), f"{prefix}.2.bias": (dim,),
    }  # fmt: skip


def pair(prefix, rows, columns, rank):
    return {
        f"{prefix}.lora_A.default.weight": (rank, columns),
        f"{prefix}.lora_B.default.weight": (rows, rank),
    }


def language_lora(rank, layers=QKVO):
    rows = {"k_proj": KEYS, "v_proj": KEYS, "gate_proj": INTERMEDIATE, "up_proj": INTERMEDIATE}
    found = {}
    for number in range(LAYERS):
        for layer in layers:
            part = "self_attn" if layer in QKVO else "mlp"
            columns = INTERMEDIATE if layer == "down_proj" else HIDDEN
            prefix = f"mllm.model.model.language_model.layers.{number}.{part}.{layer}"
            found |= pair(prefix, rows.get(layer, HIDDEN), columns, rank)
    return found


def embedder(prefix, dim, channels):
    return {
        f"{prefix}.patch_embedding.weight": (dim, channels, 1, 2, 2),
        f"{prefix}.patch_embedding.bias": (dim,),
    }


def linear(prefix, rows, columns):
    return {f"{prefix}.weight": (rows, columns), f"{prefix}.bias": (rows,)}


def whole_dit(dim, ffn, blocks, channels):
    """Every tensor of Wan's DiT under its original name."""
    found = embedder("dit", dim, channels) | linear("dit.text_embedding.0", dim, 4096)
    found |= linear("dit.text_embedding.2", dim, dim) | linear("dit.time_embedding.0", dim, 256)
    found |= linear("dit.time_embedding.2", dim, dim) | linear("dit.time_projection.1", 6 * dim, dim)
    found |= linear("dit.head.head", 4 * channels, dim) | {"dit.head.modulation": (1, 2, dim)}
    for number in range(blocks):
        block = f"dit.blocks.{number}"
        for attention in ("self_attn", "cross_attn"):
            for layer in "qkvo":
                found |= linear(f"{block}.{attention}.{layer}", dim, dim)
            found |= {f"{block}.{attention}.norm_{layer}.weight": (dim,) for layer in "qk"}
        found |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,)}
        found |= linear(f"{block}.ffn.0", ffn, dim) | linear(f"{block}.ffn.2", dim, ffn)
        found |= {f"{block}.modulation": (1, 6, dim)}
    return found


def lora_dit(dim, ffn, blocks, rank):
    found = {}
    for number in range(blocks):
        block = f"dit.blocks.{number}"
        for attention in ("self_attn", "cross_attn"):
            for layer in "qkvo":
                found |= pair(f"{block}.{attention}.{layer}", dim, dim, rank)
        found |= pair(f"{block}.ffn.0", ffn, dim, rank) | pair(f"{block}.ffn.2", dim, ffn, rank)
    return found


def checkpoint(stage, architecture):
    """Names and shapes of a published checkpoint."""
    dim, ffn, blocks, channels, references = SIZES[architecture]
    kinds = ("image", "video", "ref")[:stage]
    found = queries(*kinds, reference=references) | mlp("mllm.connetor", dim)
    found |= language_lora(64) if architecture == "5B" else language_lora(256, QKVO + MLP)
    if stage > 1:
        found |= embedder("vae_condition", dim, channels)
        found |= whole_dit(dim, ffn, blocks, channels) if architecture == "5B" else lora_dit(dim, ffn, blocks, 128)
    if stage > 2:
        found |= mlp("mllm.ref_connector", dim) | embedder("ref_vae_condition", dim, channels)
    return found


def model_of(config):
    """The recipe's model without any memory, adapters included."""
    with torch.device("meta"):
        return describe.build(config)


@pytest.fixture(scope="module")
def exported():
    """Names and shapes of what a recipe trains, in the official layout."""
    kept = {}

    def exported(name):
        if name not in kept:
            trained = model_of(recipes.get(name)).trained()
            written = names.as_lora(trained).write("training").tensors
            kept[name] = {key: tuple(tensor.shape) for key, tensor in written.items()}
        return kept[name]

    return exported


@pytest.mark.parametrize("name", STAGES)
def test_stages_have_the_published_hyperparameters(name):
    config = recipes.get(name)
    assert (config.kinds, config.max_pixels, config.max_frames, config.lr, config.steps) == STAGES[name]
    assert config.accumulation == 0  # one batch of each kind
    assert config.batch_size == 1
    assert (config.optimizer, config.weight_decay, config.betas) == ("adamw", 0.01, (0.9, 0.999))
    assert config.max_grad_norm == 1.0
    assert config.objective == "flow_match"
    assert config.use_source is ("stage1" not in name)
    assert (config.adapter, config.alpha, config.dropout) == ("lora", 0.0, 0.0)


@pytest.mark.parametrize("name", STAGES)
def test_stages_train_the_published_parts(name):
    config, stage = recipes.get(name), int(name[len("stage")])
    large = name.endswith("14b")
    assert config.architecture == ("14B" if large else "5B")
    assert config.dit == ("frozen" if stage == 1 else "lora" if large else "full")
    assert config.queries == ("image", "video", "ref")[:stage]
    assert config.train_connector
    assert config.train_source_embedder is (stage > 1)
    assert config.train_ref_connector is config.train_ref_embedder is (stage > 2)
    assert config.mllm_rank == (256 if large else 64)
    assert config.mllm_targets == (QKVO + MLP if large else QKVO)
    assert not large or stage == 1 or config.dit_rank == 128


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_official_is_the_published_behaviour(name):
    config = recipes.get(name, official=True)
    assert (config.timestep_sampling, config.rounding, config.schedule) == ("uniform", "shipped", "official")
    assert (config.mllm_max_pixels, config.reference_scales, config.batch_size) == (0, 0, 1)
    assert (config.aspects, config.lengths, config.frame_rate) == ((), (), 0.0)
    assert (config.ema_decay, config.warmup_steps, config.accumulation) == (0.0, 0, 0)
    assert (config.optimizer, config.weight_decay, config.betas) == ("adamw", 0.01, (0.9, 0.999))
    assert (config.max_grad_norm, config.alpha, config.dropout) == (1.0, 0.0, 0.0)


def test_official_leaves_the_rest_of_a_recipe():
    ours, official = (dataclasses.asdict(recipes.get("stage3_mix", flag)) for flag in (False, True))
    assert {name: official[name] for name in official.keys() - OFFICIAL} == {
        name: ours[name] for name in ours.keys() - OFFICIAL
    }


def test_ours_differs_from_the_published_behaviour_where_that_is_better():
    config = recipes.get("stage3_mix")
    assert (config.timestep_sampling, config.mllm_max_pixels, config.reference_scales) == ("spread", 512 * 512, 8)


def test_a_recipe_carries_its_name_and_a_sentence():
    for name, build in recipes.RECIPES.items():
        assert build().recipe == name
        assert build.__doc__.endswith(".")


@pytest.mark.parametrize(
    ("tiny", "large"),
    [
        *(("tiny_stage1", "stage1_align"), ("tiny_stage2", "stage2_720p"), ("tiny_stage3", "stage3_mix")),
        *(("tiny_style_lora", "style_lora"), ("tiny_distill", "distill_4step")),
    ],
)
def test_small_recipes_train_the_parts_of_the_large_ones(tiny, large):
    fields = ("dit", "adapter", "queries", "kinds", "use_source", "objective", "trains_mllm")
    trained = [field.name for field in dataclasses.fields(Config) if field.name.startswith("train_")]
    small, whole = recipes.get(tiny), recipes.get(large)
    assert {name: getattr(small, name) for name in (*fields, *trained)} == {
        name: getattr(whole, name) for name in (*fields, *trained)
    }
    assert bool(small.mllm_rank) is bool(whole.mllm_rank)
    assert small.architecture == "tiny"


def test_an_unknown_recipe_is_named_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"no recipe 'stage4'; use one of stage1_align, .*distill_4step"):
        recipes.get("stage4")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("architecture", "1B"), ("dit", "half"), ("adapter", "loha"), ("objective", "gan"), ("rounding", "up")),
        *(("timestep_sampling", "normal"), ("optimizer", "sgd"), ("schedule", "linear"), ("precision", "fp16")),
        *(("base_dtype", "int4"), ("device", "tpu"), ("queries", ("audio",)), ("kinds", ("image", "sound"))),
        *(("trackers", ("paper",)), ("exports", ("gguf",)), ("steps", 0), ("batch_size", 0), ("workers", -1)),
        *(("accumulation", -1), ("max_pixels", 1023), ("mllm_rank", -1), ("save_every", 0), ("keep_checkpoints", 0)),
        *(("keep_every", -1), ("validate_every", -1), ("sample_every", -1), ("sample_steps", 0), ("sample_rows", 0)),
        *(("reference_scales", -1), ("warmup_steps", -1), ("student_steps", 0), ("teacher_steps", 0)),
        *(("validation_rows", -1), ("max_frames", 80), ("max_frames", -3), ("lengths", (17, 20)), ("lr", -1e-5)),
        *(("lr", 11.0), ("lr", float("nan")), ("ema_decay", 1.0), ("dropout", 1.0), ("max_broken_share", 1.1)),
        *(("weight_decay", -0.1), ("max_grad_norm", -1.0), ("frame_rate", -1.0), ("validation_timesteps", (0, 1000))),
        *(("aspects", ("16x9",)), ("aspects", ("16:0",)), ("aspects", ("1:2:3",))),
        *(("alpha", -1.0), ("betas", (0.9, 1.0)), ("betas", (-0.1, 0.999)), ("mllm_max_pixels", 1), ("shift", 0.0)),
    ],
)
def test_a_bad_value_is_one_sentence_with_its_field(field, value):
    with pytest.raises(ValueError, match=rf"^{field} (is|holds) .+; (use|write) .+\.$") as caught:
        Config(recipe="mine", **{field: value})
    assert "\n" not in str(caught.value)


def test_values_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"^dit_rank is 0; "):
        recipes.get("style_lora").replace(dit_rank=0)
    with pytest.raises(ValueError, match="--adapter lora"):
        recipes.get("distill_4step").replace(adapter="dora")
    for changes in ({"dit": "full"}, {"mllm_rank": 4}, {"queries": ("ref",)}, {"train_connector": True}):
        with pytest.raises(ValueError, match="distill recipe"):
            recipes.get("distill_4step").replace(**changes)


def test_a_short_run_saves_at_its_end():
    assert recipes.get("stage1_align").replace(steps=7).save_every == 7


def test_whether_the_context_is_trained():
    assert recipes.get("stage1_align").trains_mllm
    style = recipes.get("style_lora")
    assert not style.trains_mllm
    for changes in ({"mllm_rank": 1}, {"queries": ("ref",)}, {"train_connector": True}, {"train_ref_connector": True}):
        assert style.replace(**changes).trains_mllm


def test_the_first_stage_trains_the_published_tensors(exported):
    assert exported("stage1_align") == checkpoint(1, "5B")
    assert len(exported("stage1_align")) == 293


@pytest.mark.parametrize(("name", "stage", "count"), [("stage2_720p", 2, 1121), ("stage3_mix", 3, 1128)])
def test_later_stages_train_the_published_tensors(exported, name, stage, count):
    published = checkpoint(stage, "5B")
    assert len(published) == count
    unused = {f"dit.text_embedding.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert exported(name) == {key: shape for key, shape in published.items() if key not in unused}


def test_the_14b_model_trains_adapters_in_place_of_the_dit(exported):
    assert exported("stage3_mix_14b") == checkpoint(3, "14B")
    assert len(exported("stage3_mix_14b")) == 504 + 800 + 3 + 8 + 4


def test_the_description_holds_every_field_what_is_trained_and_the_memory():
    config = recipes.get("tiny_stage2").replace(data=("here.csv",), lr=0.25)
    text = describe.describe(config).splitlines()
    assert text[0] == "# tiny_stage2"
    for field in dataclasses.fields(config):
        assert [line for line in text if line.split("  ")[0].rstrip() == field.name]
        assert any(line.startswith(field.name) and line.endswith(repr(getattr(config, field.name))) for line in text)
    # 2 blocks of width 256, 2 language layers of width 256
    assert any(line.split() == ["dit.blocks.*.attn1.to_q.weight", "2", "x", f"{2 * 256 * 256:,}"] for line in text)
    assert any(line.split() == ["mllm.connector.video_queries", "1", "x", f"{6 * 256:,}"] for line in text)
    lora = "mllm.model.language_model.layers.*.self_attn.q_proj.lora_A.default.weight"
    assert any(line.split() == [lora, "2", "x", f"{2 * 4 * 256:,}"] for line in text)
    assert any(line.startswith("## Memory: about ") and " GiB on one device (" in line for line in text)
    parts = {"frozen", "trained", "gradients", "optimizer", "average", "activations", "encoders"}
    assert parts <= {line.split()[0] for line in text if line.endswith("GiB")}


def test_tokens_are_those_of_the_largest_sample():
    config = recipes.get("stage3_mix").replace(max_pixels=704 * 1280)
    built = model_of(recipes.get("tiny_style_lora"))
    built.pipe.vae.register_to_config(scale_factor_spatial=16)
    assert describe.tokens(config, built) == 19_360  # as published; without a reference 18,480
    assert describe.tokens(config.replace(kinds=("video",)), built) == 18_480


def test_a_style_fits_its_card():
    style, float8, small = (recipes.get(name) for name in ("style_lora", "style_lora_16gb", "style_lora_12gb"))
    built = model_of(style)
    assert dataclasses.replace(float8, recipe="style_lora", base_dtype="bf16") == style  # the same model
    totals = [
        describe.memory(style, built).total,
        describe.memory(float8, built).total,
        describe.memory(small.replace(cache="cache"), model_of(small)).total,  # the cache, as the recipe says
    ]
    assert all(total < limit * GIB for total, limit in zip(totals, (24, 16, 12)))
    assert totals == sorted(totals, reverse=True)
    assert totals[0] > 10 * 10**9  # the DiT alone, in bfloat16


def test_memory_counts_what_a_setting_costs():
    config = recipes.get("tiny_style_lora").replace(mllm_rank=0)
    built = model_of(config)
    count = sum(parameter.numel() for parameter in built.trained().values())
    plain = describe.memory(config.replace(ema_decay=0.0), built)
    assert (plain.trained, plain.gradients, plain.optimizer, plain.average) == (4 * count, 4 * count, 8 * count, 0)
    assert describe.memory(config.replace(ema_decay=0.9), built).average == 4 * count
    assert describe.memory(config.replace(optimizer="adamw8bit"), built).optimizer == 2 * count
    assert describe.memory(config.replace(cache="cache"), built).encoders == 0 < plain.encoders
    assert describe.memory(config.replace(checkpointing=True), built).activations < plain.activations
    cached = config.replace(cache="cache")
    bf16, fp8 = (describe.memory(cached.replace(base_dtype=dtype), built).frozen for dtype in ("bf16", "fp8"))
    blocks = sum(math.prod(shape) for name, shape in whole_dit(256, 512, 2, 16).items() if ".blocks." in name)
    assert bf16 - fp8 == pytest.approx(blocks, rel=0.02)
