"""Samples of one kind as they come out of worker processes: read from the cache, or decoded."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from . import prepare
from .faults import problem
from .prepare import Rules, Shape
from .row import Row
from .stream import BatchStream, derive

_PR_SET_PDEATHSIG = 1
_GOLDEN = 0.6180339887498949


@dataclass
class Sample:
    """One row with what was drawn for it; either ``encoded`` or the frames are there."""

    row_id: str
    kind: str
    prompt: str
    timestep_id: int
    noise_seed: int
    scale: int
    """Which of the scales the reference is shown in."""
    scale_value: float
    encoded: object | None = None
    """An :class:`training.encode.Encoded`."""
    source: np.ndarray | None = None
    target: np.ndarray | None = None
    reference: np.ndarray | None = None
    prepared: object | None = None
    """An :class:`training.encode.Prepared` in place of the three."""


@dataclass
class Loaded:
    """A batch as a worker hands it over."""

    place: int
    """Of the stream."""
    samples: list[Sample] = field(default_factory=list)
    stacked: object | None = None
    """A :class:`training.batches.Stacked` of them, if all were in the cache; they hold none themselves then."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """Row and what is wrong with it, of those that are left out."""


class Samples(Dataset):
    """Batches of one kind by their place in the stream.

    Args:
        rows, shapes: of the kind's samples. groups: what must be equal within a batch.
        cache: a ``training.cache.Cache``, or None. reference_scales: number of scales; 0 draws any.
        spread: timesteps follow a sequence that fills the range evenly, rather than being drawn each on its own.
        epoch: batches after which all is shuffled anew; 0 for all there are. stack: makes one of encoded samples.
        prepare: what can be done with one that is not encoded. by_file: the order of older runs.
    """

    def __init__(
        self,
        rows: list[Row],
        shapes: list[Shape],
        groups: list[Hashable],
        kind: str,
        batch_size: int,
        seed: int,
        rules: Rules,
        cache=None,
        reference_scales: int = 8,
        spread: bool = True,
        epoch: int = 0,
        stack: Callable[[list[Sample]], object | None] = lambda samples: None,
        prepare: Callable[[Sample], object | None] = lambda sample: None,
        by_file: bool = False,
    ):
        self.rows, self.shapes, self.kind, self.seed = rows, shapes, kind, seed
        self.rules, self.cache, self.reference_scales, self.spread = rules, cache, reference_scales, spread
        self.batch_size, self.epoch = batch_size, epoch
        self.stack, self.prepare = stack, prepare
        units = [row.shard if by_file else row.unit for row in rows]
        self.stream = BatchStream(groups, units, batch_size, seed, kind, by_file)

    def __getitem__(self, place: int) -> Loaded:
        loaded = Loaded(place)
        within = place
        if self.epoch:
            number, rest = divmod(place, self.epoch)
            within = number * self.stream.batches_per_epoch + rest
        for slot, number in enumerate(self.stream.batch(within)):
            row, shape = self.rows[number], self.shapes[number]
            try:
                sample = self.draw(row, place, slot)
                fill(sample, row, shape, self.rules, self.cache)
                if sample.encoded is None:
                    swap(sample, self.prepare(sample))
            except Exception as error:
                loaded.broken.append((row.id, problem(error)))
            else:
                loaded.samples.append(sample)
        with contextlib.suppress(ValueError):  # the main process stacks again and says it plainly, without a traceback
            loaded.stacked = self.stack(loaded.samples)
        if loaded.stacked is not None:
            for sample in loaded.samples:
                sample.encoded = None
        return loaded

    def draw(self, row: Row, place: int, slot: int) -> Sample:
        """A row's sample with all that is random about it, which its place alone decides."""
        draw = np.random.default_rng(derive(self.seed, self.kind, "sample", place, slot))
        uniform = draw.random()
        if self.spread:
            start = derive(self.seed, self.kind, "timesteps") / 2**63
            uniform = (start + _GOLDEN * (place * self.batch_size + slot)) % 1.0
        low, high = prepare.REFERENCE_SCALES
        scale, value = 0, float(draw.uniform(low, high))
        if self.reference_scales:
            scale = int(draw.integers(self.reference_scales))
            value = prepare.reference_scales(self.reference_scales)[scale]
        return Sample(row.id, self.kind, row.prompt, int(uniform * 1000), int(draw.integers(2**62)), scale, value)


def fill(sample: Sample, row: Row, shape: Shape, rules: Rules, cache=None) -> None:
    """Read a sample from the cache, or else decode it; raises for broken media, mostly ValueError or OSError."""
    sample.encoded = None if cache is None else cache.load(row, shape, sample.kind)
    if sample.encoded is None:
        sample.source, sample.target = prepare.read_pair(row, shape, rules)
        sample.reference = prepare.read_reference(row)


def swap(sample: Sample, prepared: object | None) -> None:
    """Put what was prepared, if anything was, in place of the frames."""
    if prepared is not None:
        sample.prepared = prepared
        sample.source = sample.target = sample.reference = None


class _Places(Sampler):
    """The places of a stream that one process takes, from a first one on, without end."""

    def __init__(self, first: int, rank: int, processes: int):
        self.first, self.rank, self.processes = first, rank, processes

    def __iter__(self) -> Iterator[int]:
        place = self.first * self.processes + self.rank
        while True:
            yield place
            place += self.processes


def batches(samples: Samples, first: int, rank: int, processes: int, workers: int) -> Iterator[Loaded]:
    """An endless iterator over a process's batches, from its ``first`` one on."""
    return iter(in_workers(samples, workers, sampler=_Places(first, rank, processes)))


def in_workers(dataset: Dataset, workers: int, **options) -> DataLoader:
    """A loader of single items, in order, from processes that end with this one however it ends."""
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        # Importing all anew, as the other methods do, takes longer than many a run; workers do not touch the GPU.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        worker_init_fn=_end_with_parent,
        generator=torch.Generator().manual_seed(0),  # else torch draws from the global one
        **options,
    )


def _end_with_parent(_: int) -> None:
    """Orphans of a killed run would wait on their pipes for ever. One that is asked to stop needs them until it has."""
    for number in (signal.SIGINT, signal.SIGTERM):  # which a terminal or a scheduler sends to all processes
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
