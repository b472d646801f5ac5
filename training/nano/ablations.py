"""The paper's ablations in small: the curriculum again with one thing left out, and what that costs on nano-bench.

Every variant is trained from the same base with the same number of samples, by three seeds, and measured on the same
items with the same noise: by success, and by the loss, which shows a difference long before so short a training
succeeds. What is to show in how instructions are followed is measured after stage 2, which teaches that. ``python -m
training.nano ablate`` goes on where it was stopped.

With ``--start FOLDER`` stages 1 and 2 are those of a released model, whose reference parts are made new, and what
differs in stage 3 alone is compared: it tells more in less time, though that model's DiT has seen references before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kiwi_core.atomic import replacing
from kiwi_core.checkpoints import files, released
from kiwi_core.checkpoints.lazy import load
from kiwi_core.checkpoints.parts import Parts
from kiwi_core.mllm import MLLMInputs

from .. import architectures, base, batches, fingerprint, samples, trainer, validation
from .. import model as models
from ..config import KINDS, Config
from ..data.loader import Sample
from ..encode import Encoder
from . import bench, build, connector, edits, measure, settings, world

MEASURED = "measured.json"
SUCCESS, LOSS = "success", "loss"
COUNTS = {"seen": 16, "composition": 16}
"""Items of a category that each run is measured on."""


@dataclass(frozen=True)
class Plan(build.Plan):
    """The plan by which the parts were trained, and what of the ablations is done."""

    seeds: tuple[int, ...] = (0, 1, 2)
    variants: tuple[str, ...] = ()
    """By name; all without."""
    updates: tuple[int, int, int] = (100, 400, 400)
    """Of each stage."""
    start: str = ""
    """Released folder whose stages 1 and 2 are taken."""
    free = (*build.Plan.free, "batch_size", "stage_steps")  # the former is in the settings of the ablations

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that are trained here."""
        return build.STAGES[-1:] if self.start else build.STAGES


class WithoutReferenceConnector(models.KiwiModel):
    """The DiT's cross-attention sees the queries' states only."""

    def forward(self, batch, *args, **kwargs):
        return super().forward(_with_inputs(batch, _no_reference), *args, **kwargs)


class WithoutReferenceLatents(models.KiwiModel):
    """The DiT does not see the reference picture's latents."""

    def conditions(self, batch):
        return super().conditions(batch) | {"reference_latents": None}


class WithoutQueries(models.KiwiModel):
    """The connector reads the states of the instruction's words in place of the queries."""

    def forward(self, batch, *args, **kwargs):
        return super().forward(_with_inputs(batch, _words_alone), *args, **kwargs)


class PlainSource(models.KiwiModel):
    """The source is added as it is, at every noise level: the same as latents joined along their channels."""

    def parts(self):
        dit, source, reference = super().parts()

        def unscaled(*args, source_sigma, **kwargs):
            return dit(*args, source_sigma=torch.ones_like(source_sigma), **kwargs)

        return unscaled, source, reference


def _with_inputs(batch: models.Batch, change: Callable[[MLLMInputs], MLLMInputs]) -> models.Batch:
    return batch if batch.inputs is None else dataclasses.replace(batch, inputs=[change(one) for one in batch.inputs])


def _no_reference(inputs: MLLMInputs) -> MLLMInputs:
    return dataclasses.replace(inputs, reference_slice=None)


_READ = 16
"""The longest instruction has 14 tokens; of a shorter one, what is before it is read too: the end of its clip."""


def _words_alone(inputs: MLLMInputs) -> MLLMInputs:
    first = int(inputs.query_mask[0].nonzero()[0])
    # The queries stay behind those words, which do not see them, and are not read.
    return dataclasses.replace(inputs, query_slice=slice(first - _READ, first))


@dataclass(frozen=True)
class Variant:
    """A way to train, and what the paper says of it."""

    name: str
    claim: str
    """What should be worse, in words."""
    categories: tuple[str, ...]
    """Where it should show."""
    differs: str
    """The first stage that is not as in the whole model; those before are shared with it."""
    model_class: type[models.KiwiModel] = models.KiwiModel
    stages: tuple[str, ...] = build.STAGES
    changes: dict[str, dict] = dataclasses.field(default_factory=dict)
    """By stage, fields of the config."""
    without: tuple[str, ...] = ()
    """Kinds of rows that it is not shown."""
    base: str = build.BASE
    """Folder of the model that it starts from."""

    @property
    def measured(self) -> tuple[str, ...]:
        """What it was taught: references only in stage 3."""
        return bench.CATEGORIES if build.STAGES[-1] in self.stages else edits.CATEGORIES

    @property
    def against(self) -> str:
        """Name of the whole training that it is compared with."""
        return _WHOLE if build.STAGES[-1] in self.stages else _INSTRUCTING


_LESS = "{} are followed less"
_WHOLE, _INSTRUCTING = "everything", "stages 1 and 2"
_WORDS, _NEW_REFERENCES = "base-words", "base-new-references"
"""The base whose connector is whitened for the states of an instruction's words, and the one of ``--start``."""
_PLAN = "plan.json"
_INSTRUCTED = _LESS.format("instructions"), edits.CATEGORIES
_REFERENCED = _LESS.format("references"), edits.REFERENCE_CATEGORIES
_BOTH = _LESS.format("instructions and references"), bench.CATEGORIES


def variants(plan: Plan) -> tuple[Variant, ...]:
    """All that are compared; each is shown as many samples."""
    # Batches of a kind that the three stages take: one, two and three an update.
    taken = sum(count * number for number, count in enumerate(plan.updates, start=1))
    first = build.STAGES[:2]
    every = (
        Variant(_INSTRUCTING, "-", (), "stage3", stages=first),
        Variant("without learnable queries", *_INSTRUCTED, "stage1", WithoutQueries, first, base=_WORDS),
        Variant("the source added as it is", *_INSTRUCTED, "stage2", PlainSource, first),
        Variant(
            "without pictures after stage 1", *_INSTRUCTED, "stage2", stages=first,
            changes={"stage2": {"kinds": ("video",), "accumulation": 2}},
        ),
        Variant(_WHOLE, "-", (), "stage1"),
        Variant("without the reference connector", *_REFERENCED, "stage3", WithoutReferenceConnector),
        Variant("without the reference latents", *_REFERENCED, "stage3", WithoutReferenceLatents),
        Variant(
            "all in one stage", *_BOTH, "stage3", stages=("stage3",),
            changes={"stage3": {"start": "", "steps": taken // 3}},
        ),
        Variant(
            "references alone in stage 3", *_INSTRUCTED, "stage3",
            changes={"stage3": {"kinds": ("ref",), "accumulation": 3}},
        ),
        Variant(
            "without pictures in stage 3", *_INSTRUCTED, "stage3", without=("image", "ref-image"),
            changes={"stage3": {"kinds": ("video", "ref"), "accumulation": 3}},
        ),
    )  # fmt: skip
    if not plan.start:
        return every
    chosen = [one for one in every if one.stages == build.STAGES]
    return tuple(dataclasses.replace(one, stages=plan.stages, base=_NEW_REFERENCES) for one in chosen)


def run(plan: Plan) -> str:
    """Train and measure; returns the table of all that was measured so far.

    What training needs is made as ``train`` makes it, unless it is there. Other processes may then do other seeds and
    variants of the plan at the same time, but for those that share a stage which is still to be trained.
    """
    known = {variant.name: variant for variant in variants(plan)}
    for name in plan.variants:
        if name not in known:
            raise ValueError(f"There is no variant {name!r}; there are {', '.join(map(repr, known))}.")
    settings.keep(plan.output / "ablations" / _PLAN, {
        "start": fingerprint.weights(plan.start) if plan.start else "", "batch_size": plan.batch_size,
        "updates": plan.updates, "items": COUNTS, "steps": bench.STEPS,
    })  # fmt: skip
    if plan.start:
        _base(plan, _NEW_REFERENCES, lambda: _without_references(released.read(plan.start), plan.seed))
        build.do(plan, "rows")
        for kind in KINDS:
            build.cache(plan, kind, _NEW_REFERENCES)
    else:
        for name in build.PREPARED:
            build.do(plan, name)
        _base(plan, _WORDS, lambda: _for_words(released.read(plan.output / build.BASE), plan.seed))
    for seed in plan.seeds:
        for name in plan.variants or known:
            path = _folder(plan, name, seed) / MEASURED
            if not path.is_file():
                files.save_json(_trained(plan, known[name], seed), path)
    return report(plan)


def _base(plan: Plan, name: str, make: Callable[[], Parts]) -> None:
    if not released.is_released(plan.output / name):
        released.write(make(), plan.output / name)


def _for_words(parts: Parts, seed: int) -> Parts:
    """The base of :class:`WithoutQueries`: its connector finds words' states as loud as others find the queries'."""
    return dataclasses.replace(parts, connector=connector.whitened(parts, seed, _words_alone))


def _without_references(parts: Parts, seed: int) -> Parts:
    """A model that knows references with their parts as stage 3 finds them."""
    new = connector.whitened(parts, seed)
    torch.manual_seed(seed)
    width, dim = (load(parts.connector[f"connector.{name}.weight"]).shape[place] for name, place in ((0, 1), (2, 0)))
    queries = architectures.new_connector("nano", width, dim)["ref_queries"]
    own = {name: tensor for name, tensor in parts.connector.items() if not name.startswith("ref_")}
    heads = {name: tensor for name, tensor in new.items() if name.startswith("ref_connector.")}
    embedder = {name: torch.zeros_like(load(tensor)) for name, tensor in parts.ref_embedder.items()}
    return dataclasses.replace(parts, connector=own | heads | {"ref_queries": queries}, ref_embedder=embedder)


def config(plan: Plan, variant: Variant, seed: int, stage: str) -> Config:
    """The run of a stage; variants share what comes before they differ."""
    number = variant.stages.index(stage)
    before = variant.stages[number - 1] if number else None
    changes = {
        "steps": plan.updates[build.STAGES.index(stage)], "seed": seed,
        "validate_every": 0, "exports": ("training",), "validation_rows": 0,
        "output": str(_output(plan, variant, seed, stage)),
        "start": str(_output(plan, variant, seed, before)) if before else "",
        "model": str(plan.output / variant.base),
    }  # fmt: skip
    without = variant.without if _is_own(variant, stage) else ()
    return build.stage_config(plan, stage, without, **changes | variant.changes.get(stage, {}))


def _is_own(variant: Variant, stage: str) -> bool:
    return build.STAGES.index(stage) >= build.STAGES.index(variant.differs)


def _output(plan: Plan, variant: Variant, seed: int, stage: str) -> Path:
    return _folder(plan, variant.name if _is_own(variant, stage) else _WHOLE, seed) / stage


def _folder(plan: Plan, name: str, seed: int | str) -> Path:
    return plan.output / "ablations" / f"{name.replace(' ', '-')}-{seed}"


def _trained(plan: Plan, variant: Variant, seed: int) -> dict[str, dict[str, float]]:
    """Train a variant, as far as it is not yet, and measure it."""
    for stage in variant.stages:
        made = config(plan, variant, seed, stage)
        if not (Path(made.output) / base.EXPORTS / base.CHECKPOINT).is_file():
            trainer.train(made, variant.model_class if _is_own(variant, stage) else models.KiwiModel)
    return evaluate(plan, variant, seed)


@torch.no_grad()
def evaluate(plan: Plan, variant: Variant, seed: int) -> dict[str, dict[str, float]]:
    """Share of items on which a trained variant succeeds, and its mean loss on them, each by category."""
    last = config(plan, variant, seed, variant.stages[-1])
    parts, start = base.read(last.replace(start=last.output))
    model = models.from_parts(parts, last, start, variant.model_class).to(plan.torch_device).eval()
    encoder = Encoder(model, plan.torch_device)
    found = {SUCCESS: {}, LOSS: {}}
    for category in variant.measured:
        chosen = bench.items(COUNTS, [category])
        good, losses = 0, []
        for first in range(0, len(chosen), plan.batch_size):
            part = chosen[first : first + plan.batch_size]
            given = _samples(encoder, part)
            made = _edit(model, encoder, given)
            good += sum(measure.score(item.edit, frames).success for item, frames in zip(part, made))
            for values in validation.losses(model, encoder, given, last.validation_timesteps).values():
                losses += values
        found[SUCCESS][category] = good / len(chosen)
        found[LOSS][category] = float(np.mean(losses))
    return found


def _samples(encoder: Encoder, chosen: Sequence[bench.Item]) -> list[Sample]:
    kind = "video" if chosen[0].edit.reference is None else "ref"
    given = [
        Sample(
            item.name, kind, item.edit.prompt, 0, item.seed, 0, 1.0, None,
            world.render(item.edit.before), world.render(item.edit.after), item.edit.reference_picture(),
        )
        for item in chosen
    ]  # fmt: skip
    batches.encode(encoder, given)
    return given


def _edit(model: models.KiwiModel, encoder: Encoder, given: Sequence[Sample]) -> list[np.ndarray]:
    latents = samples.sample(model, batches.collate(encoder, given), bench.STEPS)
    return [samples.decode(model, one[None]) for one in latents]


def report(plan: Plan) -> str:
    """The tables of what was measured so far, in Markdown, also written into the folder."""
    found = {variant.name: _measured(plan, variant.name) for variant in variants(plan)}
    text = "\n".join([
        "Success, in percent: mean of the seeds (least to most).", "", *_table(plan, found, SUCCESS), "",
        f"Loss on the same items, times {_LOSS_SCALE}.", "", *_table(plan, found, LOSS), "",
    ])  # fmt: skip
    with replacing(plan.output / "ablations" / bench.REPORT) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _measured(plan: Plan, name: str) -> dict[int, dict[str, dict[str, float]]]:
    """What was measured, by seed."""
    every = _folder(plan, name, "*")
    paths = every.parent.glob(f"{every.name}/{MEASURED}")
    return {int(path.parent.name.rpartition("-")[2]): files.read_json(path) for path in sorted(paths)}


_LOSS_SCALE = 1000


def _table(plan: Plan, found: dict[str, dict[int, dict]], measured: str) -> list[str]:
    """One row a variant: of what was measured, each category, what the paper says and whether it is so here."""
    columns = ("variant", *bench.CATEGORIES, "the paper says", "here")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    scale = 100 if measured == SUCCESS else _LOSS_SCALE
    numbers = {
        name: {seed: {key: scale * value for key, value in one[measured].items()} for seed, one in by_seed.items()}
        for name, by_seed in found.items()
    }
    for variant in variants(plan):
        if mine := numbers[variant.name]:
            by_category = ([one[category] for one in mine.values() if category in one] for category in bench.CATEGORIES)
            cells = [_spread(values) for values in by_category]
            verdict = _verdict(numbers[variant.against], mine, variant.categories, 1 if measured == SUCCESS else -1)
            lines.append("| " + " | ".join([variant.name, *cells, variant.claim, verdict]) + " |")
    return lines


def _spread(values: Sequence[float]) -> str:
    return "" if not values else f"{np.mean(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def _verdict(whole: dict[int, dict], mine: dict[int, dict], categories: Sequence[str], better: int) -> str:
    """Whether the paper's direction is seen, seed against seed; ``better`` is 1 if more is, -1 if less is."""
    both = sorted(mine.keys() & whole.keys())
    if not both or not categories:
        return "-"
    changes = [np.mean([mine[seed][category] - whole[seed][category] for category in categories]) for seed in both]
    text = f"{np.mean(changes):+.1f} (seeds {', '.join(f'{change:+.1f}' for change in changes)})"
    if all(better * change < 0 for change in changes):
        return f"agrees: {text}"
    return f"disagrees: {text}" if all(better * change > 0 for change in changes) else f"undecided: {text}"
