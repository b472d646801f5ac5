"""Runs of RefVIE's pipeline for tests: pairs of the toy world, stand-in models, what a ledger holds afterwards."""

import json
import os
import sys
from pathlib import Path

import comfyui
import yaml

from training.nano import edits, rows
from training.refvie import config, pipeline, stages
from training.refvie.ledger import Ledger

STAGES = {
    "score": "Judge", "locate": "Grounder", "segment": "Segmenter", "synthesise": "Painter", "verify": "Verifier",
    "embed": "Embedder",
}  # fmt: skip


def write_pairs(folder: Path, count: int, seed: int = 0) -> Path:
    """A table of so many pairs, of the five categories by turns."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        edit = edits.draw(edits.CATEGORIES[number % 5], seed + number)
        row = rows.write_row(folder, f"pair{number}", edit)
        lines.append(json.dumps(row | {"id": f"pair{number}", "category": edit.category}))
    table = folder / "pairs.jsonl"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def settings(**changes) -> dict:
    """A config as a YAML file has it; changes to a stage are to its options, others to the config."""
    found = {"lossless": True, "duplicates": 2}
    for stage, name in STAGES.items():
        found[stage] = {"backend": f"refvie_models:{name}", "batch_size": 4}
    for name, value in changes.items():
        if name in STAGES:
            found[name] |= value
        else:
            found[name] = value
    return found


def run(table, folder, given, **options):
    pipeline.run([table] if table else [], folder, given, **options).close()


def recorded(folder):
    """When each result was made, by stage, key, sample and content."""
    with Ledger(folder) as book:
        rows = book.db.execute(
            "SELECT r.stage, r.key, s.id, r.content, r.at FROM results r JOIN samples s ON s.number = r.sample"
        ).fetchall()
    return {tuple(row[:4]): row[4] for row in rows}


def found(folder):
    """All that was found out, without the times."""
    with Ledger(folder) as book:
        rows = book.db.execute(
            'SELECT s.id, r.stage, r.key, r.status, r."values", r.artefact, r.vector, r.error FROM results r'
            " JOIN samples s ON s.number = r.sample ORDER BY 1, 2, 3"
        ).fetchall()
    return rows


def count(folder, plan_of):
    with Ledger(folder) as book:
        return {name: book.statuses(stage) for name, stage in stages.plan(plan_of).items()}


def command(table, folder, given, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.plain(given)))
    options = {"--pairs": table, "--out": folder, "--config": path}
    return [sys.executable, "-m", "training.refvie", "run", *(str(part) for pair in options.items() for part in pair)]


def environment():
    tests = str(comfyui.REPO / "tests")
    given = os.environ.get("PYTHONPATH")
    path = os.pathsep.join((str(comfyui.REPO), tests, *([given] if given else [])))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
