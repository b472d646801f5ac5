"""The benchmarks: which items each asks, from its official layout.

- RefVIE-Bench: ``refvie_bench.yaml``, a list of ``src_video``, ``instruction``, ``ref_img``, ``edit_type`` (subject or
  background); clips lie in ``source_videos``, pictures in ``ref_images``.
- OpenVE-Bench: ``benchmark_videos.csv`` with ``original_video``, ``prompt`` and ``edited_type``; five of eight types
  are scored.
- nano-bench: the toy world's, drawn from fixed seeds.
- A folder of one's own: one of the files above, or ``items.csv``, ``.json``, ``.jsonl`` or ``.parquet`` with
  ``src_video`` and ``prompt``, and perhaps ``id``, ``category``, ``ref_image`` and ``mask`` (white where the edit is to
  be).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..nano import bench as nano_bench
from ..nano import world
from ..refvie.pairs import tables
from . import clips
from .items import Item

NANO, REFVIE, OPENVE = "nano", "refvie", "openve"
NAMES = (REFVIE, OPENVE, NANO)
OPENVE_CATEGORIES = ("global_style", "background_change", "local_change", "local_remove", "local_add")
"""What is scored; subtitles, camera and creative edits are not."""
NANO_COUNTS = {"seen": 40, "composition": 40}

_REFVIE_FILE, _OPENVE_FILE = "refvie_bench.yaml", "benchmark_videos.csv"
_PROBLEMS = 5
"""That are told at most."""


def read(bench: str, data: Path | None = None, seed: int = 0) -> list[Item]:
    """The items of a benchmark, each with a seed of its own from ``seed`` on.

    Args:
        bench: "refvie" or "openve", which lie in the folder ``data``, or a folder.

    Raises FileNotFoundError or ValueError that names the first problems: no such folder, files or columns, clips that
    are not there, instructions without words, ids that come twice.
    """
    if bench in (REFVIE, OPENVE):
        if data is None:
            raise ValueError(f"Say where {bench}'s files lie: --data FOLDER.")
        return {REFVIE: _refvie, OPENVE: _openve}[bench](_folder(data), seed)
    folder = _folder(Path(bench))
    if (folder / _REFVIE_FILE).is_file():
        return _refvie(folder, seed)
    if (folder / _OPENVE_FILE).is_file():
        return _openve(folder, seed)
    return _own(folder, seed)


def nano(out: Path, share: float = 1.0) -> list[Item]:
    """nano-bench's items, with their clips and pictures in ``out/sources``; what lies there already is kept.

    Args:
        share: of the items of each category and split, the first ones.
    """
    if not 0 < share <= 1:
        raise ValueError(f"--share is {share}; give a number above 0, up to 1.")
    counts = {split: max(1, round(share * count)) for split, count in NANO_COUNTS.items()}
    found, out = [], out.absolute()
    for item in nano_bench.items(counts):
        name, edit = item.name.replace("/", "-"), item.edit
        source, reference = out / "sources" / f"{name}.mkv", None
        if not source.is_file():
            clips.save_exactly(source, world.render(edit.before), 8)
        if edit.reference is not None:
            reference = out / "sources" / f"{name}.png"
            if not reference.is_file():
                _save_picture(reference, edit.reference_picture())
        found.append(Item(name, edit.category, edit.prompt, source, reference, None, item.seed))
    return found


def _save_picture(path: Path, picture) -> None:
    from PIL import Image

    from kiwi_core.atomic import replacing

    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary)


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path}; give a benchmark's folder, or {', '.join(NAMES)}.")
    return path.resolve()


def _refvie(folder: Path, seed: int) -> list[Item]:
    import yaml

    path = folder / _REFVIE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {_REFVIE_FILE} in {folder}; give RefVIE-Bench's folder.")
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML ({' '.join(str(error).split())[:200]}); get it anew.") from error
    while isinstance(told, Mapping) and len(told) == 1 and isinstance(next(iter(told.values())), (list, Mapping)):
        told = next(iter(told.values()))  # under a heading
    if isinstance(told, Mapping):
        told = [{"id": name} | row if isinstance(row, Mapping) else row for name, row in told.items()]
    if not isinstance(told, list) or not told:
        raise ValueError(f"{path} is no list of items; get it anew.")
    names = {"source": ("src_video",), "prompt": ("instruction", "prompt"), "reference": ("ref_img", "ref_image"),
             "category": ("edit_type",), "id": ("id",)}  # fmt: skip
    places = {"source": (".", "source_videos"), "reference": (".", "ref_images")}
    items = _items(path, told, folder, names, places, seed, needed=("source", "prompt", "reference", "category"))
    wrong = {item.category for item in items} - {"subject", "background"}
    if wrong:
        raise ValueError(f"{path} has the edit_type {sorted(wrong)[0]!r}; it is subject or background.")
    return items


def _openve(folder: Path, seed: int) -> list[Item]:
    path = folder / _OPENVE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {_OPENVE_FILE} in {folder}; give OpenVE-Bench's folder.")
    names = {"source": ("original_video",), "prompt": ("prompt",), "category": ("edited_type",), "id": ("id",)}
    rows = [row for row in _rows(path) if _plain(row.get("edited_type")) in OPENVE_CATEGORIES]
    if not rows:
        raise ValueError(f"{path} has no edited_type of {', '.join(OPENVE_CATEGORIES)}; get it anew.")
    places = {"source": (".", "videos", "original_videos")}
    return _items(path, rows, folder, names, places, seed, needed=("source", "prompt", "category"))


def _own(folder: Path, seed: int) -> list[Item]:
    paths = [path for path in sorted(folder.glob("items.*")) if path.suffix.lower() in tables.SUFFIXES]
    if len(paths) != 1:
        raise FileNotFoundError(
            f"There {'is no table' if not paths else 'are several tables'} of items in {folder}; have one, items.csv, "
            "with src_video and prompt."
        )
    names = {
        "source": ("src_video", "source"), "prompt": ("prompt", "instruction"), "category": ("category", "edit_type"),
        "reference": ("ref_image", "ref_img", "reference"), "region": ("mask",), "id": ("id",),
    }  # fmt: skip
    return _items(paths[0], _rows(paths[0]), folder, names, {}, seed, needed=("source", "prompt"))


def _rows(path: Path) -> list[Mapping]:
    columns, rows = tables.open_table(path)
    found = []
    for row in rows(columns or ()):
        if row.problem:
            raise ValueError(f"{path}, {row.place}, {row.problem}; mend it.")
        found.append(row.fields)
    if not found:
        raise ValueError(f"{path} has no rows; get it anew.")
    return found


def _items(
    path: Path, rows: Iterable[object], folder: Path, names: Mapping[str, Sequence[str]],
    places: Mapping[str, Sequence[str]], seed: int, needed: Sequence[str],
) -> list[Item]:  # fmt: skip
    """Items of rows. ``names``: columns by role, the first that is there. ``places``: folders that files lie in."""
    items: list[Item] = []
    problems: list[str] = []
    known: set[str] = set()
    for number, row in enumerate(rows):
        where = f"item {number + 1}"
        if not isinstance(row, Mapping):
            problems.append(f"{where} is no item")
            continue
        told = {role: _first(row, columns) for role, columns in names.items()}
        if lacking := [names[role][0] for role in needed if not told[role]]:
            problems.append(f"{where} has no {' and no '.join(lacking)}")
            continue
        files: dict[str, Path | None] = {}
        for role in ("source", "reference", "region"):
            given = told.get(role, "")
            files[role] = _found(folder, given, places.get(role, (".",))) if given else None
            if given and files[role] is None:
                problems.append(f"{where} names {given}, which is not there")
        name = _id(told.get("id") or f"{number:04d}-{Path(told['source']).stem}")
        if name.lower() in known:  # as some file systems have it
            problems.append(f"{where} has the id {name}, which was there before")
        known.add(name.lower())
        category = _plain(told.get("category", "")) or ("subject" if files["reference"] else "edit")
        if files["source"]:
            items.append(Item(
                name, category, told["prompt"], files["source"], files["reference"], files["region"], seed + number
            ))  # fmt: skip
    if problems:
        more = f" and {len(problems) - _PROBLEMS} more" if len(problems) > _PROBLEMS else ""
        raise ValueError(f"{path} cannot be used: {'; '.join(problems[:_PROBLEMS])}{more}. Mend it.")
    return items


def _first(row: Mapping, columns: Sequence[str]) -> str:
    for column in columns:
        value = row.get(column)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    return ""


def _found(folder: Path, given: str, places: Sequence[str]) -> Path | None:
    """A file that lies in the folder; none outside of it."""
    for place in places:
        path = (folder / place / given).resolve()
        if path.is_relative_to(folder) and path.is_file():
            return path
    return None


def _plain(text: object) -> str:
    return re.sub(r"[\W_]+", "_", str(text or "").strip().lower()).strip("_")


def _id(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:100] or "item"
