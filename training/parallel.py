"""Processes that train together: one, DDP, FSDP2 or DeepSpeed's ZeRO 1 and 2, as accelerate's launcher says.

All start in accelerate. FSDP2 is applied here, since accelerate leaves it out on CPUs. What a checkpoint holds is the
same in every mode: whole tensors by the parameters' names.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
)
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from kiwi_core.atomic import replacing

from . import optimizer_state
from .config import Config

# The others wait while the main process writes a checkpoint of a hundred gigabytes or decodes sample clips.
_PATIENCE = timedelta(hours=3)
# Those that compute on parts of tensors, and whose state is found whole again.
_OPTIMIZERS = {"fsdp2": ("adamw", "adamw8bit"), "deepspeed": ("adamw",)}


def _asked_for(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"


class Parallel:
    """What a run asks of the processes it runs in."""

    def __init__(self, config: Config):
        self.config = config
        cuda = torch.cuda.is_available() and config.device != "cpu"
        deepspeed = _asked_for("DEEPSPEED")
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        backend = {}
        if deepspeed and not cuda:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            backend = {"backend": "gloo"}
        handlers = [
            InitProcessGroupKwargs(timeout=_PATIENCE, **backend),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ]
        for tracker in config.trackers:
            if importlib.util.find_spec(tracker) is None:
                raise ValueError(f"{tracker} is not installed; pip install {tracker}, or leave it out of --trackers.")
        self.accelerator = Accelerator(
            cpu=not cuda and not deepspeed,
            mixed_precision="no",  # the model's forward casts by itself, the same in every mode
            step_scheduler_with_optimizer=False,
            kwargs_handlers=handlers,
            log_with=list(config.trackers) or None,
            project_config=ProjectConfiguration(config.output or ".", logging_dir=f"{config.output or '.'}/logs"),
        )
        self.device = self.accelerator.device
        self.mode = "single"
        if deepspeed:
            self.mode = "deepspeed"
            if self._deepspeed_config["zero_optimization"]["stage"] > 2:
                raise ValueError("ZeRO-3 cannot train this model; use ZeRO-2, or FSDP2, which shares weights too.")
        elif self.processes > 1:
            self.mode = "fsdp2" if _asked_for("FSDP") else "ddp"
        if self.mode in _OPTIMIZERS and config.optimizer not in _OPTIMIZERS[self.mode]:
            raise ValueError(
                f"{config.optimizer} cannot work on the parts of weights that these processes have ({self.mode}); "
                "choose --optimizer adamw, or DDP."
            )
        self._forward: nn.Module | None = None
        self._accumulation = 1

    @property
    def _deepspeed_config(self) -> dict:
        return self.accelerator.state.deepspeed_plugin.deepspeed_config

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    # Training

    def prepare(
        self, model: nn.Module, build: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer], accumulation: int
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Share a model, and make the optimiser of its trained parameters.

        Args:
            model: on its device. build: makes the optimiser. accumulation: batches an update.
        """
        self._accumulation = accumulation
        if self.mode == "fsdp2":
            _shard(model, self.accelerator)
        optimizer = build(parameter for parameter in model.parameters() if parameter.requires_grad)
        self._forward = model
        if self.mode == "ddp":
            # What never changes needs no exchange, and part of it lies elsewhere or in float8.
            frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
            frozen += [name for name, _ in model.named_buffers()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
            self._forward = self.accelerator.prepare_model(model, device_placement=False)
        elif self.mode == "deepspeed":
            self._deepspeed_config.update(
                train_micro_batch_size_per_gpu=self.config.batch_size,
                gradient_accumulation_steps=accumulation,
                gradient_clipping=self.config.max_grad_norm,
            )
            self._forward, optimizer = self.accelerator.prepare(model, optimizer)
        return self._forward, optimizer

    @contextlib.contextmanager
    def batch(self, last: bool):
        """Around one batch; gradients are exchanged in the last one of an update only."""
        if self.mode == "fsdp2":
            self._forward.set_requires_gradient_sync(last)
        elif self.mode == "deepspeed":
            self._forward.set_gradient_accumulation_boundary(last)
        with self._forward.no_sync() if self.mode == "ddp" and not last else contextlib.nullcontext():
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the mean over an update's batches."""
        if self.mode == "deepspeed":
            self._forward.backward(loss)  # which divides by itself
        else:
            (loss / self._accumulation).backward()

    def clip(self, parameters: Iterable[nn.Parameter], largest: float) -> float | None:
        """Clip the gradients' norm where ``largest`` is above 0; returns what it was, if that is known already."""
        if self.mode == "deepspeed":
            return None
        norm = torch.nn.utils.clip_grad_norm_(list(parameters), largest or float("inf"))
        return float(_whole(norm))

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Change the weights and forget the gradients."""
        if self.mode == "deepspeed":
            self._forward.step()
        else:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    # Between processes

    def gather_list(self, items: list) -> list:
        """The items of all processes, in order."""
        return gather_object(items) if self.processes > 1 else items

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return any(self.gather_list([flag]))

    def of_main(self, value):
        """What the main process has here."""
        return self.gather_list([value])[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    # Checkpoints

    def full(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors on the CPU of the main process; every process has to ask, the others get none."""
        found = {}
        for name, tensor in tensors.items():
            whole = _whole(tensor)
            if self.is_main:  # a copy a process would not fit
                found[name] = whole.detach().cpu().contiguous()
        return found

    def load(self, own: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
        """Copy whole tensors into their places."""
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(_like(saved[name], tensor))

    def full_optimizer(self, model, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
        """The optimiser's state by ``parameter|field``; see :mod:`training.optimizer_state`."""
        if self.mode == "deepspeed":
            return _deepspeed_state(model, self._forward.optimizer)
        return optimizer_state.read(optimizer, model.trained(), _whole, keep=self.is_main)

    def load_optimizer(self, model, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put a state of :meth:`full_optimizer` back."""
        if self.mode == "deepspeed":
            _load_deepspeed_state(model, self._forward.optimizer, tensors)
        else:
            optimizer_state.write(optimizer, model.trained(), tensors, _like)

    # Trackers

    def start_trackers(self, config: Config, folder: Path, step: int) -> Callable[[dict, int], None]:
        """Start the run's trackers; returns a function that logs (values, step)."""
        settings = {name: value if type(value) in (int, float, str, bool) else str(value)
                    for name, value in vars(config).items()}  # fmt: skip
        starts = {"tensorboard": {"purge_step": step + 1}}
        if "wandb" in config.trackers:
            starts["wandb"] = {"name": config.name, "dir": str(folder), "id": _run_id(folder), "resume": "allow"}
        self.accelerator.init_trackers(config.name, config=settings, init_kwargs=starts)
        return lambda values, at: self.accelerator.log(values, step=at)

    def finish(self) -> None:
        """End trackers and processes' bonds."""
        self.wait()
        self.accelerator.end_training()


def _run_id(folder: Path) -> str:
    """A name that no other run has, kept beside the run's settings."""
    path = folder / "run_id.txt"
    if not path.is_file():
        with replacing(path) as temporary:
            temporary.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _shard(model, accelerator: Accelerator) -> None:
    """FSDP2: a unit a block, and one of what is left; frozen weights that other parts use too stay whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    blocks = [*model.dit.blocks]
    if model.config.trains_mllm:
        blocks += model.mllm.model.language_model.layers
    shared = {id(parameter) for block in blocks for parameter in block.parameters()}
    whole = {p for p in model.parameters() if not p.requires_grad and id(p) not in shared}
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # Else what follows a validation, which has no backward pass, would find the unit whole.
    fully_shard(model, mesh=mesh, ignored_params=whole, reshard_after_forward=True)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(whole: torch.Tensor, own: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A whole tensor, shared and placed like ``own``."""
    whole = whole.to(own.device, dtype or own.dtype)
    return distribute_tensor(whole, own.device_mesh, own.placements) if isinstance(own, DTensor) else whole


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _deepspeed_state(model, zero) -> dict[str, torch.Tensor]:
    from deepspeed.utils import safe_get_full_optimizer_state

    step = next(iter(zero.optimizer.state.values()))["step"]
    found = {}
    for name, parameter in model.trained().items():
        for field in _MOMENTS:
            found[f"{name}|{field}"] = safe_get_full_optimizer_state(parameter, field).detach().cpu().contiguous()
        found[f"{name}|step"] = torch.as_tensor(step).detach().clone().cpu()
    return found


def _load_deepspeed_state(model, zero, tensors: Mapping[str, torch.Tensor]) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state

    trained = model.trained()
    step = tensors[f"{next(iter(trained))}|step"]
    for master in zero.single_partition_of_fp32_groups:
        zero.optimizer.state[master] = {
            "step": step.clone(),
            **{field: torch.zeros_like(master.data) for field in _MOMENTS},
        }
    zero._lazy_init_hp_params_optimizer_state()
    for name, parameter in trained.items():
        for field in _MOMENTS:
            safe_set_full_optimizer_state(parameter, tensors[f"{name}|{field}"].to(parameter.device), field)
