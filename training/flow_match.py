"""The training objective of the published model: flow matching on timesteps that are rounded to bfloat16."""

from __future__ import annotations

import functools

import torch

from kiwi_core import schedule


@functools.cache
def training_sigmas() -> torch.Tensor:
    """Noise levels that training draws from, float32 ``[1000]``, falling from 1. Not to be changed."""
    return schedule.flow_sigmas(schedule.NUM_TRAIN_TIMESTEPS, sigma_min=0.0)[:-1]


@functools.cache
def timestep_weights(kind: str = "bell") -> torch.Tensor:
    """Weight of the loss at each of :func:`training_sigmas`, ``[1000]``.

    Args:
        kind: "bell" for the published one, around 500, 0 at index 0, mean 1; "even" for ones.
    """
    if kind == "even":
        return torch.ones(schedule.NUM_TRAIN_TIMESTEPS)
    timesteps = training_sigmas() * schedule.NUM_TRAIN_TIMESTEPS
    bell = torch.exp(-2 * ((timesteps - 500) / 1000) ** 2)
    bell = bell - bell.min()
    return bell * (len(bell) / bell.sum())


def lookup(timestep_id: int | torch.Tensor, rounding: str = "shipped") -> tuple[torch.Tensor, torch.Tensor]:
    """Timesteps as the model is to see them, and the indices of the schedule that they resolve to.

    Rounding leaves 294 of the 1000 indices. The one found decides the noise, the scale of the source and the weight.

    Args:
        timestep_id: 0 to 999, a number or ``[B]``. rounding: see :func:`kiwi_core.schedule.round_timestep`.

    Returns:
        float32 and int64, ``[B]``.
    """
    timesteps = training_sigmas() * schedule.NUM_TRAIN_TIMESTEPS
    timestep = schedule.round_timestep(timesteps[torch.as_tensor(timestep_id).reshape(-1).cpu()], rounding)
    return timestep, schedule.nearest_index(timestep, timesteps)


def add_noise(latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """``(1 - sigma) x latents + sigma x noise`` for ``[B, C, F, h, w]`` and sigma ``[B]`` or ``[1]``."""
    sigma = sigma.to(latents.device).view(-1, 1, 1, 1, 1)
    return ((1 - sigma) * latents + sigma * noise).to(latents.dtype)


def losses(
    transformer: torch.nn.Module,
    source_embedder: torch.nn.Module | None,
    ref_embedder: torch.nn.Module | None,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timestep_id: int | torch.Tensor,
    context: torch.Tensor,
    source_latents: torch.Tensor | None = None,
    reference_latents: torch.Tensor | None = None,
    reference_first: bool = False,
    rounding: str = "shipped",
    weights: str = "bell",
) -> torch.Tensor:
    """Weighted mean squared error of the predicted velocity (noise minus latents), of each sample.

    Args:
        transformer: a ``KiwiTransformer3DModel``. source_embedder, ref_embedder: its ``PatchEmbedder``s; unused ones
            may be None.
        latents, noise: ``[B, C, F, h, w]``. timestep_id: see :func:`lookup`.
        context: ``[B, N, dim]`` of the connector.
        source_latents: like ``latents``, or None (the published first stage). reference_latents: ``[B, C, R, h, w]``.
        reference_first: ``ref_pad_first``. weights: see :func:`timestep_weights`.

    Returns:
        float32 ``[B]``.
    """
    timestep, index = lookup(timestep_id, rounding)
    sigma, weight = training_sigmas()[index], timestep_weights(weights)[index].to(latents.device)
    velocity = predict(
        *(transformer, source_embedder, ref_embedder),
        *(add_noise(latents, noise, sigma), timestep, sigma, context, source_latents, reference_latents),
        reference_first=reference_first,
        rounding=rounding,
    )
    return weight * (velocity.float() - (noise - latents).float()).square().mean(dim=(1, 2, 3, 4))


def predict(
    transformer: torch.nn.Module,
    source_embedder: torch.nn.Module | None,
    ref_embedder: torch.nn.Module | None,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    sigma: torch.Tensor,
    context: torch.Tensor,
    source_latents: torch.Tensor | None = None,
    reference_latents: torch.Tensor | None = None,
    reference_first: bool = False,
    rounding: str = "shipped",
) -> torch.Tensor:
    """Velocity of noisy latents; the other arguments as in :func:`losses`.

    Args:
        timestep, sigma: ``[B]`` or ``[1]``.
    """
    return transformer(
        noisy,
        timestep.to(noisy.device),
        context,
        source=source_embedder(source_latents) if source_latents is not None else None,
        source_sigma=sigma.to(noisy.device),
        reference=ref_embedder(reference_latents) if reference_latents is not None else None,
        reference_first=reference_first,
        rounding=rounding,
        return_dict=False,
    )[0]


def flow_match_loss(*args, **kwargs) -> torch.Tensor:
    """The published loss of a batch, a scalar: the mean of :func:`losses`."""
    return losses(*args, **kwargs).mean()
