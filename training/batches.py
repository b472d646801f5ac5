"""From loaded samples to a batch on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from .data.loader import Sample
from .encode import Encoder, prepare
from .model import Batch


def encode(encoder: Encoder, samples: Sequence[Sample]) -> None:
    """Make the latents and features of samples that have none yet, one by one: their references differ in size."""
    for sample in samples:
        if sample.encoded is None:
            prepared = sample.prepared or prepare(sample, encoder.limits)
            (sample.encoded,) = encoder.encode(sample.kind, [sample.prompt], [prepared])
            sample.source = sample.target = sample.reference = sample.prepared = None


@dataclass
class Stacked:
    """Encoded samples of one kind and shape as whole tensors, still on the CPU: what a worker hands over."""

    latents: torch.Tensor
    source_latents: torch.Tensor
    noise: torch.Tensor
    reference_latents: torch.Tensor | None
    features: list[torch.Tensor]
    """Of the sources, and of the references, ``[B, tokens, D]``."""
    grids: list[torch.Tensor]
    """int64 ``[B, 3]`` of each of these."""
    context: torch.Tensor | None

    def shown(self, place: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Features and grid of the source of a sample, and of its reference."""
        return [(features[place], grids[place : place + 1]) for features, grids in zip(self.features, self.grids)]

    def to(self, device: torch.device) -> Stacked:
        """On a device; the grids stay."""

        def moved(value):
            if isinstance(value, list):
                return [moved(one) for one in value]
            return value if value is None else value.to(device)

        return replace(
            self, **{field.name: moved(getattr(self, field.name)) for field in fields(self) if field.name != "grids"}
        )


def stack(samples: Sequence[Sample]) -> Stacked | None:
    """Samples that are all encoded, as one; None if one is not."""
    parts = [sample.encoded for sample in samples]
    if not parts or any(part is None for part in parts):
        return None
    latents = torch.stack([part.target for part in parts])
    # Drawn on the CPU, so that it is the same on every device and in every batch.
    noise = torch.stack([noise_of(sample.noise_seed, latents.shape[1:]) for sample in samples])
    shown = ["source"] if parts[0].reference_features is None else ["source", "reference"]
    references = None
    if parts[0].references is not None:
        # A cache holds every scale, what was encoded just now only the one that is used.
        references = torch.stack(
            [part.references[sample.scale if len(part.references) > 1 else 0] for part, sample in zip(parts, samples)]
        )
    return Stacked(
        latents=latents,
        source_latents=torch.stack([part.source for part in parts]),
        noise=noise.to(latents),
        reference_latents=references,
        features=[torch.stack([getattr(part, f"{name}_features") for part in parts]) for name in shown],
        grids=[torch.cat([getattr(part, f"{name}_grid") for part in parts]) for name in shown],
        context=None if parts[0].context is None else torch.stack([part.context for part in parts]),
    )


def collate(encoder: Encoder, samples: list[Sample], stacked: Stacked | None = None) -> Batch:
    """One batch of samples of one kind and shape, with the noise that each was given.

    Args:
        stacked: of these samples, where a worker made it.
    """
    if stacked is None:
        encode(encoder, samples)
        stacked = stack(samples)
    stacked = stacked.to(encoder.device)
    return Batch(
        kind=samples[0].kind,
        latents=stacked.latents,
        source_latents=stacked.source_latents,
        reference_latents=stacked.reference_latents,
        noise=stacked.noise,
        timestep_ids=torch.tensor([sample.timestep_id for sample in samples]),
        inputs=None if stacked.context is not None else [
            encoder.inputs(stacked.shown(place), sample.kind, sample.prompt) for place, sample in enumerate(samples)
        ],
        context=stacked.context,
        row_ids=tuple(sample.row_id for sample in samples),
    )


def noise_of(seed: int, shape) -> torch.Tensor:
    """Float32 noise of one sample."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
