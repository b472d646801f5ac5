"""``kiwi-edit convert``: a model or a LoRA in another layout or precision."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

import tyro

logger = logging.getLogger(__name__)


def convert(
    source: Annotated[str, tyro.conf.Positional],
    to: Literal["comfyui", "diffusers", "training", "kohya", "peft", "diffsynth"],
    output: Path,
    mllm: Path | None = None,
    vae: Path | None = None,
    connector: Path | None = None,
    model: Path | None = None,
    tokenizer: Path | None = None,
    ref_pad_first: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    dtype: Literal["keep", "fp32", "fp16", "bf16", "fp8"] = "keep",
    name: str | None = None,
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Write a model in another layout or precision, or a LoRA in another dialect.

    A run that was stopped goes on where it was when the same command is given again.

    Args:
        source: a released folder or its name on the hub; a training checkpoint (with --mllm and --vae); ComfyUI's
            diffusion model (with --mllm, --vae and --connector); one of ComfyUI's files alone; or a LoRA.
        to: comfyui writes into ComfyUI's models folder, diffusers the released folder, training a checkpoint with
            the whole video model beside its language model, into which the LoRA of the source stays merged; these
            three are also dialects of a LoRA, and so are kohya, peft and diffsynth.
        output: folder; a .safetensors file for a LoRA or for one of ComfyUI's files.
        mllm: of a training checkpoint, Qwen2.5-VL-3B's folder; of ComfyUI's model, its language model file.
        vae: the Wan VAE's file.
        connector: ComfyUI's file with queries and connectors.
        model: the base Wan model, a file or folder, of a training checkpoint that holds only a part of it.
        tokenizer: folder or tokenizer.json, if ComfyUI's language model file holds none.
        ref_pad_first: the training checkpoint has its references before the video, which its file does not say.
        dtype: precision; fp8 (comfyui only) is scaled float8 for the large matrices, the rest as it is.
        name: of the files for ComfyUI; the source's if left out.
        overwrite: replace files that are there.
    """
    from ..checkpoints.convert import convert
    from ..checkpoints.resumable import size_text

    try:
        paths = convert(
            source, to, output, mllm=mllm, vae=vae, connector=connector, model=model, tokenizer=tokenizer,
            ref_pad_first=ref_pad_first, dtype=dtype, name=name, overwrite=overwrite,
        )  # fmt: skip
    except KeyboardInterrupt:
        logger.info("The same command goes on from here.")
        raise
    sizes = [path.stat().st_size for path in paths]
    for path, size in zip(paths, sizes):
        print(f"{path} ({size_text(size)})")
    logger.info("%s in %d files, read back as written.", size_text(sum(sizes)), len(paths))
