"""The whole model in training: instruction, source and reference to the loss of each sample."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kiwi_core import mllm
from kiwi_core.checkpoints.lora import Lora
from kiwi_core.checkpoints.parts import Parts
from kiwi_core.pipeline import KiwiEditPipeline

from . import adapters, distill, flow_match, quantised
from .config import Config

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.bfloat16}


@dataclass
class Batch:
    """Encoded samples of one kind and shape."""

    kind: str
    """"image", "video" or "ref"."""
    latents: torch.Tensor
    """Of the targets ``[B, C, F, h, w]``."""
    source_latents: torch.Tensor | None
    """Of the sources, ``latents``' shape."""
    reference_latents: torch.Tensor | None
    """``[B, C, 1, h, w]``."""
    noise: torch.Tensor
    """``latents``' shape."""
    timestep_ids: torch.Tensor
    """int64 ``[B]``: see :func:`training.flow_match.lookup`."""
    inputs: list[mllm.MLLMInputs] | None
    """What the language model is shown; None where the context is known."""
    context: torch.Tensor | None = None
    """``[B, N, dim]``, of a frozen language model."""
    row_ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.latents)


@dataclass
class At:
    """A point of a sampling run."""

    latents: torch.Tensor
    """Noisy, ``[B, C, F, h, w]``."""
    sigma: torch.Tensor
    """Their noise level, ``[1]``."""


class KiwiModel(nn.Module):
    """DiT, embedders, language model and connector, of which a recipe trains a part.

    Attributes are named as in training checkpoints: ``dit``, ``vae_condition``, ``ref_vae_condition``, ``mllm``. The
    VAE is ``pipe.vae`` and no part of it.
    """

    def __init__(self, pipe: KiwiEditPipeline, config: Config):
        super().__init__()
        self.dit, self.mllm = pipe.transformer, pipe.mllm_encoder
        self.vae_condition, self.ref_vae_condition = pipe.source_embedder, pipe.ref_embedder
        self.config = config
        self.ref_pad_first = pipe.config.ref_pad_first
        self.shared = False
        """Whether several processes train it."""
        object.__setattr__(self, "pipe", pipe)  # not a submodule: the VAE is neither trained nor wrapped

    def forward(self, batch: Batch, at: At | None = None, context_only: bool = False) -> torch.Tensor:
        """Weighted loss of each sample, float32 ``[B]``; or the velocity at a point of sampling; or the context."""
        config = self.config
        # Without autocast's cache: each weight is used once, and its copies would stay until the end.
        with torch.autocast(
            batch.latents.device.type, torch.bfloat16, enabled=config.precision == "bf16", cache_enabled=False
        ):
            context = batch.context if batch.context is not None else self.mllm(batch.inputs)
            if context_only:
                return context
            arguments = {"context": context, **self.conditions(batch)}
            modules = self.parts()
            if at is not None:
                return flow_match.predict(*modules, at.latents, at.sigma * 1000, at.sigma, **arguments)
            if config.objective == "distill":
                losses = distill.losses(self, modules, batch, arguments)
            else:
                losses = flow_match.losses(
                    *modules, batch.latents, batch.noise, batch.timestep_ids, **arguments, weights=config.loss_weights
                )
            return losses + self._touch() if self.training and self.shared else losses

    def conditions(self, batch: Batch) -> dict:
        """What the DiT is given beside the context: arguments of :func:`training.flow_match.predict`."""
        return {
            "source_latents": batch.source_latents if self.config.use_source else None,
            "reference_latents": batch.reference_latents,
            "reference_first": self.ref_pad_first,
            "rounding": self.config.rounding,
        }

    def parts(self) -> tuple[Callable, Callable, Callable | None]:
        """DiT and embedders of source and references, as :func:`training.flow_match.predict` takes them."""
        return self.dit, self.vae_condition, self.ref_vae_condition

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _touch(self) -> torch.Tensor:
        """A zero that depends on what a batch may not use, so that processes agree on which gradients there are."""
        optional = [*self.mllm.connector.parameters()]
        if self.ref_vae_condition is not None:
            optional += self.ref_vae_condition.parameters()
        return sum(parameter.sum() * 0.0 for parameter in optional if parameter.requires_grad)


def trained_names(model: KiwiModel, config: Config) -> set[str]:
    """Names of the parameters that a recipe trains, adapters included."""
    connector = "mllm.connector."
    whole = [f"{connector}{kind}_queries" for kind in config.queries]
    prefixes = [
        *([f"{connector}connector."] if config.train_connector else []),
        *([f"{connector}ref_connector."] if config.train_ref_connector else []),
        *(["vae_condition."] if config.train_source_embedder else []),
        *(["ref_vae_condition."] if config.train_ref_embedder else []),
        *(["dit."] if config.dit == "full" else []),
    ]

    def is_trained(name: str) -> bool:
        if ".text_embedder." in name:  # unused: the context passes it by
            return False
        return name in whole or name.startswith(tuple(prefixes)) or ".lora_" in name

    return {name for name, _ in model.named_parameters() if is_trained(name)}


def _frozen(parts: Parts, config: Config, start: Lora | None, model_class: type[KiwiModel]) -> KiwiModel:
    """The model with the adapters of ``start`` merged, but for those that the run goes on with."""
    pipe = KiwiEditPipeline.from_parts(parts, DTYPES[config.base_dtype])
    model = model_class(pipe, config)
    if start is not None:
        adapters.merge_absent(model, start, adapters.targets(model, config) if _goes_on(config) else {})
    return model


def _goes_on(config: Config) -> bool:
    """Not a distilled model, whose adapters are the student alone: those of the start belong to the teacher."""
    return config.objective != "distill"


def encoders(
    parts: Parts, config: Config, start: Lora | None = None, model_class: type[KiwiModel] = KiwiModel
) -> KiwiModel:
    """The model as it encodes samples, with nothing to train."""
    model = _frozen(parts, config, start, model_class)
    if config.base_dtype == "fp8":
        quantised.quantise(model.mllm.model.language_model.layers)
    return model


def from_parts(
    parts: Parts, config: Config, start: Lora | None = None, model_class: type[KiwiModel] = KiwiModel
) -> KiwiModel:
    """The model of a run on the CPU: quantised, with its adapters, and the right parts trainable.

    Args:
        parts, start: of :func:`training.base.read`. model_class: a variant of the model, such as an ablation.
    """
    model = encoders(parts, config, start, model_class)
    if config.base_dtype == "fp8" and config.dit != "full":
        quantised.quantise(model.dit.blocks)
    torch.manual_seed(config.seed)
    adapters.inject(model, config)
    if start is not None and _goes_on(config):
        adapters.load(model, start, config)
    trained = trained_names(model, config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
        if name in trained:
            parameter.data = parameter.data.float()
    if not trained:
        raise ValueError("The recipe trains nothing; set --dit lora or --queries.")
    if config.checkpointing:
        model.dit.enable_gradient_checkpointing()
        # By hand: transformers' own switch also makes the embeddings a leaf, into which queries cannot be put.
        for layer in model.mllm.model.language_model.layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
    return model
