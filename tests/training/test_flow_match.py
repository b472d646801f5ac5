"""The training objective against the published one."""

import golden
import pytest
import torch

from training import flow_match

GOLDEN = golden.load("train/train")
IDS = golden.CONFIG["train_ids"]
LIMITS = golden.TOLERANCES["train float32"]


def rounding_of(variant):
    return "none" if variant == "a" else "shipped"


def loss_of(modules, timestep_id, variant, references):
    """The stored sample's loss; b1 rounds the timestep's value, but not its embedding."""
    dtype = torch.bfloat16 if variant == "bf16" else torch.float32
    transformer, source_embedder, ref_embedder = modules
    hook = transformer.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | ({"rounding": "none"} if variant == "b1" else {})),
        with_kwargs=True,
    )
    names = ("input_latents", "noise", "context", "source_latents", "ref_latent")
    latents, noise, context, source, reference = (GOLDEN[name].to(dtype) for name in names)
    loss = flow_match.flow_match_loss(
        *(transformer, source_embedder, ref_embedder),
        *(latents, noise, timestep_id, context, source, reference if references else None),
        rounding=rounding_of(variant),
    )
    hook.remove()
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    return loss


def test_schedule_is_the_published_one():
    sigmas, limits = flow_match.training_sigmas(), golden.TOLERANCES["schedules"]
    golden.assert_close("train sigmas", sigmas, GOLDEN["sigmas"], limits["sigmas_atol"])
    golden.assert_close("train timesteps", sigmas * 1000, GOLDEN["timesteps"], limits["timesteps_atol"])


def test_weights_are_the_published_ones():
    weights = flow_match.timestep_weights()
    golden.assert_close_relative("train weights", weights, GOLDEN["linear_timesteps_weights"], 1e-5)
    assert weights[0] == 0
    assert weights.mean() == pytest.approx(1.0, rel=1e-5)


def test_lookup_is_the_published_one():
    timesteps, indices = flow_match.lookup(torch.arange(1000))
    assert torch.equal(indices, GOLDEN["timesteps_bf16_lookup_index"])
    assert torch.equal(timesteps, GOLDEN["timesteps"].bfloat16().float())
    assert len(indices.unique()) == golden.FACTS["dit"]["train_distinct_lookup_ids_under_bf16"]
    for timestep_id in IDS:
        stored = golden.FACTS["dit"][f"train_lookup.id{timestep_id}"]
        assert flow_match.lookup(timestep_id)[1].tolist() == [stored["bf16"]]
        assert flow_match.lookup(timestep_id, "none")[1].tolist() == [stored["a"]]


@pytest.mark.parametrize("variant", ["a", "b1"])
@pytest.mark.parametrize("timestep_id", IDS)
def test_noisy_latents_are_the_published_ones(timestep_id, variant):
    _, index = flow_match.lookup(timestep_id, rounding_of(variant))
    noisy = flow_match.add_noise(GOLDEN["input_latents"], GOLDEN["noise"], flow_match.training_sigmas()[index])
    golden.assert_close("train noisy latents", noisy, GOLDEN[f"noisy_latents.id{timestep_id}.{variant}"], 1e-5)


@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("variant", ["a", "b1"])
@pytest.mark.parametrize("timestep_id", IDS)
def test_loss_and_gradients_are_the_published_ones(timestep_id, variant, references):
    modules = golden.dit_modules()
    loss = loss_of(modules, timestep_id, variant, references)
    loss.backward()
    case = f"id{timestep_id}.{variant}.{'src_ref' if references else 'src'}"
    stored = GOLDEN[f"loss.{case}"][0]
    golden.assert_close_relative("train loss", loss.detach(), stored, LIMITS["loss_rtol"])
    for prefix, module in (("grad_vae_condition_weight", modules[1]), ("grad_ref_vae_condition_weight", modules[2])):
        gradient = module.patch_embedding.weight.grad
        if f"{prefix}.{case}" in GOLDEN:
            limit = LIMITS["grad_max_abs_relative_to_grad_max"]
            golden.assert_close_relative("train gradients", gradient, GOLDEN[f"{prefix}.{case}"], limit)
        else:
            assert gradient is None
            assert not references


@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("timestep_id", IDS)
def test_bfloat16_loss_is_the_published_one(timestep_id, references):
    loss = loss_of(golden.dit_modules(torch.bfloat16), timestep_id, "bf16", references).detach()
    stored = GOLDEN[f"loss.id{timestep_id}.bf16.{'src_ref' if references else 'src'}"][0]
    golden.assert_close_relative("train loss bfloat16", loss, stored, golden.TOLERANCES["train bf16"]["loss_rtol"])


def test_a_timestep_that_rounds_to_pure_noise_teaches_nothing():
    modules = golden.dit_modules()
    loss = loss_of(modules, 3, "b2", True)
    loss.backward()
    assert loss == 0
    assert not modules[1].patch_embedding.weight.grad.any()


@torch.no_grad()
def test_even_weights_count_every_timestep_the_same():
    transformer, _, _ = golden.dit_modules()
    given = [transformer, None, None, GOLDEN["input_latents"], GOLDEN["noise"]]
    for timestep_id in (3, 300, 900):
        bell, even = (
            flow_match.losses(*given, timestep_id, GOLDEN["context"], weights=kind).item() for kind in ("bell", "even")
        )
        weight = flow_match.timestep_weights()[flow_match.lookup(timestep_id)[1]].item()
        assert bell == pytest.approx(even * weight, rel=1e-5)
        assert even > 0


@torch.no_grad()
def test_a_batch_is_the_mean_of_its_samples():
    transformer, source_embedder, _ = golden.dit_modules()
    generator = torch.Generator().manual_seed(0)
    latents, noise, source = torch.randn(3, 2, 8, 2, 4, 4, generator=generator)
    context, ids = torch.randn(2, 5, 48, generator=generator), torch.tensor([200, 800])

    def loss(*rows):
        rows = list(rows)
        return flow_match.flow_match_loss(
            transformer, source_embedder, None, latents[rows], noise[rows], ids[rows], context[rows], source[rows]
        )

    torch.testing.assert_close(loss(0, 1), (loss(0) + loss(1)) / 2)


@torch.no_grad()
def test_the_first_stage_has_no_source():
    transformer, source_embedder, _ = golden.dit_modules()
    latents, noise, context = GOLDEN["input_latents"], GOLDEN["noise"], GOLDEN["context"]
    alone = flow_match.flow_match_loss(transformer, None, None, latents, noise, 500, context)
    assert alone > 0
    source_embedder.patch_embedding.weight.zero_()
    source_embedder.patch_embedding.bias.zero_()
    silent = flow_match.flow_match_loss(transformer, source_embedder, None, latents, noise, 500, context, latents)
    assert torch.equal(alone, silent)


@pytest.mark.parametrize("timestep_id", IDS)
def test_autocast_over_float32_weights_gives_the_bfloat16_loss(timestep_id):
    """As runs are trained: the published one keeps its weights in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(golden.dit_modules(), timestep_id, "b2", True).detach()
    stored = GOLDEN[f"loss.id{timestep_id}.bf16.src_ref"][0]
    golden.assert_close_relative("train loss autocast", loss, stored, golden.TOLERANCES["train bf16"]["loss_rtol"])
