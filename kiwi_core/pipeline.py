"""Edit a video by instruction and reference: the published model as a diffusers pipeline."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image

from . import colour, geometry, masks, media, memory, mllm, schedule, windows
from . import vae as vae_ops
from .checkpoints import dit_keys, files, hub, lora, lora_merge, released, single_files, training, vae_keys
from .checkpoints.lazy import load
from .checkpoints.parts import Parts, Tensors, fill
from .conditioning import PatchEmbedder
from .connector import DualConnector
from .mllm_encoder import MLLMEncoder
from .transformer import KiwiTransformer3DModel

logger = logging.getLogger(__name__)

_LARGE = 2**30
"""Bytes of a decoded clip from which it is put together in main memory rather than on the device."""


@dataclass
class KiwiEditPipelineOutput(BaseOutput):
    """An edited clip."""

    frames: np.ndarray | list[Image.Image] | torch.Tensor
    """uint8 ``[T, H, W, 3]``, a list of PIL images, or the latents, as ``output_type`` asks."""
    latents: torch.Tensor
    """Final latents, normalised, ``[1, C, F, h, w]``."""


def _pictures(reference) -> list[Image.Image]:
    """References in any form that the pipeline takes, as RGB pictures."""
    if reference is None:
        return []
    if not isinstance(reference, (list, tuple)):
        reference = [reference]
    pictures = []
    for item in reference:
        if isinstance(item, np.ndarray):
            pictures += map(Image.fromarray, media.as_frames(item))
        else:
            pictures.append(media.load_image(item))
    return pictures


def _plain(module: torch.nn.Module | None):
    """What ``torch.compile`` was given; its own tensors have other names."""
    return getattr(module, "_orig_mod", module)


class KiwiEditPipeline(DiffusionPipeline):
    """Instruction- and reference-guided video editing.

    Read one with :meth:`from_pretrained`, :meth:`from_single_files` or :meth:`from_training_checkpoint`.
    """

    model_cpu_offload_seq = "mllm_encoder->source_embedder->ref_embedder->transformer->vae"
    _optional_components = ["ref_embedder"]

    def __init__(
        self,
        transformer: KiwiTransformer3DModel,
        vae: AutoencoderKLWan,
        mllm_encoder: MLLMEncoder,
        source_embedder: PatchEmbedder,
        ref_embedder: PatchEmbedder | None = None,
        ref_pad_first: bool = False,
        processor_files: dict[str, str] | None = None,
    ):
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            mllm_encoder=mllm_encoder,
            source_embedder=source_embedder,
            ref_embedder=ref_embedder,
        )
        self.register_to_config(ref_pad_first=ref_pad_first)
        self._processor_files = processor_files or {}
        self._tile: vae_ops.Tile | str | None = "auto"
        self.interrupt = False

    # Loading and saving

    @classmethod
    def from_parts(cls, parts: Parts, dtype: torch.dtype = torch.bfloat16) -> KiwiEditPipeline:
        """Modules around the tensors of any layout, which are cast but not copied otherwise."""

        def cast(tensors: Tensors) -> dict[str, torch.Tensor]:
            return {name: load(tensor).to(dtype) for name, tensor in tensors.items()}

        def embedder(tensors: Tensors, name: str) -> PatchEmbedder | None:
            if not tensors:
                return None
            dim, channels, *patch = tensors["patch_embedding.weight"].shape
            return fill(PatchEmbedder(channels, dim, tuple(patch)), cast(tensors), name)

        tokenizer = mllm.load_tokenizer(parts.tokenizer)
        vae = vae_ops.load_vae(parts.vae, parts.latents_mean, parts.latents_std, dtype=dtype)
        with init_empty_weights(include_buffers=False):
            transformer = KiwiTransformer3DModel.from_config(dict(parts.transformer_config))
            connector = DualConnector(**DualConnector.sizes_from(parts.connector))
        if not any(".text_embedder." in name for name in parts.transformer):
            transformer.condition_embedder.text_embedder = None  # unused, and left out of ComfyUI files
        return cls(
            transformer=fill(transformer, cast(parts.transformer), "DiT"),
            vae=vae,
            mllm_encoder=MLLMEncoder.from_state_dict(
                cast(parts.mllm),
                parts.qwen_config,
                connector=fill(connector, cast(parts.connector), "connector"),
                tokenizer=tokenizer,
                limits=parts.limits,
            ),
            source_embedder=embedder(parts.source_embedder, "source embedder"),
            ref_embedder=embedder(parts.ref_embedder, "reference embedder"),
            ref_pad_first=parts.ref_pad_first,
            processor_files=dict(parts.processor_files),
        )

    def to_parts(self) -> Parts:
        """The pipeline's tensors and settings, for writing them in any layout."""
        encoder, reference = self.mllm_encoder, _plain(self.ref_embedder)
        config = self.transformer.config
        return Parts(
            transformer=_plain(self.transformer).state_dict(),
            transformer_config={name: value for name, value in config.items() if not name.startswith("_")},
            source_embedder=_plain(self.source_embedder).state_dict(),
            ref_embedder=reference.state_dict() if reference is not None else {},
            ref_pad_first=self.config.ref_pad_first,
            vae=vae_keys.vae_to_original(_plain(self.vae).state_dict()),
            latents_mean=list(self.vae.config.latents_mean),
            latents_std=list(self.vae.config.latents_std),
            mllm=encoder.published_state_dict(),
            qwen_config=encoder.qwen_config,
            connector=_plain(encoder.connector).state_dict(),
            tokenizer=encoder.tokenizer.to_str(),
            limits=encoder.limits,
            processor_files=self._processor_files,
        )

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, dtype: torch.dtype = torch.bfloat16) -> KiwiEditPipeline:
        """Read a released folder, or download it by its name on the hub. The code that it names is not used.

        Raises:
            FileNotFoundError, ValueError: a part is missing, damaged, or does not belong.
        """
        return cls.from_parts(released.read(hub.folder_of(folder)), dtype)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the released layout, which :meth:`from_pretrained` reads back identically."""
        released.write(self.to_parts(), folder)

    @classmethod
    def from_single_files(cls, model, vae, mllm, connector, tokenizer=None, dtype=torch.bfloat16) -> KiwiEditPipeline:
        """Read ComfyUI's files; see :func:`kiwi_core.checkpoints.single_files.read`."""
        return cls.from_parts(single_files.read(model, vae, mllm, connector, tokenizer), dtype)

    @classmethod
    def from_training_checkpoint(
        cls, checkpoint, mllm, vae, model=None, ref_pad_first=False, dtype=torch.bfloat16
    ) -> KiwiEditPipeline:
        """Read a training checkpoint on its base models; see :func:`kiwi_core.checkpoints.training.read`."""
        return cls.from_parts(training.read(checkpoint, mllm, vae, model, ref_pad_first), dtype)

    def enable_sequential_cpu_offload(self, *args, **kwargs):
        """Not to be had: the language model's queries are no layer of their own, which it could move."""
        raise ValueError(
            "This pipeline cannot be offloaded sequentially; call enable_group_offload(...), which takes as "
            "little memory, or enable_model_cpu_offload()."
        )

    def load_lora(
        self, path: str | os.PathLike, strength: float = 1.0, mllm_strength: float = 1.0
    ) -> lora_merge.Report:
        """Merge a LoRA of any dialect, or a training checkpoint, into the weights; it cannot be taken out again.

        Args:
            strength: for the DiT and its embedders. mllm_strength: for the language model, queries and connectors.
                Whole tensors of a checkpoint are reached at 1.

        Returns:
            How many of the file's keys were applied, also as a sentence.

        Raises:
            FileNotFoundError, ValueError: no LoRA, a damaged one, or one of another model; nothing is changed then.
        """
        encoder = self.mllm_encoder
        weights = {
            "dit": {dit_keys.to_original(name): tensor for name, tensor in _plain(self.transformer).named_parameters()},
            "mllm": dict(zip(encoder.published_state_dict(), encoder.model.state_dict(keep_vars=True).values())),
            "connector": dict(_plain(encoder.connector).named_parameters()),
        }
        for prefix, embedder in (
            (dit_keys.SOURCE_PREFIX, _plain(self.source_embedder)),
            (dit_keys.REFERENCE_PREFIX, _plain(self.ref_embedder)),
        ):
            if embedder is not None:
                weights["dit"] |= {prefix + name: tensor for name, tensor in embedder.named_parameters()}
        # What offloading keeps elsewhere would take a changed weight's place.
        if any(map(memory.is_offloaded_by_group, (self.transformer, encoder))):
            raise ValueError("The weights are offloaded already; load the LoRA before enable_group_offload.")
        strengths = {"dit": strength, "mllm": mllm_strength, "connector": mllm_strength}
        opened = lora.read(path, open_file=files.open_tensors)
        report = lora_merge.merge(opened, weights, strengths)
        if report.matched < report.total:
            logger.warning("%s", report)
        return report

    # Sizes

    @property
    def multiple(self) -> int:
        """What both sides of a frame must be a multiple of: 32 (5B) or 16 (14B)."""
        return self.vae.config.scale_factor_spatial * self.transformer.config.patch_size[1]

    def _size(self, frames: np.ndarray, height: int | None, width: int | None) -> tuple[int, int]:
        if height is None and width is None:
            return geometry.fit_size(*frames.shape[1:3], multiple=self.multiple)
        if height is None or width is None or min(height, width) < 1:
            raise ValueError(f"height is {height} and width {width}; give both in pixels, or neither.")
        return geometry.round_up(height, self.multiple), geometry.round_up(width, self.multiple)

    def enable_vae_tiling(self, tile: vae_ops.Tile | None = None) -> None:
        """Encode and decode tile by tile at every size; the default is to do so above 480p."""
        self._tile = tile or vae_ops.default_tile(self.vae, 10_000, 10_000)

    def disable_vae_tiling(self) -> None:
        self._tile = None

    def tile_for(self, height: int, width: int) -> vae_ops.Tile | None:
        """Tiles that the VAE will use at a size in pixels, or None."""
        return vae_ops.default_tile(self.vae, height, width) if self._tile == "auto" else self._tile

    # Encoding

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str,
        video,
        reference=None,
        rounding: str = "shipped",
        mllm_references: str = "first",
        allow_empty: bool = False,
    ) -> torch.Tensor:
        """Context for the DiT: ``[1, N, dit_dim]``.

        Args:
            prompt: the instruction. video: the clip at its own size; see :meth:`__call__`.
            reference: a picture, or several. mllm_references: "first" or "all" of them are seen; published with one.
            allow_empty: take an empty instruction too, for the negative of guidance.
        """
        shown = mllm.shown_references([np.asarray(picture) for picture in _pictures(reference)], mllm_references)
        inputs = self.mllm_encoder.prepare(prompt, media.as_frames(video), shown, rounding, allow_empty)
        return self.mllm_encoder(inputs)

    @torch.no_grad()
    def encode_video(self, video, height: int | None = None, width: int | None = None) -> torch.Tensor:
        """Normalised latents ``[1, C, F, h, w]`` of a clip, resized to the size that :meth:`__call__` would use."""
        frames = media.as_frames(video)
        height, width = self._size(frames, height, width)
        frames = geometry.resize_frames(frames, height, width)
        frames = geometry.pad_frames(frames, geometry.padded_frame_count(len(frames)))
        frames = torch.from_numpy(np.ascontiguousarray(frames[None]))
        return vae_ops.encode(self.vae, frames, self.tile_for(height, width), device=self._execution_device)

    def _encode_references(self, references: Sequence[Image.Image], height: int, width: int) -> torch.Tensor | None:
        if not references:
            return None
        boxed = (np.array(geometry.letterbox(image, height, width))[None] for image in references)
        return torch.cat([self.encode_video(image, height, width) for image in boxed], dim=2)

    # Editing

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        video,
        reference=None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = 50,
        shift: float = 5.0,
        sigma_min: float = schedule.SIGMA_MIN,
        denoising_strength: float = 1.0,
        generator: torch.Generator | None = None,
        output_type: str = "np",
        rounding: str = "shipped",
        callback_on_step_end: Callable | None = None,
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        window_frames: int | None = None,
        window_overlap: int = windows.OVERLAP,
        mllm_view: str = "clip",
        mllm_references: str = "first",
        mask=None,
        mask_feather: int | None = masks.FEATHER,
        match_colours: bool = False,
    ) -> KiwiEditPipelineOutput:
        """Edit a clip.

        Args:
            prompt: the instruction, in a sentence.
            video: uint8 ``[T, H, W, 3]``, a list of PIL images, or a path. One frame edits an image.
            reference: a picture (PIL, array or path) of what is to appear, or a list of them.
            height, width: size of the result, rounded up to :attr:`multiple`. Without both, the clip's own shape
                within 720 x 1280 pixels.
            num_frames: edit at most so many frames from the start; 81, as published, is the default, with windows the
                whole clip is. As many come out as are edited; 4k + 1 is reached inside by repeating the
                last frame.
            num_inference_steps, shift, sigma_min, denoising_strength: see :func:`kiwi_core.schedule.flow_sigmas`;
                a strength below 1 starts from the noised source.
            generator: of the noise, on the CPU for the same result on every device.
            output_type: "np" (uint8), "pil" or "latent".
            rounding: "shipped" rounds timesteps and vision pixels to bfloat16 as in training; "none" does not.
            callback_on_step_end: called as ``(pipeline, step, timestep, {"latents": ...})``; what it returns under
                "latents" is used. Setting ``pipeline.interrupt`` stops after the step.
            guidance_scale: above 1 pushes away from the negative, at twice the time; the model was trained for 1.
            negative_prompt: the negative's instruction on the same clip and references; empty asks for no change.
            window_frames: sample a longer clip in windows of so many frames (81 as in training) that share
                ``window_overlap`` frames with the next: the device's memory is that of a window, and main memory holds
                the clip, about 20 bytes a pixel of each frame. None samples it at once.
            mllm_view: the language model sees all of the "clip" that is edited, as trained, or for each "window" its
                frames.
            mllm_references: it sees the "first" reference, as trained, or "all".
            mask: where to edit, a picture or a clip: see :func:`kiwi_core.masks.as_mask`. Outside of it the frames are
                the resized source's to the byte; ``mask_feather`` pixels inside its edge the edit fades in. A feather
                of None leaves the frames as decoded.
            match_colours: take back a drift of colours; see :func:`kiwi_core.colour.match_colours`.

        Raises:
            ValueError, FileNotFoundError: bad input, before any heavy work.
            FloatingPointError: the model's numbers overflow, as float16 or a LoRA at too high a strength may do.
            MemoryError: the device is too small; says what to change.
        """
        if output_type not in ("np", "pil", "latent"):
            raise ValueError(f'output_type is {output_type!r}; use "np", "pil" or "latent".')
        sigmas = schedule.flow_sigmas(num_inference_steps, shift, sigma_min, denoising_strength)
        schedule.round_timestep(sigmas, rounding)
        if mllm_view not in ("clip", "window"):
            raise ValueError(f'mllm_view is {mllm_view!r}; use "clip" or "window".')
        mllm.shown_references([], mllm_references)
        if not 0 <= guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale is {guidance_scale}; use a number from 0 on, 1 for none.")
        negative_prompt = negative_prompt or ""
        mllm.check_prompt(prompt)
        mllm.check_prompt(negative_prompt, allow_empty=True)
        if negative_prompt and guidance_scale == 1:
            raise ValueError("negative_prompt does nothing without guidance; give a guidance_scale above 1 as well.")
        if not isinstance(generator, torch.Generator | None):
            raise ValueError(f"generator is a {type(generator).__name__}; give one torch.Generator.")
        if mask_feather is not None and mask_feather < 0:
            raise ValueError(f"mask_feather is {mask_feather}; use 0 or more pixels.")
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; use at least 1.")
        limit = num_frames or (geometry.MAX_FRAMES if window_frames is None else None)
        frames = media.as_frames(video, limit and limit + 1)
        media.check_frame_size(*frames.shape[1:3])
        references = _pictures(reference)
        if references and self.ref_embedder is None:
            raise ValueError("This model was trained without reference pictures; use a reference model.")
        if num_frames is None and limit is not None and len(frames) > limit:
            logger.warning("The clip is longer than %d frames; the first are edited. Set num_frames for more.", limit)
        frames = frames[:limit]
        height, width = self._size(frames, height, width)
        latent_frames = geometry.latent_frame_count(geometry.padded_frame_count(len(frames)))
        spans = [range(latent_frames)]
        if window_frames is not None:
            spans = windows.split(latent_frames, *windows.latent_sizes(window_frames, window_overlap))
        keep = None
        if mask is not None:
            mask = masks.fit(masks.as_mask(mask, len(frames)), len(frames))
            factor = self.vae.config.scale_factor_spatial
            keep = ~masks.latent_mask(mask, latent_frames, height // factor, width // factor)
        at_once = min(geometry.padded_frame_count(len(frames)), 4 * (len(spans[0]) + windows.ANCHOR) - 3)
        memory.report(self, height, width, at_once, len(references))

        self.interrupt = False
        try:
            with memory.explain("the language model"):
                views = [frames] if mllm_view == "clip" else [frames[windows.frames_of(span)] for span in spans]
                prompts = [(prompt,)] if guidance_scale == 1 else [(prompt,), (negative_prompt, True)]
                contexts = [
                    [
                        self.encode_prompt(text, view, references, rounding, mllm_references, *empty)
                        for text, *empty in prompts
                    ]
                    for view in views
                ] * (len(spans) // len(views))
            self._put_away()
            with memory.explain("encoding the video"):
                source_latents = self.encode_video(frames, height, width)
                reference_latents = self._encode_references(references, height, width)
            self._put_away()
            with memory.explain("sampling"):
                latents = self._sample(
                    contexts, source_latents, reference_latents, sigmas, generator, rounding, callback_on_step_end,
                    guidance_scale, spans, keep,
                )  # fmt: skip
            self._put_away()
            result = latents
            if output_type != "latent":
                with memory.explain("decoding the video"):
                    result = self._decode(latents)[: len(frames)]
        finally:
            self.maybe_free_model_hooks()
        if output_type != "latent" and (match_colours or mask is not None):
            source = geometry.resize_frames(frames, height, width)
            if match_colours:
                result = colour.match_colours(result, source, mask)
            if mask is not None and mask_feather is not None:
                result = masks.composite(result, source, mask, mask_feather)
        if output_type == "pil":
            result = [Image.fromarray(frame) for frame in result]
        return KiwiEditPipelineOutput(frames=result, latents=latents)

    def _put_away(self) -> None:
        """Take components off the device whose work is done, where model offloading would leave the last one there."""
        for hook in getattr(self, "_all_hooks", []):
            hook.offload()

    def _sample(
        self, contexts, source_latents, reference_latents, sigmas, generator, rounding, callback, guidance_scale, spans,
        keep,
    ):  # fmt: skip
        """Final latents. ``contexts``: of each window of ``spans``, with the negative's where there is guidance;
        ``keep``: bool, the latents to leave as the source's."""
        device, dtype = contexts[0][0].device, self.transformer.dtype
        source_latents = source_latents.to(dtype)
        reference_latents = None if reference_latents is None else reference_latents.to(dtype)
        contexts = [[context.to(dtype) for context in pair] for pair in contexts]
        noise = torch.randn(
            source_latents.shape, generator=generator, device=generator.device if generator is not None else "cpu"
        ).to(device, dtype)
        sigmas = sigmas.to(device)

        def noised(sigma: torch.Tensor) -> torch.Tensor:
            return ((1 - sigma) * source_latents + sigma * noise).to(dtype)

        latents = noise if sigmas[0] >= 1 else noised(sigmas[0])
        keep = None if keep is None else keep.to(device)
        whole = self.source_embedder(source_latents) if len(spans) == 1 else None
        reference = self.ref_embedder(reference_latents) if reference_latents is not None else None
        timesteps = schedule.timesteps_of(sigmas)
        nearest = schedule.nearest_index(schedule.round_timestep(timesteps, rounding), timesteps)

        def predict(index: int, shown: range) -> torch.Tensor:
            part = slice(shown.start, shown.stop)
            source = self.source_embedder(source_latents[:, :, part]) if whole is None else whole
            predicted = []
            for number, context in enumerate(contexts[index]):
                # diffusers' caches (enable_cache) remember each of these calls by itself.
                with self.transformer.cache_context(f"{index}.{number}"):
                    predicted += self.transformer(
                        latents[:, :, part],
                        timestep.unsqueeze(0),
                        context,
                        source=source,
                        source_sigma=sigmas[nearest[step]],
                        reference=reference,
                        reference_first=self.config.ref_pad_first,
                        rounding=rounding,
                        return_dict=False,
                    )
            velocity, *without = predicted
            return without[0] + guidance_scale * (velocity - without[0]) if without else velocity

        with self.progress_bar(total=len(timesteps)) as progress:
            for step, timestep in enumerate(timesteps):
                latents = latents + windows.blend(spans, latents, predict) * (sigmas[step + 1] - sigmas[step])
                if keep is not None:
                    latents = torch.where(keep, noised(sigmas[step + 1]), latents)
                if not latents.isfinite().all():
                    raise FloatingPointError(
                        "The model's numbers overflowed; use bfloat16 or float32, and lower the strength of LoRAs."
                    )
                if callback is not None:
                    changed = callback(self, step, timestep, {"latents": latents})
                    latents = (changed or {}).get("latents", latents)
                progress.update()
                if self.interrupt:
                    break
        return latents

    def _decode(self, latents: torch.Tensor) -> np.ndarray:
        factor = self.vae.config.scale_factor_spatial
        tile = self.tile_for(latents.shape[-2] * factor, latents.shape[-1] * factor)
        frames = 4 * latents.shape[2] - 3
        large = 3 * frames * latents.shape[-2] * latents.shape[-1] * factor**2 * 4 > _LARGE
        video = vae_ops.decode(self.vae, latents, tile, device=torch.device("cpu") if large else None)[0]
        result = np.empty((frames, *video.shape[2:], 3), np.uint8)
        for target, frame in zip(result, video.unbind(dim=1)):  # one by one, as copies of a long clip are large too
            target[:] = ((frame + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return result
