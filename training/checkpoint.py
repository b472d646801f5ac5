"""Everything that a run needs to go on, on disk: whole or not at all, in safetensors and JSON.

A checkpoint is a folder ``step-00000500`` with ``model``, ``optimizer`` and perhaps ``ema`` as safetensors under
parameters' names, and ``state.json``. It is written beside its place, flushed to the disk, and then renamed, so that a
kill leaves the one before. It does not depend on the number of processes or on how they share the model.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from kiwi_core.checkpoints import files

logger = logging.getLogger(__name__)

STATE = "state.json"
_PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    path: Path
    step: int
    state: dict

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Tensors of ``model``, ``optimizer`` or ``ema``; empty if there are none."""
        path = self.path / f"{name}.safetensors"
        return files.load_tensors(path) if path.is_file() else {}


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: dict) -> Path:
    """Write a checkpoint.

    Args:
        tensors: by file and name. state: anything that JSON holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        sizes, old = {}, temporary
        for name, part in tensors.items():
            if part:
                path = temporary / f"{name}.safetensors"
                files.save_tensors(part, path)
                _flush(path)
                sizes[path.name] = path.stat().st_size
        files.save_json({"step": step, "files": sizes, **state}, temporary / STATE)
        _flush(temporary / STATE)
        _flush(temporary)
        final = folder / f"{_PREFIX}{step:08d}"
        if final.exists():  # of a run that went back to an earlier one; a folder cannot take another's place
            os.replace(final, old := temporary.with_suffix(".old.tmp"))
        os.replace(temporary, final)
        shutil.rmtree(old, ignore_errors=True)
        _flush(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are passed over with a warning."""
    for path in sorted(_all(folder), reverse=True):
        try:
            return _open(path)
        except (ValueError, OSError) as error:
            logger.warning("%s is passed over: %s", path, error)
    return None


def prune(folder: Path, keep: int, keep_every: int = 0) -> None:
    """Remove all but the newest ``keep`` and those of every ``keep_every`` steps, and what kills have left."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in sorted(_all(folder))[:-keep]:
        if not keep_every or int(path.name.removeprefix(_PREFIX)) % keep_every:
            _remove(path)


def _all(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]


def _open(path: Path) -> Checkpoint:
    state = files.read_json(path / STATE)
    if "files" not in state or "step" not in state:
        raise ValueError(f"{path / STATE} is not of a checkpoint.")
    for name, size in state["files"].items():
        file = files.check_file(path / name)
        if file.stat().st_size != size:
            raise ValueError(f"{file} has {file.stat().st_size} bytes, not {size}.")
    return Checkpoint(path, state["step"], state)


def _remove(path: Path) -> None:
    """Rename first: half a folder must not be taken for a checkpoint."""
    away = path.with_name(f".{uuid.uuid4().hex}.tmp")
    os.replace(path, away)
    shutil.rmtree(away, ignore_errors=True)


def _flush(path: Path) -> None:
    if os.name == "nt":  # cannot flush folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


