"""``kiwi-edit download``: published models into ComfyUI's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def download(
    name: Annotated[str, tyro.conf.Positional],
    models: Path,
    revision: str = "main",
    files: tuple[str, ...] = (),
    verify: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Fetch a model into ComfyUI's models folder; what is there is kept, what was stopped goes on.

    Args:
        name: instruct-reference, instruct, reference, or a name on the hub (owner/name).
        models: ComfyUI's models folder; the model becomes a folder in its diffusers.
        revision: branch, tag or commit.
        files: only what matches one of these patterns, such as "transformer/*".
        verify: read all that is there again, and replace what is damaged.
    """
    from ..checkpoints.download import download

    print(download(name, models, revision, files or None, verify))
