"""The published schedule, timesteps and time embedding."""

import golden
import pytest
import torch

from kiwi_core import schedule

SCHEDULES = golden.load("schedule/schedules")
LIMITS = golden.TOLERANCES["schedules"]
SIGMA_MIN = {"diffusers": schedule.SIGMA_MIN, "diffsynth": 0.0}


def cases():
    for name in SCHEDULES:
        flavour, what, *case = name.split(".")
        if what == "sigmas" and case[0].startswith("steps"):
            yield flavour, int(case[0].removeprefix("steps")), float(case[1].removeprefix("shift"))


@pytest.mark.parametrize("flavour, steps, shift", sorted(cases()))
def test_schedule_is_the_published_one(flavour, steps, shift):
    def stored(what):
        return SCHEDULES[f"{flavour}.{what}.steps{steps}.shift{shift:g}"]

    sigmas = schedule.flow_sigmas(steps, shift, SIGMA_MIN[flavour])
    timesteps = schedule.timesteps_of(sigmas)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float32
    assert sigmas[-1] == 0
    golden.assert_close("schedule sigmas", sigmas[:-1], stored("sigmas"), LIMITS["sigmas_atol"])
    golden.assert_close("schedule timesteps", timesteps, stored("timesteps"), LIMITS["timesteps_atol"])
    rounded = schedule.round_timestep(timesteps)
    assert torch.equal(rounded, stored("timesteps_bf16").float())
    assert torch.equal(schedule.nearest_index(rounded, timesteps), stored("sigma_lookup_index_bf16"))


def test_every_stored_schedule_is_read():
    whats = ("sigmas", "timesteps", "timesteps_bf16", "sigma_lookup_index_bf16")
    names = {f"{flavour}.{what}.steps{n}.shift{s:g}" for flavour, n, s in cases() for what in whats}
    assert names == {name for name in SCHEDULES if "denoise" not in name}


def test_lower_strength_starts_later():
    steps, shift = golden.CONFIG["sample_steps"], golden.CONFIG["sample_shift"]
    sigmas = schedule.flow_sigmas(steps, shift, denoising_strength=0.6)
    timesteps = schedule.timesteps_of(sigmas)
    for what, values in (("sigmas", sigmas[:-1]), ("timesteps", timesteps)):
        stored = SCHEDULES[f"diffusers.{what}.denoise0.6"]
        golden.assert_close(f"schedule {what}", values, stored, LIMITS[f"{what}_atol"])


@pytest.mark.parametrize(
    "flavour, shift, steps",
    [
        *(("diffusers", 5, 60), ("diffusers", 3, 94), ("diffusers", 8, 39)),
        *(("diffsynth", 5, 60), ("diffsynth", 3, 95), ("diffsynth", 8, 40)),
    ],
)
def test_rounded_timesteps_first_find_a_neighbour_where_the_published_code_does(flavour, shift, steps):
    def wrong(count):
        timesteps = schedule.timesteps_of(schedule.flow_sigmas(count, shift, SIGMA_MIN[flavour]))
        found = schedule.nearest_index(schedule.round_timestep(timesteps), timesteps)
        return int((found != torch.arange(count)).sum())

    assert not any(wrong(count) for count in range(1, steps))
    assert wrong(steps) == 1


@pytest.mark.parametrize("steps", [1, 2, 7, 33, 1000])
@pytest.mark.parametrize("shift", [0.5, 1.0, 5.0, 12.0])
def test_schedules_fall_from_one_to_zero(steps, shift):
    sigmas = schedule.flow_sigmas(steps, shift)
    assert sigmas[0] == pytest.approx(1.0)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_the_first_of_equally_near_timesteps_is_found():
    found = schedule.nearest_index(torch.tensor([[15.0], [11.0]]), torch.tensor([20.0, 10.0]))
    assert found.tolist() == [[0], [1]]


@pytest.mark.parametrize("index", [1, 3])
@pytest.mark.parametrize("variant", ["a", "b1", "b2"])
def test_time_embedding_is_the_published_one(index, variant):
    timestep = golden.load("dit/inputs")["timesteps"][index : index + 1]
    if variant == "b1":
        timestep = schedule.round_timestep(timestep)
    embedding = schedule.timestep_embedding(timestep, 32, "shipped" if variant == "b2" else "none")
    stored = golden.load("dit/outputs")[f"sinusoid.t{index}.{variant}"]
    golden.assert_close("dit intermediates", embedding, stored, golden.atol("dit intermediates"))


def test_time_embedding_takes_any_shape():
    timesteps = torch.tensor([[0.0, 250.3], [999.9, 1000.0]])
    embedding = schedule.timestep_embedding(timesteps, 64)
    assert embedding.shape == (2, 2, 64)
    assert torch.equal(embedding[1, 0], schedule.timestep_embedding(timesteps[1, 0], 64))


@pytest.mark.parametrize(
    "arguments, names",
    [
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": -3}, "num_inference_steps"),
        ({"num_inference_steps": 4, "denoising_strength": 0.0}, "denoising_strength"),
        ({"num_inference_steps": 4, "denoising_strength": 1.5}, "denoising_strength"),
        ({"num_inference_steps": 4, "shift": 0.0}, "shift"),
        ({"num_inference_steps": 4, "sigma_min": 1.0}, "sigma_min"),
        ({"num_inference_steps": 4, "sigma_min": -0.1}, "sigma_min"),
    ],
)
def test_impossible_settings_are_refused(arguments, names):
    with pytest.raises(ValueError, match=f"^{names} is .*; use "):
        schedule.flow_sigmas(**arguments)


def test_unknown_rounding_is_refused():
    with pytest.raises(ValueError, match='use "shipped" or "none"'):
        schedule.round_timestep(torch.ones(1), "float16")
