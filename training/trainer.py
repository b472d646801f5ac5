"""A run: from a recipe to trained weights, through any number of kills."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from kiwi_core.checkpoints import files

from . import (
    adapters,
    base,
    batches,
    broken,
    checkpoint,
    export,
    fingerprint,
    flow_match,
    lock,
    metrics,
    model,
    optimizers,
    sources,
    validation,
)
from . import samples as sampling
from .config import Config
from .data import loader
from .data.stream import derive
from .ema import EMA
from .encode import Encoder, prepare
from .parallel import Parallel

logger = logging.getLogger(__name__)

CONFIG, CHECKPOINTS, SAMPLES, BAD_BATCH = "config.json", "checkpoints", "samples", "bad_batch.safetensors"
# What may differ when a run goes on.
_FREE = {
    "output", "steps", "accumulation", "workers", "save_every", "keep_checkpoints", "keep_every", "validate_every",
    "sample_every", "sample_rows", "sample_steps", "trackers", "exports", "device", "cache", "max_broken_share",
    "checkpointing", "compile", "lr", "max_grad_norm",
    # Where the data lie. Their digests tell whether they are the same.
    "data", "data_root", "validation_data",
}  # fmt: skip
# How rows are chosen and ordered. Runs of before are version 1, and go on as they began.
_VERSION = 2
_BANDS = 4


class Stopped(Exception):
    """The run was asked to stop, and has saved itself."""


def train(config: Config, model_class: type[model.KiwiModel] = model.KiwiModel) -> list[Path]:
    """Run a recipe to its end, from the newest checkpoint in its output folder on; returns the exports.

    Args:
        model_class: a variant of the model, such as an ablation.

    Raises:
        FileNotFoundError, ValueError: bad input, before any heavy work; too many broken samples; a loss that is not
            finite, with the batch saved.
        Stopped: SIGTERM or SIGINT came; a checkpoint was saved.
    """
    if not config.output:
        raise ValueError("No output folder is given; pass --output.")
    for name in ("output", "cache"):
        path = Path(getattr(config, name) or ".")
        if path.exists() and not path.is_dir():
            raise ValueError(f"--{name} {path} is a file; name a folder.")
    return _Run(config, model_class).run()


class _Run:
    def __init__(self, config: Config, model_class: type[model.KiwiModel] = model.KiwiModel):
        self.config, self.folder = config, Path(config.output)
        self.parallel = Parallel(config)
        self.device = self.parallel.device
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self.checkpoints = self.folder / CHECKPOINTS
        found = checkpoint.newest(self.checkpoints)
        self.step = found.step if found else 0
        self.state = found.state if found else {}
        self.version = self.state.get("version", 1) if found else _VERSION
        self.bases = _bases(config)
        if found:
            self._check_config()

        self.parts, self.start = base.read(config)
        self.data, self.cache, self.rules = sources.read(
            config, self.parts, self.start, self.parallel, as_before=self.version < 2
        )
        self.kinds = list(self.data.training)
        self.accumulation = config.accumulation or len(self.kinds)
        held_out = self.state.get("validation", self.data.validation_digest)
        if found and (self.state.get("data"), held_out) != (self.data.digest, self.data.validation_digest):
            raise ValueError(
                f"The data have changed since the run in {self.folder} began (rows, shapes or names of media); bring "
                "the old ones back, or use another --output."
            )
        for kind in self.kinds:
            _check_trains(config, kind)
        self.broken = broken.Broken(
            self.folder, config.max_broken_share, self._of_rank("drawn"), self._of_rank("bad_draws")
        )
        # What every process finds, one tells.
        self._tell = self.broken.tell if self.parallel.is_main else self.broken.known.update
        self._tell(self.data.broken)
        unreadable = len(self.data.broken)
        readable = [*self.data.training.values(), *self.data.validation.values()]
        self.broken.check(unreadable, unreadable + sum(len(part.rows) for part in readable))

        if self.cache and self.parallel.is_main:
            self.cache.tell(self.data)
        self.model = model.from_parts(self.parts, config, self.start, model_class)
        trained = self.model.trained()
        logger.info("%s: %s numbers are trained.", config.recipe, f"{sum(p.numel() for p in trained.values()):,}")
        self._restore_model(found)
        for module in self._modules_in_use():
            module.to(self.device)
        if config.compile:
            for block in self.model.dit.blocks:
                block.compile(dynamic=False)
        self.model.shared = self.parallel.processes > 1
        self.encoder = Encoder(self.model, self.device)
        self.forward, self.optimizer = self.parallel.prepare(
            self.model, lambda parameters: optimizers.build(config, parameters, self.device), self.accumulation
        )
        if found:
            self.parallel.load_optimizer(self.model, self.optimizer, found.tensors("optimizer"))
        self.ema = EMA(self.model.trained(), config.ema_decay) if config.ema_decay else None
        if self.ema and found:
            self.parallel.load(self.ema.average, found.tensors("ema"))
        # The stages of a curriculum share data, and are not to see the same part of it in the same order.
        mine = derive(config.seed, config.recipe, base.start_mark(config))
        self.order = self.state.get("order", config.seed if found else mine)  # older runs had the seed alone
        self.taken: dict[str, int] = {}  # batches so far, by kind
        self.iterators = {kind: self._batches(kind, dataset) for kind, dataset in self._datasets().items()}
        self.metrics = metrics.Metrics(self.folder, self.step, self._tracker()) if self.parallel.is_main else None
        self._stop = False

    # Setting up

    def _take_lock(self):
        busy = f"Another run writes to {self.folder}; wait for it, or use another --output."
        return lock.take(self.folder / ".lock", busy) if self.parallel.is_main else None

    def _check_config(self) -> None:
        """The run that is in the folder must be this one."""
        path, mine = self.folder / CONFIG, json.loads(json.dumps(dataclasses.asdict(self.config)))
        if path.is_file():
            theirs = files.read_json(path)
            same = _FREE | {name for name, mark in self.state.get("bases", {}).items() if mark == self.bases[name]}
            differing = [name for name in mine if name not in same and name in theirs and theirs[name] != mine[name]]
            if self.config.schedule == "cosine" and theirs.get("steps") != mine["steps"]:
                differing.append("steps")
            if differing:
                name, way = differing[0], "use another --output"
                if name == "steps":  # whose rate falls to nothing at the last one
                    way = f"to train on, use --start {self.folder} with another --output"
                raise ValueError(
                    f"{self.folder} holds a run with other settings ({name} is {theirs.get(name)!r} there and "
                    f"{mine[name]!r} here); {way}."
                )
            for name in ("lr", "max_grad_norm"):
                if theirs.get(name) != mine[name]:
                    logger.warning("%s was %s so far and is %s from here on.", name, theirs.get(name), mine[name])

    def _of_rank(self, name: str) -> int:
        """A count of this process in the checkpoint; 0 if it has none."""
        found = self.state.get(name, [])
        return found[self.parallel.rank] if self.parallel.rank < len(found) else 0

    @property
    def _saved(self) -> int:
        """Number of processes that the checkpoint is of."""
        return self.state.get("processes", 1)

    def _restore_model(self, found: checkpoint.Checkpoint | None) -> None:
        if found is None:
            return
        tensors, trained = found.tensors("model"), self.model.trained()
        if tensors.keys() != trained.keys():
            raise ValueError(f"{found.path} is of another run; use another --output.")
        self.parallel.load(trained, tensors)
        logger.info("Goes on from %s.", found.path)

    def _modules_in_use(self) -> Iterator[torch.nn.Module]:
        yield from (part for part in (self.model.dit, self.model.vae_condition, self.model.ref_vae_condition) if part)
        if self.config.trains_mllm:
            text = self.model.mllm.model.language_model
            yield from (self.model.mllm.connector, text)

    def _datasets(self) -> dict[str, loader.Samples]:
        config = self.config
        datasets = {
            kind: loader.Samples(
                part.rows, part.shapes, part.groups, kind, config.batch_size, self.order, self.rules, self.cache,
                config.reference_scales, config.timestep_sampling == "spread",
                stack=functools.partial(batches.stack, assemble=self.encoder.assemble),
                prepare=functools.partial(prepare, limits=self.model.mllm.limits), by_file=self.version < 2,
            )
            for kind, part in self.data.training.items()
        }  # fmt: skip
        if config.epochs == "shortest":
            shortest = min(dataset.stream.batches_per_epoch for dataset in datasets.values())
            for dataset in datasets.values():
                dataset.epoch = shortest
        return datasets

    def _batches(self, kind: str, dataset: loader.Samples) -> Iterator[loader.Loaded]:
        processes, rank = self.parallel.processes, self.parallel.rank
        taken = self.state.get("taken", {}).get(kind, [0])
        # With another number of processes, none of what was seen comes again in this epoch.
        first = taken[rank] if self._saved == processes else -(-max(taken) * self._saved // processes)
        self.taken[kind] = first
        return loader.batches(dataset, first, rank, processes, self.config.workers)

    def _next(self, kind: str) -> loader.Loaded:
        """The kind's next batch that has samples."""
        while True:
            loaded = next(self.iterators[kind])
            self.taken[kind] += 1
            self.broken.draw(len(loaded.samples), loaded.broken)
            if loaded.samples:
                return loaded

    # The loop

    def run(self) -> list[Path]:
        config = self.config
        if self.parallel.is_main:
            files.save_json(dataclasses.asdict(config), self.folder / CONFIG)
        self._look()  # at what the run starts from, or what a kill came between
        with self._signals():
            bar = tqdm(
                total=config.steps, initial=self.step, desc=config.recipe, unit="step", dynamic_ncols=True,
                disable=not self.parallel.is_main,
            )  # fmt: skip
            with bar:
                while self.step < config.steps:
                    values = self._update()
                    bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
                    bar.update()
                    self._after(values)
        made = []
        with self._averaged():
            trained = self.parallel.full(self.model.trained())
            if self.parallel.is_main:
                alphas = adapters.alphas(self.model)
                made = export.write(config, trained, alphas, self.parts, self.start, self.data.digest, self.step)
                metrics.plot(self.folder)
        self.parallel.finish()
        return made

    def _update(self) -> dict:
        """One update of the weights; returns what is logged."""
        config, started = self.config, time.perf_counter()
        rate = optimizers.learning_rate(config, self.step)
        optimizers.set_rate(self.optimizer, rate)
        torch.manual_seed(derive(config.seed, "step", self.step, self.parallel.rank))  # for dropout
        self.forward.train()
        losses: list[tuple[str, int, float]] = []
        taken: list[model.Batch] = []
        for turn in range(self.accumulation):
            kind = self.kinds[(self.step * self.accumulation + turn) % len(self.kinds)]
            loaded = self._next(kind)
            batch = batches.collate(self.encoder, loaded.samples, loaded.stacked)
            taken.append(batch)
            with self.parallel.batch(last=turn == self.accumulation - 1):
                each = self.forward(batch)
                if not each.isfinite().all():
                    self._bad([batch], "loss")
                self.parallel.backward(each.mean())
            losses += zip([kind] * len(batch), batch.timestep_ids.tolist(), each.detach().float().tolist())
        norm = self.parallel.clip(self.model.trained().values(), config.max_grad_norm)
        if norm is not None and not math.isfinite(norm):
            self._bad(taken, "gradient")
        self.parallel.update(self.optimizer)
        self.step += 1
        if self.ema:
            self.ema.update(self.step)
        values = self._numbers(self.parallel.gather_list(losses))
        values |= {"lr": rate, "seconds": time.perf_counter() - started}
        if norm is not None:
            values["gradient_norm"] = norm
        return values

    def _numbers(self, losses: list[tuple[str, int, float]]) -> dict:
        groups: dict[str, list[float]] = {"loss": []}
        _, timesteps, weighted = zip(*losses)
        plain = validation.unweighted(self.config, timesteps, weighted)
        sigmas, size = flow_match.training_sigmas(), flow_match.schedule.NUM_TRAIN_TIMESTEPS // _BANDS
        for (kind, timestep, loss), without in zip(losses, plain):
            band = timestep // size
            edges = sigmas[band * size].item(), sigmas[min((band + 1) * size, len(sigmas) - 1)].item()
            name = f"loss/sigma/{edges[0]:.2f}-{edges[1]:.2f}"
            for group in ("loss", f"loss/kind/{kind}"):
                groups.setdefault(group, []).append(loss)
            if not math.isnan(without):
                for group in (metrics.UNWEIGHTED, name):
                    groups.setdefault(group, []).append(without)
        return {name: sum(values) / len(values) for name, values in groups.items()}

    def _bad(self, taken: list[model.Batch], what: str) -> None:
        """Save the batches of an update and give up: what comes after a number that is not finite is worthless."""
        path, rows = self.folder / BAD_BATCH, [row for batch in taken for row in batch.row_ids]
        tensors = {
            f"{number}.{name}": value.detach().cpu().contiguous()
            for number, batch in enumerate(taken)
            for name, value in vars(batch).items()
            if isinstance(value, torch.Tensor)
        }
        files.save_tensors(tensors, path, {"rows": json.dumps(rows), "step": str(self.step + 1)})
        raise ValueError(
            f"The {what} is not finite at update {self.step + 1} (rows {', '.join(rows)}); the batch is in {path}. "
            "With a lower --lr or --max-grad-norm the command goes on from the last checkpoint; to leave rows out, use "
            "another --output."
        )

    def _after(self, values: dict) -> None:
        config, step = self.config, self.step
        if self.metrics:
            self.metrics.add(step, values)
        stop = self.parallel.any(self._stop)
        if step % config.save_every == 0 or step == config.steps or stop:
            self._save()
        # After saving: these take memory of their own.
        self._look()
        if stop and step < config.steps:
            raise Stopped(f"Stopped after update {step}; the same command goes on from there.")

    def _look(self) -> None:
        """Validation and sample clips that are due now and not there yet."""
        config, step = self.config, self.step

        def due(every: int) -> bool:
            return bool(every) and (step % every == 0 or step == config.steps)

        validate = due(config.validate_every) and bool(self.data.validation)
        sample = due(config.sample_every) and step > 0
        if not (validate or sample):
            return
        lines = metrics.read(self.folder) if self.parallel.is_main else []
        validated = any(line["step"] == step and "validation/loss" in line for line in lines)
        folder = self.folder / SAMPLES / f"step-{step:08d}"
        validated, sampled = self.parallel.of_main((validated, folder.is_dir()))
        if validate and not validated:
            found = self._validate()
            if self.metrics:
                self.metrics.add(step, found)
        if sample and not sampled:
            self._sample(folder)

    def _save(self) -> None:
        trained = self.parallel.full(self.model.trained())
        optimizer = self.parallel.full_optimizer(self.model, self.optimizer)
        averages = self.parallel.full(self.ema.average) if self.ema else {}
        state = {
            "processes": self.parallel.processes,
            "taken": {kind: self.parallel.gather_list([count]) for kind, count in self.taken.items()},
            "drawn": self.parallel.gather_list([self.broken.drawn]),
            "bad_draws": self.parallel.gather_list([self.broken.bad]),
            "data": self.data.digest,
            "validation": self.data.validation_digest,
            "order": self.order,
            "version": self.version,
            "bases": self.bases,
        }
        if self.parallel.is_main:
            tensors = {"model": trained, "optimizer": optimizer, "ema": averages}
            checkpoint.save(self.checkpoints, self.step, tensors, state)
            checkpoint.prune(self.checkpoints, self.config.keep_checkpoints, self.config.keep_every)
        self.parallel.wait()

    # Looking at it

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            yield

    def _samples(self, rows: dict, count: int | None = None) -> Iterator[loader.Sample]:
        return validation.samples(
            rows, self.rules, self.cache, self.config.reference_scales, count, self._tell
        )

    def _validate(self) -> dict:
        self.forward.eval()
        chosen = self._samples(self.data.validation)
        with self._averaged():
            found = validation.losses(self.forward, self.encoder, chosen, self.config.validation_timesteps)
        return validation.summary(found)

    def _sample(self, folder: Path) -> None:
        self.forward.eval()
        temporary = folder.with_name(f".{folder.name}.tmp")
        with self._averaged():
            for sample in self._samples(self.data.validation or self.data.training, self.config.sample_rows):
                batch = batches.collate(self.encoder, [sample])
                latents = sampling.sample(self.forward, batch, self.config.sample_steps, self.config.shift)
                if self.parallel.is_main:
                    sampling.write(self.model, batch, latents, temporary)
        self.encoder.rest()
        if self.parallel.is_main and temporary.is_dir():
            temporary.rename(folder)
            logger.info("Sample clips are in %s.", folder)

    def _tracker(self):
        if not self.config.trackers:
            return None
        return self.parallel.start_trackers(self.config, self.folder, self.step)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and the first Ctrl-C end the run after the update at hand, with a checkpoint."""

        def stop(number, frame):
            if self._stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop = True

        try:
            before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _bases(config: Config) -> dict[str, str]:
    """What the run starts from, wherever it lies, by field; the name itself of a model on the hub."""
    given = {name: getattr(config, name) for name in ("model", "mllm", "vae", "connector")}
    given["start"] = str(base.start_file(config.start)) if config.start else ""
    return {name: fingerprint.weights(path) if path and Path(path).exists() else path for name, path in given.items()}


def _check_trains(config: Config, kind: str) -> None:
    """ValueError if nothing that is trained has a part in samples of a kind."""
    everything = config.dit != "frozen" or config.mllm_rank or config.train_connector
    own = kind in config.queries or (config.use_source and config.train_source_embedder)
    of_references = kind == "ref" and (config.train_ref_connector or config.train_ref_embedder)
    if not (everything or own or of_references):
        raise ValueError(f"Nothing that is trained has a part in {kind} rows; set --kinds without it, or --dit lora.")


def export_run(folder: Path, exports: Sequence[str] = ()) -> list[Path]:
    """Write the exports of a run from its newest checkpoint, whether it has ended or not.

    Args:
        folder: the run's. exports: see :class:`Config`; the run's own without.

    Raises:
        FileNotFoundError, ValueError: no run there, or its model is no longer what it was.
    """
    found = checkpoint.newest(folder / CHECKPOINTS)
    if found is None:
        raise FileNotFoundError(f"{folder} has no checkpoint; give the output folder of a run.")
    known = {field.name for field in dataclasses.fields(Config)}
    settings = {name: value for name, value in files.read_json(folder / CONFIG).items() if name in known}
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    config = Config(**settings | {"output": str(folder)} | ({"exports": tuple(exports)} if exports else {}))
    parts, start = base.read(config)
    built = model.from_parts(parts, config, start)
    trained = found.tensors("ema") or found.tensors("model")
    if trained.keys() != built.trained().keys():
        raise ValueError(f"{found.path} is not of the model in {config.model}; bring the old one back.")
    digest = found.state.get("data", "")
    return export.write(config, trained, adapters.alphas(built), parts, start, digest, found.step)
