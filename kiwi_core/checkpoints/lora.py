"""LoRA files of every dialect in one form: read, written in any other dialect, merged into weights.

What each dialect can hold beside low-rank pairs is :data:`lora_dialects.FORMS`; where a dialect has no place for an
alpha, it is folded into the pair.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from . import files
from .lazy import Tensor, load
from .lora_dialects import DIALECTS, FORMS, PARTS, find, name_of, split

logger = logging.getLogger(__name__)


@dataclass
class Change:
    """What a LoRA does to one weight ``[out, in...]``; most have a pair only."""

    down: Tensor | None = None
    """``[rank, in...]``"""
    up: Tensor | None = None
    """``[out, rank...]``"""
    alpha: float | None = None
    """The pair counts ``alpha / rank``; None for once."""
    dora: Tensor | None = None
    """Magnitudes of the rows ``[out, 1...]`` or columns ``[1, in...]`` of weight plus pair."""
    diff: Tensor | None = None
    """To be added."""
    whole: Tensor | None = None
    """To be had instead."""
    other: dict[str, Tensor] = field(default_factory=dict)
    """Of LyCORIS' other kinds, by ending; only ComfyUI applies them."""
    names: list[str] = field(default_factory=list)
    """Its tensors in the file."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None or self.down is None else self.alpha / self.rank

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it is for a weight of this shape."""
        for tensor in (self.diff, self.whole):
            if tensor is not None and tuple(tensor.shape) != tuple(shape):
                return False
        if self.other:
            return self._size_of_other() in (None, (shape[0], math.prod(shape[1:])))
        if self.down is None:
            return True
        if self.dora is not None and math.prod(self.dora.shape) not in shape[:2]:
            return False
        return (self.up.shape[0], math.prod(self.down.shape[1:])) == (shape[0], math.prod(shape[1:]))

    def _size_of_other(self) -> tuple[int, int] | None:
        """Rows and columns of the weight that a LoHa or LoKr is for; None where the file does not tell."""
        found = {name.strip(".").removesuffix(".weight"): tuple(tensor.shape) for name, tensor in self.other.items()}
        if {"hada_w1_a", "hada_w1_b"} <= found.keys() and "hada_t1" not in found:
            return found["hada_w1_a"][0], math.prod(found["hada_w1_b"][1:])
        factors = []
        for name in ("lokr_w1", "lokr_w2"):
            if name in found:
                factors.append((found[name][0], math.prod(found[name][1:])))
            elif {f"{name}_a", f"{name}_b"} <= found.keys() and "lokr_t2" not in found:
                factors.append((found[f"{name}_a"][0], math.prod(found[f"{name}_b"][1:])))
        if len(factors) < 2:
            return None
        return tuple(one * other for one, other in zip(*factors))

    def apply(self, weight: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
        """The changed weight in float32, on the weight's device; ValueError for kinds that only ComfyUI knows."""
        if self.other:
            kind = ", ".join(self.other)
            raise ValueError(f"{self.names[0]} is of a kind ({kind}) that only ComfyUI applies; use it there.")
        weight = weight.float()
        if self.whole is not None:
            weight = torch.lerp(weight, load(self.whole).to(weight), strength)
        if self.down is not None:
            up, down = (load(tensor).to(weight).flatten(1) for tensor in (self.up, self.down))
            changed = weight + self.scale * (up @ down).view_as(weight)
            if self.dora is not None:
                changed = magnify(changed, load(self.dora))
            weight = torch.lerp(weight, changed, strength)
        return weight if self.diff is None else weight + strength * load(self.diff).to(weight)


def magnify(weight: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """DoRA: the weight with its rows brought to these lengths, or its columns; see :attr:`Change.dora`."""
    kept = 0 if magnitudes.shape[0] == weight.shape[0] else 1
    norm = torch.linalg.vector_norm(weight, dim=[i for i in range(weight.dim()) if i != kept], keepdim=True)
    return weight * (magnitudes.to(weight).reshape(norm.shape) / norm.clamp_min(torch.finfo(weight.dtype).tiny))


class Written(NamedTuple):
    """A LoRA in some dialect."""

    tensors: dict[str, Tensor]
    left_out: list[str]
    """Weights whose change has no form or name there."""


@dataclass(frozen=True)
class Lora:
    """A LoRA file's content; made by :func:`read`."""

    name: str
    dialect: str
    changes: dict[str, dict[str, Change]]
    """By part of the model, then by the full name of the weight, as :mod:`lora_dialects` has them."""

    def __iter__(self) -> Iterator[tuple[str, str, Change]]:
        """(part, weight, change) of all."""
        for part, changes in self.changes.items():
            for weight, change in changes.items():
                yield part, weight, change

    def write(self, dialect: str) -> Written:
        """The tensors under the names of another dialect; ValueError if that can hold none of them."""
        if dialect not in DIALECTS:
            raise ValueError(f"{dialect!r} is no LoRA dialect; use one of {', '.join(DIALECTS)}.")
        written = Written({}, [])
        for part, weight, change in self:
            named = _write(change, part, weight, dialect)
            if named is None:
                written.left_out.append(weight)
            else:
                written.tensors.update(named)
        if not written.tensors:
            raise ValueError(f"{dialect} has no form for anything in {self.name}; choose another dialect.")
        return written


def read(
    source: str | os.PathLike | Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    open_file: files.OpenFile = files.load_tensors,
) -> Lora:
    """Read a LoRA file or a training checkpoint, or its tensors, of any dialect; nothing is copied.

    Args:
        metadata: the file's, for tensors. An alpha that is not stored beside its pair is looked for there, and for
            peft's ``adapter_model.safetensors`` in the ``adapter_config.json`` beside it; else it equals the rank.

    Raises:
        FileNotFoundError, ValueError: no such file; a pickle, a damaged file, no LoRA, or half of a pair is missing.
    """
    if isinstance(source, Mapping):
        name, tensors = "This LoRA", source
    else:
        name, tensors = Path(source).name, open_file(source)
        metadata = _metadata(Path(source)) if metadata is None else metadata
    lora = sort(tensors, name)
    alpha_of = _alphas(metadata or {})
    if lora.dialect == "peft" and "lora_adapter_metadata" not in (metadata or {}):
        logger.warning(
            "%s does not say its alpha, which is taken for its rank; peft's adapter_config.json says it, beside a file "
            "named adapter_model.safetensors.", name,
        )  # fmt: skip
    for _, weight, change in lora:
        if (change.down is None) != (change.up is None):
            half = "lora_B" if change.up is None else "lora_A"
            raise ValueError(f"{name} has no {half} for {weight}: it is incomplete; download it again.")
        if change.down is not None and tuple(change.up.shape[1:2]) != tuple(change.down.shape[:1]):
            raise ValueError(f"{name}'s two halves for {weight} do not belong together; download it again.")
        if change.alpha is not None:
            change.alpha = float(load(change.alpha))
        elif change.down is not None:
            change.alpha = alpha_of(_module(change.names[0]), change.rank)
        if change.up is not None and change.dora is not None:
            change.dora = load(change.dora)
            if change.dora.dim() == 1 or any("magnitude" in name for name in change.names):  # peft's: one a row
                change.dora = change.dora.reshape(-1, *[1] * (len(change.down.shape) - 1))
    for part, weight, change in lora:
        pair = lora.changes[part].get(weight.removesuffix("bias") + "weight")
        if change.names[0].endswith(".lora_B.bias") and pair and pair.scale != 1:  # scaled with its pair
            change.diff = load(change.diff).float() * pair.scale
    return lora


def sort(tensors: Mapping, name: str = "This LoRA") -> Lora:
    """As :func:`read`, of anything that has shapes; alphas stay as they are, and pairs are not checked."""
    dialect = find(tensors)
    if not dialect:
        raise ValueError(f"{name} is no LoRA (it has no lora_A, lora_down or diff); choose a LoRA file.")
    changes: dict[str, dict[str, Change]] = {part: {} for part in PARTS}
    for key, tensor in tensors.items():
        part, weight, kind, ending = split(key)
        change = changes[part].setdefault(weight, Change())
        change.names.append(key)
        if kind == "other":
            change.other[ending] = tensor
        elif getattr(change, kind) is not None:
            raise ValueError(f"{name} holds more than one change of {weight}; choose a file with one LoRA in it.")
        else:
            setattr(change, kind, tensor)
    return Lora(name, dialect, changes)


def _module(key: str) -> str:
    """The module of a tensor's name, as the file has it."""
    ending = split(key)[3]
    return key.removesuffix(ending) if ending else key


def _metadata(path: Path) -> dict[str, str]:
    metadata = files.read_metadata(path)
    config = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and config.is_file():
        metadata.setdefault("lora_adapter_metadata", config.read_text(encoding="utf-8"))
    return metadata


def _alphas(metadata: Mapping[str, str]) -> Callable[[str, int], float | None]:
    """Alpha of a module of some rank, from the settings that diffusers and peft save; else None."""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        settings = {}
    scopes: dict[str, dict] = {}
    for key, value in settings.items() if isinstance(settings, dict) else ():
        scope, _, setting = key.rpartition(".")
        scopes.setdefault(scope, {})[setting] = value

    def alpha_of(module: str, rank: int) -> float | None:
        module = module.removeprefix("base_model.model.")
        scope, _, rest = module.partition(".")
        said, module = (scopes[scope], rest) if scopes.get(scope) else (scopes.get("", {}), module)
        alpha = said.get("lora_alpha")
        pattern = said.get("alpha_pattern")
        for name, value in pattern.items() if isinstance(pattern, dict) else ():
            if _fits(name, module):  # the first, as in peft
                alpha = value
                break
        if not isinstance(alpha, (int, float)):
            return None
        return float(alpha) * math.sqrt(rank) if said.get("use_rslora") else float(alpha)

    return alpha_of


def _fits(pattern: str, module: str) -> bool:
    """Whether a name of peft's settings, which is an expression for the end of a module's, means this one."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error:
        return False


def _write(change: Change, part: str, weight: str, dialect: str) -> dict[str, Tensor] | None:
    """One change under a dialect's names, or None if that has no form for it."""
    forms = FORMS[dialect]
    module, _, leaf = weight.rpartition(".")
    module = module if leaf == "weight" else weight
    name = name_of(part, module, dialect)
    if name is None or (change.other and "other" not in forms):
        return None
    tensors: dict[str, Tensor] = {}
    if change.down is not None:
        up = change.up if "alpha" in forms else _fold(change)
        short = {"comfyui": "lora_down lora_up", "kohya": "lora_down lora_up"}.get(dialect, "lora_A lora_B").split()
        default = ".default" if dialect in ("diffsynth", "training") else ""
        for key, tensor in zip(short, (change.down, up)):
            tensors[f"{name}.{key}{default}.weight"] = tensor
    if "alpha" in forms and (change.alpha is not None or (dialect == "kohya" and change.down is not None)):
        tensors[f"{name}.alpha"] = torch.tensor(float(change.rank if change.alpha is None else change.alpha))
    if change.dora is not None:
        if "dora" in forms:
            tensors[f"{name}.dora_scale"] = change.dora
        elif "magnitude" in forms and change.up is not None and change.dora.shape[0] == change.up.shape[0]:
            tensors[f"{name}.lora_magnitude_vector"] = load(change.dora).flatten()
        else:
            return None
    if change.diff is not None:
        if leaf == "bias" and "bias" in forms:
            bias = ".diff_b" if "diff" in forms else ".lora_B.bias"
            tensors[name_of(part, weight.removesuffix(".bias"), dialect) + bias] = change.diff
        elif "diff" in forms:
            tensors[f"{name}.diff"] = change.diff
        else:
            return None
    if change.whole is not None:
        if "whole" not in forms:
            return None
        full = f"{name}.set_weight" if dialect == "comfyui" else name_of(part, weight, dialect)
        tensors[full] = change.whole
    tensors |= {f"{name}{ending}": tensor for ending, tensor in change.other.items()}
    return tensors


def _fold(change: Change) -> Tensor:
    """The upper half times ``alpha / rank``, in float32 where its own dtype would round it."""
    if change.scale == 1:
        return change.up
    up = load(change.up)
    exact = up.float() * change.scale
    rounded = exact.to(up.dtype)
    return rounded if torch.equal(rounded.float(), exact) else exact


def convert(source: str | os.PathLike, output: str | os.PathLike, dialect: str) -> list[str]:
    """Write a LoRA file or training checkpoint in another dialect, whole or not at all.

    Returns:
        Names of the weights that were left out, as the dialect has no form or name for their change (queries in
        "kohya", say); empty where all went along.

    Raises:
        FileNotFoundError, ValueError: as :func:`read`; or the dialect can hold nothing of it.
    """
    source, output = Path(source), Path(output)
    found = read(source, open_file=files.open_tensors)
    written = found.write(dialect)
    metadata = {name: text for name, text in files.read_metadata(source).items() if name != "lora_adapter_metadata"}
    if dialect == "peft":
        _write_config(found, written.tensors, output.with_name("adapter_config.json"))
    in_place = output.exists() and output.samefile(source)
    files.save_tensors(written.tensors, output, metadata)
    again = files.open_tensors(output)
    same = in_place or all(torch.equal(load(again[name]), load(one)) for name, one in written.tensors.items())
    if not same:
        raise OSError(f"{output} does not read back as it was written; check the disk.")
    return written.left_out


def _write_config(found: Lora, tensors: Mapping[str, Tensor], path: Path) -> None:
    """What peft wants beside its weights; alphas are folded into these. ValueError where another one's is there."""
    ranks = {
        name.removesuffix(".lora_A.weight").removeprefix("base_model.model."): tensor.shape[0]
        for name, tensor in tensors.items()
        if name.endswith(".lora_A.weight")
    }
    if not ranks:
        return
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    others = {name: each for name, each in ranks.items() if each != rank}
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others,
        "target_modules": sorted(ranks), "use_dora": any(change.dora is not None for _, _, change in found),
    }  # fmt: skip
    if path.is_file() and files.read_json(path) != config:
        raise ValueError(f"{path} is of another LoRA; choose an output in a folder of its own.")
    files.save_json(config, path)
