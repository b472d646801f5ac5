"""What was found out about media files, kept so that it is found out once: sizes, lengths, digests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

from .media import Media, Probe

_THREADS = 8


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
            return self._facts.get(_key(media), {}).get("digest")
        except FileNotFoundError:
            return None

    def _get(self, media: Media, field: str, find: Callable[[], dict]) -> dict:
        key = _key(media)
        fact = self._facts.setdefault(key, {})
        if field not in fact:
            found = find()
            fact.update(found)
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, **found}) + "\n")
        return fact


def _key(media: Media) -> str:
    stat = Path(media.path).stat()
    return f"{media.name}|{stat.st_size}|{stat.st_mtime_ns}"


def each(function: Callable, items: Iterable) -> list:
    """``function`` of all items, several at a time, in order; an error becomes the item's result."""

    def attempt(item):
        try:
            return function(item)
        except (ValueError, OSError) as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(attempt, items))
