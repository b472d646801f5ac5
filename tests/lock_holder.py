"""A process that holds locks, as another run would."""

import subprocess
import sys
from contextlib import contextmanager

_CODE = (
    "import sys; from pathlib import Path; from training import lock\n"
    "held = [lock.take(Path(path), '') for path in sys.argv[1:]]; print('held', flush=True); sys.stdin.read()"
)


@contextmanager
def held(*paths):
    """Within it, the locks are another process's."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", _CODE, *map(str, paths)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        yield
    finally:
        other.kill()
        other.wait()
