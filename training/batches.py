"""From loaded samples to a batch on the device."""

from __future__ import annotations

import torch

from .data.loader import Sample
from .encode import Encoded, Encoder
from .model import Batch


def encoded(encoder: Encoder, sample: Sample) -> Encoded:
    """The sample's latents and features, made now unless they were cached."""
    if sample.encoded is None:
        sample.encoded = encoder.encode(
            sample.kind, sample.prompt, sample.source, sample.target, sample.reference, [sample.scale_value]
        )
        sample.source = sample.target = sample.reference = None
    return sample.encoded


def collate(encoder: Encoder, samples: list[Sample]) -> Batch:
    """One batch of samples of one kind and shape, with the noise that each was given.

    The noise of a sample is drawn on the CPU, so that it is the same on every device and in every batch.
    """
    parts = [encoded(encoder, sample) for sample in samples]
    device = encoder.device

    def stack(tensors) -> torch.Tensor:
        return torch.stack([tensor.to(device) for tensor in tensors])

    latents = stack(part.target for part in parts)
    noise = stack(noise_of(sample.noise_seed, latents.shape[1:]) for sample in samples).to(latents.dtype)
    references = None
    if parts[0].references is not None:
        # A cache holds every scale, what was encoded just now only the one that is used.
        chosen = (
            part.references[sample.scale if len(part.references) > 1 else 0] for part, sample in zip(parts, samples)
        )
        references = stack(chosen)
    context = None
    if parts[0].context is not None:
        context = stack(part.context for part in parts)
    return Batch(
        kind=samples[0].kind,
        latents=latents,
        source_latents=stack(part.source for part in parts),
        reference_latents=references,
        noise=noise,
        timestep_ids=torch.tensor([sample.timestep_id for sample in samples]),
        inputs=None if context is not None else [
            encoder.inputs(part, sample.kind, sample.prompt) for part, sample in zip(parts, samples)
        ],
        context=context,
        row_ids=tuple(sample.row_id for sample in samples),
    )


def noise_of(seed: int, shape) -> torch.Tensor:
    """Float32 noise of one sample."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
