"""Small back ends of RefVIE's stages for tests of what runs them: quick, sure of themselves, and faulty on request."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from training.refvie.backends import Match, Quality, Region, Unavailable


class _Model:
    version, prompts, unkeyed = 1, (), ("marks", "seconds", "waits", "kills", "down")


class Judge(_Model):
    """Scores by how much changed. What it is asked to do badly is chosen by words of the instruction.

    Args:
        marks: folder where each answer leaves a file of its own. unreadable: words that it never has an answer to.
        slow: words that it has one to at the second attempt. kills: words that end its process, once, if ``marks`` has
            no note of it, or always if ``kills`` begins with "!". down: it is not there at all. waits: words that
            take it longer than a death does.
    """

    def __init__(self, marks="", unreadable="", slow="", kills="", down=False, seconds=0.0, waits=""):
        self.marks, self.unreadable, self.slow, self.kills = marks, unreadable, slow, kills
        self.down, self.seconds, self.waits = down, seconds, waits

    def judge(self, views, attempt=0):
        if self.down:
            raise Unavailable("The stand-in is down; start it.")
        return [self._one(view, attempt) for view in views]

    def _one(self, view, attempt):
        time.sleep(1.5 if self.waits and self.waits in view.prompt else self.seconds)
        self._die(view)
        if self.marks:
            (Path(self.marks) / f"{time.time_ns()}-{os.getpid()}").touch()
        if self.unreadable and self.unreadable in view.prompt:
            return None
        if self.slow and self.slow in view.prompt and attempt < 1:
            return None
        changed = float(np.abs(view.target.astype(float) - view.source).max(axis=-1).mean())
        return Quality(min(10.0, changed), 8.0, 9.0, 9.0, "seen")

    def _die(self, view):
        words = self.kills.removeprefix("!")
        if words and words in view.prompt:
            note = Path(self.marks) / "died"
            if self.kills.startswith("!") or not note.exists():
                note.touch()
                os.kill(os.getpid(), signal.SIGKILL)


class Grounder(_Model):
    def locate(self, views, attempt=0):
        return [self._one(view) for view in views]

    def _one(self, view):
        boxes = []
        for mask in _changed(view.source, view.target):
            rows, columns = np.nonzero(mask)
            height, width = mask.shape
            boxes.append(None if not len(rows) else (
                columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height,
            ))  # fmt: skip
        return Region(view.category, view.prompt.split()[-1], tuple(boxes))


class Segmenter(_Model):
    def track(self, tracks):
        return [_changed(track.source, track.target) for track in tracks]


class Painter(_Model):
    def paint(self, paintings):
        return [np.where(one.masks[0][..., None], one.target[0], 255).astype(np.uint8) for one in paintings]


class Verifier(_Model):
    def verify(self, checks, attempt=0):
        return [Match(8.0, 7.0, "fits") for _ in checks]


class Embedder(_Model):
    def embed(self, pictures):
        small = np.stack([picture[::8, ::8].reshape(-1).astype(np.float32) - 128 for picture in pictures])
        return small / np.linalg.norm(small, axis=1, keepdims=True)


def _changed(source, target):
    return np.abs(source.astype(int) - target).max(axis=-1) > 24
