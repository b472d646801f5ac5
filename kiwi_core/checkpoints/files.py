"""Safetensors in and out. Nothing here executes what it reads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..atomic import replacing
from . import lazy, streaming

_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
_SHARD = re.compile(r".+-\d+-of-(\d+)\.safetensors")


OpenFile = Callable[[str | os.PathLike], dict[str, lazy.Tensor]]
"""How a reader gets a file's tensors: :func:`load_tensors`, or :func:`open_tensors` to pass large models through."""


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
        if path.suffix.lower() not in (".safetensors", ".sft"):
            raise ValueError(f"{path} is no safetensors file; choose one.") from None
        raise ValueError(f"{path} is damaged or incomplete ({error}); download or copy it again.") from None


def load_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """All tensors of a file, memory-mapped: pages are read when they are used."""
    with safe_open(check_file(path), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def open_tensors(path: str | os.PathLike) -> dict[str, lazy.LazyTensor]:
    """All tensors of a file, none of them read and nothing mapped."""
    return lazy.open_tensors(check_file(path))


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """What a file's header says beside the tensors."""
    with safe_open(check_file(path), "np") as file:
        return dict(file.metadata() or {})


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


def load_folder(folder: str | os.PathLike, stem: str, open_file: OpenFile = load_tensors) -> dict[str, lazy.Tensor]:
    """Tensors of a component's folder, whole or sharded."""
    return {name: tensor for path in weight_files(folder, stem) for name, tensor in open_file(path).items()}


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


def save_tensors(
    tensors: Mapping[str, lazy.Tensor], path: str | os.PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all; ``metadata`` goes into its header."""
    streaming.write_file(tensors, path, metadata)


def save_json(value: Mapping, path: str | os.PathLike) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def save_texts(texts: Mapping[str, str], folder: str | os.PathLike) -> None:
    """Text files by their paths under a folder, in this order."""
    for name, text in texts.items():
        with replacing(Path(folder) / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def json_text(value: Mapping) -> str:
    return json.dumps(value, indent=2) + "\n"


def text_tensor(text: str) -> torch.Tensor:
    """Text as a uint8 tensor, so that it travels in a model file (metadata is lost when ComfyUI saves)."""
    return torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)


def tensor_text(tensor: torch.Tensor) -> str:
    return tensor.cpu().numpy().tobytes().decode("utf-8")
