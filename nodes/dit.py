"""The video DiT inside ComfyUI: Wan's own model, with the source and the references put in.

Importing this module lets every stock loader recognise a Kiwi-Edit file, by its source embedder. All else
(dtypes, quantised files, offloading, LoRA, patches, context windows) is ComfyUI's.
"""

from __future__ import annotations

from functools import partial

import comfy.conds
import comfy.ldm.common_dit
import comfy.ldm.wan.model
import comfy.model_base
import comfy.supported_models
import torch

from ..kiwi_core import conditioning, schedule
from ..kiwi_core.checkpoints import dit_keys

# What our nodes put into a conditioning: one raw VAE latent; a list of raw VAE latents, one a reference.
SOURCE = "kiwi_source_latent"
REFERENCES = "kiwi_reference_latents"
# A list of (centre in the clip, 0..1; context): of parts of the clip, for context windows.
WINDOW_CONTEXTS = "kiwi_window_contexts"
# transformer_options: "shipped" (default) or "none", see kiwi_core.schedule.round_timestep.
ROUNDING = "kiwi_rounding"

SOURCE_KEY = f"{dit_keys.SOURCE_PREFIX}patch_embedding.weight"


class KiwiWanModel(comfy.ldm.wan.model.WanModel):
    """Wan's DiT with a source and a reference embedder and without the text embedding.

    Args:
        has_reference: whether there is a reference embedder.
        reference_first: ``ref_pad_first`` of the checkpoint; kept as a buffer too, so that saving keeps it.
        config: :class:`WanModel`'s arguments.
    """

    def __init__(self, has_reference=False, reference_first=False, device=None, operations=None, **config):
        super().__init__(device=device, operations=operations, **config)
        self.text_embedding = torch.nn.Identity()  # the context has the width of the DiT already
        embedder = partial(
            conditioning.PatchEmbedder, self.in_dim, self.dim, self.patch_size,
            conv=operations.Conv3d, device=device, dtype=torch.float32,
        )  # fmt: skip
        self.vae_condition = embedder()
        self.ref_vae_condition = embedder() if has_reference else None
        self.reference_first = reference_first
        flag = torch.tensor([reference_first], dtype=torch.uint8, device=device)
        self.register_buffer(dit_keys.REFERENCE_FIRST, flag)

    def _forward(
        self, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options={},  # noqa: B006
        source_latents=None, reference_latents=None, **kwargs,
    ):  # fmt: skip
        _check_cache(transformer_options)
        frames, height, width = x.shape[2:]
        x, source, reference = (
            latents if latents is None else comfy.ldm.common_dit.pad_to_patch_size(latents, self.patch_size)
            for latents in (x, source_latents, reference_latents)
        )
        references = 0 if reference is None else reference.shape[2]
        freqs = self.rope_encode(
            frames + references, height, width, device=x.device, dtype=torch.float32,
            transformer_options=transformer_options,
        )  # fmt: skip
        sample = self.forward_orig(
            x, timestep, context, freqs=freqs, transformer_options=transformer_options,
            source_latents=source, reference_latents=reference,
        )  # fmt: skip
        return sample[:, :, :frames, :height, :width]

    def forward_orig(
        self, x, t, context, clip_fea=None, freqs=None, transformer_options={},  # noqa: B006
        source_latents=None, reference_latents=None, **kwargs,
    ):  # fmt: skip
        """Predict the velocity.

        Args:
            x: noisy latents ``[B, C, F, h, w]``. context: ``[B, N, dim]``.
            t: timesteps 0..1000, not rounded: ``[B]``, or ``[B, F]`` where a noise mask gives each frame one.
            freqs: rotary table of all F + R frames.
            transformer_options: ``sigmas``: the sampler's, of one of the conditionings batched in ``x``.
            source_latents, reference_latents: ``[B, C, F or R, h, w]``, scaled as ``x`` is.
        """
        first = self.reference_first
        tokens, grid = self._embed(x, source_latents, reference_latents, transformer_options["sigmas"])
        transformer_options["grid_sizes"] = grid
        reference_tokens = tokens.shape[1] - grid.numel()

        t = t.reshape(len(t), -1)
        if t.shape[1] > 1 and reference_tokens:
            own = t.amax(dim=1, keepdim=True).expand(-1, reference_latents.shape[2])
            t = torch.cat([own, t] if first else [t, own], dim=1)
        rounding = transformer_options.get(ROUNDING, "shipped")
        time = self.time_embedding(schedule.timestep_embedding(t, self.freq_dim, rounding).to(x.dtype))
        modulation = self.time_projection(time).unflatten(2, (6, self.dim))

        replace = transformer_options.get("patches_replace", {}).get("dit", {})
        after = transformer_options.get("patches", {}).get("double_block", [])
        transformer_options["total_blocks"] = len(self.blocks)
        transformer_options["block_type"] = "double"
        for index, block in enumerate(self.blocks):
            transformer_options["block_index"] = index

            def original(args, block=block):
                options = args["transformer_options"]
                return {
                    "img": block(
                        args["img"], context=args["txt"], e=args["vec"], freqs=args["pe"],
                        context_img_len=None, transformer_options=options,
                    )
                }  # fmt: skip

            args = {
                "img": tokens, "txt": context, "vec": modulation, "pe": freqs,
                "transformer_options": transformer_options,
            }  # fmt: skip
            wrapped = replace.get(("double_block", index))
            tokens = (wrapped(args, {"original_block": original}) if wrapped else original(args))["img"]
            for patch in after:
                args = {
                    "img": tokens, "x": x, "vec": time, "block_index": index,
                    "img_offset": reference_tokens if first else 0,
                    "transformer_options": transformer_options,
                }  # fmt: skip
                tokens = patch(args)["img"]

        tokens = conditioning.drop_reference(self.head(tokens, time), reference_tokens, first)
        return self.unpatchify(tokens, grid)

    def _embed(self, x, source_latents, reference_latents, sigmas):
        """The token sequence ``[B, N, dim]`` and the video's part of it as a grid (frames, rows, columns)."""
        video, source, reference = (
            latents if latents is None else embed(latents.float())
            for latents, embed in (
                (x, self.patch_embedding),
                (source_latents, self.vae_condition),
                (reference_latents, self.ref_vae_condition),
            )
        )
        video = conditioning.add_source(video, source, sigmas.repeat(len(x) // len(sigmas))).to(x.dtype)
        return conditioning.join_reference(video, reference, self.reference_first), video.shape[2:]


class WindowContexts(comfy.conds.CONDRegular):
    """The context of the whole clip, and those of its parts for context windows."""

    def __init__(self, cond, contexts):
        super().__init__(cond)
        self.contexts = contexts

    def _copy_with(self, cond):
        return type(self)(cond, self.contexts)

    def nearest(self, centre: float) -> comfy.conds.CONDRegular:
        """The context of the part whose centre is nearest to ``centre``."""
        return comfy.conds.CONDRegular(min(self.contexts, key=lambda part: abs(part[0] - centre))[1])


class KiwiWan(comfy.model_base.WAN21):
    """Turns a conditioning into what :class:`KiwiWanModel` takes, and refuses what does not fit.

    It serves Wan 2.2's 48 channels too. ComfyUI's own class for these shows the model what a noise mask keeps as clean,
    at a timestep a frame that is the mask's mean. Kiwi-Edit was trained with one timestep for a clip, so here what is
    kept gets the noise of the step, as with Wan 2.1.
    """

    def __init__(self, model_config, model_type=comfy.model_base.ModelType.FLOW, device=None):
        super(comfy.model_base.WAN21, self).__init__(
            model_config, model_type, device=device, unet_model=KiwiWanModel
        )
        self.image_to_video = False
        self.memory_usage_factor_conds = ("reference_latents",)

    def extra_conds(self, **kwargs):
        noise, context = kwargs["noise"], kwargs.get("cross_attn")
        dit = self.diffusion_model
        check_channels(self, noise)
        if context is None or context.shape[-1] != dit.dim:
            found = "missing" if context is None else f"{context.shape[-1]} wide"
            raise ValueError(
                f"The conditioning is {found} but this model takes one {dit.dim} wide; encode the "
                "instruction with the Kiwi-Edit instruction node and this model's own connector."
            )
        out = super().extra_conds(**kwargs)
        source, references = kwargs.get(SOURCE), kwargs.get(REFERENCES)
        check_source(kwargs)
        if source.shape[1:] != noise.shape[1:]:
            raise ValueError(
                f"The source is {_size(source)} but the latent to sample is {_size(noise)}; "
                "prepare both from the same clip."
            )
        out["source_latents"] = comfy.conds.CONDNoiseShape(self.process_latent_in(source))
        if contexts := kwargs.get(WINDOW_CONTEXTS):
            out["c_crossattn"] = WindowContexts(context, contexts)
        if references:
            if dit.ref_vae_condition is None:
                raise ValueError(
                    "This model was not trained with reference pictures; load one that was or leave them out."
                )
            for reference in references:
                if (reference.shape[1], *reference.shape[3:]) != (noise.shape[1], *noise.shape[3:]):
                    raise ValueError(
                        f"A reference is {_size(reference)} but the latent to sample is {_size(noise)}; "
                        "letterbox the reference to the size of the clip."
                    )
            out["reference_latents"] = comfy.conds.CONDRegular(
                self.process_latent_in(torch.cat(list(references), dim=2))
            )
        return out

    def extra_conds_shapes(self, **kwargs):
        out = super().extra_conds_shapes(**kwargs)
        references = kwargs.get(REFERENCES)
        if references:
            shape = list(references[0].shape)
            shape[2] = sum(reference.shape[2] for reference in references)
            out["reference_latents"] = shape
        return out

    def resize_cond_for_context_window(self, cond_key, cond_value, window, x_in, device, **kwargs):
        if cond_key == "reference_latents":  # whole in every window, also when there are as many as frames
            return cond_value
        if cond_key == "c_crossattn":  # never cut, whatever its size
            frames = window.index_list
            centre = (frames[len(frames) // 2] + 0.5) / x_in.shape[window.dim]
            return cond_value.nearest(centre) if isinstance(cond_value, WindowContexts) else cond_value
        return super().resize_cond_for_context_window(cond_key, cond_value, window, x_in, device, **kwargs)


def check_source(values) -> None:
    """ValueError for the values of a conditioning that did not pass through Source Video."""
    if values.get(SOURCE) is None:
        raise ValueError(
            "A conditioning has no source clip, so the edit would not see it; connect it (and a negative) through "
            "Source Video (Kiwi-Edit)."
        )


def _check_cache(transformer_options) -> None:
    """ValueError for an EasyCache that all of a clip's windows share; LazyCache looks at the whole clip."""
    cache = transformer_options.get("easycache")
    if cache is None or transformer_options.get("context_window") is None:
        return
    if getattr(cache, "name", "EasyCache") == "EasyCache":
        raise ValueError(
            "EasyCache would take what it remembers of one window for the next; use LazyCache on a clip that is longer "
            "than a window, or sample it without windows."
        )


def _size(latent: torch.Tensor) -> str:
    channels, frames, height, width = latent.shape[1:]
    return f"{frames} frames of {height}x{width} with {channels} channels"


class _KiwiConfig:
    """What both supported-model classes share."""

    required_keys = {SOURCE_KEY: None}
    sampling_settings = {"shift": 5.0}

    @classmethod
    def matches(cls, unet_config, state_dict=None, unet_key_prefix=""):
        # ComfyUI 0.18 does not say behind which prefix the keys stand.
        if not super().matches(unet_config) or state_dict is None:
            return False
        return any(name == SOURCE_KEY or name.endswith(f".{SOURCE_KEY}") for name in state_dict)

    def get_model(self, state_dict, prefix="", device=None):
        names = (name for name in state_dict if name.startswith(prefix))
        parts = dit_keys.split_embedders({name.removeprefix(prefix): state_dict[name] for name in names})
        _, _, reference, reference_first = parts
        self.unet_config.update(has_reference=bool(reference), reference_first=reference_first)
        return KiwiWan(self, device=device)

    def process_unet_state_dict(self, state_dict):
        kept = {
            name: dit_keys.with_time_axis(tensor)
            for name, tensor in state_dict.items()
            if not name.startswith("text_embedding.")
        }
        kept.setdefault(dit_keys.REFERENCE_FIRST, torch.zeros(1, dtype=torch.uint8))
        return super().process_unet_state_dict(kept)


class KiwiEdit21(_KiwiConfig, comfy.supported_models.WAN21_T2V):
    pass


class KiwiEdit22(_KiwiConfig, comfy.supported_models.WAN22_T2V):
    pass


def register() -> None:
    """Put our classes, once, before ComfyUI's, which would take a Kiwi-Edit file for a plain Wan."""
    ours = (KiwiEdit22, KiwiEdit21)  # told by name, as a reloaded pack brings new classes
    names = {model.__name__ for model in ours}
    models = comfy.supported_models.models
    models[:] = [*ours, *(model for model in models if model.__name__ not in names)]


def check_channels(model: KiwiWan, latent: torch.Tensor) -> None:
    """ValueError if a latent is of another VAE than the model's."""
    channels = model.latent_format.latent_channels
    if latent.shape[1] != channels:
        raise ValueError(
            f"The latent has {latent.shape[1]} channels but this model works on {channels}; "
            "use the VAE that belongs to the model."
        )


def check_kiwi(model) -> None:
    """ValueError if a MODEL (a ``ModelPatcher``) is not a Kiwi-Edit DiT."""
    if not isinstance(model.model, KiwiWan):
        raise ValueError("This model is not a Kiwi-Edit DiT (it has no source embedder); load a Kiwi-Edit file.")


register()
