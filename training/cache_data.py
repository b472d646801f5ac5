"""The ``cache`` step: encode every sample of a run once."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Hashable, Iterator
from pathlib import Path

from torch.utils.data import Dataset
from tqdm import tqdm

from . import base, model, sources
from .cache import Cache, is_whole
from .config import Config
from .data.faults import problem
from .data.index import each
from .data.loader import Sample, fill, in_workers, swap
from .data.prepare import reference_scales
from .encode import Encoder, prepare
from .parallel import Parallel

logger = logging.getLogger(__name__)

_DAY = 24 * 60 * 60


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a ``cache`` step did, in this process."""

    made: int
    found: int
    broken: int
    folder: str

    def __str__(self) -> str:
        return f"{self.folder}: {self.made} samples encoded, {self.found} were there, {self.broken} cannot be read."


class _Missing(Dataset):
    """Samples that are still to be encoded, decoded."""

    def __init__(self, samples: list, rules, limits, scales):
        self.samples, self.rules, self.limits, self.scales = samples, rules, limits, scales

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Sample | str:
        row, shape, kind = self.samples[place]
        sample = Sample(row.id, kind, row.prompt, 0, 0, 0, 1.0)
        try:
            fill(sample, row, shape, self.rules)
            swap(sample, prepare(sample, self.limits, self.scales))
        except Exception as error:
            return f"{row.id} is left out: {problem(error)}"
        return sample


def cache_data(config: Config) -> Summary:
    """Encode what is missing in ``config.cache``; started again after a kill, it goes on.

    Several processes (``accelerate launch``) share the samples.

    Raises:
        FileNotFoundError, ValueError: bad input, before any heavy work.
    """
    if not config.cache:
        raise ValueError("No cache folder is given; pass --cache.")
    parallel = Parallel(config)
    parts, start = base.read(config)
    data, cache, _ = sources.read(config, parts, start, parallel)
    if parallel.is_main:
        _sweep(cache.folder)
    every = list(_samples(data))
    mine = every[parallel.rank :: parallel.processes]
    media = {one for (row, _, _), _ in mine for one in (row.source, row.target, row.reference) if one is not None}
    each(cache.index.digest, sorted(media, key=lambda one: one.name), "reading the media" * parallel.is_main)

    alike: dict[Hashable, list[tuple]] = {}  # what can be encoded at once comes together, so that little waits
    for (row, shape, kind), group in mine:
        paths = cache.paths(row, shape, kind)
        if paths is None or not all(map(is_whole, paths.values())):
            alike.setdefault((kind, group), []).append((row, shape, kind))
    missing = [sample for group in alike.values() for sample in group]
    ends = set(itertools.accumulate(map(len, alike.values())))
    broken, made = len(data.broken), 0
    if missing:
        encoder = Encoder(model.encoders(parts, config, start), parallel.device)
        scales = reference_scales(config.reference_scales) if config.reference_scales else None
        loader = in_workers(_Missing(missing, cache.rules, parts.limits, scales), config.workers)
        bar = tqdm(loader, total=len(missing), desc="cache", unit="sample", disable=not parallel.is_main, mininterval=1)
        waiting: list[tuple] = []
        for done, ((row, shape, kind), sample) in enumerate(zip(missing, bar), start=1):
            if isinstance(sample, str):
                logger.warning(sample)
                broken += 1
            else:
                waiting.append((row, shape, sample))
            if waiting and (len(waiting) == config.batch_size or done in ends):
                made += _encode(encoder, cache, kind, waiting)
                waiting = []
    return Summary(made, len(mine) - len(missing), broken, config.cache)


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left half written; after a day none of them can be at it any more."""
    for path in folder.glob("??/.*.tmp.safetensors"):
        with contextlib.suppress(OSError):  # another one was faster
            if path.stat().st_mtime < time.time() - _DAY:
                path.unlink()


def _encode(encoder: Encoder, cache: Cache, kind: str, group: list[tuple]) -> int:
    """Encode samples of one shape at once and keep them; returns how many."""
    found = encoder.encode(kind, [row.prompt for row, _, _ in group], [sample.prepared for _, _, sample in group])
    for (row, shape, _), encoded in zip(group, found):
        cache.store(row, shape, kind, encoded)
    return len(group)


def _samples(data) -> Iterator[tuple[tuple, Hashable]]:
    """Row, shape and kind of each, and what must be equal within a batch."""
    for part in (data.training, data.validation):
        for kind, rows in part.items():
            for row, shape, group in zip(rows.rows, rows.shapes, rows.groups):
                yield (row, shape, kind), group
