"""The ``cache`` step: encode every sample of a run once."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

from torch.utils.data import Dataset
from tqdm import tqdm

from . import base, model, sources
from .cache import is_whole
from .config import Config
from .data import prepare
from .data.index import each
from .data.loader import Sample, fill, in_workers
from .encode import Encoder
from .parallel import Parallel

logger = logging.getLogger(__name__)


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

    def __init__(self, samples: list, rules):
        self.samples, self.rules = samples, rules

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Sample | str:
        row, shape, kind = self.samples[place]
        sample = Sample(row.id, kind, row.prompt, 0, 0, 0, 1.0)
        try:
            fill(sample, row, shape, self.rules)
        except (ValueError, OSError) as error:
            return f"{row.id} is left out: {error}"
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
    data, cache, _ = sources.read(config, parts, start)
    every = list(_samples(data))
    mine = every[parallel.rank :: parallel.processes]
    media = {one for row, _, _ in mine for one in (row.source, row.target, row.reference) if one is not None}
    each(cache.index.digest, sorted(media, key=lambda one: one.name))

    missing = []
    for row, shape, kind in mine:
        paths = cache.paths(row, shape, kind)
        if paths is None or not all(map(is_whole, paths.values())):
            missing.append((row, shape, kind))
    broken, made = len(data.broken), 0
    if missing:
        encoder = Encoder(model.encoders(parts, config, start), parallel.device)
        scales = prepare.reference_scales(config.reference_scales) if config.reference_scales else None
        loader = in_workers(_Missing(missing, cache.rules), config.workers)
        bar = tqdm(loader, total=len(missing), desc="cache", unit="sample", disable=not parallel.is_main)
        for (row, shape, kind), sample in zip(missing, bar):
            if isinstance(sample, str):
                logger.warning(sample)
                broken += 1
                continue
            encoded = encoder.encode(kind, row.prompt, sample.source, sample.target, sample.reference, scales)
            cache.store(row, shape, kind, encoded)
            made += 1
    return Summary(made, len(mine) - len(missing), broken, config.cache)


def _samples(data) -> Iterator[tuple]:
    for part in (data.training, data.validation):
        for kind, rows in part.items():
            for row, shape in zip(rows.rows, rows.shapes):
                yield row, shape, kind
