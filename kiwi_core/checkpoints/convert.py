"""Conversions of a whole model between its layouts, or of one ComfyUI file, in any precision.

Tensors pass through one at a time, so memory holds the largest of them and not the model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ..mllm import VisionLimits
from . import (
    dit_keys,
    files,
    fp8,
    hub,
    inspect,
    lora,
    lora_dialects,
    qwen_keys,
    released,
    resumable,
    single_files,
    training,
    vae_keys,
)
from .lazy import LazyTensor, Tensor, load
from .parts import Parts, Tensors

logger = logging.getLogger(__name__)

LAYOUTS = ("comfyui", "diffusers", "training")
DTYPES = {
    "keep": None,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
}
_COMFYUI = {
    "model": "diffusion_models/{}.safetensors",
    "vae": "vae/{}_vae.safetensors",
    "mllm": "text_encoders/{}_mllm.safetensors",
    "connector": "text_encoders/{}_connector.safetensors",
}
_SINGLE = {
    inspect.KIWI_DIT: "model",
    inspect.VAE: "vae",
    inspect.MLLM: "mllm",
    inspect.CONNECTOR: "connector",
}


def convert(
    source: str | os.PathLike,
    to: str,
    output: str | os.PathLike,
    *,
    mllm: str | os.PathLike | None = None,
    vae: str | os.PathLike | None = None,
    connector: str | os.PathLike | None = None,
    model: str | os.PathLike | None = None,
    tokenizer: str | os.PathLike | None = None,
    ref_pad_first: bool = False,
    dtype: str = "keep",
    name: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a model in another layout; started again after a kill, it goes on where it stopped.

    Args:
        source: a released folder or its name on the hub; a training checkpoint, with ``mllm`` (Qwen2.5-VL's folder),
            ``vae``, and ``model`` (the base DiT) where it holds only a part of it; ComfyUI's DiT, with ``mllm``,
            ``vae`` and ``connector``; one ComfyUI file alone; or a LoRA.
        to: one of ``LAYOUTS``; for a LoRA, one of ``lora_dialects.DIALECTS``.
        output: folder, for "comfyui" that of ComfyUI's models; or a safetensors file, for a LoRA and for one file.
        tokenizer: see :func:`single_files.read`. ref_pad_first: of a training checkpoint, which does not say.
        dtype: one of ``DTYPES``. "fp8" is scaled float8 for the large matrices, and "keep" for the rest.
        name: of the files that "comfyui" writes; by default the source's, with the dtype.

    Returns:
        The files with tensors.

    Raises:
        FileNotFoundError, ValueError: what is given does not go together, is damaged, or the output is in the way.
        OSError: the disk failed.
    """
    if to not in (*LAYOUTS, *lora_dialects.DIALECTS) or dtype not in DTYPES:
        raise ValueError(f"There is no conversion to {to} in {dtype}; choose among those that --help lists.")
    here = Path(source)
    label, output = here.resolve().name if here.exists() else here.name, Path(output)
    source = Path(source) if label.endswith(".safetensors") else hub.folder_of(source)
    given = {"mllm": mllm, "vae": vae, "connector": connector, "model": model, "tokenizer": tokenizer}
    given = {option: Path(path) for option, path in given.items() if path is not None}
    kind = _kind(source, given, output)
    _check_options(kind, given, ref_pad_first, to, output, dtype, name)
    if output.exists() and output.samefile(source):
        raise ValueError(f"{output} is the source itself; choose another output.")
    if kind == "lora":
        return _convert_lora(source, to, output, overwrite)
    if kind in _SINGLE.values():
        return _convert_single(source, kind, output, dtype, name, overwrite)

    if kind == "released":
        parts = released.read(source, files.open_tensors)
    elif kind == "training":
        parts = training.read(source, **given, ref_pad_first=ref_pad_first, open_file=files.open_tensors)
    else:
        parts = single_files.read(source, **given, open_file=files.open_tensors)
    parts = cast_parts(parts, dtype)
    label = name or label.removesuffix(".safetensors").removesuffix("-diffusers") + _suffix(dtype)
    weights, texts = layout(parts, to, label)
    return resumable.write_files(
        output,
        weights,
        texts,
        label=label if to == "comfyui" else "convert",
        options={"to": to, "dtype": dtype},
        overwrite=overwrite,
        remove=released.leftovers(output, parts) if to == "diffusers" else (),
    )


def layout(parts: Parts, to: str, name: str) -> tuple[dict[str, Tensors], dict[str, str]]:
    """Tensors and texts of a layout by their paths; ``name`` is that of ComfyUI's files."""
    if to == "comfyui":
        if parts.latents_mean is not None:
            published = vae_keys.vae_config(parts.vae)
            if any(getattr(parts, key) != published[key] for key in ("latents_mean", "latents_std")):
                logger.warning("This VAE's own latents_mean and std are left out: ComfyUI uses the published ones.")
        weights = single_files.layout(parts)
        return {_COMFYUI[part].format(name): _with_scales(tensors) for part, tensors in weights.items()}, {}
    if any(isinstance(tensor, fp8.ScaledTensor) for tensor in (*parts.transformer.values(), *parts.mllm.values())):
        raise ValueError("Scaled fp8 weights are for ComfyUI's files only; choose --dtype bf16 for this layout.")
    if to == "diffusers":
        return released.layout(parts)
    if parts.ref_pad_first:
        logger.warning("A training checkpoint cannot say that references stand first; read it with ref_pad_first.")
    for name in ("max_pixels_per_frame", "min_pixels_per_frame"):
        if getattr(parts.limits, name) != getattr(VisionLimits, name):
            logger.warning("A training checkpoint cannot hold %s; it is read with the default.", name)
    return training.layout(parts)


def cast_parts(parts: Parts, dtype: str) -> Parts:
    """The parts in one of ``DTYPES``, lazily where they are lazy."""
    names = ("transformer", "source_embedder", "ref_embedder", "vae", "mllm", "connector")
    return replace(parts, **{name: _cast(getattr(parts, name), dtype) for name in names})


def _kind(source: Path, given: Mapping[str, Path], output: Path) -> str:
    """What to read the source as: released, training, comfyui, lora, or the part that a single file is."""
    if source.is_dir():
        return "released"
    found = inspect.inspect(source).layout
    if found.startswith(inspect.TRAINING):
        return "training" if given or output.suffix != ".safetensors" else "lora"
    if found == inspect.LORA:
        return "lora"
    if found == inspect.KIWI_DIT and given:
        return "comfyui"
    if found not in _SINGLE:
        raise ValueError(
            f"{source} is a {found} file, which is no part of a Kiwi-Edit model; choose a file that "
            "kiwi-edit inspect knows."
        )
    return _SINGLE[found]


def _check_options(kind, given: Mapping[str, Path], ref_pad_first: bool, to, output: Path, dtype, name) -> None:
    """ValueError for what does not go together."""
    wanted = {"training": ("mllm", "vae"), "comfyui": ("mllm", "vae", "connector")}.get(kind, ())
    allowed = {"training": ("model",), "comfyui": ("tokenizer",)}.get(kind, ())
    what = {
        "released": "A released folder",
        "training": "A training checkpoint",
        "comfyui": "A ComfyUI model",
        "lora": "A LoRA",
    }.get(kind, "This file alone")
    if missing := [f"--{option}" for option in wanted if option not in given]:
        raise ValueError(f"{what} is converted together with its other parts; add {' and '.join(missing)}.")
    strange = [f"--{option}" for option in given if option not in (*wanted, *allowed)]
    strange += ["--ref-pad-first"] if ref_pad_first and kind != "training" else []
    strange += ["--name"] if name and (to != "comfyui" or output.suffix == ".safetensors") else []
    strange += ["--dtype"] if kind == "lora" and dtype != "keep" else []
    if strange:
        raise ValueError(f"{what} is converted to {output} without {strange[0]}; leave it out.")
    if name and Path(name).name != name:
        raise ValueError(f"--name {name} is to be a name without folders; choose the folder by --output.")
    if kind != "lora" and to not in LAYOUTS:
        raise ValueError(f"--to {to} is for LoRA files; choose {', '.join(LAYOUTS)} for a model.")
    if kind in _SINGLE.values():
        if to != "comfyui":
            raise ValueError(
                "One file makes no whole model; give the DiT file with --mllm, --vae and --connector, or choose "
                "--to comfyui."
            )
        if dtype == "fp8" and kind in ("vae", "connector"):
            raise ValueError(f"A {kind} file is not used in fp8; choose --dtype bf16.")
    elif kind == "lora" and output.suffix != ".safetensors":
        raise ValueError(f"A LoRA becomes one file; name it, such as {output / 'lora.safetensors'}.")
    elif kind != "lora" and output.suffix == ".safetensors":
        raise ValueError(f"{output} names a file; a whole model is written into a folder, name one.")
    if dtype == "fp8" and to != "comfyui":
        raise ValueError(f"Scaled fp8 weights are for ComfyUI's files only; choose --dtype bf16 for {to}.")


def _suffix(dtype: str) -> str:
    return "" if dtype == "keep" else f"_{dtype}"


def _convert_lora(source: Path, dialect: str, output: Path, overwrite: bool) -> list[Path]:
    if output.exists() and not overwrite:
        raise ValueError(f"{output} is there already; choose another output, or replace it with --overwrite.")
    left_out = lora.convert(source, output, dialect)
    if left_out:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        logger.warning("%s has no form for %s%s; left out.", dialect, left_out[0], more)
    return [output]


def _convert_single(source: Path, part: str, output: Path, dtype: str, name: str | None, overwrite) -> list[Path]:
    if part == "vae":
        tensors = _cast(single_files.read_vae(source, files.open_tensors), dtype)
    else:
        tensors = fp8.join_scales(single_files.strip_prefix(files.open_tensors(source)), source)
        if part == "model":
            if dit_keys.is_diffusers(tensors):
                raise ValueError(f"{source} has diffusers' names; give the whole released folder instead.")
            *dicts, first = dit_keys.split_embedders(tensors)
            tensors = dit_keys.join_embedders(*(_cast(tensors, dtype) for tensors in dicts), first)
        else:
            tensors = _cast(qwen_keys.published(tensors) if part == "mllm" else tensors, dtype)
    if output.suffix == ".safetensors":
        folder, path = output.parent, output.name
    else:
        name = name or source.stem + _suffix(dtype)
        folder, path = output, str(Path(_COMFYUI[part]).with_name(f"{name}.safetensors"))
    weights = {path: _with_scales(tensors)}
    return resumable.write_files(folder, weights, label=Path(path).name, options={"dtype": dtype}, overwrite=overwrite)


def _with_scales(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of a file, with scaled weights as the three that they are."""
    split = {}
    for name, tensor in tensors.items():
        split |= fp8.split_scale(name, tensor) if isinstance(tensor, fp8.ScaledTensor) else {name: tensor}
    return split


def _cast(tensors: Tensors, dtype: str) -> dict[str, Tensor]:
    return {name: _cast_one(name, tensor, dtype) for name, tensor in tensors.items()}


def _cast_one(name: str, tensor: Tensor, dtype: str) -> Tensor:
    wanted, scaled = DTYPES[dtype], isinstance(tensor, fp8.ScaledTensor)
    if wanted is None or not tensor.dtype.is_floating_point or (tensor.dtype == wanted and not scaled):
        return tensor
    if dtype == "fp8":
        small = scaled or tensor.dtype.itemsize == 1
        return fp8.quantise(tensor) if not small and fp8.is_quantised(name, tensor.shape) else tensor

    def cast() -> torch.Tensor:
        exact = load(tensor)
        rounded = exact.to(wanted)
        if wanted == torch.float16 and not rounded.isfinite().all() and exact.isfinite().all():
            raise ValueError(f"{name} holds numbers too large for fp16; choose --dtype bf16.")
        return rounded

    if not isinstance(tensor, LazyTensor):
        return cast()
    return LazyTensor(tensor.shape, wanted, cast, tensor.sources)
