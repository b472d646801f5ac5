"""Models by their name on the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Weights and settings; never code, never pickles.
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_name(model: str | os.PathLike) -> bool:
    """Whether this reads as ``owner/name`` and is no folder here."""
    return bool(_NAME.fullmatch(str(model))) and not Path(model).exists()


def folder_of(model: str | os.PathLike) -> Path:
    """The model's folder, downloaded if it is a name on the hub. Only weights and settings are fetched, no code.

    Raises FileNotFoundError if the download fails.
    """
    if not is_name(model):
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(model), allow_patterns=[*PATTERNS]))
    except Exception as error:  # the hub's library raises many kinds
        raise FileNotFoundError(
            f"{model} is no folder here and cannot be downloaded ({type(error).__name__}); check the name and the "
            "connection."
        ) from error
