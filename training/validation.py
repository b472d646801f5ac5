"""The loss on rows that are not trained on, at fixed timesteps and with fixed noise, so that runs can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from . import flow_match
from .batches import collate
from .config import Config
from .data.dataset import Rows
from .data.faults import problem
from .data.loader import Sample, fill
from .data.prepare import Rules, reference_scales
from .data.stream import derive
from .encode import Encoder
from .model import Batch

_SEED = "validation"


def samples(
    rows: dict[str, Rows],
    rules: Rules,
    cache,
    scales: int,
    count: int | None = None,
    report: Callable[[list[tuple[str, str]]], None] = lambda broken: None,
) -> Iterator[Sample]:
    """Samples of validation rows one by one, each with noise of its own that no setting changes.

    Args:
        count: at most so many of each kind. report: is told of rows that cannot be read, which are left out.
    """
    for kind, part in rows.items():
        for row, shape in list(zip(part.rows, part.shapes))[:count]:
            places = reference_scales(scales) if scales else [1.0]
            middle = len(places) // 2
            sample = Sample(row.id, kind, row.prompt, 0, derive(_SEED, row.id), middle, places[middle])
            try:
                fill(sample, row, shape, rules, cache)
            except Exception as error:
                report([(row.id, problem(error))])
            else:
                yield sample


@torch.no_grad()
def losses(
    forward: Callable[[Batch], torch.Tensor],
    encoder: Encoder,
    chosen: Iterable[Sample],
    timesteps: Iterable[int],
) -> dict[str, list[float]]:
    """Unweighted losses of samples at each timestep, by ``"kind/timestep"``.

    Args:
        forward: a ``KiwiModel`` or what wraps it, in evaluation mode.
    """
    found: dict[str, list[float]] = {}
    config = encoder.model.config
    for sample in chosen:
        batch = collate(encoder, [sample])
        batch.context = forward(batch, context_only=True)
        for timestep in timesteps:
            batch.timestep_ids = torch.tensor([timestep])
            (loss,) = unweighted(config, [timestep], forward(batch).tolist())
            found.setdefault(f"{sample.kind}/{timestep}", []).append(loss)
    return found


def unweighted(config: Config, timesteps: Sequence[int], losses: Sequence[float]) -> list[float]:
    """Losses of an objective's without the weights of their timesteps; NaN where that was 0."""
    if config.objective != "flow_match":  # has none
        return list(losses)
    _, places = flow_match.lookup(torch.tensor(timesteps), config.rounding)
    weights = flow_match.timestep_weights(config.loss_weights)[places].tolist()
    return [loss / weight if weight else float("nan") for loss, weight in zip(losses, weights)]


def summary(found: dict[str, list[float]]) -> dict[str, float]:
    """Means by kind, by timestep and of all, as they are logged."""
    groups: dict[str, list[float]] = {}
    for name, values in found.items():
        kind, _, timestep = name.partition("/")
        good = [value for value in values if value == value]
        for group in ("loss", f"kind/{kind}", f"timestep/{timestep}"):
            groups.setdefault(group, []).extend(good)
    return {f"validation/{name}": sum(values) / len(values) for name, values in groups.items() if values}
