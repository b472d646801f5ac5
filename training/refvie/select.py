"""What is kept, and why the rest is not: a question to the ledger that computes nothing anew.

Every sample of the run gets a line in the temporary table ``verdicts``: ``number``, ``id``, ``origin``, ``category``,
``instruct`` (good enough to train on by its instruction), ``kept`` (with its reference, too), and else ``stage`` and
``reason``: the first of the stages that it did not pass, and why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from . import stages
from .config import Bound, Config
from .ledger import DONE, FAILED, INGEST, LOST, MISSING, Ledger, Stage, broken_bounds

WAITING = "waits"
NO_REFERENCE = "no reference picture shows such an edit"
REJECTED = "rejected by a person"
DUPLICATES = "duplicates"
"""The ledger's note of those that were found last: looking for them takes long, and many questions have the same."""
_BLOCK = 2048


def select(ledger: Ledger, config: Config) -> None:
    """Fill ``verdicts`` by the config's bounds. ValueError for bounds on what no stage tells."""
    plan = stages.plan(config)
    arguments: dict = {"run": ledger.run}
    joins = [ledger.join(stage, arguments) for stage in plan.values()]
    cases = ["WHEN s.problem <> '' THEN json_array('pairs', s.problem)"]
    for name, stage in plan.items():
        if name == "segment":  # the first that is for references alone
            without = "json_extract(locate.\"values\", '$.kind') = ''"
            cases.append(f"WHEN {without} THEN json_array('locate', '{NO_REFERENCE}')")
        cases += _cases(stage, stages.bounds(config, name), arguments)
    scored = [case for case in cases if f"json_array('{INGEST}'" in case or "json_array('score'" in case]
    ledger.db.executescript("DROP TABLE IF EXISTS temp.verdicts")
    ledger.db.execute(
        "CREATE TEMP TABLE verdicts AS SELECT s.number AS number, s.id AS id, s.origin AS origin,"
        " CASE WHEN c.accepted = 1 THEN NULL WHEN c.accepted = 0 THEN"
        f" json_array('review', '{REJECTED}') {' '.join(cases)} END AS why,"
        " coalesce(json_extract(locate.\"values\", '$.category'), s.category) AS category,"
        f" CASE WHEN c.accepted = 1 AND ingest.status = '{DONE}' THEN 1"
        f" WHEN s.problem <> '' OR c.accepted = 0 THEN 0 {' '.join(_no(case) for case in scored)} ELSE 1 END"
        f" AS instruct, synthesise.status IS '{DONE}' AS whole,"
        " coalesce(json_extract(score.\"values\", '$.overall'), 0) AS overall"
        f" FROM samples s {' '.join(joins)} LEFT JOIN choices c ON c.sample = s.number WHERE s.listed = :run",
        arguments,
    )
    ledger.db.executescript(
        "ALTER TABLE temp.verdicts ADD COLUMN kept INTEGER NOT NULL DEFAULT 0;"
        "ALTER TABLE temp.verdicts ADD COLUMN stage TEXT NOT NULL DEFAULT '';"
        "ALTER TABLE temp.verdicts ADD COLUMN reason TEXT NOT NULL DEFAULT '';"
        # One whom a person accepts needs a reference all the same.
        f"UPDATE verdicts SET why = json_array('review', '{NO_REFERENCE}, yet') WHERE why IS NULL AND NOT whole;"
        "UPDATE verdicts SET kept = why IS NULL,"
        " stage = coalesce(json_extract(why, '$[0]'), ''), reason = coalesce(json_extract(why, '$[1]'), '');"
        "CREATE INDEX temp.verdicts_by_number ON verdicts (number);"
    )
    _same_files(ledger)
    _alike(ledger, plan["embed"], config.duplicates)


def _cases(stage: Stage, keep: Mapping[str, Bound], arguments: dict) -> list[str]:
    """SQL cases of one stage: what is true of a sample that does not pass it."""
    name = stage.name
    cases = [
        f"WHEN \"{name}\".status IS NULL OR \"{name}\".status = '{LOST}' THEN json_array('{name}', '{WAITING}')",
        f"WHEN \"{name}\".status IN ('{FAILED}', '{MISSING}') THEN json_array('{name}', \"{name}\".error)",
    ]
    for bound, broken in broken_bounds(keep, arguments).items():
        ends = (("min", keep[bound].min), ("max", keep[bound].max))
        told = " and ".join(f"{end} {value:g}" for end, value in ends if value is not None)
        cases.append(f"WHEN {broken} THEN json_array('{name}', '{bound} ({told})')")
    return cases


def _no(case: str) -> str:
    return f"{case.partition(' THEN ')[0]} THEN 0"


def _same_files(ledger: Ledger) -> None:
    """Of samples with the same bytes and the same instruction, the first stays, and all that a person accepted."""
    rows = ledger.db.execute(
        "SELECT s.content, s.number, s.id, c.accepted FROM samples s JOIN verdicts v ON v.number = s.number"
        " LEFT JOIN choices c ON c.sample = s.number"
        " WHERE v.instruct AND s.content <> '' ORDER BY s.content, c.accepted IS NULL, v.kept DESC, s.number"
    )  # not all at once: there are millions
    first, doubled = None, []
    for content, number, name, accepted in rows:
        if first is None or first[0] != content:
            first = content, name
        elif not accepted:
            doubled.append((f"the same files as {first[1]}", number))
    _drop(ledger, doubled, instruct=True)


def _alike(ledger: Ledger, embed: Stage, least: float) -> None:
    """Of samples whose references and targets look alike, the best stays, and all that a person accepted."""
    if least > 1:
        return
    source = (
        " FROM verdicts v JOIN samples s ON s.number = v.number JOIN results r"
        " ON r.stage = ? AND r.key = ? AND r.sample = s.number AND r.content = s.content"
        " LEFT JOIN choices c ON c.sample = v.number WHERE v.kept AND r.status = ?"
    )
    arguments = (embed.name, embed.key, DONE)
    rows = ledger.db.execute(
        f"SELECT v.number, v.id, c.accepted IS NOT NULL, length(r.vector), s.content{source}"
        " ORDER BY c.accepted IS NULL, v.overall DESC, v.number",
        arguments,
    ).fetchall()
    if not rows:
        return
    accepted = sum(row[2] for row in rows)
    asked_by = [embed.key, least, accepted, [(row[0], row[4]) for row in rows]]
    asked = hashlib.blake2b(json.dumps(asked_by).encode(), digest_size=16).hexdigest()
    known = json.loads(ledger.fact(DUPLICATES, "{}"))
    if known.get("asked") != asked:
        vectors = np.empty((len(rows), 2, rows[0][3] // 4), np.float16)
        places = {row[0]: place for place, row in enumerate(rows)}
        for number, vector in ledger.db.execute(f"SELECT v.number, r.vector{source}", arguments):
            vectors[places[number]] = np.frombuffer(vector, np.float16).reshape(2, -1)
        found = sorted(duplicates(vectors, least, accepted).items())
        known = {"asked": asked, "found": found}
        ledger.note(DUPLICATES, json.dumps(known))
    _drop(ledger, [(f"looks like {rows[other][1]}", rows[place][0]) for place, other in known["found"]])


def _drop(ledger: Ledger, doubled: list[tuple[str, int]], instruct: bool = False) -> None:
    ledger.db.execute("BEGIN")
    ledger.db.executemany(
        "UPDATE verdicts SET stage = CASE WHEN kept THEN 'deduplicate' ELSE stage END,"
        f" reason = CASE WHEN kept THEN ? ELSE reason END, kept = 0{', instruct = 0' if instruct else ''}"
        " WHERE number = ?",
        doubled,
    )
    ledger.db.execute("COMMIT")


def duplicates(vectors: np.ndarray, least: float, safe: int = 0) -> dict[int, int]:
    """For each sample that looks like one before it, that one.

    Args:
        vectors: float16 ``[N, 2, D]``, of reference and target, of length one each, the best samples first.
        least: cosine that both must have. What is itself a duplicate has none.
        safe: so many of the first are no duplicates, whatever they look like.

    On a GPU where there is one. The work grows with the square of N: half a million samples of 768 numbers are
    4e14 operations, a few seconds of an H100, or an hour of a desktop's CPU.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    whole = torch.from_numpy(vectors).to(device)
    stays = torch.ones(len(whole), dtype=torch.bool, device=device)
    found: dict[int, int] = {}

    def part(these: slice) -> torch.Tensor:
        return whole[these] if device == "cuda" else whole[these].float()  # a CPU is slow at halves

    def alike(these: torch.Tensor, those: torch.Tensor) -> torch.Tensor:
        return torch.minimum(*(these[:, one] @ those[:, one].T for one in range(2))) >= least

    for start in range(0, len(whole), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(whole)))
        these = part(block)
        open_ = torch.arange(block.start, block.stop, device=device) >= safe
        for before in range(0, start, _BLOCK):
            rest = slice(before, before + _BLOCK)
            near = alike(these, part(rest)) & stays[rest] & (stays[block] & open_)[:, None]
            for place in near.any(dim=1).nonzero().flatten().tolist():
                found[start + place] = before + int(near[place].nonzero()[0])
                stays[start + place] = False
        near = (alike(these, these).tril(-1) & open_[:, None]).cpu()
        for place in near.any(dim=1).nonzero().flatten().tolist():
            others = near[place].nonzero().flatten().tolist()
            other = next((one for one in others if stays[start + one]), None)
            if stays[start + place] and other is not None:
                found[start + place] = start + other
                stays[start + place] = False
    return found
