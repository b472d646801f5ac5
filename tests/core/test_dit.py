"""The video DiT with source and references, against the published model."""

import golden
import pytest
import torch
from torch import nn

from kiwi_core import schedule
from kiwi_core.conditioning import PatchEmbedder, add_source, drop_reference, join_reference
from kiwi_core.transformer import KiwiTransformer3DModel

INPUTS = golden.load("dit/inputs")
OUTPUTS = golden.load("dit/outputs")
ATOL = golden.atol("dit float32 (a,b1,b2)")
MID_ATOL = golden.atol("dit intermediates")
# latents, context, source, references, ref_pad_first
CASES = {
    "nosrc": ("latents", "context", None, (), False),
    "src": ("latents", "context", "source_latents", (), False),
    "src_ref_last": ("latents", "context", "source_latents", ("ref_latent",), False),
    "ref_only_last": ("latents", "context", None, ("ref_latent",), False),
    "src_ref_first": ("latents", "context", "source_latents", ("ref_latent",), True),
    "src_2ref_last": ("latents", "context", "source_latents", ("ref_latent", "ref_latent_2"), False),
    "image_b2": ("latents_b2_1frame", "context_b2", "source_latents_b2_1frame", (), False),
    "src_nocontext": ("latents", None, "source_latents", (), False),
}
VARIANTS = ("a", "b1", "b2")


@pytest.fixture(scope="module")
def model():
    return golden.dit_modules()


@torch.no_grad()
def predict(model, case, index, variant, dtype=torch.float32):
    transformer, source_embedder, ref_embedder = model
    latents, context, source, references, first = CASES[case]
    timestep = INPUTS["timesteps"][index : index + 1]
    if references:
        references = ref_embedder(torch.cat([INPUTS[name] for name in references], dim=2).to(dtype))
    return transformer(
        INPUTS[latents].to(dtype),
        schedule.round_timestep(timestep) if variant == "b1" else timestep,
        INPUTS[context].to(dtype) if context else None,
        source=source_embedder(INPUTS[source].to(dtype)) if source else None,
        source_sigma=INPUTS["sigmas"][index],
        reference=references if len(references) else None,
        reference_first=first,
        rounding="shipped" if variant == "b2" else "none",
    ).sample


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("index", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_velocity_is_the_published_one(model, case, index, variant):
    stored = OUTPUTS[f"out.{case}.t{index}.{variant}"]
    golden.assert_close("dit float32", predict(model, case, index, variant), stored, ATOL)


def test_every_stored_output_is_read():
    names = {f"out.{case}.t{index}.{variant}" for case in CASES for index in (1, 3) for variant in VARIANTS}
    assert names == {name for name in OUTPUTS if name.startswith("out.")}


@pytest.mark.parametrize("index", [1, 3])
@pytest.mark.parametrize("case", ["src", "src_ref_last"])
def test_bfloat16_is_as_published(case, index):
    output = predict(golden.dit_modules(torch.bfloat16), case, index, "b2", torch.bfloat16)
    for flavour in ("out", "out_diffsynth"):
        golden.assert_close_bf16("dit bfloat16", output, OUTPUTS[f"bf16.{flavour}.{case}.t{index}"])
    exact, rounded = (
        golden.relative_rms(output, OUTPUTS[f"out.{case}.t{index}.{variant}"]) for variant in ("a", "b2")
    )
    assert rounded < exact / 2


def test_intermediate_states_are_the_published_ones(model):
    transformer = model[0]
    seen = {}

    def record(name):
        return lambda module, args, output: seen.__setitem__(name, output)

    def record_inputs(module, args):
        seen["tokens_in"], _, seen["t_mod"], (seen["rope_cos"], seen["rope_sin"]) = args

    hooks = [
        transformer.blocks[0].register_forward_pre_hook(record_inputs),
        transformer.blocks[0].register_forward_hook(record("block0_out")),
        transformer.blocks[1].register_forward_hook(record("block1_out")),
        transformer.condition_embedder.time_embedder.register_forward_hook(record("time_emb")),
        transformer.condition_embedder.time_embedder.register_forward_pre_hook(
            lambda module, args: seen.__setitem__("timestep_sinusoid", args[0])
        ),
    ]
    try:
        predict(model, "src_ref_last", 1, "a")
    finally:
        for hook in hooks:
            hook.remove()
    stored = {name.rpartition(".")[2]: tensor for name, tensor in OUTPUTS.items() if name.startswith("mid.")}
    assert seen.keys() == stored.keys()
    for name, tensor in stored.items():
        golden.assert_close("dit intermediates", seen[name].reshape(tensor.shape), tensor, MID_ATOL)


# Sizes other than the stored ones


def tiny(heads=1, head_dim=24, channels=4, layers=1, seed=0):
    torch.manual_seed(seed)
    transformer = KiwiTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=head_dim, in_channels=channels, out_channels=channels,
        text_dim=16, freq_dim=32, ffn_dim=32, num_layers=layers,
    ).eval()  # fmt: skip
    embedder = PatchEmbedder(channels, heads * head_dim)
    nn.init.normal_(embedder.patch_embedding.weight, std=0.1)
    return transformer, embedder


@pytest.mark.parametrize("heads, head_dim", [(1, 32), (3, 24), (2, 128)])
@pytest.mark.parametrize("frames, height, width, references", [(1, 2, 2, 0), (2, 4, 6, 1), (5, 2, 8, 3)])
@torch.no_grad()
def test_any_size_keeps_its_shape(heads, head_dim, frames, height, width, references):
    transformer, embedder = tiny(heads, head_dim)
    latents = torch.randn(1, 4, frames, height, width)
    context = torch.randn(1, 3, heads * head_dim)
    reference = embedder(torch.randn(1, 4, references, height, width)) if references else None

    def run(**changes):
        arguments = {"source": embedder(latents), "source_sigma": torch.tensor(0.5), "reference": reference}
        return transformer(latents, torch.tensor([700.0]), context, **arguments, **changes).sample

    last, first = run(), run(reference_first=True)
    assert last.shape == latents.shape
    assert torch.equal(last, run())
    assert torch.equal(last, first) == (references == 0)


@torch.no_grad()
def test_a_batch_is_its_samples():
    transformer, embedder = tiny(heads=2, layers=2)
    latents, source = torch.randn(2, 2, 4, 2, 4, 4)
    context, sigmas = torch.randn(2, 5, 48), torch.tensor([0.9, 0.3])
    reference = embedder(torch.randn(1, 4, 1, 4, 4))

    def run(*rows):
        rows = list(rows)
        return transformer(
            latents[rows], sigmas[rows] * 1000, context[rows], source=embedder(source[rows]),
            source_sigma=sigmas[rows], reference=reference,
        ).sample  # fmt: skip

    torch.testing.assert_close(run(0, 1), torch.cat([run(0), run(1)]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_timesteps_that_round_alike_are_alike():
    transformer, _ = tiny()
    latents, context = torch.randn(1, 4, 1, 4, 4), torch.randn(1, 3, 24)

    def run(timestep, rounding):
        return transformer(latents, torch.tensor([timestep]), context, rounding=rounding).sample

    assert torch.equal(run(900.9, "shipped"), run(901.1, "shipped"))
    assert not torch.equal(run(900.9, "none"), run(901.1, "none"))


def test_gradient_checkpointing_changes_nothing():
    transformer, embedder = tiny(layers=2)
    latents, context = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 3, 24)

    def gradient():
        transformer.zero_grad()
        output = transformer(
            latents, torch.tensor([500.0]), context, source=embedder(latents), source_sigma=torch.tensor(0.5)
        )
        output.sample.square().mean().backward()
        return transformer.patch_embedding.weight.grad.clone()

    plain = gradient()
    transformer.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), plain)


def test_new_embedders_change_nothing():
    embedder = PatchEmbedder(4, 24)
    assert not embedder(torch.randn(1, 4, 3, 4, 6)).any()
    video = torch.randn(1, 24, 3, 2, 3)
    assert torch.equal(add_source(video, embedder(torch.randn(1, 4, 3, 4, 6)), torch.tensor(1.0)), video)


@pytest.mark.parametrize("first", [False, True])
def test_dropping_references_undoes_joining_them(first):
    video, reference = torch.randn(2, 8, 3, 2, 4), torch.randn(1, 8, 2, 2, 4)
    alone, joined = join_reference(video, None, first), join_reference(video, reference, first)
    assert joined.shape == (2, 5 * 8, 8)
    assert torch.equal(drop_reference(joined, 2 * 8, first), alone)
    assert torch.equal(drop_reference(alone, 0, first), alone)
