"""Models that the tests share."""

from pathlib import Path

import golden
import pytest
import torch


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> Path:
    """A folder with a small random model as ``released``, ``comfyui`` and ``training``. Not to be changed."""
    import random_model

    folder = tmp_path_factory.mktemp("random_model")
    random_model.write(folder)
    return folder


@pytest.fixture(scope="session")
def pipe():
    """The golden model in float32, its progress bar off. Change it with ``monkeypatch`` only."""
    from kiwi_core import KiwiEditPipeline

    pipe = KiwiEditPipeline.from_pretrained(golden.RELEASE, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def random_pipe(random_model):
    """The random model (Wan2.1's VAE, byte tokenizer) in float32. Change it with ``monkeypatch`` only."""
    from kiwi_core import KiwiEditPipeline

    pipe = KiwiEditPipeline.from_pretrained(random_model / "released", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe
