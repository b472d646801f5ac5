"""A judge's answers, kept: the same question costs nothing the second time."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...asking import Chat, Question, Unavailable

_MOST = 900
"""Keys that are looked up at once."""


class Cached:
    """A chat whose answers are kept in a file, which any number of processes may share.

    Args:
        known_by: what the answers are known by: who gives them. What is asked is known by every word and pixel.

    ``asked`` counts the questions that the chat itself got.
    """

    def __init__(self, chat: Chat, path: str | Path, known_by: str):
        self.chat, self.known_by, self.asked = chat, known_by, 0
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.db = sqlite3.connect(path, isolation_level=None, timeout=60)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID")

    def answers(self, questions: Sequence[Question], attempt: int = 0) -> list[str | ValueError]:
        keys = [self._key(question, attempt) for question in questions]
        known: dict[bytes, str | ValueError] = {}
        for start in range(0, len(keys), _MOST):
            some = keys[start : start + _MOST]
            marks = ", ".join("?" * len(some))
            known.update(self.db.execute(f"SELECT key, answer FROM answers WHERE key IN ({marks})", some))  # noqa: S608
        new = {key: question for key, question in zip(keys, questions) if key not in known}
        if new:
            try:
                found = dict(zip(new, self.chat.answers(list(new.values()), attempt), strict=True))
            except Unavailable as error:
                order = list(new)
                self._keep({order[place]: answer for place, answer in error.answered.items()})
                raise
            self._keep(found)
            known |= found
        return [known[key] for key in keys]

    def _keep(self, found: Mapping[bytes, str | ValueError]) -> None:
        self.asked += len(found)
        kept = [(key, _plain(answer)) for key, answer in found.items() if isinstance(answer, str)]
        self.db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", kept)

    def _key(self, question: Question, attempt: int) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.known_by, attempt, question.seed, question.system, *question.parts):
            if isinstance(part, np.ndarray):
                told, data = str(part.shape), np.ascontiguousarray(part).tobytes()
            else:
                told, data = type(part).__name__, str(part).encode("utf-8", "surrogatepass")
            digest.update(f"{told} {len(data)} ".encode())
            digest.update(data)
        return digest.digest()


def _plain(text: str) -> str:
    """Without half characters, which no database takes."""
    return text.encode("utf-8", "backslashreplace").decode()
