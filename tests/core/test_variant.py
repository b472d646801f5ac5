"""Which model it is, from shapes alone."""

import golden
import pytest
import torch

from kiwi_core.checkpoints import dit_keys
from kiwi_core.transformer import KiwiTransformer3DModel
from kiwi_core.variant import find_variant

PUBLISHED = {
    "5B": (24, 14336, 48, 30, 3072, 16),
    "14B": (40, 13824, 16, 40, 5120, 8),
}


def shapes_of(**config):
    with torch.device("meta"):
        model = KiwiTransformer3DModel(**config)
    return {dit_keys.to_original(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_variants_are_recognised(name):
    heads, ffn, channels, layers, dim, factor = PUBLISHED[name]
    shapes = shapes_of(
        num_attention_heads=heads, ffn_dim=ffn, in_channels=channels, out_channels=channels, num_layers=1
    )
    shapes |= {f"blocks.{index}.modulation": (1, 6, dim) for index in range(layers)}
    variant = find_variant(shapes)
    assert variant.name == name
    assert (variant.num_heads, variant.ffn_dim, variant.latent_channels) == (heads, ffn, channels)
    assert (variant.num_layers, variant.dim, variant.spatial_factor) == (layers, dim, factor)
    assert (variant.freq_dim, variant.text_dim) == (256, 4096)
    assert not variant.has_source
    assert not variant.has_reference


@pytest.mark.parametrize("heads, ffn, channels, layers", [(1, 32, 16, 1), (3, 100, 48, 2), (5, 64, 4, 3)])
def test_a_config_is_found_again(heads, ffn, channels, layers):
    config = {
        **{"num_attention_heads": heads, "attention_head_dim": 128, "ffn_dim": ffn, "freq_dim": 64},
        **{"in_channels": channels, "out_channels": channels, "num_layers": layers, "text_dim": 40},
    }
    variant = find_variant(shapes_of(**config))
    assert variant.transformer_config() == config
    assert variant.name == "custom"


@pytest.mark.parametrize("file", ["weights_wan", "weights_diffusers"])
def test_both_namings_and_the_embedders_are_read(file):
    tensors = golden.load(f"dit/{file}")
    shapes = {
        name.removeprefix("transformer.")
        .replace("source_embedder.", dit_keys.SOURCE_PREFIX)
        .replace("ref_embedder.", dit_keys.REFERENCE_PREFIX): tuple(tensor.shape)
        for name, tensor in tensors.items()
    }
    variant = find_variant(shapes, num_heads=2)
    stored = golden.FACTS["dit"]["config"]
    assert variant.transformer_config().items() <= stored.items()
    assert variant.has_source
    assert variant.has_reference
    shapes = {name: shape for name, shape in shapes.items() if "ref_vae_condition" not in name}
    assert not find_variant(shapes, num_heads=2).has_reference
    shapes = {name: shape for name, shape in shapes.items() if "vae_condition" not in name and "text" not in name}
    assert not find_variant(shapes, num_heads=2).has_source


@pytest.mark.parametrize("shapes", [{}, {"patch_embedding.weight": (8, 4, 1, 2, 2)}, {"conv2.weight": (48, 48)}])
def test_another_model_is_refused(shapes):
    with pytest.raises(ValueError, match=r"no Wan video model .* choose its DiT file"):
        find_variant(shapes)
