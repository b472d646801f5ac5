"""The flow-matching schedule that the model was trained and published with.

Times are noise levels ("sigma", 1 = pure noise, 0 = clean); a timestep is 1000 x sigma.
"""

from __future__ import annotations

import numbers

import torch

NUM_TRAIN_TIMESTEPS = 1000
SIGMA_MIN = 0.003 / 1.002

ROUNDINGS = ("shipped", "none")


def flow_sigmas(
    num_inference_steps: int,
    shift: float = 5.0,
    sigma_min: float = SIGMA_MIN,
    denoising_strength: float = 1.0,
) -> torch.Tensor:
    """Noise levels of an Euler run, first to last.

    Args:
        num_inference_steps: number of model evaluations.
        shift: time shift; above 1 spends more of the steps at high noise.
        sigma_min: level of the last evaluation before the shift. ``0.0`` gives the schedule of training.
        denoising_strength: 1 starts from pure noise, less starts from a noised clip.

    Returns:
        float32 ``[num_inference_steps + 1]``, falling, ends in 0.
    """
    whole = isinstance(num_inference_steps, numbers.Integral)
    if not whole or not 1 <= num_inference_steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(
            f"num_inference_steps is {num_inference_steps!r}; use a whole number from 1 to {NUM_TRAIN_TIMESTEPS}."
        )
    if not 0.0 < denoising_strength <= 1.0:
        raise ValueError(f"denoising_strength is {denoising_strength}; use a value above 0 and up to 1.")
    if not 0.0 < shift < float("inf"):
        raise ValueError(f"shift is {shift}; use a value above 0 (the model was trained with 5).")
    if not 0.0 <= sigma_min < 1.0:
        raise ValueError(f"sigma_min is {sigma_min}; use a value from 0 to below 1.")
    sigma_start = sigma_min + (1.0 - sigma_min) * denoising_strength
    linear = torch.linspace(sigma_start, sigma_min, num_inference_steps + 1, dtype=torch.float32)[:-1]
    sigmas = shift * linear / (1 + (shift - 1) * linear)
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def timesteps_of(sigmas: torch.Tensor) -> torch.Tensor:
    """Timesteps ``[steps]`` of the evaluations of a schedule ``[steps + 1]``."""
    return sigmas[:-1] * NUM_TRAIN_TIMESTEPS


def check_rounding(rounding: str) -> None:
    """ValueError for none of :data:`ROUNDINGS`."""
    if rounding not in ROUNDINGS:
        raise ValueError(f'rounding is {rounding!r}; use "shipped" or "none".')


def round_timestep(timestep: torch.Tensor, rounding: str = "shipped") -> torch.Tensor:
    """The timestep as the model is to see it, float32.

    The model was trained and published with bfloat16 timesteps (spacing 4 above 512), and was never shown
    another value: ``"shipped"`` rounds, ``"none"`` does not.
    """
    check_rounding(rounding)
    timestep = timestep.to(torch.float32)
    return timestep.to(torch.bfloat16).to(torch.float32) if rounding == "shipped" else timestep


def nearest_index(timestep: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Index of the schedule entry nearest to each (rounded) timestep, the first of equals.

    Args:
        timestep: any shape. timesteps: ``[steps]``. Returns int64 of ``timestep``'s shape.
    """
    distance = (timesteps.float() - timestep.float().unsqueeze(-1)).abs()
    return distance.argmin(dim=-1)


def timestep_embedding(timestep: torch.Tensor, dim: int, rounding: str = "shipped") -> torch.Tensor:
    """Sinusoidal embedding, cosines then sines, computed in float64.

    Args:
        timestep: any shape, in 0..1000. dim: even width.
        rounding: as in :func:`round_timestep`; ``"shipped"`` also rounds the embedding to bfloat16, as
            published.

    Returns:
        float32 ``[*timestep.shape, dim]``.
    """
    timestep = round_timestep(timestep, rounding)
    # Apple's and some of Intel's and AMD's devices lack it.
    exact = torch.float64 if timestep.device.type in ("cpu", "cuda") else torch.float32
    exponent = torch.arange(dim // 2, dtype=exact, device=timestep.device) / (dim // 2)
    angle = timestep.to(exact).unsqueeze(-1) * torch.pow(10000.0, -exponent)
    embedding = torch.cat([angle.cos(), angle.sin()], dim=-1)
    return embedding.to(torch.bfloat16 if rounding == "shipped" else torch.float32).float()
