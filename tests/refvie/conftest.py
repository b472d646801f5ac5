"""Pairs of the toy world in lossless files, and configs whose models are stand-ins."""

from pathlib import Path

import pytest
import refvie_runs

from training.refvie import config


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """A table of twenty pairs. Not to be changed."""
    return refvie_runs.write_pairs(tmp_path_factory.mktemp("refvie_pairs"), 20)


@pytest.fixture(scope="session")
def standins():
    """Makes configs whose models are stand-ins."""
    return lambda **changes: config.parse(refvie_runs.settings(**changes))


@pytest.fixture(scope="session")
def finished(pairs, standins, tmp_path_factory) -> Path:
    """A finished run of the pairs. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    refvie_runs.run(pairs, folder, standins())
    return folder
