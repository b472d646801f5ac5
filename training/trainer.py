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

from . import adapters, base, batches, cache, checkpoint, export, flow_match, metrics, model, optimizers, validation
from . import samples as sampling
from .config import Config
from .data import dataset, loader
from .data.index import Index
from .data.prepare import Rules
from .data.stream import derive
from .ema import EMA
from .encode import Encoder
from .parallel import Parallel

logger = logging.getLogger(__name__)

CONFIG, CHECKPOINTS, BROKEN, SAMPLES, BAD_BATCH = (
    "config.json", "checkpoints", "broken.jsonl", "samples", "bad_batch.safetensors",
)  # fmt: skip
# What may differ when a run goes on.
_FREE = {
    "output", "steps", "accumulation", "workers", "save_every", "keep_checkpoints", "keep_every", "validate_every",
    "sample_every", "sample_rows", "sample_steps", "trackers", "exports", "device", "cache", "max_broken_share",
    "checkpointing",
}  # fmt: skip
_BANDS = 4
# Below so many samples a share of broken ones says nothing.
_FEW = 20


class Stopped(Exception):
    """The run was asked to stop, and has saved itself."""


def rules_of(config: Config, multiple: int) -> Rules:
    """How a recipe shapes samples; ``multiple`` is that of the model's frame sizes."""
    return Rules(
        config.max_pixels, config.max_frames, multiple, config.frame_rate, config.aspects, config.lengths
    )


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
        self.data, self.cache = read_data(config, self.parts, self.start)
        self.kinds = list(self.data.training)
        self.accumulation = config.accumulation or len(self.kinds)
        self.broken = dict(self.state.get("broken", {}))
        self.drawn, self.bad_draws = self._counts("drawn"), self._counts("bad_draws")
        self._report_broken(self.data.broken)
        usable = sum(len(part.rows) for part in self.data.training.values())
        self._check_share(len(self.data.broken), usable + len(self.data.broken), few=1)

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

    def _counts(self, name: str) -> int:
        return int(self.state.get(name, [0] * (self.parallel.rank + 1))[min(self.parallel.rank, self._saved - 1)])

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
            part.rows, part.shapes, part.groups, kind, config.batch_size, config.seed, self._rules, self.cache,
            config.reference_scales, config.timestep_sampling == "spread",
        )  # fmt: skip
        processes, rank = self.parallel.processes, self.parallel.rank
        taken = self.state.get("taken", {}).get(kind, [0])
        # With another number of processes, none of what was seen comes again in this epoch.
        first = taken[rank] if self._saved == processes else -(-max(taken) * self._saved // processes)
        self.taken = {**getattr(self, "taken", {}), kind: first}
        return loader.batches(dataset_, first, rank, processes, config.workers)

    @property
    def _rules(self) -> Rules:
        return rules_of(self.config, self.model.pipe.multiple)

    # Broken samples

    def _report_broken(self, found) -> None:
        new = {row: text for row, text in found if row not in self.broken}
        self.broken |= new
        for row, text in new.items():
            logger.warning("%s is left out: %s", row, text)
        if new and self.parallel.is_main:
            with (self.folder / BROKEN).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"row": row, "problem": text}) + "\n" for row, text in new.items())

    def _check_share(self, bad: int, total: int, few: int = _FEW) -> None:
        if bad and total >= few and bad > self.config.max_broken_share * total:
            first = next(iter(self.broken.items()))
            raise ValueError(
                f"{bad} of {total} samples cannot be read (the first is {first[0]}: {first[1]}); see {BROKEN} in the "
                "output folder, mend them, or raise --max-broken-share."
            )

    def _next(self, kind: str) -> loader.Loaded:
        """The kind's next batch that has samples."""
        while True:
            loaded = next(self.iterators[kind])
            self.taken[kind] += 1
            self.drawn += len(loaded.samples) + len(loaded.broken)
            self.bad_draws += len(loaded.broken)
            self._report_broken(loaded.broken)
            self._check_share(self.bad_draws, self.drawn)
            if loaded.samples:
                return loaded
            if self.bad_draws == self.drawn and self.drawn >= _FEW:
                raise ValueError(f"None of the {kind} samples can be read; run check-data.")

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
            "drawn": self.parallel.gather_list([self.drawn]),
            "bad_draws": self.parallel.gather_list([self.bad_draws]),
            "data": self.data.digest,
            "broken": dict(self.parallel.gather_list(list(self.broken.items()))),
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
            validation.samples(self.data.validation, self._rules, self.cache, self.config.reference_scales, count)
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
            rows, self._rules, self.cache, self.config.reference_scales, self.config.sample_rows
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


def read_data(config: Config, parts, start) -> tuple[dataset.Data, cache.Cache | None]:
    """Rows of a run, and its cache if it has one."""
    multiple = 2 * (16 if parts.source_embedder["patch_embedding.weight"].shape[1] == 48 else 8)
    folder = Path(config.cache or config.output)
    index, rules = Index(folder / "media.jsonl"), rules_of(config, multiple)
    data = dataset.read(
        config.data, config.data_root, rules, parts.limits.max_object_token, index, config.kinds,
        config.validation_data, config.validation_rows,
    )  # fmt: skip
    if not config.cache:
        return data, None
    cache.check_settings(config, data.training)
    kept = cache.Cache(
        config.cache, index, cache.weights_of(parts, start, config), rules, parts.limits, config.rounding,
        config.reference_scales,
    )  # fmt: skip
    return data, kept


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
