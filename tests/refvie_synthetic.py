"""Runs of RefVIE's pipeline that no model made: ledgers filled with what each sample's fate asks for."""

import hashlib
import json
from pathlib import Path

import numpy as np
import refvie_runs
from PIL import Image

from training.data.media import Media
from training.nano import edits, rows, world
from training.refvie import config, frames, pipeline, stages
from training.refvie.ledger import DONE, FAILED, INGEST, MISSING, Ledger, Result
from training.refvie.pairs.pair import REFERENCES, Pair

BOUNDS = {
    "ingest.flicker": {"max": 0.05}, "score.overall": {"min": 6}, "verify.same": {"min": 6},
    "verify.usable": {"min": 5}, "verify.leak": {"max": 0.9},
}  # fmt: skip
FATES = ("good", "good", "good", "poor", "problem", "good", "unreadable", "good", "unlike", "lost", "waits")
"""Of samples by turns: kept (or a pair, where no reference shows the edit), scored low, no pair, never answered,
another reference, failed in segmenting, not segmented yet."""
PROBLEM, LOST = "The target does not exist; copy it there.", "Nothing was found in frame {} of the region."


def given(**changes) -> config.Config:
    return config.parse(refvie_runs.settings(**{"keep": BOUNDS} | changes))


def fill(
    folder: Path, count: int, made: config.Config | None = None, drawn: int | None = None, fates=FATES,
    origins=("ditto", "openve"), prompts=None, clips: Path | None = None, vector: int = 16,
) -> config.Config:  # fmt: skip
    """A ledger of so many samples, ``s0`` and on, of the five categories by turns; returns its config.

    Args:
        drawn: how many have clips in ``clips`` and artefacts; all without. prompts: of the first samples. vector:
            numbers in one.
    """
    made = made or given()
    plan, rng = stages.plan(made), np.random.default_rng(0)
    drawn = count if drawn is None else drawn
    clips = clips or folder / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    with Ledger(folder, writing=True) as book:
        book.note(pipeline.CONFIG, json.dumps(config.plain(made)))
        book.take(_pairs(count, drawn, fates, origins, prompts or [], clips))
        found = book.db.execute("SELECT number, id, source, target, category, given FROM samples").fetchall()
        book.db.execute("BEGIN")
        for place, row in enumerate(found):
            book.record(_results(folder, plan, fates[place % len(fates)], row, rng, place < drawn, vector))
        book.db.execute("COMMIT")
    return made


def _pairs(count, drawn, fates, origins, prompts, clips):
    for place in range(count):
        name, category = f"s{place}", edits.CATEGORIES[place % 5]
        problem = PROBLEM if fates[place % len(fates)] == "problem" else ""
        source, target, prompt = str(clips / f"{name}.mkv"), str(clips / f"{name}_edit.mkv"), f"Do {category} {place}."
        if place < drawn:
            edit = edits.draw(category, place, frames=5)
            rows.write_row(clips, name, edit)
            prompt = edit.prompt
        prompt = prompts[place] if place < len(prompts) else prompt
        yield Pair(name, source, target, prompt, origins[place % len(origins)], category, problem), f"given {name}"


def _results(folder, plan, fate, row, rng, drawn, length):
    number, name, source, target, category, known = row
    content = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    place = int(name[1:])

    def told(stage, values, artefact="", status=DONE, vector=b"", error="", attempts=1):
        return Result(
            number, stage, plan[stage].key, known if stage == INGEST else content, status, values, artefact, vector,
            f"{stage}-model", 0.01 + 0.01 * len(stage), attempts, error, at=1.7e9,
        )  # fmt: skip

    if fate == "problem":
        return
    kind, edit = REFERENCES.get(category, ""), edits.draw(category, place, frames=5) if drawn else None
    digests = {f"{role}_digest": Media(str(path)).digest() if drawn else content for role, path in
               (("source", source), ("target", target))}  # fmt: skip
    facts = {"frames": 5, "width": 64, "height": 64, "rate": 12.0, "flicker": float(rng.uniform(0, 0.04)), **digests}
    clips = [world.render(scene) for scene in (edit.before, edit.after)] if drawn else None
    if drawn:
        frames.save(folder / f"artefacts/{name}.zip", *clips, lossless=True)
    yield told(INGEST, facts | {"content": content}, f"artefacts/{name}.zip")
    if fate == "unreadable":
        yield told("score", {}, status=MISSING, error=stages.UNREADABLE, attempts=3)
        return
    scores = {one: float(rng.uniform(6, 10)) for one in stages.CLASSES["score"].tells} | {"reason": "as asked"}
    if fate == "poor":
        scores["overall"] = float(rng.uniform(0, 5.9))
    yield told("score", scores)
    if fate == "poor":
        return
    located = {"category": category, "kind": kind, "name": "disc", "boxes": [[0.1, 0.2, 0.34567, 0.5]] * 5}
    yield told("locate", located | {"area": float(rng.uniform(0, 1)), "agreement": float(rng.uniform(0.6, 1))})
    if not kind or fate == "waits":
        return
    if fate == "lost":
        yield told("segment", {}, status=FAILED, error=LOST.format(place))
        return
    if drawn:
        changed = np.abs(clips[0].astype(int) - clips[1]).max(axis=-1) > 24
        frames.save_masks(folder / f"artefacts/{name}.npz", changed)
        picture = np.where(changed[2][..., None], clips[1][2], 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"artefacts/{name}.png")
    yield told("segment", {"area": float(rng.uniform(0, 0.5)), "seen": 1.0}, f"artefacts/{name}.npz")
    yield told("synthesise", {"width": 64, "height": 64, "variation": ""}, f"artefacts/{name}.png")
    same = float(rng.uniform(0, 5.9) if fate == "unlike" else rng.uniform(6, 10))
    match = {"same": same, "usable": float(rng.uniform(5, 10)), "leak": float(rng.uniform(0, 0.8)), "reason": "fits"}
    yield told("verify", match)
    vector = rng.normal(size=(2, length))
    yield told("embed", {}, vector=(vector / np.linalg.norm(vector, axis=1)[:, None]).astype(np.float16).tobytes())
