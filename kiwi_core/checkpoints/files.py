"""Safetensors in and out. Nothing here executes what it reads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..atomic import replacing

_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
_SHARD = re.compile(r".+-\d+-of-(\d+)\.safetensors")


def check_file(path: str | os.PathLike) -> Path:
    """The path, if it is a readable safetensors file; otherwise an error that says what to do."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the safetensors file in it.")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; check the path or download the file again.")
    try:
        with safe_open(path, "np"):  # unlike "pt", maps nothing, however large the file
            return path
    except SafetensorError as error:
        with path.open("rb") as file:
            start = file.read(9)
        # The length of a header can look like the start of a pickle, but a brace follows it.
        if path.suffix in _PICKLES or start[:2] == b"PK" or (start[:1] == b"\x80" and start[8:] not in (b"{", b"")):
            raise ValueError(f"{path} is a pickle, which can run code; use this model as .safetensors.") from None
        raise ValueError(f"{path} is damaged or incomplete ({error}); download or copy it again.") from None


def load_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """All tensors of a file, memory-mapped: pages are read when they are used."""
    with safe_open(check_file(path), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_shapes(path: str | os.PathLike) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every tensor, without reading any."""
    with safe_open(check_file(path), "np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def weight_files(folder: str | os.PathLike, stem: str) -> list[Path]:
    """``stem.safetensors``, or all shards ``stem-0000x-of-0000y.safetensors``; an error if any is missing."""
    folder = Path(folder)
    whole = folder / f"{stem}.safetensors"
    if whole.is_file():
        return [whole]
    shards = sorted(folder.glob(f"{stem}-*-of-*.safetensors"))
    if not shards:
        raise FileNotFoundError(f"{folder} has no {stem}.safetensors; download the model folder again.")
    wanted = int(_SHARD.fullmatch(shards[0].name).group(1))
    if len(shards) != wanted:
        raise FileNotFoundError(f"{folder} has {len(shards)} of {wanted} {stem} files; download the missing ones.")
    return shards


def load_folder(folder: str | os.PathLike, stem: str) -> dict[str, torch.Tensor]:
    """Tensors of a component's folder, whole or sharded."""
    return {name: tensor for path in weight_files(folder, stem) for name, tensor in load_tensors(path).items()}


def read_json(path: str | os.PathLike) -> dict:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; download the model folder again.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no settings; download it again.")
    return value


def save_tensors(tensors: Mapping[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Write a safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, {"format": "pt"})


def save_json(value: Mapping, path: str | os.PathLike) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def text_tensor(text: str) -> torch.Tensor:
    """Text as a uint8 tensor, so that it travels in a model file (metadata is lost when ComfyUI saves)."""
    return torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)


def tensor_text(tensor: torch.Tensor) -> str:
    return tensor.cpu().numpy().tobytes().decode("utf-8")
