"""Latents and features of the frozen parts, kept by what they were made of.

An entry is found by the digest of the medium's bytes, of the weights that encoded it and of the settings, so it is
never stale: what changes has another name. Entries are written whole or not at all, by any number of processes, and
a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from kiwi_core.checkpoints import files
from kiwi_core.checkpoints.lazy import load
from kiwi_core.checkpoints.lora import Lora
from kiwi_core.checkpoints.lora_dialects import DIT
from kiwi_core.checkpoints.parts import Parts
from kiwi_core.mllm import VisionLimits

from .config import Config
from .data.dataset import Data
from .data.index import Index
from .data.prepare import Rules, Shape, source_rate
from .data.row import Row
from .encode import Encoded
from .model import DTYPES

logger = logging.getLogger(__name__)

_VERSION = 1
_LOOKED = 1000


@dataclass(frozen=True)
class Weights:
    """Digests of the weights that encode."""

    vae: str
    vision: str
    context: str
    """Of language model and connector; empty where the context is not kept."""


def weights_of(parts: Parts, start: Lora | None, config: Config) -> Weights:
    """Digests of what encodes in a run, from the files that it starts from."""
    dtype = str(DTYPES[config.base_dtype])
    vision = {name: tensor for name, tensor in parts.mllm.items() if name.startswith("visual.")}
    context = ""
    if not config.trains_mllm:
        changed = {} if start is None else {
            f"{part}.{weight}.{kind}": load(getattr(change, kind))
            for part, weight, change in start for kind in ("down", "up", "dora", "diff", "whole")
            if part != DIT and getattr(change, kind) is not None
        }  # fmt: skip
        context = digest({**parts.mllm, **parts.connector, **changed}, config.base_dtype)
    return Weights(
        digest(dict(parts.vae), dtype, parts.latents_mean, parts.latents_std),
        digest(vision, dtype),
        context,
    )


def digest(tensors: dict[str, torch.Tensor], *extra: object) -> str:
    """Of names, dtypes, shapes and values."""
    found = hashlib.blake2b(json.dumps(extra).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = load(tensors[name]).detach().cpu().contiguous()
        found.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        found.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return found.hexdigest()


class Cache:
    """A folder of entries.

    Args:
        index: of the media; entries of those whose digest it does not know are not looked for.
        scales: number of sizes in which references are kept.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        index: Index,
        weights: Weights,
        rules: Rules,
        limits: VisionLimits,
        rounding: str,
        scales: int,
    ):
        self.folder, self.index, self.weights, self.rules = Path(folder), index, weights, rules
        self.limits, self.rounding, self.scales = dataclasses.asdict(limits), rounding, scales

    def _path(self, what: str, *parts: object) -> Path:
        text = json.dumps([_VERSION, what, *parts], sort_keys=True)
        name = hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def paths(self, row: Row, shape: Shape, kind: str) -> dict[str, Path] | None:
        """Where the entries of a sample are or would be; None if its media are not known yet."""
        media = {"source": row.source, "target": row.target, "reference": row.reference}
        digests = {name: self.index.known_digest(each) for name, each in media.items() if each is not None}
        if None in digests.values():
            return None
        size, rate = dataclasses.astuple(shape), self.rules.frame_rate
        vision = [self.weights.vision, self.rounding, self.limits]
        paths = {"target": self._path("latents", digests["target"], size, rate, self.weights.vae)}
        if rate:
            try:
                own = source_rate(self.index.probe(row.source), self.index.probe(row.target), self.rules)
            except (ValueError, OSError):
                return None
            if own:  # other frames are taken of the source than by its own header
                rate = [rate, str(own)]
        source_features = [digests["source"], size, rate, kind == "image", *vision]
        paths |= {
            "source": self._path("latents", digests["source"], size, rate, self.weights.vae),
            "source_features": self._path("features", *source_features),
        }
        shown = [source_features]
        if row.reference is not None:
            scales = [self.scales, shape.height, shape.width, self.weights.vae]
            shown.append([digests["reference"], *vision])
            paths["references"] = self._path("references", digests["reference"], *scales)
            paths["reference_features"] = self._path("reference_features", *shown[1])
        if self.weights.context:
            paths["context"] = self._path("context", shown, kind, row.prompt, self.weights.context)
        return paths

    def load(self, row: Row, shape: Shape, kind: str) -> Encoded | None:
        """A sample, if all of it is there."""
        paths = self.paths(row, shape, kind)
        if paths is None:
            return None
        fields: dict[str, torch.Tensor] = {}
        for name, path in paths.items():
            try:
                tensors = files.load_tensors(path)
            except (ValueError, OSError):  # missing, or torn by a power cut
                return None
            fields[name] = tensors["value"]
            if "grid" in tensors:
                fields[name.replace("features", "grid")] = tensors["grid"]
        return Encoded(**fields)

    def tell(self, data: Data) -> None:
        """Log how much of a run's data is there: what is not is encoded in training, with the models on the device."""
        parts = [(kind, rows) for chosen in (data.training, data.validation) for kind, rows in chosen.items()]
        found = looked = 0
        for kind, rows in parts:
            each = list(zip(rows.rows, rows.shapes))
            for row, shape in each[:: -(-len(each) // _LOOKED)]:
                paths = self.paths(row, shape, kind)
                found += paths is not None and all(map(Path.is_file, paths.values()))
                looked += 1
        if found == looked:
            logger.info("The data are in the cache (%d samples were looked at).", looked)
        else:
            logger.warning(
                "%d of %d samples are in the cache; the others are encoded while training, with more time and memory. "
                "Run cache with the same recipe and settings first.", found, looked,
            )  # fmt: skip

    def store(self, row: Row, shape: Shape, kind: str, encoded: Encoded) -> None:
        """Write the entries of a sample that are missing."""
        for name, path in (self.paths(row, shape, kind) or {}).items():
            if is_whole(path):
                continue
            tensors = {"value": getattr(encoded, name)}
            if name.endswith("features"):
                tensors["grid"] = getattr(encoded, name.replace("features", "grid"))
            files.save_tensors({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, path)


def is_whole(path: Path) -> bool:
    """Whether an entry is there and not torn; only its header is read."""
    try:
        files.check_file(path)
    except (ValueError, OSError):
        return False
    return True


def check_settings(config: Config, kinds: Iterable[str]) -> None:
    """ValueError where references are drawn in any size, which no cache can hold."""
    if "ref" in kinds and not config.reference_scales:
        raise ValueError(
            "References in any size cannot be cached; set --reference-scales 8, or leave --cache out (--official)."
        )
