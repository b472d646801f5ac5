"""One process at a time: a lock that the system takes back when its process dies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def take(path: Path, busy: str):
    """The lock's open file, which holds it until it is closed; None where the system has no such locks.

    Raises:
        ValueError: another process holds it; says ``busy``.
    """
    if fcntl is None:
        return None
    file = path.open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which workers would hold on to
    except OSError:
        file.close()
        raise ValueError(busy) from None
    return file


@contextlib.contextmanager
def alone(path: Path, busy: str) -> Iterator[None]:
    """Within it, this process holds the lock; see :func:`take`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = take(path, busy)
    try:
        yield
    finally:
        if held:
            held.close()
