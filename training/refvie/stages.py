"""The stages: what each does with a batch of samples, what it needs of the others, and what it tells."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from kiwi_core.atomic import replacing

from . import backends, frames, leak, ledger, variation
from .backends import Check, Painting, Region, Track, View
from .config import MODEL_STAGES, Bound, Config
from .ledger import DONE, FAILED, INGEST, MISSING, Job
from .pairs.pair import REFERENCES, SCENE, SUBJECT

T = TypeVar("T")
ARTEFACTS = "artefacts"


@dataclass(frozen=True)
class Outcome:
    """What a stage found out about one sample."""

    status: str
    values: dict = field(default_factory=dict)
    artefact: str = ""
    """Path of what it made, in the folder of the run."""
    vector: bytes = b""
    attempts: int = 1
    error: str = ""
    unforeseen: bool = False
    """Whether it failed by what no stage should: a bug, or a broken machine."""
    lost: str = ""
    """The stage whose artefact was not there."""


class Lost(Exception):
    """What an earlier stage has made of a sample is not in the folder any more, or damaged."""

    def __init__(self, stage: str):
        super().__init__(stage)
        self.stage = stage


UNREADABLE = "No answer of the model could be read."


def unanswered(answer: object, attempts: int) -> Outcome | None:
    """What becomes of a sample that a model could not answer, None of one that it did."""
    if isinstance(answer, ValueError):
        return Outcome(FAILED, attempts=attempts, error=" ".join(str(answer).split()))
    return Outcome(MISSING, attempts=attempts, error=UNREADABLE) if answer is None else None


class Stage:
    """A stage at work. Made once a worker, with its model loaded."""

    name: str
    version: int
    """Raised when the results change though the model does not."""
    needs: tuple[str, ...] = ()
    tells: tuple[str, ...] = ()
    """Values that can have a bound."""
    settings: tuple[str, ...] = ()
    """Fields of the config that change the results."""
    references_only = False
    """Whether it is only for edits that a reference picture can show."""

    def __init__(self, folder: Path, key: str, config: Config):
        self.folder, self.key, self.config = folder, key, config
        if self.name != INGEST:
            model = getattr(config, self.name)
            self.model = backends.load(self.name, model.backend, model.options)

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """One outcome a job, in order. Raises ValueError for a sample that cannot be had."""
        raise NotImplementedError

    def place(self, job: Job, suffix: str) -> str:
        """Where what is made of a sample goes, in the folder of the run."""
        part = hashlib.blake2b(job.id.encode(), digest_size=1).hexdigest()
        return f"{ARTEFACTS}/{self.name}-{self.key[:8]}/{part}/{job.id}-{job.content[:8]}{suffix}"

    def frames(self, job: Job) -> tuple[np.ndarray, np.ndarray]:
        return self._kept_by(INGEST, job, frames.load)

    def masks(self, job: Job) -> np.ndarray:
        return self._kept_by("segment", job, frames.load_masks)

    def reference(self, job: Job) -> np.ndarray:
        return self._kept_by("synthesise", job, lambda path: np.asarray(Image.open(path).convert("RGB")))

    def _kept_by(self, stage: str, job: Job, read: Callable[[Path], T]) -> T:
        try:
            return read(self.folder / job.results[stage]["artefact"])
        except (ValueError, KeyError, EOFError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
            raise Lost(stage) from error
        except OSError as error:  # Pillow's for a broken picture has no number
            if error.errno in (None, errno.ENOENT):
                raise Lost(stage) from error
            raise

    def answered(self, answers: Sequence, questions: Sequence) -> Sequence:
        """The answers, if there is one to each question; Unavailable tells whose class lacks some."""
        if len(answers) != len(questions):
            raise backends.Unavailable(
                f"The back end of {self.name} has {len(answers)} answers to {len(questions)} questions; mend its class."
            )
        return answers

    def ask(self, call: Callable, questions: Sequence) -> tuple[list, list[int]]:
        """Answers, ``None`` for what stays unreadable after all attempts, and how often each was asked."""
        answers, asked = [None] * len(questions), [0] * len(questions)
        for attempt in range(self.config.attempts):
            places = [place for place, answer in enumerate(answers) if answer is None]
            if not places:
                break
            found = self.answered(call([questions[place] for place in places], attempt), places)
            for place, answer in zip(places, found):
                answers[place] = answer
                asked[place] += 1
        return answers, asked


class Ingest(Stage):
    """Reads the clips, once."""

    name, version = INGEST, 1
    settings = ("frames", "side", "lossless")
    tells = ("frames", "width", "height", "rate", "flicker")

    def run(self, jobs):
        return [self._one(job) for job in jobs]

    def _one(self, job: Job) -> Outcome:
        taken = frames.take(job.source, job.target, self.config.frames, self.config.side)
        path = self.place(job, ".zip")
        frames.save(self.folder / path, taken.source, taken.target, self.config.lossless)
        known_by = [taken.facts["source_digest"], taken.facts["target_digest"], job.prompt, job.category]
        return Outcome(DONE, taken.facts | {"content": _digest(known_by)}, path)


class Score(Stage):
    """How good the edit is."""

    name, version, needs = "score", 1, (INGEST,)
    tells = ("overall", "semantic", "quality", "prompt_following", "consistency", "naturalness", "artifacts")

    def run(self, jobs):
        views = [View(job.prompt, job.category, *self.frames(job)) for job in jobs]
        answers, asked = self.ask(self.model.judge, views)
        return [
            unanswered(answer, times)
            or Outcome(DONE, {name: getattr(answer, name) for name in (*self.tells, "reason")}, attempts=times)
            for answer, times in zip(answers, asked)
        ]


class Locate(Stage):
    """Which region the instruction changes, and so what a reference picture would show."""

    name, version, needs = "locate", 1, (INGEST,)
    tells = ("agreement", "area")

    def run(self, jobs):
        views = [View(job.prompt, job.category, *self.frames(job)) for job in jobs]
        answers, asked = self.ask(self.model.locate, views)
        return [self._told(answer, times) for answer, times in zip(answers, asked)]

    def _told(self, region: Region | ValueError | None, times: int) -> Outcome:
        if none := unanswered(region, times):
            return none
        values = {
            "category": region.category,
            "kind": REFERENCES.get(region.category, ""),
            "name": region.name,
            "boxes": region.boxes,
            "agreement": agreement(region.boxes),
            "area": float(np.mean([_area(box) for box in region.boxes])),
        }
        return Outcome(DONE, values, attempts=times)


class Segment(Stage):
    """The region's pixels in the target."""

    name, version, needs = "segment", 1, (INGEST, "locate")
    tells = ("area", "seen")
    references_only = True

    def run(self, jobs):
        tracks = [Track(*self.frames(job), _region(job)) for job in jobs]
        found = self.answered(self.model.track(tracks), tracks)
        return [self._kept(job, masks) for job, masks in zip(jobs, found)]

    def _kept(self, job: Job, masks: np.ndarray) -> Outcome:
        if not masks.any() and job.results["locate"]["values"]["kind"] == SUBJECT:
            return Outcome(FAILED, error="Nothing was found in the region.")
        path = self.place(job, ".npz")
        frames.save_masks(self.folder / path, masks)
        values = {"area": float(masks.mean()), "seen": float(masks.any(axis=(1, 2)).mean())}
        return Outcome(DONE, values, path)


class Synthesise(Stage):
    """The reference picture."""

    name, version, needs = "synthesise", 1, (INGEST, "locate", "segment")
    settings = ("vary", "seed")
    tells = ("width", "height")
    references_only = True

    def run(self, jobs):
        paintings = [self._asked(job) for job in jobs]
        found = self.answered(self.model.paint(paintings), paintings)
        return [self._kept(*one) for one in zip(jobs, paintings, found)]

    def _asked(self, job: Job) -> Painting:
        seed = int(_digest([self.config.seed, job.content])[:8], 16)
        found = job.results["locate"]["values"]
        words = variation.words(found["kind"], seed) if self.config.vary else ""
        return Painting(found["kind"], found["name"], self.frames(job)[1], self.masks(job), seed, words)

    def _kept(self, job: Job, painting: Painting, picture: np.ndarray) -> Outcome:
        path = self.place(job, ".png")
        with replacing(self.folder / path) as temporary:
            Image.fromarray(picture).save(temporary)
        height, width = picture.shape[:2]
        return Outcome(DONE, {"width": width, "height": height, "variation": painting.variation}, path)


class Verify(Stage):
    """Whether the reference picture serves."""

    name, version, needs = "verify", 1, (INGEST, "locate", "segment", "synthesise")
    tells = ("same", "usable", "leak")
    references_only = True

    def run(self, jobs):
        checks = [self._check(job) for job in jobs]
        answers, asked = self.ask(self.model.verify, checks)
        return [
            unanswered(answer, times)
            or Outcome(DONE, {"same": answer.same, "usable": answer.usable, "reason": answer.reason,
                              "leak": _leak(check)}, attempts=times)
            for check, answer, times in zip(checks, answers, asked)
        ]  # fmt: skip

    def _check(self, job: Job) -> Check:
        found = job.results["locate"]["values"]
        target = self.frames(job)[1]
        return Check(found["kind"], found["name"], job.prompt, self.reference(job), target, self.masks(job))


class Embed(Stage):
    """What the reference and the target look like, as vectors, for finding duplicates."""

    name, version, needs = "embed", 1, (INGEST, "synthesise")
    references_only = True

    def run(self, jobs):
        targets = [self.frames(job)[1] for job in jobs]
        pictures = [self.reference(job) for job in jobs] + [target[len(target) // 2] for target in targets]
        found = self.answered(self.model.embed(pictures), pictures)
        found = np.asarray(found, np.float16).reshape(2, len(jobs), -1)
        return [Outcome(DONE, vector=found[:, place].tobytes()) for place in range(len(jobs))]


CLASSES: dict[str, type[Stage]] = {
    made.name: made for made in (Ingest, Score, Locate, Segment, Synthesise, Verify, Embed)
}
"""In the order in which they are run."""


def plan(config: Config) -> dict[str, ledger.Stage]:
    """The stages as the ledger knows them. ValueError for models or bounds that there are not."""
    for name in config.keep:
        stage, _, value = name.partition(".")
        if stage not in CLASSES or value not in CLASSES[stage].tells:
            known = ", ".join(f"{made.name}.{told}" for made in CLASSES.values() for told in made.tells)
            raise ValueError(f"keep has {name!r}, which no stage tells; use {known}.")
    found: dict[str, ledger.Stage] = {}
    for name, made in CLASSES.items():
        needs = tuple(found[need] for need in made.needs)
        known_by = [name, made.version, [need.key for need in needs], [getattr(config, one) for one in made.settings]]
        if name in MODEL_STAGES:
            model = getattr(config, name)
            known_by.append(backends.identity(name, model.backend, model.options))
        where = "json_extract(locate.\"values\", '$.kind') <> ''" if made.references_only else ""
        found[name] = ledger.Stage(name, _digest(known_by), needs, tuple(found.values()), where)
    return found


def bounds(config: Config, stage: str) -> dict[str, Bound]:
    """Those of one stage's values."""
    return {name: bound for name, bound in config.keep.items() if name.partition(".")[0] == stage}


def agreement(boxes: Sequence[Sequence[float] | None]) -> float:
    """How well the frames agree where the region is, 0 to 1: the share of neighbouring frames whose boxes are of like
    size and no further apart than they are large. Frames that both show nothing agree."""
    if len(boxes) < 2:
        return float(bool(boxes))
    return float(np.mean([_agree(*both) for both in itertools.pairwise(boxes)]))


def _agree(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    if one is None or other is None:
        return one is other
    sizes = [np.subtract(box[2:], box[:2]) for box in (one, other)]
    small, large = sorted(map(_area, (one, other)))
    apart = np.abs(np.add(one[:2], one[2:]) - np.add(other[:2], other[2:])) / 2
    return bool(small > 0.5 * large and (apart <= np.maximum(*sizes)).all())


def _area(box: Sequence[float] | None) -> float:
    return 0.0 if box is None else max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _region(job: Job) -> Region:
    found = job.results["locate"]["values"]
    boxes = tuple(None if box is None else tuple(box) for box in found["boxes"])
    return Region(found["category"], found["name"], boxes)


def _leak(check: Check) -> float:
    measure = leak.of_scene if check.kind == SCENE else leak.of_subject
    return float(measure(check.reference, check.target, check.masks))


def _digest(known_by: object) -> str:
    return hashlib.blake2b(json.dumps(known_by).encode(), digest_size=16).hexdigest()
