"""A single file after a GGUF converter, loaded the way ComfyUI-GGUF does: by a tensor class and layers of its own.

Neither is here. This holds what they rest on: that a converter can take our file, and that our model loads tensors
that are not plain ones, keeps the given layers, and puts back what the converter could not hold.
"""

import importlib

import comfy.model_management
import comfy.ops
import comfy.sd
import golden
import pytest
import random_model
import torch
from torch.nn import functional

from kiwi_core.checkpoints import dit_keys, released

BLOCK = 32


class QuantisedTensor(torch.Tensor):
    """Bytes that say they are of another shape: of each 32 weights a float16 scale and 32 whole numbers."""

    @staticmethod
    def __new__(cls, data, shape, quantised):
        tensor = data.as_subclass(cls)
        tensor.whole_shape, tensor.quantised = torch.Size(shape), quantised
        return tensor

    @property
    def shape(self):
        return getattr(self, "whole_shape", self.size())

    def to(self, *args, **kwargs):
        return QuantisedTensor(super().to(*args, **kwargs), self.shape, getattr(self, "quantised", False))

    def detach(self):
        return self

    def clone(self):
        return self


def quantise(weight: torch.Tensor) -> QuantisedTensor:
    blocks = weight.float().reshape(-1, BLOCK)
    scale = (blocks.abs().amax(dim=1, keepdim=True) / 127).half()
    whole = (blocks / scale.float()).round().to(torch.int8)
    data = torch.cat([scale.view(torch.uint8), whole.view(torch.uint8)], dim=1)
    return QuantisedTensor(data.reshape(len(weight), -1), weight.shape, quantised=True)


def dequantise(tensor: torch.Tensor) -> torch.Tensor:
    plain = tensor.as_subclass(torch.Tensor)
    if not getattr(tensor, "quantised", False):
        return plain.float()
    blocks = plain.reshape(-1, 2 + BLOCK)
    scale, whole = blocks[:, :2].contiguous().view(torch.float16), blocks[:, 2:].contiguous().view(torch.int8)
    return (scale.float() * whole).reshape(tensor.shape)


class Operations(comfy.ops.manual_cast):
    class Linear(comfy.ops.manual_cast.Linear):
        """Takes its tensors as they are and makes them whole when it is called."""

        def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features, self.weight, self.bias = in_features, out_features, None, None

        def _load_from_state_dict(self, state_dict, prefix, *args):
            for name in ("weight", "bias"):
                setattr(self, name, torch.nn.Parameter(state_dict[prefix + name], requires_grad=False))

        def forward(self, input):
            return functional.linear(input, dequantise(self.weight), dequantise(self.bias))


@pytest.fixture(scope="module", autouse=True)  # importing it is what makes the stock loader know our files
def dit(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.dit")


def single_file(reference: bool, first: bool) -> dict[str, torch.Tensor]:
    parts = random_model.random_parts(reference=reference, ref_pad_first=first)
    names = {dit_keys.to_original(name): tensor for name, tensor in parts.transformer.items()}
    return dit_keys.join_embedders(names, parts.source_embedder, parts.ref_embedder, first)


def convert(file: dict[str, torch.Tensor]) -> dict[str, QuantisedTensor]:
    """As a converter does it: block weights are quantised, what is small is float32, all else float16."""
    converted = {}
    for name, tensor in file.items():
        if name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2:
            converted[name] = quantise(tensor)
        else:
            small = tensor.ndim == 1 and tensor.is_floating_point()
            dtype = torch.float32 if small or "modulation" in name or tensor.ndim == 5 else torch.float16
            converted[name] = QuantisedTensor(tensor.to(dtype), tensor.shape, quantised=False)
    return converted


def predict(patcher, reference: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x, source, shown = (torch.randn(1, 16, frames, 8, 12, generator=generator) for frames in (3, 3, 1))
    context, sigma = torch.randn(1, 11, 256, generator=generator), torch.tensor([0.83])
    comfy.model_management.load_models_gpu([patcher])
    conditions = {"source_latents": source} | ({"reference_latents": shown} if reference else {})
    with torch.no_grad():
        return patcher.model.diffusion_model(
            x, sigma * 1000, context=context, transformer_options={"sigmas": sigma}, **conditions
        )


@pytest.mark.parametrize(("reference", "first"), [(False, False), (True, False), (True, True)])
def test_a_converted_file_is_a_kiwi_model_with_the_weights_that_it_stands_for(dit, reference, first):
    converted = convert(single_file(reference, first))
    assert sum(tensor.quantised for tensor in converted.values()) == 20
    patcher = comfy.sd.load_diffusion_model_state_dict(
        dict(converted), model_options={"custom_operations": Operations, "dtype": torch.float32}
    )
    dit.check_kiwi(patcher)
    assert patcher.model.diffusion_model.reference_first is first
    assert isinstance(patcher.model.diffusion_model.blocks[0].ffn[0].weight, QuantisedTensor)

    plain = {name: dequantise(tensor) for name, tensor in converted.items()}
    expected = comfy.sd.load_diffusion_model_state_dict(plain, model_options={"dtype": torch.float32})
    assert torch.equal(predict(patcher, reference), predict(expected, reference))


def test_quantising_costs_what_eight_bits_do(dit):
    """The model above is that of the dequantised weights; it is near the one that was quantised."""
    file = single_file(True, False)
    patcher = comfy.sd.load_diffusion_model_state_dict(
        convert(file), model_options={"custom_operations": Operations, "dtype": torch.float32}
    )
    expected = predict(comfy.sd.load_diffusion_model_state_dict(file, model_options={"dtype": torch.float32}), True)
    error = (predict(patcher, True) - expected).square().mean().sqrt() / expected.std()
    assert 0 < error < 0.01  # a weight is off by 1/254 of its block's largest at most


def test_the_published_layout_becomes_a_file_that_converters_can_take():
    """They know Wan by these names, hold four dimensions but for one tensor, and leave bfloat16 to linear layers."""
    dit, _, source, reference, first = released.read_dit(golden.RELEASE)
    dit, source, reference = ({name: part[name].bfloat16() for name in part} for part in (dit, source, reference))
    names = {dit_keys.to_original(name): tensor for name, tensor in dit.items()}
    file = dit_keys.join_embedders(names, source, reference, first)
    assert {"blocks.0.self_attn.norm_q.weight", "text_embedding.2.weight", "head.modulation"} <= file.keys()
    assert [name for name, tensor in file.items() if tensor.ndim > 4] == ["patch_embedding.weight"]
    embedders = {name: tensor for name, tensor in file.items() if "vae_condition" in name}
    assert len(embedders) == 4
    assert {tensor.dtype for tensor in embedders.values()} == {torch.float32}
