"""The loss on rows that are not trained on, at fixed timesteps and with fixed noise, so that runs can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from . import flow_match
from .batches import collate
from .data.dataset import Rows
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
            except (ValueError, OSError) as error:
                report([(row.id, str(error))])
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
            _, index = flow_match.lookup(timestep, config.rounding)
            weight = flow_match.timestep_weights(config.loss_weights)[index].item()
            loss = forward(batch).item()
            if config.objective == "flow_match":
                loss = loss / weight if weight else float("nan")
            found.setdefault(f"{sample.kind}/{timestep}", []).append(loss)
    return found


def summary(found: dict[str, list[float]]) -> dict[str, float]:
    """Means by kind, by timestep and of all, as they are logged."""
    groups: dict[str, list[float]] = {}
    for name, values in found.items():
        kind, _, timestep = name.partition("/")
        good = [value for value in values if value == value]
        for group in ("loss", f"kind/{kind}", f"timestep/{timestep}"):
            groups.setdefault(group, []).extend(good)
    return {f"validation/{name}": sum(values) / len(values) for name, values in groups.items() if values}
