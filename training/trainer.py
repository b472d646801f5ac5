"""A run: from a recipe to trained weights, through any number of kills."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import math
import signal
import time
from collections.abc import Iterator
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
    flow_match,
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
from .encode import Encoder
from .parallel import Parallel

logger = logging.getLogger(__name__)

CONFIG, CHECKPOINTS, SAMPLES, BAD_BATCH = "config.json", "checkpoints", "samples", "bad_batch.safetensors"
# What may differ when a run goes on.
_FREE = {
    "output", "steps", "accumulation", "workers", "save_every", "keep_checkpoints", "keep_every", "validate_every",
    "sample_every", "sample_rows", "sample_steps", "trackers", "exports", "device", "cache", "max_broken_share",
    "checkpointing",
}  # fmt: skip
_BANDS = 4


class Stopped(Exception):
    """The run was asked to stop, and has saved itself."""


def train(config: Config) -> list[Path]:
    """Run a recipe to its end, from the newest checkpoint in its output folder on; returns the exports.

    Raises:
        FileNotFoundError, ValueError: bad input, before any heavy work; too many broken samples; a loss that is not
            finite, with the batch saved.
        Stopped: SIGTERM or SIGINT came; a checkpoint was saved.
    """
    if not config.output:
        raise ValueError("No output folder is given; pass --output.")
    return _Run(config).run()


class _Run:
    def __init__(self, config: Config):
        self.config, self.folder = config, Path(config.output)
        self.parallel = Parallel(config)
        self.device = self.parallel.device
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self._check_config()
        self.checkpoints = self.folder / CHECKPOINTS
        found = checkpoint.newest(self.checkpoints)
        self.step = found.step if found else 0
        self.state = found.state if found else {}

        self.parts, self.start = base.read(config)
        self.data, self.cache, self.rules = sources.read(config, self.parts, self.start)
        self.kinds = list(self.data.training)
        self.accumulation = config.accumulation or len(self.kinds)
        folder = self.folder if self.parallel.is_main else None
        counts = self._of_rank("drawn", 0), self._of_rank("bad_draws", 0)
        self.broken = broken.Broken(folder, config.max_broken_share, self.state.get("broken", {}), *counts)
        self.broken.tell(self.data.broken)
        unreadable = len(self.data.broken)
        self.broken.check(unreadable, unreadable + sum(len(part.rows) for part in self.data.training.values()))

        self.model = model.from_parts(self.parts, config, self.start)
        trained = self.model.trained()
        logger.info("%s: %s numbers are trained.", config.recipe, f"{sum(p.numel() for p in trained.values()):,}")
        self._restore_model(found)
        for module in self._modules_in_use():
            module.to(self.device)
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
        self.iterators = {kind: self._batches(kind) for kind in self.kinds}
        self.metrics = None
        self._stop = False

    # Setting up

    def _take_lock(self):
        if not self.parallel.is_main:
            return None
        file = (self.folder / ".lock").open("w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which workers would hold on to
        except OSError:
            raise ValueError(f"Another run writes to {self.folder}; wait for it, or use another --output.") from None
        return file

    def _check_config(self) -> None:
        """The run that is in the folder must be this one."""
        path, mine = self.folder / CONFIG, json.loads(json.dumps(dataclasses.asdict(self.config)))
        if path.is_file():
            theirs = files.read_json(path)
            differing = [name for name in mine if name not in _FREE and theirs.get(name) != mine[name]]
            if self.config.schedule == "cosine" and theirs.get("steps") != mine["steps"]:
                differing.append("steps")
            if differing:
                name = differing[0]
                raise ValueError(
                    f"{self.folder} holds a run with other settings ({name} is {theirs.get(name)!r} there and "
                    f"{mine[name]!r} here); use another --output."
                )

    def _of_rank(self, name: str, default: int) -> int:
        """What the checkpoint says of this process."""
        found = self.state.get(name, [])
        return found[self.parallel.rank] if self.parallel.rank < len(found) else default

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

    def _batches(self, kind: str) -> Iterator[loader.Loaded]:
        part, config = self.data.training[kind], self.config
        dataset_ = loader.Samples(
            part.rows, part.shapes, part.groups, kind, config.batch_size, config.seed, self.rules, self.cache,
            config.reference_scales, config.timestep_sampling == "spread",
        )  # fmt: skip
        processes, rank = self.parallel.processes, self.parallel.rank
        taken = self.state.get("taken", {}).get(kind, [0])
        # With another number of processes, none of what was seen comes again in this epoch.
        first = taken[rank] if self._saved == processes else -(-max(taken) * self._saved // processes)
        self.taken = {**getattr(self, "taken", {}), kind: first}
        return loader.batches(dataset_, first, rank, processes, config.workers)

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
            files.save_json(json.loads(json.dumps(dataclasses.asdict(config))), self.folder / CONFIG)
        self.metrics = metrics.Metrics(self.folder, self.step, self._tracker()) if self.parallel.is_main else None
        if self.step == 0 and self.data.validation and config.validate_every:
            first = self._validate()  # what the run starts from
            if self.metrics:
                self.metrics.add(0, first)
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
        for turn in range(self.accumulation):
            kind = self.kinds[(self.step * self.accumulation + turn) % len(self.kinds)]
            batch = batches.collate(self.encoder, self._next(kind).samples)
            with self.parallel.batch(last=turn == self.accumulation - 1):
                each = self.forward(batch)
                if not each.isfinite().all():
                    self._bad(batch, "loss")
                self.parallel.backward(each.mean())
            losses += zip([kind] * len(batch), batch.timestep_ids.tolist(), each.detach().float().tolist())
        norm = self.parallel.clip(self.model.trained().values(), config.max_grad_norm)
        if norm is not None and not math.isfinite(norm):
            self._bad(batch, "gradient")
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
        sigmas, size = flow_match.training_sigmas(), flow_match.schedule.NUM_TRAIN_TIMESTEPS // _BANDS
        for kind, timestep, loss in losses:
            band = timestep // size
            edges = sigmas[band * size].item(), sigmas[min((band + 1) * size, len(sigmas) - 1)].item()
            name = f"loss/sigma/{edges[0]:.2f}-{edges[1]:.2f}"
            for group in ("loss", f"loss/kind/{kind}", name):
                groups.setdefault(group, []).append(loss)
        return {name: sum(values) / len(values) for name, values in groups.items()}

    def _bad(self, batch: model.Batch, what: str) -> None:
        """Save the batch and give up: what comes after a number that is not finite is worthless."""
        path = self.folder / BAD_BATCH
        tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        files.save_tensors(tensors, path, {"rows": json.dumps(batch.row_ids), "step": str(self.step + 1)})
        raise ValueError(
            f"The {what} is not finite at update {self.step + 1} (rows {', '.join(batch.row_ids)}); the batch is in "
            f"{path}. Lower --lr, or look at those rows; the same command goes on from the last checkpoint."
        )

    def _after(self, values: dict) -> None:
        config, step = self.config, self.step

        def due(every: int) -> bool:
            return bool(every) and (step % every == 0 or step == config.steps)

        if self.data.validation and due(config.validate_every):
            values |= self._validate()
        if due(config.sample_every):
            self._sample()
        if self.metrics:
            self.metrics.add(step, values)
        stop = self.parallel.any(self._stop)
        if step % config.save_every == 0 or step == config.steps or stop:
            self._save()
        if stop and step < config.steps:
            raise Stopped(f"Stopped after update {step}; the same command goes on from there.")

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
            "broken": dict(self.parallel.gather_list(list(self.broken.known.items()))),
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

    def _held_out(self, count: int | None = None) -> list[loader.Sample]:
        return list(
            validation.samples(self.data.validation, self.rules, self.cache, self.config.reference_scales, count)
        )

    def _validate(self) -> dict:
        self.forward.eval()
        with self._averaged():
            found = validation.losses(
                self.forward, self.encoder, self._held_out(), self.config.validation_timesteps
            )
        return validation.summary(found)

    def _sample(self) -> None:
        rows = self.data.validation or self.data.training
        self.forward.eval()
        folder = self.folder / SAMPLES / f"step-{self.step:08d}"
        chosen = validation.samples(
            rows, self.rules, self.cache, self.config.reference_scales, self.config.sample_rows
        )
        with self._averaged():
            for sample in chosen:
                batch = batches.collate(self.encoder, [sample])
                latents = sampling.sample(self.forward, batch, self.config.sample_steps, self.config.shift)
                if self.parallel.is_main:
                    sampling.write(self.model, batch, latents, folder)
        if self.parallel.is_main:
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


def export_newest(config: Config) -> list[Path]:
    """Write the exports of a run from its newest checkpoint, whether it has ended or not.

    Raises:
        FileNotFoundError, ValueError: no checkpoint there, or files that do not go together.
    """
    found = checkpoint.newest(Path(config.output) / CHECKPOINTS)
    if found is None:
        raise FileNotFoundError(f"{config.output or '--output'} has no checkpoint; give the output folder of a run.")
    parts, start = base.read(config)
    built = model.from_parts(parts, config, start)
    trained = found.tensors("ema") or found.tensors("model")
    if trained.keys() != built.trained().keys():
        raise ValueError(f"{found.path} is of another recipe or other settings; give those of the run.")
    digest = found.state.get("data", "")
    return export.write(config, trained, adapters.alphas(built), parts, start, digest, found.step)
