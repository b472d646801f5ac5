"""``kiwi-edit edit``: one clip or picture."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..media import Clip
    from ..pipeline import KiwiEditPipeline

logger = logging.getLogger(__name__)

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_VIDEOS, _PICTURES = (".mp4", ".mov", ".mkv", ".gif"), (".png", ".jpg", ".jpeg", ".webp")


def edit(
    video: Path,
    prompt: str,
    model: str,
    output: Path,
    reference: tuple[Path, ...] = (),
    frames: int | None = None,
    max_pixels: int = 720 * 1280,
    steps: int = 50,
    shift: float = 5.0,
    guidance: float = 1.0,
    negative_prompt: str = "",
    window: int | None = None,
    window_overlap: int = 16,
    mllm_view: Literal["clip", "window"] = "clip",
    mllm_references: Literal["first", "all"] = "first",
    mask: Path | None = None,
    feather: int = 8,
    match_colours: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    original_size: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    task: Literal["none", "style", "background", "change", "remove", "add"] = "none",
    lora: tuple[Path, ...] = (),
    lora_strength: float = 1.0,
    seed: int = 0,
    compare: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    offload: Literal["none", "model", "group"] = "none",
    rounding: Literal["shipped", "none"] = "shipped",
) -> None:
    """Edit a video or a picture by an instruction. Frame rate and sound are kept.

    Args:
        video: the clip, or a picture.
        prompt: what to change, in a sentence.
        model: folder of the model, or its name on the hub.
        output: .mp4, .mov, .mkv or .gif; .png, .jpg or .webp for one frame.
        reference: picture of what is to appear; several for a model trained with several.
        frames: edit at most so many frames from the start. By default 81, as the model was trained with, or with
            window all of them.
        max_pixels: scale frames down to at most this area.
        steps: model evaluations.
        shift: above 1 spends more of the steps at high noise; the model was trained with 5.
        guidance: above 1 follows the prompt harder, at twice the time; the model was trained for 1.
        negative_prompt: with guidance, what to push away from; empty asks for no change.
        window: edit a longer clip in windows of so many frames, in the memory of one; 81 as in training.
        window_overlap: frames that a window shares with the next.
        mllm_view: what the language model sees: the whole clip, as trained, or the frames of each window.
        mllm_references: it sees the first reference, as trained, or all.
        mask: picture or video, white where to edit; the result has the size of the video, and its frames elsewhere.
        feather: pixels over which the edit fades in from the edge of the mask inwards.
        match_colours: take back a drift of colours, as far as the edit leaves parts of the video to compare with.
        original_size: resize the result to the video's width and height. The model takes multiples of 32, so most
            clips come back a little smaller, and squashed by some percent.
        task: add a sentence to the prompt that says what such an edit is to keep.
        lora: LoRA of any dialect, or a training checkpoint; several are applied one after the other.
        lora_strength: 0 leaves the model as it is.
        seed: of the noise; the same seed gives the same result.
        compare: also write OUTPUT_compare, the source beside the result.
        dtype: precision of the weights.
        device: auto takes a GPU if there is one.
        offload: keep in GPU memory only the component (model) or the layer (group) at work.
        rounding: shipped rounds timesteps and what the language model sees to bfloat16, as in training.
    """
    if not prompt.strip():
        raise ValueError("The prompt is empty; say what to change.")
    for name, value in (("frames", 1 if frames is None else frames), ("max-pixels", max_pixels), ("steps", steps)):
        if value < 1:
            raise ValueError(f"--{name} is {value}; use at least 1.")
    if not 0 < shift < math.inf:
        raise ValueError(f"--shift is {shift}; use a number above 0 (the model was trained with 5).")
    if not 0 <= guidance < math.inf:
        raise ValueError(f"--guidance is {guidance}; use a number from 0 on, 1 for none.")
    if negative_prompt and guidance == 1:
        raise ValueError("--negative-prompt does nothing without --guidance; add --guidance 3, say, or leave it out.")
    if steps > 1000:
        raise ValueError(f"--steps is {steps}; use 1 to 1000.")
    if feather < 0:
        raise ValueError(f"--feather is {feather}; use 0 or more pixels.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed is {seed}; use a whole number from 0 on, below 2**63.")
    _check_output(output, video)
    outputs = [output]
    if compare:
        outputs.append(output.with_stem(f"{output.stem}_compare"))
        _check_output(outputs[1], video)

    from .. import geometry, masks, media, prompts, windows
    from ..checkpoints import files
    from ..checkpoints.lora import read as read_lora

    prompt = prompts.guided_prompt(task, prompt)
    if frames is None and window is None:
        frames = geometry.MAX_FRAMES
    if window is not None:
        windows.latent_sizes(window, window_overlap)
    where = device_for(device, offload)
    check_model(model, with_reference=bool(reference))
    for path in lora:
        read_lora(path, open_file=files.open_tensors)
    pictures = [media.load_image(path) for path in reference]
    clip = media.load_video(video, max_frames=frames and frames + 1)
    source = clip.frames[:frames]
    height, width = source.shape[1:3]
    media.check_frame_size(height, width)
    if len(source) > 1 and output.suffix.lower() in _PICTURES:
        raise ValueError(
            f"{output.name} holds one picture, but {video} has more frames; name an .mp4, or use --frames 1."
        )
    editable = masks.fit(masks.as_mask(mask, len(source)), len(source)) if mask is not None else None
    if len(clip.frames) > len(source):
        logger.warning("%s is longer than %d frames; the rest is left out (--frames, --window).", video, len(source))

    import torch

    start = time.monotonic()
    pipe = load(model, getattr(torch, _DTYPES[dtype]), where, offload, lora, lora_strength)
    height, width = geometry.fit_size(height, width, max_pixels, pipe.multiple)
    result = pipe(
        prompt,
        source,
        pictures or None,
        height=height,
        width=width,
        num_frames=len(source),
        num_inference_steps=steps,
        shift=shift,
        guidance_scale=guidance,
        negative_prompt=negative_prompt,
        window_frames=window,
        window_overlap=window_overlap,
        mllm_view=mllm_view,
        mllm_references=mllm_references,
        mask=editable,
        mask_feather=None,  # it fades in at the size of the source
        match_colours=match_colours,
        generator=torch.Generator("cpu").manual_seed(seed),
        rounding=rounding,
    ).frames
    if original_size or editable is not None:
        result = geometry.resize_frames(result, *source.shape[1:3])
    if editable is not None:
        result = masks.composite(result, source, editable, feather)
    written = [_save(output, result, clip)]
    if compare:
        written.append(_save(outputs[1], media.side_by_side(source, result), clip))
    height, width = result.shape[1:3]
    logger.info("%d frames of %dx%d in %.1f s.", len(result), width, height, time.monotonic() - start)
    print(*written, sep="\n")


def _check_output(path: Path, video: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it, such as {path / 'edited.mp4'}.")
    if path.suffix.lower() not in _VIDEOS + _PICTURES:
        raise ValueError(f"Cannot tell the format of {path}; end its name in .mp4, .mov, .mkv, .gif or .png.")
    if path.exists() and video.exists() and path.samefile(video):
        raise ValueError(f"{path} is the source itself; give the result another name.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write into {folder} ({error.strerror}); choose another folder.") from None


def device_for(name: str, offload: str) -> str:
    """The torch device meant by ``--device``."""
    import torch

    gpus = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((gpu for gpu, available in gpus.items() if available), "cpu")
    if not gpus.get(name, True):
        raise ValueError(f"torch finds no {name} device here; use --device auto.")
    if name == "cpu" and offload != "none":
        raise ValueError("There is no GPU to offload from here; leave --offload out.")
    return name


def check_model(model: str, with_reference: bool) -> None:
    """Refuse a folder that is not whole, by its headers alone; a name on the hub cannot be looked into."""
    from ..checkpoints import hub

    if hub.is_name(model):
        return
    from ..checkpoints.inspect import inspect
    from ..checkpoints.released import check

    folder = check(model)
    if missing := inspect(folder).missing:
        raise ValueError(f"{folder} is not a whole model: {'; '.join(missing).rstrip('.')}.")
    if with_reference and not (folder / "ref_embedder").is_dir():
        raise ValueError(f"{folder} was trained without reference pictures; use a reference model.")


def load(
    model: str, dtype: torch.dtype, device: str, offload: str, lora: Sequence[Path], lora_strength: float
) -> KiwiEditPipeline:
    """The pipeline with its LoRAs, placed. MemoryError where the device is too small."""
    import torch

    from ..pipeline import KiwiEditPipeline

    logger.info("Loading %s.", model)
    pipe = KiwiEditPipeline.from_pretrained(model, dtype)
    for path in lora:
        pipe.load_lora(path, lora_strength, lora_strength)
    try:
        if offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        elif offload == "group":
            gpu = torch.device(device)
            pipe.enable_group_offload(gpu, offload_type="leaf_level", use_stream=gpu.type == "cuda")
        else:
            pipe.to(device)
    except torch.cuda.OutOfMemoryError as error:  # torch 2.4 has no shorter name
        raise MemoryError(f"The model does not fit into the memory of {device}.") from error
    return pipe


def _save(path: Path, frames: np.ndarray, clip: Clip) -> Path:
    """Write an edit, which may have taken hours: without sound, or elsewhere, if it cannot be otherwise."""
    import av

    from .. import media

    def places() -> Iterator[Path]:
        yield path
        yield path.with_stem(f"{path.stem}_1")  # on Windows a player keeps the old file from being replaced
        yield Path(tempfile.mkdtemp(prefix="kiwi-edit-")) / path.name

    problem = None
    for target in places():
        for sound in (clip.path, None):
            try:
                made = media.save_video(target, frames, clip.frame_rate, audio_from=sound)
            except (ValueError, OSError, av.FFmpegError) as error:
                problem = error
                continue
            if problem is not None:
                without = "" if sound else " without sound"
                logger.warning("%s The edit is written%s into %s.", problem, without, made)
            return made
    raise problem
