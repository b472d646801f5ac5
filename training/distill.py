"""Few steps: piecewise rectified flow (PeRFlow, arXiv 2405.07510).

The schedule of the few-step model cuts time into windows. The teacher carries a noised target from the start of a
window to its end; the student learns the straight line between the two, so that one Euler step takes it there. The
student is the teacher's LoRA, so one model in memory serves as both.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from kiwi_core import schedule

from . import adapters, flow_match


def windows(student_steps: int, shift: float) -> torch.Tensor:
    """Noise levels at the ends of the windows: the sampling schedule of so many steps, float32 ``[steps + 1]``."""
    return schedule.flow_sigmas(student_steps, shift)


def straight_line(start: torch.Tensor, end: torch.Tensor, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Velocity that leads from ``start`` at level ``high`` to ``end`` at ``low`` in one step.

    Args:
        start, end: ``[B, C, F, h, w]``. high, low: ``[B]``.
    """
    high, low = (level.to(start.device).view(-1, 1, 1, 1, 1) for level in (high, low))
    return (end.float() - start.float()) / (low - high)


def losses(model, modules, batch, arguments: dict) -> torch.Tensor:
    """Squared distance of the student's velocity to the straight line of its window, of each sample: float32 ``[B]``.

    Args:
        model: a ``KiwiModel`` whose adapters are the student. modules: its DiT and embedders.
        arguments: context, source and references, as for :func:`flow_match.predict`.
    """
    config = model.config
    ends = windows(config.student_steps, config.shift)
    # The sample's draw of 1000 says which window, and where in it.
    place = batch.timestep_ids.cpu().float() / len(flow_match.training_sigmas()) * config.student_steps
    window = place.long()
    within = place - window
    high, low = ends[window], ends[window + 1]

    start = flow_match.add_noise(batch.latents, batch.noise, high)
    with torch.no_grad(), adapters.switched_off(model):
        end, times = start, torch.linspace(0, 1, config.teacher_steps + 1)
        for before, after in pairwise(times):
            sigma, following = torch.lerp(high, low, before), torch.lerp(high, low, after)
            velocity = flow_match.predict(*modules, end, sigma * 1000, sigma, **arguments)
            step = (following - sigma).to(end.device).view(-1, 1, 1, 1, 1)
            end = (end + velocity * step).to(end.dtype)
    target = straight_line(start, end, high, low)

    sigma = torch.lerp(high, low, within)
    share = within.to(start.device).view(-1, 1, 1, 1, 1)
    noisy = torch.lerp(start.float(), end.float(), share).to(start.dtype)
    velocity = flow_match.predict(*modules, noisy, sigma * 1000, sigma, **arguments)
    return (velocity.float() - target).square().mean(dim=(1, 2, 3, 4))
