"""Which model this is, read from the shapes of its tensors and never from a file's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .checkpoints import dit_keys

HEAD_DIM = 128
_NEEDED = (
    "blocks.0.self_attn.q.weight",
    "blocks.0.ffn.0.weight",
    "patch_embedding.weight",
    "time_embedding.0.weight",
    "head.modulation",
)
_NAMES = {(3072, 30, 48): "5B", (5120, 40, 16): "14B"}


@dataclass(frozen=True)
class Variant:
    """Sizes of the video DiT and what follows from them."""

    dim: int
    num_layers: int
    num_heads: int
    ffn_dim: int
    freq_dim: int
    latent_channels: int
    text_dim: int
    has_source: bool
    has_reference: bool

    @property
    def name(self) -> str:
        """"5B" (Wan2.2-TI2V-5B), "14B" (Wan2.1-T2V-14B), or "custom"."""
        return _NAMES.get((self.dim, self.num_layers, self.latent_channels), "custom")

    @property
    def spatial_factor(self) -> int:
        """Pixels a latent, each way: 16 for the 48-channel VAE of Wan2.2, 8 for that of Wan2.1."""
        return 16 if self.latent_channels == 48 else 8

    def transformer_config(self) -> dict:
        """Arguments of diffusers' ``WanTransformer3DModel``."""
        return {
            "num_attention_heads": self.num_heads,
            "attention_head_dim": self.dim // self.num_heads,
            "in_channels": self.latent_channels,
            "out_channels": self.latent_channels,
            "text_dim": self.text_dim,
            "freq_dim": self.freq_dim,
            "ffn_dim": self.ffn_dim,
            "num_layers": self.num_layers,
        }


def find_variant(shapes: Mapping[str, Sequence[int]], num_heads: int | None = None) -> Variant:
    """The variant of a DiT under original Wan or diffusers names, with or without its embedders.

    Args:
        shapes: tensor name -> shape. num_heads: if known; Wan's heads are 128 wide.

    Raises:
        ValueError: not a Wan video DiT.
    """
    if dit_keys.is_diffusers(shapes):
        embedders = {name: shape for name, shape in shapes.items() if "vae_condition." in name}
        shapes = {dit_keys.to_original(name): shape for name, shape in shapes.items() if name not in embedders}
        shapes |= embedders
    for name in _NEEDED:
        if name not in shapes:
            raise ValueError(f"This is no Wan video model ({name} is missing); choose its DiT file.")
    dim, channels = shapes["patch_embedding.weight"][:2]
    return Variant(
        dim=dim,
        num_layers=1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        num_heads=num_heads or dim // HEAD_DIM,
        ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
        freq_dim=shapes["time_embedding.0.weight"][1],
        latent_channels=channels,
        text_dim=shapes["text_embedding.0.weight"][1] if "text_embedding.0.weight" in shapes else 4096,
        has_source=dit_keys.SOURCE_PREFIX + "patch_embedding.weight" in shapes,
        has_reference=dit_keys.REFERENCE_PREFIX + "patch_embedding.weight" in shapes,
    )
