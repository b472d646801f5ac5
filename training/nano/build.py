"""From nothing to the small model: the parts first, then the curriculum. Every step goes on after a kill.

    python -m training.nano train --output output/nano

does every step of :data:`STEPS`, on a GPU as soon as what it needs is there, on a CPU one by one; each is a command of
its own too. What a step has finished is not done again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from kiwi_core import vae as vae_ops
from kiwi_core.atomic import replacing
from kiwi_core.checkpoints import files, qwen_keys, released, vae_keys
from kiwi_core.checkpoints.lazy import load
from kiwi_core.checkpoints.parts import Parts

from .. import architectures, base, cache_data, lock, metrics, recipes, trainer
from ..config import KINDS, Config
from . import autoencoder, backbone, connector, edits, feed, language, pretraining, rows, settings, tokens

logger = logging.getLogger(__name__)

STAGES = ("stage1", "stage2", "stage3")
BASE, ENCODERS, MODEL, PLAN = "base", "encoders", "kiwi-edit-nano", "plan.json"
_LOGGED = 10
"""One update in so many is kept in the logs beside the weights."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is trained. ``scale`` shortens everything, for a trial."""

    output: Path
    scale: float = 1.0
    workers: int = 2
    seed: int = 0
    device: str = ""
    vae_file: str = ""
    """A trained VAE to start from instead of training one."""
    fused: bool = True
    """Whether VAE and DiT are trained with compiled kernels, which take a minute or two to make."""
    batch_size: int = 32
    clips: int = 8
    pictures: int = 48
    """Clips, and in turn with them pictures, in a batch of the VAE's."""
    questions: int = 64
    described: int = 64
    """Clips or pictures in a batch of the DiT's, which learns to make them from descriptions."""
    vae_steps: int = 9000
    decoder_steps: int = 3000
    """Of its decoder alone, after that."""
    language_steps: int = 2500
    backbone_steps: int = 1500
    stage_steps: tuple[int, int, int] = (200, 1200, 11_000)
    rows: tuple[int, int, int, int] = (12_000, 6500, 6500, 5000)
    """Of each of :data:`training.nano.rows.KINDS`."""

    free = ("output", "workers", "device", "fused")
    """Fields that may change between two starts: what is trained does not depend on them."""

    def settings(self) -> dict[str, object]:
        """What may not."""
        names = (field.name for field in dataclasses.fields(Plan) if field.name not in self.free)
        return {name: getattr(self, name) for name in names}

    def count(self, number: int) -> int:
        """A number of steps or rows at this scale."""
        return max(2, round(number * self.scale))

    @property
    def torch_device(self) -> torch.device:
        """Where it is computed."""
        return torch.device("cuda" if torch.cuda.is_available() and self.device != "cpu" else "cpu")


def vae(plan: Plan) -> None:
    """Train the VAE, and make the published statistics its own."""
    folder, device = plan.output / "vae", plan.torch_device
    if plan.vae_file:
        given = files.load_tensors(plan.vae_file)
        return _save({name: tensor.float() for name, tensor in given.items()}, folder / "vae.safetensors")
    torch.manual_seed(plan.seed)
    objective = autoencoder.Objective(autoencoder.new(), fused=plan.fused)
    _reconstruct(plan, folder, objective, plan.seed, plan.vae_steps, 2e-3)
    trained = objective.vae.eval().requires_grad_(False)
    latents, others = [], feed.ClipFeed(plan.clips, 0, 0, plan.seed + 1, splits=edits.SPLITS)
    for step in range(1, 16, 2):  # clips
        with torch.no_grad(), autoencoder.whole_clips(trained):
            hidden = trained.quant_conv(trained.encoder(feed.pixels(others[step], device)))
        latents.append(hidden.chunk(2, dim=1)[0].transpose(0, 1).flatten(1).cpu())
    latents = torch.cat(latents, dim=1)
    autoencoder.fold_statistics(trained.cpu(), latents.mean(dim=1), latents.std(dim=1))
    _save(vae_keys.vae_to_original(trained.state_dict()), folder / "vae.safetensors")


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    files.save_tensors({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)


def _reconstruct(plan: Plan, folder: Path, objective: torch.nn.Module, seed: int, steps: int, rate: float) -> None:
    """Train what an objective of the VAE's trains, on all that there is to see."""
    device = plan.torch_device
    torch.backends.cudnn.benchmark = True  # two shapes, thousands of steps
    pretraining.train(
        folder, objective, feed.ClipFeed(plan.clips, plan.pictures, 0.4, seed, splits=edits.SPLITS),
        lambda clips: objective(feed.pixels(clips, device), feed.mask(clips, device)),
        pretraining.Schedule(plan.count(steps), rate, seed=plan.seed), device, plan.workers,
    )  # fmt: skip


def decoder(plan: Plan) -> None:
    """Train the VAE's decoder on alone; what the others are trained on does not depend on it."""
    folder, device = plan.output / "decoder", plan.torch_device
    trained = load_vae(plan).requires_grad_(True).to(device)
    objective = autoencoder.DecoderObjective(trained, fused=plan.fused)
    _reconstruct(plan, folder, objective, plan.seed + 3, plan.decoder_steps, 1e-3)
    _save(vae_keys.vae_to_original(trained.cpu().state_dict()), folder / "vae.safetensors")


def load_vae(plan: Plan) -> AutoencoderKLWan:
    """The trained VAE."""
    return vae_ops.load_vae(files.load_tensors(plan.output / "vae" / "vae.safetensors"))


def language_model(plan: Plan) -> None:
    """Train the language model."""
    folder, device = plan.output / "language", plan.torch_device
    tokenizer = tokens.build()
    torch.manual_seed(plan.seed)
    objective = language.Objective(language.new(tokenizer), language.pad_ids(tokenizer))
    pretraining.train(
        folder, objective, language.QuestionFeed(tokenizer, plan.questions, plan.seed),
        lambda batch: objective(batch, device),
        pretraining.Schedule(plan.count(plan.language_steps), 2e-3, seed=plan.seed), device, plan.workers,
    )  # fmt: skip
    _save(qwen_keys.published(objective.model.state_dict()), folder / "qwen.safetensors")


def video_model(plan: Plan) -> None:
    """Train the DiT to make clips from descriptions."""
    folder, device = plan.output / "backbone", plan.torch_device
    torch.manual_seed(plan.seed)
    # The VAE is most of the time on a CPU, and in 16 bits half of it.
    half = load_vae(plan).to(device, torch.bfloat16)
    objective = backbone.Objective(backbone.new(), half, tokens.build())
    pretraining.train(
        folder, objective, feed.ClipFeed(plan.described, plan.described, 0, plan.seed + 2),
        lambda clips: objective(clips, device),
        pretraining.Schedule(plan.count(plan.backbone_steps), 1e-3, seed=plan.seed), device, plan.workers,
    )  # fmt: skip
    _save(objective.transformer.state_dict(), folder / "transformer.safetensors")


def base_folder(plan: Plan) -> None:
    """Put the parts together as a released folder, which the curriculum starts from."""
    parts = _parts(plan, files.load_tensors(plan.output / "backbone" / "transformer.safetensors"))
    parts = dataclasses.replace(parts, connector=connector.whitened(parts, plan.seed))
    released.write(parts, plan.output / BASE)


def _parts(plan: Plan, transformer: dict[str, torch.Tensor]) -> Parts:
    tokenizer = tokens.build()
    dit_config = architectures.dit_config("nano")
    width = dit_config["num_attention_heads"] * dit_config["attention_head_dim"]
    config = architectures.qwen_config("nano", tokenizer)
    torch.manual_seed(plan.seed)
    embedder = architectures.new_embedder(width, dit_config["in_channels"])
    return Parts(
        transformer=transformer,
        transformer_config=dit_config,
        source_embedder=embedder,
        ref_embedder=embedder,
        ref_pad_first=False,
        vae=files.load_tensors(plan.output / "vae" / "vae.safetensors"),
        mllm=files.load_tensors(plan.output / "language" / "qwen.safetensors"),
        qwen_config=config,
        connector=architectures.new_connector("nano", config["text_config"]["hidden_size"], width),
        tokenizer=tokenizer.to_str(),
        limits=architectures.limits("nano"),
    )


def write_rows(plan: Plan) -> None:
    """Write the training rows."""
    rows.write(plan.output / "rows", [plan.count(number) for number in plan.rows], plan.seed, plan.workers)


def stage_config(plan: Plan, stage: str, without: Collection[str] = (), **changes) -> Config:
    """The recipe of a stage with this plan's sizes and folders.

    Args:
        without: of :data:`training.nano.rows.KINDS`, those that are not trained on. changes: fields of the config.
    """
    number = STAGES.index(stage)
    given = {
        "model": str(plan.output / BASE),
        "cache": str(plan.output / "cache"),
        "output": str(plan.output / stage),
        "start": str(plan.output / STAGES[number - 1]) if number else "",
        "steps": plan.count(plan.stage_steps[number]),
        "batch_size": plan.batch_size,
        "workers": plan.workers,
        "compile": plan.fused,
        "seed": plan.seed,
        "device": plan.device,
    }
    if plan.torch_device.type == "cuda":
        given["precision"] = "fp32"  # so small a model waits for its kernels: casts cost more than they save
    if plan.scale < 1:
        given["validation_rows"] = 2
    config = recipes.get(f"nano_{stage}").replace(**given | changes)
    # A name goes on with the number of its first row.
    tables = (
        str(plan.output / "rows" / f"{name}-[0-9]*-{plan.seed}" / rows.TABLE)
        for kind in config.kinds or KINDS
        for name in rows.KINDS
        if name in (kind, f"{kind}-image") and name not in without
    )
    return config.replace(data=tuple(tables))


def encoders(plan: Plan) -> None:
    """A model that can encode the rows, for which the DiT need not be trained yet."""
    released.write(_parts(plan, backbone.new().state_dict()), plan.output / ENCODERS)


def cache(plan: Plan, kind: str, model: str = ENCODERS) -> None:
    """Encode all rows of a kind."""
    config = stage_config(plan, "stage3", start="", model=str(plan.output / model), kinds=(kind,))
    logger.info("%s", cache_data.cache_data(config))


def stage(plan: Plan, name: str) -> None:
    """One stage of the curriculum."""
    trainer.train(stage_config(plan, name))


def pack(plan: Plan) -> None:
    """The trained model in 16 bits, with the logs, plots and settings of its training beside it."""
    parts = released.read(plan.output / STAGES[-1] / base.EXPORTS / "diffusers")
    parts = dataclasses.replace(parts, vae=files.load_tensors(plan.output / "decoder" / "vae.safetensors"))
    halves = {}
    for part in _WEIGHTS:
        kind = torch.float16 if part == "vae" else torch.bfloat16  # it keeps more of a picture; others need the range
        halves[part] = {name: load(tensor).to(kind) for name, tensor in getattr(parts, part).items()}
    folder = plan.output / MODEL
    released.write(dataclasses.replace(parts, **halves), folder)
    logs = folder / "training"
    logs.mkdir(exist_ok=True)
    for step in ("vae", "decoder", "language", "backbone", *STAGES):
        made = plan.output / step
        lines = [line for line in metrics.read(made) if line["step"] % _LOGGED == 0 or "validation/loss" in line]
        if lines:  # not those of a VAE that was given
            metrics.write_lines(logs / f"{step}.jsonl", map(_short, lines))
        if (made / "loss.png").is_file():
            shutil.copyfile(made / "loss.png", logs / f"{step}.png")
    for step in STAGES:
        text = (plan.output / step / trainer.CONFIG).read_text(encoding="utf-8")
        (logs / f"{step}.json").write_text(text.replace(f"{plan.output}/", ""), encoding="utf-8")
    files.save_json(plan.settings() | {"done": _done(plan)}, logs / PLAN)


def _short(line: Mapping[str, object]) -> dict[str, object]:
    """A line of a log in as many digits as anybody reads."""
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in line.items()}


_WEIGHTS = ("transformer", "source_embedder", "ref_embedder", "vae", "mllm", "connector")
_CACHES = {f"cache-{kind}": kind for kind in KINDS}
STEPS: dict[str, Callable[[Plan], None]] = {
    "vae": vae,
    "language": language_model,
    "rows": write_rows,
    "backbone": video_model,
    "encoders": encoders,
    **{name: lambda plan, kind=kind: cache(plan, kind) for name, kind in _CACHES.items()},
    "base": base_folder,
    **{name: lambda plan, name=name: stage(plan, name) for name in STAGES},
    "decoder": decoder,
    "pack": pack,
}
"""In an order that can be followed."""
PREPARED = tuple(name for name in STEPS if name not in (*STAGES, "decoder", "pack"))
"""What the curriculum starts from."""
_NEEDS = {
    "backbone": ("vae",),
    "decoder": ("vae",),
    "encoders": ("vae", "language"),
    **dict.fromkeys(_CACHES, ("encoders", "rows")),
    "base": ("vae", "language", "backbone"),
    "stage1": ("base", "cache-image"),
    "stage2": ("stage1", "cache-video"),
    "stage3": ("stage2", "cache-ref"),
    "pack": ("stage3", "decoder"),
}


class Failed(RuntimeError):
    """A step in a process of its own did not end well."""


def do(plan: Plan, name: str) -> None:
    """One step, unless it is done.

    Raises:
        ValueError: what is in the folder is of another plan.
    """
    plan.output.mkdir(parents=True, exist_ok=True)
    settings.keep(plan.output / PLAN, plan.settings())
    busy = f"Another process does the step {name} in {plan.output}; wait for it."
    with lock.alone(plan.output / f".{name}.lock", busy):
        if name in _done(plan):
            return
        started = time.time()
        STEPS[name](plan)
        device = torch.cuda.get_device_name() if plan.torch_device.type == "cuda" else "CPU"
        entry = {"seconds": round(time.time() - started, 1), "device": device}
        with replacing(plan.output / f"done-{name}.json") as temporary:
            temporary.write_text(json.dumps({name: entry}), encoding="utf-8")


def _done(plan: Plan) -> dict[str, dict]:
    found = {}
    for path in plan.output.glob("done-*.json"):
        found |= files.read_json(path)
    return found


def train(plan: Plan) -> Path:
    """All steps; returns the released folder of the trained model."""
    if plan.torch_device.type == "cuda":
        _at_once(plan)
    for name in STEPS:
        do(plan, name)
    return plan.output / MODEL


def _at_once(plan: Plan) -> None:
    """Every step in a process of its own, as soon as it can begin: each leaves most of a GPU idle."""
    command = [sys.executable, "-m", "training.nano"]
    running: dict[str, subprocess.Popen] = {}
    failed = ""
    try:
        while True:
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    if process.returncode:
                        failed = failed or name
            done = _done(plan)
            for name in STEPS:
                ready = name not in done and name not in running and done.keys() >= set(_NEEDS.get(name, ()))
                if ready and not failed:
                    running[name] = subprocess.Popen([*command, name, *_arguments(plan)])  # noqa: S603
            if not running:  # none is left behind
                break
            time.sleep(0.5)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    if failed:
        raise Failed(f"The step {failed} failed; its message is above. The same command goes on.")


def _arguments(plan: Plan) -> list[str]:
    """The plan as arguments of the command line."""
    found = []
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        name = field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no-{name}")
        else:
            found += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return found
