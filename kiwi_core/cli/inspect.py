"""``kiwi-edit inspect``: what a checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def inspect(path: Annotated[Path, tyro.conf.Positional]) -> None:
    """Say what a checkpoint is: layout, variant, precision, and what is missing.

    Args:
        path: a safetensors file or a model folder.
    """
    from ..checkpoints.inspect import inspect

    print(inspect(path))
