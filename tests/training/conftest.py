"""A small random model and small editing pairs, shared by the tests of training."""

from pathlib import Path

import golden  # noqa: F401  (one thread: the tensors are too small for more to pay)
import pytest
import random_model
import training_data


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with a small random model as ``released``, ``comfyui`` and ``training``. Not to be changed."""
    folder = tmp_path_factory.mktemp("tiny_model")
    random_model.write(folder)
    return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """A table of four pictures, four clips and four clips with references. Not to be changed."""
    return training_data.write_all(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def cached(tmp_path_factory, tiny_model, pairs) -> Path:
    """A cache of all of ``pairs``."""
    from training.cache_data import cache_data

    folder = tmp_path_factory.mktemp("cache")
    cache_data(training_data.config("tiny_stage3", tiny_model / "released", pairs, folder, cache=str(folder)))
    return folder


@pytest.fixture
def quick(tiny_model, pairs, cached, tmp_path):
    """Configurations of short runs on ``pairs``, cached."""

    def quick(recipe="tiny_stage3", output="run", **changes):
        given = {"cache": str(cached), "steps": 4, "batch_size": 2}
        folder = tmp_path / output
        return training_data.config(recipe, tiny_model / "released", pairs, folder, **given | changes)

    return quick
