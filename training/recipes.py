"""The runs of the paper, styles on one card, distillation, and small ones for tests.

A recipe is a function that returns a whole :class:`Config`; give it ``model``, ``data`` and ``output``.
"""

from __future__ import annotations

from collections.abc import Callable

from .config import OFFICIAL, Config

RECIPES: dict[str, Callable[[], Config]] = {}

_P480, _P720 = 600 * 600, 720 * 1280
_MLP = ("gate_proj", "up_proj", "down_proj")


def recipe(build: Callable[[], dict]) -> Callable[[], Config]:
    """Register a recipe under its function's name."""

    def complete() -> Config:
        return Config(recipe=build.__name__, **build())

    complete.__name__, complete.__doc__ = build.__name__, build.__doc__
    RECIPES[build.__name__] = complete
    return complete


def get(name: str, official: bool = False) -> Config:
    """The recipe of this name; with ``official`` it behaves as published wherever ours differs."""
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name!r}; use one of {', '.join(RECIPES)}.")
    config = RECIPES[name]()
    return config.replace(**OFFICIAL) if official else config


def _stage1() -> dict:
    return {
        "dit": "frozen", "queries": ("image",), "train_ref_connector": False, "train_source_embedder": False,
        "train_ref_embedder": False, "use_source": False, "kinds": ("image",), "max_pixels": 1024 * 1024,
        "max_frames": 1, "lr": 1e-5, "steps": 30_000,
    }  # fmt: skip


def _stage2(max_pixels: int) -> dict:
    return {
        "queries": ("image", "video"), "train_ref_connector": False, "train_ref_embedder": False,
        "kinds": ("image", "video"), "max_pixels": max_pixels, "lr": 1e-5, "steps": 20_000,
    }  # fmt: skip


def _stage3() -> dict:
    return {"kinds": ("image", "video", "ref"), "max_pixels": _P720, "lr": 5e-6, "steps": 15_000}


def _14b() -> dict:
    return {
        "architecture": "14B", "max_frames": 49, "dit": "lora", "dit_rank": 128, "mllm_rank": 256,
        "mllm_targets": ("q_proj", "k_proj", "v_proj", "o_proj", *_MLP),
    }  # fmt: skip


@recipe
def stage1_align():
    """Stage 1: teach queries, connector and language LoRA to speak to a frozen DiT, on pictures."""
    return _stage1()


@recipe
def stage2_480p():
    """Stage 2a: pictures and videos in turn, at 600 x 600 pixels, the whole DiT."""
    return _stage2(_P480)


@recipe
def stage2_720p():
    """Stage 2b: the same at 720p."""
    return _stage2(_P720)


@recipe
def stage3_mix():
    """Stage 3: pictures, videos and videos with references in turn."""
    return _stage3()


@recipe
def stage3_reference():
    """Stage 3 on videos with references alone."""
    return _stage3() | {"kinds": ("ref",), "steps": 30_000}


@recipe
def stage1_align_14b():
    """Stage 1 of the 14B model."""
    return _stage1() | _14b() | {"dit": "frozen", "max_frames": 1}


@recipe
def stage2_480p_14b():
    """Stage 2a of the 14B model, whose DiT is trained as a LoRA of rank 128."""
    return _stage2(_P480) | _14b()


@recipe
def stage2_720p_14b():
    """Stage 2b of the 14B model."""
    return _stage2(_P720) | _14b() | {"lr": 5e-6}


@recipe
def stage3_mix_14b():
    """Stage 3 of the 14B model: ours, none is published; the 5B model's with the 14B model's adapters."""
    return _stage3() | _14b()


@recipe
def stage3_reference_14b():
    """Stage 3 on references alone, of the 14B model: ours as well."""
    return _stage3() | _14b() | {"kinds": ("ref",), "steps": 30_000}


def _style() -> dict:
    return {
        "dit": "lora", "dit_rank": 32, "mllm_rank": 0, "queries": (), "train_connector": False,
        "train_ref_connector": False, "train_source_embedder": False, "train_ref_embedder": False,
        "max_pixels": 480 * 832, "max_frames": 49, "lr": 1e-4, "steps": 1500, "warmup_steps": 50,
        "schedule": "cosine", "ema_decay": 0.99, "save_every": 250, "validate_every": 250, "validation_rows": 1,
        "sample_every": 500, "sample_rows": 1, "exports": ("training", "comfyui"),
    }  # fmt: skip


@recipe
def style_lora():
    """An artist's style as a LoRA of the DiT, from some twenty clips, on a card of 24 GB."""
    return _style()


@recipe
def style_lora_16gb():
    """The same on 16 GB: base weights in float8."""
    return _style() | {"base_dtype": "fp8"}


@recipe
def style_lora_12gb():
    """The same on 12 GB: float8, rank 16, 33 frames; run ``cache`` first, so that the language model stays out."""
    return _style() | {"base_dtype": "fp8", "dit_rank": 16, "max_frames": 33, "max_pixels": 480 * 640}


def _distill() -> dict:
    return {
        "objective": "distill", "dit": "lora", "dit_rank": 64, "mllm_rank": 0, "queries": (), "train_connector": False,
        "train_ref_connector": False, "train_source_embedder": False, "train_ref_embedder": False, "lr": 5e-5,
        "steps": 6000, "warmup_steps": 100, "ema_decay": 0.99, "max_pixels": 480 * 832, "teacher_steps": 4,
        "sample_steps": 4, "exports": ("training", "comfyui"),
    }  # fmt: skip


@recipe
def distill_4step():
    """A LoRA that edits in 4 steps: piecewise rectified flow (PeRFlow, arXiv 2405.07510)."""
    return _distill()


def _tiny() -> dict:
    return {
        "architecture": "tiny", "max_pixels": 64 * 64, "max_frames": 9, "mllm_max_pixels": 128 * 784, "lr": 2e-3,
        "steps": 40, "workers": 0, "precision": "fp32", "base_dtype": "fp32", "batch_size": 4, "dit_rank": 8,
        "checkpointing": False, "save_every": 20, "validate_every": 0, "reference_scales": 2,
    }  # fmt: skip


@recipe
def tiny_stage1():
    """Stage 1 for tests: a model of 4 million parameters, clips of 64 x 64."""
    return _stage1() | _tiny() | {"max_frames": 1, "mllm_rank": 4}


@recipe
def tiny_stage2():
    """Stage 2 for tests."""
    return _stage2(0) | _tiny() | {"mllm_rank": 4}


@recipe
def tiny_stage3():
    """Stage 3 for tests."""
    return _stage3() | _tiny() | {"mllm_rank": 4}


@recipe
def tiny_style_lora():
    """A style LoRA for tests."""
    return _style() | _tiny() | {
        "validation_rows": 0, "sample_every": 0, "warmup_steps": 0, "schedule": "constant", "ema_decay": 0.0,
    }  # fmt: skip


@recipe
def tiny_distill():
    """Distillation to 4 steps for tests."""
    return _distill() | _tiny() | {"ema_decay": 0.0, "dit_rank": 32, "warmup_steps": 0}


def _nano() -> dict:
    return {
        "architecture": "nano", "max_pixels": 64 * 64, "max_frames": 9, "mllm_max_pixels": 224 * 224, "lr": 2e-3,
        "optimizer": "muon", "warmup_steps": 50, "schedule": "cosine", "precision": "bf16", "base_dtype": "fp32",
        "batch_size": 32, "loss_weights": "even", "mllm_rank": 16, "checkpointing": False, "save_every": 250,
        "keep_checkpoints": 1, "validation_rows": 16, "validate_every": 500, "reference_scales": 4, "ema_decay": 0.998,
        "trackers": (),
    }  # fmt: skip


@recipe
def nano_stage1():
    """Stage 1 of the small model that is trained from nothing in a toy world, see ``training/nano``."""
    return _stage1() | _nano() | {"max_frames": 1, "steps": 200}


@recipe
def nano_stage2():
    """Stage 2 of the small model."""
    return _stage2(0) | _nano() | {"steps": 1200}


@recipe
def nano_stage3():
    """Stage 3 of the small model."""
    return _stage3() | _nano() | {
        "steps": 1600, "lr": 1.5e-3, "weight_decay": 0.1, "exports": ("training", "diffusers"),
    }  # fmt: skip


@recipe
def nano_style_lora():
    """A style LoRA of the small model, on a few dozen clips."""
    return _style() | _nano() | {
        "dit_rank": 16, "mllm_rank": 0, "lr": 2e-3, "steps": 150, "batch_size": 16, "warmup_steps": 10,
        "validation_rows": 0, "validate_every": 0, "sample_every": 0, "ema_decay": 0.95,
    }  # fmt: skip
