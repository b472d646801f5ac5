"""What a folder was begun with, so that it goes on with the same and mixes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kiwi_core.checkpoints import files


def keep(path: Path, settings: dict[str, Any]) -> None:
    """Write settings down, or compare them with those that are there.

    Raises:
        ValueError: other ones are there.
    """
    settings = json.loads(json.dumps(settings))
    if not path.is_file():
        files.save_json(settings, path)
        return
    theirs = files.read_json(path)
    for name, value in settings.items():
        if theirs.get(name, value) != value:
            raise ValueError(
                f"{path.parent} was begun with another {name} ({theirs[name]!r} there, {value!r} here); say the same "
                "again, or use another --output."
            )
