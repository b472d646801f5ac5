"""What a checkpoint is, told from the names and shapes of its tensors; no tensor is read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..connector import QUERY_KINDS, DualConnector
from ..variant import find_variant
from . import dit_keys, files, fp8, lora, lora_dialects, released, single_files, training, vae_keys

RELEASED, KIWI_DIT, WAN_DIT, VAE = "released folder", "Kiwi-Edit DiT", "plain Wan DiT", "Wan VAE"
MLLM, CONNECTOR, TRAINING, UNKNOWN = "MLLM", "Kiwi-Edit connector", "training checkpoint", "unknown"
LORA = "LoRA"

_DIT = {3072: "5B", 5120: "14B"}
_VAE = {16: "Wan2.1", 48: "Wan2.2"}
_QWEN = {(2048, 36): "Qwen2.5-VL-3B", (3584, 28): "Qwen2.5-VL-7B"}
_NO_REFERENCE = "edits by instruction only: no reference embedder"
# Quantised files carry scales beside these, in some blocks and not in others.
_WEIGHTS = (".weight", ".bias", ".modulation", ".scale_shift_table")
_SETTINGS = {single_files.TOKENIZER, single_files.CONFIG, dit_keys.REFERENCE_FIRST, *single_files.LIMITS}
_COMPONENTS = {
    "DiT": ("transformer", released.WEIGHTS),
    "source embedder": ("source_embedder", released.WEIGHTS),
    "reference embedder": ("ref_embedder", released.WEIGHTS),
    "VAE": ("vae", released.WEIGHTS),
    "language model": ("mllm_encoder", "model"),
    "connector": ("mllm_encoder", released.WEIGHTS),
}
_LORA_PARTS = {"dit": "DiT", "mllm": "language model", "connector": "connector"}
_LORA_TARGET = re.compile(r"^(?:blocks|model\.layers|visual\.blocks)\.\d+\.|\.weight$")
_FILES = (
    "model_index.json",
    "transformer/config.json",
    "vae/config.json",
    "mllm_encoder/config.json",
    "processor/qwen_config.json",
)


@dataclass(frozen=True)
class Report:
    """What :func:`inspect` found; ``str()`` of it is a few aligned lines."""

    path: Path
    layout: str
    """One of the constants of this module; a training checkpoint's with its stage."""
    variant: str = ""
    """"5B", "14B" or "custom"; "Wan2.1" or "Wan2.2" for a VAE; Qwen's name for a language model; or empty."""
    dims: Mapping[str, int] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ()
    """As safetensors names them, the one of most parameters first."""
    parameters: int = 0
    parts: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """What is missing, damaged or does not fit; empty for a whole checkpoint."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        dims = ", ".join(f"{name} {size}" for name, size in self.dims.items())
        rows = [
            ("path", str(self.path)),
            ("layout", self.layout),
            ("variant", f"{self.variant}: {dims}" if dims else self.variant),
            ("tensors", f"{self.parameters:,} parameters, {', '.join(self.dtypes) or 'none'}"),
            ("parts", ", ".join(self.parts)),
            *(("missing", text) for text in self.missing or ("nothing" * (self.layout != UNKNOWN),)),
            *(("note", text) for text in self.notes),
        ]
        return "\n".join(f"{label:<9}{text}" for label, text in rows if text)


class _Header(NamedTuple):
    dtype: str
    shape: tuple[int, ...]


_Headers = Mapping[str, _Header]


def inspect(path: str | os.PathLike) -> Report:
    """Say what a safetensors file or a model folder is, and what it lacks.

    A released folder may be incomplete: the report says which parts are missing or damaged.

    Raises:
        FileNotFoundError, ValueError: no such file; a pickle, a damaged file, or a folder of something else.
    """
    path = Path(path)
    if any((path / name).is_dir() for name in ("mllm_encoder", "source_embedder", "ref_embedder")):
        return _released(path)
    headers = _headers(path)
    plain = single_files.strip_prefix(headers)
    if training.is_training(headers):
        return _training(path, headers)
    if dit_keys.is_original(plain) or dit_keys.is_diffusers(plain):
        return _dit(path, plain)
    if _is_vae(headers):
        return _vae(path, headers)
    if "connector.0.weight" in headers:
        return _connector(path, headers)
    if {"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"} <= set(headers):
        return _mllm(path, headers)
    if lora_dialects.find(headers):
        return _lora_file(path, headers)
    notes = [f"{len(headers)} tensors, such as {', '.join([*headers][:3])}"]
    return _report(path, UNKNOWN, headers, notes=notes)


def _headers(path: Path) -> dict[str, _Header]:
    return {name: _Header(*header) for name, header in files.read_shapes(path).items()}


def _report(path, layout, headers: _Headers, variant="", dims=None, parts=(), missing=(), notes=()) -> Report:
    sizes: dict[str, int] = {}
    for name, (dtype, shape) in headers.items():
        if name not in _SETTINGS and not name.endswith((fp8.SCALE, fp8.SETTINGS)):
            sizes[dtype] = sizes.get(dtype, 0) + math.prod(shape)
    dtypes = tuple(sorted(sizes, key=sizes.get, reverse=True))
    texts = (tuple(part) for part in (parts, missing, notes))
    return Report(path, layout, variant, dims or {}, dtypes, sum(sizes.values()), *texts)


def _blocks(names: Iterable[str], prefix: str) -> tuple[int, list[str]]:
    """How many numbered blocks there are, and in words which of their tensors only some of them have."""
    blocks: dict[int, set[str]] = {}
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.(.+)")
    for name in names:
        match = pattern.fullmatch(name)
        if match and name.endswith(_WEIGHTS):
            blocks.setdefault(int(match[1]), set()).add(match[2])
    count = 1 + max(blocks, default=-1)
    every = set().union(*blocks.values())
    gaps = [f"{prefix}.{i}.{name}" for i in range(count) for name in sorted(every - blocks.get(i, set()))]
    return count, _in_words(gaps)


def _in_words(tensors: list[str]) -> list[str]:
    more = f" and {len(tensors) - 1} more tensors" if len(tensors) > 1 else ""
    return [tensors[0] + more] if tensors else []


def _dit_body(headers: _Headers) -> tuple[str, dict[str, int], list[str]]:
    """Variant, dims, what is missing; the embedders do not count."""
    try:
        variant = find_variant({name: header.shape for name, header in headers.items()})
    except (ValueError, KeyError) as error:  # a relative of Wan, or a part of one
        return "", {}, [str(error.args[0])]
    sizes = (variant.dim, variant.num_layers, variant.ffn_dim, variant.latent_channels)
    dims = dict(zip(("dim", "layers", "ffn", "latent channels"), sizes))
    return variant.name, dims, _blocks(headers, "blocks")[1]


def _dit(path: Path, headers: _Headers) -> Report:
    prefixes = {"source": dit_keys.SOURCE_PREFIX, "reference": dit_keys.REFERENCE_PREFIX}
    has = {kind: f"{prefix}patch_embedding.weight" in headers for kind, prefix in prefixes.items()}
    parts = ["DiT", *(f"{kind} embedder" for kind in has if has[kind])]
    variant, dims, missing = _dit_body(headers)
    notes = ["under diffusers' names"] if dit_keys.is_diffusers(headers) else []
    if not has["source"]:
        missing.append("source embedder (vae_condition.*): it cannot edit without, choose a Kiwi-Edit file")
    elif not has["reference"]:
        notes.append(_NO_REFERENCE)
    layout = KIWI_DIT if has["source"] else WAN_DIT
    return _report(path, layout, headers, variant, dims, parts, missing, notes)


def _is_vae(headers: _Headers) -> bool:
    first = headers.get("encoder.conv_in.weight")  # image VAEs have diffusers' names too, but are 2D
    return vae_keys.is_original_vae(headers) or (first is not None and len(first.shape) == 5)


def _vae(path: Path, headers: _Headers) -> Report:
    original = vae_keys.is_original_vae(headers)
    notes = [] if original else ["under diffusers' names"]
    last = headers.get("conv2.weight" if original else "post_quant_conv.weight")
    channels = last.shape[0] if last else 0
    try:
        config = vae_keys.vae_config(headers, [0] * channels, [1] * channels)
    except ValueError as error:
        return _report(path, VAE, headers, missing=[str(error)], notes=notes)
    names = {"latent channels": "z_dim", "space": "scale_factor_spatial", "time": "scale_factor_temporal"}
    dims = {name: config[key] for name, key in names.items()}
    variant = _VAE.get(channels, "custom")
    return _report(path, VAE, headers, variant, dims, ["encoder", "decoder"], notes=notes)


def _mllm(path: Path, headers: _Headers) -> Report:
    vocabulary, hidden = headers["model.embed_tokens.weight"].shape
    layers, missing = _blocks(headers, "model.layers")
    vision_layers, vision_missing = _blocks(headers, "visual.blocks")
    missing += vision_missing
    dims = {"hidden": hidden, "layers": layers, "vision layers": vision_layers, "vocabulary": vocabulary}
    parts, notes = ["language model"], []
    if "model.norm.weight" not in headers:
        missing.append("model.norm.weight: this is one of several shards")
    if vision_layers:
        parts.append("vision tower")
    else:
        missing.append("vision tower (visual.*): it cannot see the clip without, choose a Qwen2.5-VL file")
    if single_files.TOKENIZER in headers:
        parts.append("tokenizer")
    else:
        notes.append("no tokenizer in it: ComfyUI takes its own of Qwen2.5, the library is to be given one")
    return _report(path, MLLM, headers, _QWEN.get((hidden, layers), "custom"), dims, parts, missing, notes)


def _connector(path: Path, headers: _Headers) -> Report:
    sizes = DualConnector.sizes_from(headers)
    dims = {"hidden": sizes["hidden_size"], "dim": sizes["dit_dim"]}
    dims |= {f"{kind} queries": sizes[f"num_{kind}_queries"] for kind in QUERY_KINDS}
    heads = ["connector", "ref_connector"] if dims["ref queries"] else ["connector"]
    wanted = [f"{head}.{layer}.{leaf}" for head in heads for layer in (0, 2) for leaf in ("weight", "bias")]
    parts = [{"connector": "query connector", "ref_connector": "reference connector"}[head] for head in heads]
    kinds = {"image": "single images", "video": "videos", "ref": "reference pictures"}
    notes = [f"not trained for {kinds[kind]}" for kind in QUERY_KINDS if not dims[f"{kind} queries"]]
    missing = _in_words([name for name in wanted if name not in headers])
    return _report(path, CONNECTOR, headers, _DIT.get(dims["dim"], "custom"), dims, parts, missing, notes)


def _list(items: Iterable) -> str:
    return ", ".join(map(str, sorted(items)))


def _lora(headers: _Headers) -> str:
    """Such as "LoRA of rank 64 on k_proj, q_proj", or nothing."""
    ranks, targets = set(), set()
    for name, header in headers.items():
        if match := re.fullmatch(r".+?\.\d+\.(.+)\.lora_A\..*weight", name):
            ranks.add(header.shape[0])
            targets.add(match[1].removeprefix("self_attn.").removeprefix("mlp."))
    return f"LoRA of rank {_list(ranks)} on {_list(targets)}" if ranks else ""


def _lora_file(path: Path, headers: _Headers) -> Report:
    opened = lora.sort(headers, path.name)
    parts, missing, width = [], [], 0
    for part, changes in opened.changes.items():
        ranks = {change.rank for change in changes.values() if change.down}
        targets = {_LORA_TARGET.sub("", weight) for weight in changes}
        if changes:
            rank = f" of rank {_list(ranks)}" if ranks else ""
            parts.append(f"{_LORA_PARTS[part]}{rank} on {_list(targets)} ({len(changes)} in all)")
        for weight, change in changes.items():
            if bool(change.down) != bool(change.up):
                missing.append(f"{'lora_B' if change.down else 'lora_A'} of {weight}")
            elif change.down and weight.endswith("self_attn.q.weight"):
                width = change.down.shape[1]
    variant, dims = (_DIT.get(width, "custom"), {"dim": width}) if width else ("", {})
    notes = [f"{len(headers)} keys in the {opened.dialect} dialect"]
    return _report(path, LORA, headers, variant, dims, parts, _in_words(missing), notes)


def _training(path: Path, headers: _Headers) -> Report:
    given = training.split(headers)
    stage = 3 if given["reference"] else 2 if given["source"] else 1
    variant, dims, parts, missing, bases = "", {}, [], [], ["Qwen2.5-VL", "a Wan VAE"]
    if "connector.0.weight" in given["connector"]:
        connector = _connector(path, given["connector"])
        variant, dims, parts = connector.variant, dict(connector.dims), [*connector.parts]
        missing += connector.missing
    else:
        missing.append("query connector (mllm.connetor.*)")
    if lora := _lora(given["mllm"]):
        parts.append(f"language model {lora}")
    if dit_keys.is_original(given["dit"]):
        variant, sizes, lacking = _dit_body(given["dit"])
        dims = {**sizes, **dims, **sizes}
        parts.append("whole DiT")
        missing += lacking
    else:
        bases.append("the base Wan DiT")
        if lora := _lora(given["dit"]):
            parts.append(f"DiT {lora}")
    parts += [f"{kind} embedder" for kind in ("source", "reference") if given[kind]]
    if stage == 1:
        missing.append("source embedder (vae_condition.*): stage 1 cannot edit yet, choose stage 2 or 3")
    notes = [f"stands on {', '.join(bases)}"]
    return _report(path, f"{TRAINING}, stage {stage}", headers, variant, dims, parts, missing, notes)


def _released(folder: Path) -> Report:
    tensors: dict[str, dict[str, _Header]] = {}
    missing, notes = [], []
    for label, (name, stem) in _COMPONENTS.items():
        if name == "ref_embedder" and not (folder / name).is_dir():
            notes.append(_NO_REFERENCE)
            continue
        try:
            shards = [_headers(path) for path in files.weight_files(folder / name, stem)]
        except (FileNotFoundError, ValueError) as error:
            missing.append(f"{label}: {error}")
        else:
            tensors[label] = {name: header for shard in shards for name, header in shard.items()}
    parts = [*tensors]
    missing += [f"{name}: not there" for name in _FILES if not (folder / name).is_file()]
    if any((folder / "processor" / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        parts.append("tokenizer")
    else:
        missing.append("processor/tokenizer.json: not there")

    kinds = {"VAE": _vae, "language model": _mllm, "connector": _connector}
    found = {}
    for label, kind in kinds.items():
        try:
            if label in tensors:
                found[label] = kind(folder, tensors[label])
                missing += [f"{label}: {text}" for text in found[label].missing]
        except (ValueError, KeyError) as error:  # something else under this name
            missing.append(f"{label}: {error.args[0]}")
    variant, dims, lacking = _dit_body(tensors["DiT"]) if "DiT" in tensors else ("", {}, [])
    missing += [f"DiT: {text}" for text in lacking]
    vae, connector = (dict(found[label].dims) if label in found else {} for label in ("VAE", "connector"))
    for label, theirs, key in (("VAE", vae, "latent channels"), ("connector", connector, "dim")):
        if theirs and dims and theirs[key] != dims[key]:
            missing.append(f"{label}: of another variant ({key} {theirs[key]}, the DiT's {dims[key]})")
    headers = {f"{label}.{name}": header for label in tensors for name, header in tensors[label].items()}
    return _report(folder, RELEASED, headers, variant, {**dims, **connector, **dims}, parts, missing, notes)
