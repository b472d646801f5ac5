"""Learnable queries and the two connectors between the language model and the DiT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

QUERY_KINDS = ("image", "video", "ref")


class DualConnector(nn.Module):
    """Queries that the language model fills in, and the two MLPs that carry its states to the DiT's width.

    Tensor names are those of the released ``mllm_encoder/diffusion_pytorch_model.safetensors``.

    Args:
        hidden_size: width of the language model. dit_dim: width of the DiT.
        num_image_queries, num_video_queries, num_ref_queries: 0 where the checkpoint has none (early stages).
        linear: class of the linear layers. factory: device and dtype.
    """

    def __init__(
        self,
        hidden_size: int,
        dit_dim: int,
        num_image_queries: int = 256,
        num_video_queries: int = 512,
        num_ref_queries: int = 768,
        linear=nn.Linear,
        **factory,
    ):
        super().__init__()
        self.hidden_size, self.dit_dim = hidden_size, dit_dim
        self.num_queries = dict(zip(QUERY_KINDS, (num_image_queries, num_video_queries, num_ref_queries)))
        for kind, count in self.num_queries.items():
            queries = nn.Parameter(torch.randn(count, hidden_size, **factory) * 0.02) if count else None
            self.register_parameter(f"{kind}_queries", queries)

        def mlp() -> nn.Sequential:
            return nn.Sequential(
                linear(hidden_size, dit_dim, **factory), nn.GELU("tanh"), linear(dit_dim, dit_dim, **factory)
            )

        self.connector = mlp()
        self.ref_connector = mlp() if num_ref_queries else None
        if linear is nn.Linear:
            for head in filter(None, (self.connector, self.ref_connector)):
                nn.init.zeros_(head[2].weight)
                nn.init.zeros_(head[2].bias)

    @classmethod
    def sizes_from(cls, state_dict: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Constructor sizes read from tensors' shapes; ValueError if this is no connector."""
        first = state_dict.get("connector.0.weight")
        if first is None:
            raise ValueError(
                "This file holds no Kiwi-Edit connector (connector.0.weight is missing); "
                "use mllm_encoder/diffusion_pytorch_model.safetensors or a connector file."
            )
        counts = {
            f"num_{kind}_queries": state_dict[f"{kind}_queries"].shape[0] if f"{kind}_queries" in state_dict else 0
            for kind in QUERY_KINDS
        }
        return {"hidden_size": first.shape[1], "dit_dim": first.shape[0], **counts}

    def queries(self, kind: str) -> torch.Tensor:
        """Queries ``[n, hidden_size]`` of a mode that the checkpoint has: "image", "video" or "ref"."""
        return getattr(self, f"{kind}_queries")

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_slice: slice,
        reference_slice: slice | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Context for the DiT's cross-attention: [reference tokens ; query tokens].

        Args:
            hidden_states: ``[B, L, hidden_size]``, after the language model's final norm.
            query_slice, reference_slice: positions, from :class:`kiwi_core.mllm.MLLMInputs`.

        Returns:
            ``[B, N, dit_dim]``.
        """
        context = self.connector(hidden_states[:, query_slice])
        if reference_slice is None:
            return context
        return torch.cat([self.ref_connector(hidden_states[:, reference_slice]), context], dim=1)
