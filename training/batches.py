"""From loaded samples to a batch on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch

from kiwi_core.mllm import MLLMInputs, Vision

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
        sample.encoded = sample.encoded.to(encoder.device)  # a cache's are on the CPU


@dataclass
class Sequences:
    """What the language model is shown of several samples of a kind, end to end.

    Hundreds of short tensors would take longer from a worker to this process than a few long ones.
    """

    lengths: list[int]
    input_ids: torch.Tensor
    """int64 ``[1, sum of lengths]``; the others as in :class:`kiwi_core.mllm.MLLMInputs`."""
    position_ids: torch.Tensor
    query_mask: torch.Tensor
    token_masks: list[torch.Tensor]
    """Of each picture."""
    slices: list[tuple]
    """Of the queries and of the reference, of each sample."""

    @classmethod
    def of(cls, samples: Sequence[MLLMInputs]) -> Sequences:
        """End to end."""
        pictures = zip(*([part.token_mask for part in one.vision] for one in samples))
        return cls(
            [one.input_ids.shape[1] for one in samples],
            *(torch.cat([getattr(one, name) for one in samples], -1) for name in _SEQUENCES),
            [torch.cat(masks, -1) for masks in pictures],
            [(one.query_slice, one.reference_slice) for one in samples],
        )

    def split(self, kind: str, grids: Sequence[torch.Tensor], features: Sequence[torch.Tensor]) -> list[MLLMInputs]:
        """One by one again, with the features of their pictures; see :class:`Stacked` for these and the grids."""
        masks = [mask.split(self.lengths, -1) for mask in self.token_masks]
        pictures = [
            [Vision(None, *one) for one in zip(grid.split(1), *rest)] for grid, *rest in zip(grids, masks, features)
        ]
        parts = [getattr(self, name).split(self.lengths, -1) for name in _SEQUENCES]
        return [
            MLLMInputs(kind, ids, positions, vision, queries, *slices)
            for ids, positions, queries, vision, slices in zip(*parts, zip(*pictures), self.slices)
        ]


_SEQUENCES = ("input_ids", "position_ids", "query_mask")


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
    sequences: Sequences | None
    """None where the context is known."""

    def to(self, device: torch.device) -> Stacked:
        """On a device; grids and sequences stay."""

        def moved(value):
            if isinstance(value, list):
                return [moved(one) for one in value]
            return value if value is None else value.to(device)

        names = {field.name for field in fields(self)} - {"grids", "sequences"}
        return replace(self, **{name: moved(getattr(self, name)) for name in names})


def stack(samples: Sequence[Sample], assemble: Callable[..., MLLMInputs]) -> Stacked | None:
    """Samples that are all encoded, as one; None if one is not.

    Args:
        assemble: of the :class:`training.encode.Encoder`.
    """
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
    grids = [torch.cat([getattr(part, f"{name}_grid") for part in parts]) for name in shown]
    context = None if parts[0].context is None else torch.stack([part.context for part in parts])
    sequences = None
    if context is None:
        sizes = zip(*(map(tuple, grid.tolist()) for grid in grids))
        sequences = Sequences.of([assemble(one.kind, one.prompt, size) for one, size in zip(samples, sizes)])
    return Stacked(
        latents=latents,
        source_latents=torch.stack([part.source for part in parts]),
        noise=noise.to(latents),
        reference_latents=references,
        features=[torch.stack([getattr(part, f"{name}_features") for part in parts]) for name in shown],
        grids=grids,
        context=context,
        sequences=sequences,
    )


def collate(encoder: Encoder, samples: list[Sample], stacked: Stacked | None = None) -> Batch:
    """One batch of samples of one kind and shape, with the noise that each was given.

    Args:
        stacked: of these samples, where a worker made it.
    """
    if stacked is None:
        encode(encoder, samples)
        stacked = stack(samples, encoder.assemble)
    stacked, kind = stacked.to(encoder.device), samples[0].kind
    return Batch(
        kind=kind,
        latents=stacked.latents,
        source_latents=stacked.source_latents,
        reference_latents=stacked.reference_latents,
        noise=stacked.noise,
        timestep_ids=torch.tensor([sample.timestep_id for sample in samples]),
        inputs=stacked.sequences and stacked.sequences.split(kind, stacked.grids, stacked.features),
        context=stacked.context,
        row_ids=tuple(sample.row_id for sample in samples),
    )


def noise_of(seed: int, shape) -> torch.Tensor:
    """Float32 noise of one sample."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
