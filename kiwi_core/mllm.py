"""What the language model is shown: instruction, frames and reference to token ids, patches and positions.

Free of any model library: the same inputs feed transformers' Qwen2.5-VL and ComfyUI's. Everything that the published
model saw in training is kept to the bit, odd parts included: frames are resized twice, query states are read two
positions late, a video's second of time counts a fixed number of positions whatever its rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer

from . import schedule

PATCH_SIZE, MERGE_SIZE, TEMPORAL_PATCH_SIZE = 14, 2, 2
MERGED = PATCH_SIZE * MERGE_SIZE
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_FRAMES = 16
SHOWN_REFERENCES = ("first", "all")
MIN_VIDEO_PIXELS = 128 * MERGED**2
MAX_VIDEO_PIXELS = 768 * MERGED**2
MAX_ASPECT = 200

SYSTEM_PROMPT = (
    "You will be given an image and instruction. Please describe the content of the image in detail based on "
    "instruction in your own words."
)
REFERENCE_SUFFIX = " Use the reference input from last frame."
QUERY_TOKEN = "<|object_ref_start|>"  # noqa: S105
_RESERVED = (QUERY_TOKEN, "<|image_pad|>", "<|video_pad|>")


@dataclass(frozen=True)
class VisionLimits:
    """Settings of a checkpoint that bound what its language model sees."""

    max_pixels_per_frame: int | None = 262144
    """Largest area of a video frame; None or 0 for the library's own limit, never below 100352."""
    max_object_token: int = 768
    """Tokens that a reference picture may take; one token is 28 x 28 pixels."""
    tokens_per_second: int = 2
    """Temporal positions between two frame pairs (of the vision config)."""
    min_pixels_per_frame: int = MIN_VIDEO_PIXELS
    """Area that a smaller video frame is enlarged to; the published 128 tokens. Small models may see less."""

    def __post_init__(self):
        if self.min_pixels_per_frame < 4 * MERGED**2:
            raise ValueError(f"min_pixels_per_frame is {self.min_pixels_per_frame}; use at least {4 * MERGED**2}.")
        if self.max_pixels_per_frame and self.max_pixels_per_frame < self.min_pixels_per_frame:
            raise ValueError(
                f"max_pixels_per_frame is {self.max_pixels_per_frame}; use at least {self.min_pixels_per_frame}, or 0."
            )


@dataclass(frozen=True)
class MLLMInputs:
    """One sample for the language model. L is the sequence length, N a number of 14 x 14 x 2 patches."""

    mode: str
    """"image", "video" or "ref": which queries are used."""
    input_ids: torch.Tensor
    """int64 ``[1, L]``."""
    position_ids: torch.Tensor
    """int64 ``[3, 1, L]``: time, height, width."""
    vision: tuple[Vision, ...]
    """Pictures in the order of the sequence."""
    query_mask: torch.Tensor
    """bool ``[1, L]``: where the learnable queries are put in."""
    query_slice: slice
    """Where their states are read: the last n positions, as published, not the query positions."""
    reference_slice: slice | torch.Tensor | None
    """Where the states of the reference picture are read; of several pictures, int64 positions in their order."""

    @property
    def picture_mask(self) -> torch.Tensor:
        """bool ``[1, L]``: where features of pictures are put in."""
        return sum(part.token_mask for part in self.vision).bool()


@dataclass(frozen=True)
class Vision:
    """A picture or a clip as the vision tower takes it."""

    pixel_values: torch.Tensor | None
    """float32 ``[N, 1176]``; None where the features are given."""
    grid_thw: torch.Tensor
    """int64 ``[1, 3]``: frame pairs, patch rows, patch columns."""
    token_mask: torch.Tensor
    """bool ``[1, L]``: where its features are put in."""
    features: torch.Tensor | None = None
    """``[N / 4, D]`` of the vision tower, if they are known already."""


def smart_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Qwen's size rule: multiples of ``factor`` with an area between the bounds (the lower one wins)."""
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"A frame of {width}x{height} is too long and narrow; crop it to at most {MAX_ASPECT}:1.")
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    if rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def sample_frames(frames, count: int = MAX_FRAMES):
    """At most ``count`` evenly spaced frames of ``[T, H, W, 3]``, both ends included."""
    if len(frames) <= count:
        return frames
    return frames[torch.linspace(0, len(frames) - 1, count).round().long().numpy()]


def shown_references(references: Sequence, which: str) -> list:
    """Those that the language model sees: the "first", as published, or "all"; ValueError for another word."""
    if which not in SHOWN_REFERENCES:
        raise ValueError(f'mllm_references is {which!r}; use "first" or "all".')
    return list(references if which == "all" else references[:1])


def _resize_pil(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def resize_video(
    frames: np.ndarray, max_pixels_per_frame: int | None, min_pixels_per_frame: int = MIN_VIDEO_PIXELS
) -> torch.Tensor:
    """The published two passes: Pillow to multiples of 56, then antialiased bicubic to multiples of 28.

    Args:
        frames: uint8 ``[T, H, W, 3]``. Returns whole-valued float32 ``[T, 3, H', W']``.
    """
    height, width = frames.shape[1:3]
    double = 2 * MERGED
    first = smart_size(height, width, double, 4 * double**2, max_pixels_per_frame or 16384 * double**2)
    video = torch.from_numpy(np.stack([_resize_pil(frame, *first) for frame in frames]))
    video = video.permute(0, 3, 1, 2).float()
    second = smart_size(
        *first, MERGED, min_pixels_per_frame, min(max_pixels_per_frame or MAX_VIDEO_PIXELS, MAX_VIDEO_PIXELS)
    )
    if second != first:
        video = F.interpolate(video, size=second, mode="bicubic", antialias=True, align_corners=False)
        video = video.clamp(0, 255).round()
    return video


def resize_image(image: np.ndarray, max_pixels: int = 16384 * MERGED**2) -> torch.Tensor:
    """One Pillow pass to multiples of 28; uint8 ``[H, W, 3]`` to whole-valued float32 ``[1, 3, H', W']``."""
    size = smart_size(*image.shape[:2], MERGED, 4 * MERGED**2, max_pixels)
    return torch.tensor(_resize_pil(image, *size)).permute(2, 0, 1).unsqueeze(0).float()


def patchify(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise ``[T, 3, H, W]`` in 0..255 and cut it into rows of the vision tower.

    An odd last frame is doubled. Returns ``[N, 1176]`` (2 x 2 neighbours together) and the grid ``[1, 3]``.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255.0 for values in (MEAN, STD))
    pixels = (pixels - mean) / std
    if len(pixels) % TEMPORAL_PATCH_SIZE:
        pixels = torch.cat([pixels, pixels[-1:]])
    time, rows, columns = (
        len(pixels) // TEMPORAL_PATCH_SIZE, pixels.shape[2] // PATCH_SIZE, pixels.shape[3] // PATCH_SIZE
    )
    patches = pixels.reshape(
        time, TEMPORAL_PATCH_SIZE, 3, rows // MERGE_SIZE, MERGE_SIZE, PATCH_SIZE,
        columns // MERGE_SIZE, MERGE_SIZE, PATCH_SIZE,
    )  # fmt: skip
    patches = patches.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(time * rows * columns, -1)
    return patches, torch.tensor([[time, rows, columns]])


def mrope_positions(grids: list[tuple[int, torch.Tensor]], length: int, tokens_per_second: int) -> torch.Tensor:
    """Positions as in training: text counts up, a picture spans (time, row, column) from where it stands.

    One frame pair lasts one second whatever the clip's rate, so time advances by ``tokens_per_second``. (transformers
    changed this rule after the model was trained.)

    Args:
        grids: (first position, grid ``[1, 3]``) of each picture, in order. length: L.

    Returns:
        int64 ``[3, 1, L]``.
    """
    parts, done, following = [], 0, 0
    for start, grid in grids:
        time, rows, columns = (grid[0] // torch.tensor([1, MERGE_SIZE, MERGE_SIZE])).tolist()
        parts.append(torch.arange(following, following + start - done).expand(3, -1))
        following += start - done
        axes = torch.meshgrid(
            torch.arange(time) * tokens_per_second, torch.arange(rows), torch.arange(columns), indexing="ij"
        )
        parts.append(torch.stack(axes).flatten(1) + following)
        following = int(parts[-1].max()) + 1
        done = start + time * rows * columns
    parts.append(torch.arange(following, following + length - done).expand(3, -1))
    return torch.cat(parts, dim=1).unsqueeze(1)


def chat_text(prompt: str, mode: str, num_queries: int, picture_tokens: Sequence[int] = (1, 1)) -> str:
    """The whole conversation; queries stand at the end of the user's turn.

    Args:
        picture_tokens: how many tokens the source and each reference take.
    """

    def picture(kind: str, tokens: int) -> str:
        return "<|vision_start|>" + f"<|{kind}_pad|>" * tokens + "<|vision_end|>"

    user = picture("image" if mode == "image" else "video", picture_tokens[0]) + prompt
    if mode == "ref":
        user += REFERENCE_SUFFIX + "".join(picture("image", tokens) for tokens in picture_tokens[1:])
    return (
        f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
        f"<|im_start|>user\n{user}{QUERY_TOKEN * num_queries}<|im_end|>\n"
    )


def build_inputs(
    tokenizer: Tokenizer,
    prompt: str,
    frames: np.ndarray,
    reference: np.ndarray | Sequence[np.ndarray] | None,
    num_queries: Mapping[str, int],
    limits: VisionLimits | None = None,
    rounding: str = "shipped",
    allow_empty: bool = False,
) -> MLLMInputs:
    """Everything the language model needs for one edit.

    Args:
        prompt: the instruction. frames: uint8 ``[T, H, W, 3]`` at their own size; one frame is image mode.
        reference: uint8 ``[H, W, 3]``, several of them in any sizes, or None. The published model saw one at most.
        num_queries: of :class:`kiwi_core.connector.DualConnector`.
        rounding: "shipped" rounds the normalised pixels to bfloat16, "none" does not.
        allow_empty: take an empty instruction too, for the negative of guidance.

    Raises:
        ValueError: empty instruction, a reserved token in it, a picture too narrow, a mode without queries.
    """
    limits = limits or VisionLimits()
    schedule.check_rounding(rounding)
    check_prompt(prompt, allow_empty)
    references = [] if reference is None else [reference] if isinstance(reference, np.ndarray) else list(reference)
    mode = mode_of(len(frames), len(references))
    check_mode(mode, num_queries)
    patched = [patchify_source(frames, mode, limits)]
    patched += [patchify_reference(picture, limits) for picture in references]
    if rounding == "shipped":
        patched = [(pixels.to(torch.bfloat16).float(), grid) for pixels, grid in patched]
    grids = [grid for _, grid in patched]
    inputs = assemble(tokenizer, prompt, mode, num_queries[mode], grids, limits.tokens_per_second)
    vision = tuple(replace(part, pixel_values=pixels) for part, (pixels, _) in zip(inputs.vision, patched))
    return replace(inputs, vision=vision)


def mode_of(num_frames: int, num_references: int) -> str:
    """Which queries a sample uses: "image", "video" or "ref"."""
    return "ref" if num_references else "image" if num_frames == 1 else "video"


def check_prompt(prompt: str, allow_empty: bool = False) -> None:
    """ValueError for an empty instruction, or one with a token that marks where pictures or queries stand."""
    if not isinstance(prompt, str):
        raise ValueError(f"An instruction is one text, not {type(prompt).__name__}; edit clips one by one.")
    if not allow_empty and not prompt.strip():
        raise ValueError("The instruction is empty; say in a sentence what to change.")
    if any(token in prompt for token in _RESERVED):
        raise ValueError("The instruction contains a reserved token such as <|image_pad|>; write it in plain words.")


def check_mode(mode: str, num_queries: Mapping[str, int]) -> None:
    """ValueError for a mode without queries."""
    if not num_queries[mode]:
        wanted = {"ref": "reference pictures", "video": "videos", "image": "single images"}[mode]
        raise ValueError(f"This checkpoint was not trained for {wanted}; use one that was.")


def patchify_source(frames: np.ndarray, mode: str, limits: VisionLimits) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and grid of the source, uint8 ``[T, H, W, 3]``; see :func:`patchify`."""
    if mode == "image":
        return patchify(resize_image(frames[0]))
    shown = sample_frames(frames)
    return patchify(resize_video(shown, limits.max_pixels_per_frame, limits.min_pixels_per_frame))


def patchify_reference(picture: np.ndarray, limits: VisionLimits) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and grid of a reference, uint8 ``[H, W, 3]``; see :func:`patchify`."""
    return patchify(resize_image(picture, limits.max_object_token * MERGED**2))


def assemble(
    tokenizer: Tokenizer,
    prompt: str,
    mode: str,
    num_queries: int,
    grids: Sequence[torch.Tensor],
    tokens_per_second: int,
) -> MLLMInputs:
    """The sequence around pictures of these grids (``[1, 3]`` each, the source first), without their pixels.

    Raises:
        ValueError: a reserved token in the instruction.
    """
    check_prompt(prompt, allow_empty=True)
    sizes = [int(grid.prod()) // MERGE_SIZE**2 for grid in grids]
    text = chat_text(prompt, mode, num_queries, sizes)
    input_ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False).ids])
    query_mask = input_ids == tokenizer.token_to_id(QUERY_TOKEN)
    picture_mask = sum(input_ids == tokenizer.token_to_id(f"<|{kind}_pad|>") for kind in ("image", "video")).bool()
    slots = picture_mask[0].nonzero().flatten().split(sizes)
    vision = tuple(
        Vision(None, grid, torch.zeros_like(picture_mask).index_fill_(1, slot, True))
        for grid, slot in zip(grids, slots)
    )
    length = input_ids.shape[1]
    return MLLMInputs(
        mode=mode,
        input_ids=input_ids,
        position_ids=mrope_positions(
            [(int(slot[0]), grid) for slot, grid in zip(slots, grids)], length, tokens_per_second
        ),
        vision=vision,
        query_mask=query_mask,
        query_slice=slice(length - num_queries, length),
        reference_slice=_reference_positions(slots[1:]),
    )


def _reference_positions(slots: Sequence[torch.Tensor]) -> slice | torch.Tensor | None:
    if len(slots) > 1:
        return torch.cat(list(slots))
    return slice(int(slots[0][0]), int(slots[0][-1]) + 1) if slots else None


def run(
    batch: Sequence[MLLMInputs],
    connector: torch.nn.Module,
    embed_tokens: Callable[[torch.Tensor], torch.Tensor],
    encode_vision: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    language_model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    device: torch.device,
) -> torch.Tensor:
    """One pass of any back end over a batch: contexts ``[B, N, dit_dim]``.

    Shorter sequences are filled up at their end, which a causal model's earlier states do not see.

    Args:
        embed_tokens: ids ``[B, L]`` -> ``[B, L, D]``. encode_vision: (pixels, grid) -> ``[tokens, D]``.
        language_model: (embeddings, position ids ``[3, B, L]``) -> states after the final norm, ``[B, L, D]``.

    Raises:
        ValueError: samples whose contexts differ in length.
    """
    length = max(inputs.input_ids.shape[1] for inputs in batch)

    def padded(name: str) -> torch.Tensor:
        rows = (getattr(inputs, name) for inputs in batch)
        return torch.cat([F.pad(row, (0, length - row.shape[-1])) for row in rows], dim=-2).to(device)

    read = [[_positions(part) for part in (inputs.reference_slice, inputs.query_slice)] for inputs in batch]
    if len({tuple(map(len, parts)) for parts in read}) > 1:
        raise ValueError("A batch needs contexts of one length; put samples with pictures of one size together.")
    features = [
        encode_vision(part.pixel_values.to(device), part.grid_thw.to(device)) if part.features is None
        else part.features.to(device)
        for inputs in batch for part in inputs.vision
    ]  # fmt: skip
    embeds = embed_tokens(padded("input_ids"))
    # Row by row, and in each in the order of the sequence, as the features and queries are.
    embeds[padded("picture_mask")] = torch.cat(features).to(embeds)
    embeds[padded("query_mask")] = torch.cat([connector.queries(inputs.mode) for inputs in batch]).to(embeds)
    states = language_model(embeds, padded("position_ids"))
    places = torch.stack([torch.cat(parts) for parts in read]).to(device)
    states = states[torch.arange(len(batch), device=device)[:, None], places]
    references = len(read[0][0])
    return connector(states, slice(references, None), slice(0, references) if references else None)


def _positions(part: slice | torch.Tensor | None) -> torch.Tensor:
    """Positions in a sequence, int64."""
    if part is None:
        return torch.empty(0, dtype=torch.int64)
    return part if isinstance(part, torch.Tensor) else torch.arange(part.start, part.stop)


def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    """Tokenizer from the text of a ``tokenizer.json``; ValueError if it is damaged or not Qwen's."""
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"The tokenizer.json is damaged ({error}); download it again.") from None
    if tokenizer.token_to_id(QUERY_TOKEN) is None:
        raise ValueError("This is not a Qwen2.5-VL tokenizer (<|object_ref_start|> is missing); use the model's own.")
    return tokenizer


