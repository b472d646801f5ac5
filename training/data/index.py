"""What was found out about media files, kept so that it is found out once: sizes, lengths, digests."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

from tqdm import tqdm

from .faults import problem
from .media import Media, Probe

logger = logging.getLogger(__name__)

_THREADS = 8
_CHUNK = 512
_PATIENCE = 3  # seconds before a progress bar is shown


class Index:
    """A JSON Lines file of facts by media and the state of its file. A torn last line, left by a kill, is ignored.

    Args:
        path: the file; None keeps everything in memory.
    """

    def __init__(self, path: str | os.PathLike | None):
        self.path = None if path is None else Path(path)
        self._facts: dict[str, dict] = {}
        if self.path is not None and self.path.is_file():
            text = self.path.read_text(encoding="utf-8")
            if text and not text.endswith("\n"):  # else the next fact would be written into the torn line
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n")
            for line in text.splitlines():
                try:
                    fact = json.loads(line)
                except ValueError:
                    continue
                self._facts.setdefault(fact.pop("key"), {}).update(fact)

    def probe(self, media: Media) -> Probe:
        """Frames, size and rate; raises as :meth:`Media.probe` does."""

        def find() -> dict:
            found = media.probe()
            rate = [found.frame_rate.numerator, found.frame_rate.denominator]
            return {"frames": found.frames, "height": found.height, "width": found.width, "rate": rate}

        fact = self._get(media, "frames", find)
        return Probe(fact["frames"], fact["height"], fact["width"], Fraction(*fact["rate"]))

    def digest(self, media: Media) -> str:
        """Digest of the bytes; raises as :meth:`Media.digest` does."""
        return self._get(media, "digest", lambda: {"digest": media.digest()})["digest"]

    def known_digest(self, media: Media) -> str | None:
        """The digest, if it was asked for before and the file has not changed since."""
        try:
            return self._known(media)[1].get("digest")
        except (ValueError, OSError):  # there is no such file, and perhaps there cannot be one
            return None

    def _get(self, media: Media, field: str, find: Callable[[], dict]) -> dict:
        key, fact = self._known(media)
        if field not in fact:
            found = find()
            fact.update(found)
            self._write(json.dumps({"key": key, **found}) + "\n")
        return fact

    def _known(self, media: Media) -> tuple[str, dict]:
        stat = Path(media.path).stat()
        name, state = os.path.abspath(media.path), f"|{stat.st_size}|{stat.st_mtime_ns}"
        key = (f"{name}:{media.place.name}" if media.place else name) + state
        fact = self._facts.get(key)
        if fact is None:  # older files have paths as they were given
            fact = self._facts.setdefault(key, dict(self._facts.get(media.name + state, {})))
        return key, fact

    def _write(self, line: str) -> None:
        path = self.path  # which another thread may take away
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:  # no fault of the row that was looked at
            logger.warning("%s cannot be written (%s); what is found out is not kept.", path, error)
            self.path = None


def each(function: Callable, items: Sequence, about: str = "") -> list:
    """``function`` of all items, several at a time, in order; an error becomes the item's result.

    Args:
        about: what a progress bar says, which is shown where it takes long; "" for none.

    Raises what is no item's fault; see :func:`training.data.faults.problem`.
    """

    def attempt(item):
        try:
            return function(item)
        except Exception as error:
            return ValueError(problem(error))

    found: list = []
    bar = tqdm(total=len(items), desc=about, unit="row", delay=_PATIENCE, mininterval=1, leave=False, disable=not about)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(items), _CHUNK):  # else all items would wait as tasks, of a kilobyte each
            found += pool.map(attempt, items[start : start + _CHUNK])
            bar.update(len(found) - bar.n)
    return found
