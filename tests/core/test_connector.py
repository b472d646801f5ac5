"""Learnable queries and the two connectors."""

import golden
import pytest
import torch
from safetensors.torch import load_file

from kiwi_core.connector import DualConnector

WEIGHTS = load_file(golden.RELEASE / "mllm_encoder" / "diffusion_pytorch_model.safetensors")


def test_sizes_are_read_from_shapes():
    sizes = DualConnector.sizes_from(WEIGHTS)
    assert sizes == {
        **{"hidden_size": 64, "dit_dim": 48},
        **{"num_image_queries": 4, "num_video_queries": 6, "num_ref_queries": 8},
    }
    connector = DualConnector(**sizes)
    assert connector.state_dict().keys() == WEIGHTS.keys()
    assert connector.num_queries == golden.CONFIG["nq"]


def test_early_checkpoints_have_fewer_parts():
    weights = {name: tensor for name, tensor in WEIGHTS.items() if not name.startswith(("ref_", "video_"))}
    sizes = DualConnector.sizes_from(weights)
    assert (sizes["num_image_queries"], sizes["num_video_queries"], sizes["num_ref_queries"]) == (4, 0, 0)
    assert DualConnector(**sizes).state_dict().keys() == weights.keys()


def test_another_file_is_refused():
    with pytest.raises(ValueError, match=r"holds no Kiwi-Edit connector .* use mllm_encoder/"):
        DualConnector.sizes_from({"model.embed_tokens.weight": torch.ones(2, 2)})


def test_published_counts_are_the_default():
    connector = DualConnector(2048, 3072, device="meta")
    assert connector.num_queries == {"image": 256, "video": 512, "ref": 768}
    for kind, count in connector.num_queries.items():
        assert connector.queries(kind).shape == (count, 2048)


def test_a_new_connector_says_nothing():
    connector = DualConnector(8, 12, 2, 3, 4)
    assert not connector(torch.randn(1, 20, 8), slice(5, 9), slice(0, 3)).any()
    assert connector.queries("video").std() > 0


def test_reference_tokens_stand_first_and_have_their_own_connector():
    connector = DualConnector(**DualConnector.sizes_from(WEIGHTS))
    connector.load_state_dict(WEIGHTS)
    states = torch.randn(2, 20, 64)
    context = connector(states, slice(14, 20), slice(3, 8))
    assert context.shape == (2, 11, 48)
    assert torch.equal(context[:, 5:], connector(states, slice(14, 20)))
    assert torch.equal(context[:, :5], connector.ref_connector(states[:, 3:8]))
    assert not torch.allclose(context[:, :5], connector(states, slice(3, 8)))
