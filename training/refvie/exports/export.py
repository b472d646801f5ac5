"""What is kept as data to train on, written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from .. import config, samples, stages
from ..config import Config
from ..ledger import Ledger
from ..pairs.pair import CATEGORIES, REFERENCES
from . import leakage, picking, referring
from .formats import WRITERS, Place

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

logger = logging.getLogger(__name__)

FORMATS = tuple(WRITERS)
REFERENCE, INSTRUCT = "reference", "instruct"
MANIFEST = "manifest.json"
_MADE_BY = "training.refvie"


@dataclass(frozen=True)
class Export:
    """What is exported, and how."""

    instruct: Literal["rest", "all", "none"] = "rest"
    """Pairs to train on by their instruction alone: those good enough that no reference is kept of, all, or none."""
    balance: dict[str, float] | Literal["even"] | None = None
    """Shares of the categories, or the same for each; as many samples as there can be without taking one twice."""
    pick: Literal["best", "random"] = "best"
    """Which are taken where not all are: those that a person accepted and then the best scored, or any."""
    limit: int | None = None
    """Samples of a set at most."""
    refer: float = 0.0
    """Share of the samples with a reference whose instruction leaves to the picture what it would name."""
    seed: int = 0
    against: tuple[Path, ...] = ()
    """Benchmarks, as tables, shards, folders, clips and pictures. What is also in them is left out."""
    alike: float = leakage.ALIKE
    """Correlation from which two pictures are the same."""
    root: Path | None = None
    """Folder that paths of clips begin at; absolute paths without. Training then needs the same root."""
    megabytes: int = 1000
    """Of a Parquet file or shard, after which another is begun."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    manifest: dict

    def __str__(self) -> str:
        lines = []
        for name, one in self.manifest["sets"].items():
            told = ", ".join(f"{count} {category or 'of no category'}" for category, count in one["categories"].items())
            lines.append(f"{one['samples']:>8} {name}" + (f" ({told})" if told else ""))
        if leaks := self.manifest["leaks"]:
            lines.append(f"{len(leaks):>8} left out, as they are in a benchmark; {MANIFEST} lists them")
        return "\n".join([f"{self.folder}:", *lines])


def export(
    book: Ledger,
    given: Config,
    folder: str | Path,
    formats: Sequence[str] = FORMATS,
    options: Export = Export(),
) -> Exported:
    """Write quadruplets to ``FOLDER/reference`` and pairs to ``FOLDER/instruct``, each in a folder a format.

    An export that is there already is replaced once the new one is complete, and stays until then. ``manifest.json``
    tells the config, the options, what there is, what was left out and why. The same run gives the same bytes.

    Args:
        book: as :func:`training.refvie.pipeline.opened` gives it. formats: of :data:`FORMATS`.

    Raises ValueError or FileNotFoundError, with the folder as it was, for options that cannot be, a folder that is no
    export, clips outside of the root, files that are gone or have changed, and where nothing is kept.
    """
    folder = Path(os.path.abspath(folder))
    options = _checked(folder, formats, options)
    benchmark = leakage.Benchmark(options.against, options.alike) if options.against else None
    leaks = _leaks(book, given, benchmark)
    sets = _sets(book, given, options)
    if not any(one["samples"] for one in sets.values()):
        raise ValueError("Nothing is kept, so there is nothing to export; see the report for why.")
    _check_root(book, options.root)
    with _alone(folder) as temporary:
        for name, one in sets.items():
            if one["samples"]:
                one["files"] = _write(book, given, name, formats, options, temporary, folder)
        manifest = {
            "made_by": _MADE_BY,
            "config": config.plain(given),
            "formats": [name for name in FORMATS if name in formats],
            "options": json.loads(json.dumps(dataclasses.asdict(options), default=str)),
            "sets": sets,
            "leaks": leaks,
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False, sort_keys=True)
        (temporary / MANIFEST).write_text(text + "\n", encoding="utf-8")
        _swap(temporary, folder)
    return Exported(folder, manifest)


def _checked(folder: Path, given: Sequence[str], options: Export) -> Export:
    if not given:
        raise ValueError(f"No format is given; name some of {', '.join(FORMATS)}.")
    for name in given:
        if name not in FORMATS:
            raise ValueError(f"There is no format {name!r}; there are {', '.join(FORMATS)}.")
    for name, known in (("instruct", ("rest", "all", "none")), ("pick", ("best", "random"))):
        if getattr(options, name) not in known:
            raise ValueError(f"{name} is {getattr(options, name)!r}; give one of {', '.join(known)}.")
    picking.check(options.balance, options.limit)
    if not 0 <= options.refer <= 1:
        raise ValueError(f"refer is {options.refer!r}; give a share of 0 to 1.")
    if not 0 < options.alike <= 1:
        raise ValueError(f"alike is {options.alike!r}; give a correlation above 0 and up to 1, such as 0.97.")
    if isinstance(options.megabytes, bool) or not isinstance(options.megabytes, int) or options.megabytes < 1:
        raise ValueError(f"megabytes is {options.megabytes!r}; give a whole number of at least 1.")
    if options.root is not None and not Path(options.root).is_dir():
        raise FileNotFoundError(f"The root folder {options.root} does not exist; give the folder that clips lie in.")
    if folder.exists() and not _ours(folder):
        raise ValueError(f"{folder} has something else than an export in it; give another folder.")
    root = None if options.root is None else Path(os.path.abspath(options.root))
    return dataclasses.replace(options, root=root, against=tuple(map(str, options.against)))


def _ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["made_by"] == _MADE_BY
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """A new folder beside, which goes at the end. What a kill has left there goes, too.

    ValueError if another export writes there.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{part}") for part in ("new", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    with path.open("w") as lock:
        try:
            if fcntl:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(lock.fileno()), path.stat()):  # another's, which it has just removed
                raise OSError
        except OSError as error:
            raise ValueError(f"Another export writes to {folder}; wait for it or end it.") from error
        if old.is_dir() and not folder.exists():
            old.rename(folder)
        for one in (temporary, old):
            shutil.rmtree(one, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            path.unlink(missing_ok=True)


def _swap(temporary: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        folder.rename(old)  # a kill right here is made good by the next export
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _leaks(book: Ledger, given: Config, benchmark: leakage.Benchmark | None) -> list[dict]:
    """What is in a benchmark; the temporary table ``leaks`` has the numbers."""
    book.db.executescript("DROP TABLE IF EXISTS temp.leaks; CREATE TEMP TABLE leaks (number INTEGER PRIMARY KEY)")
    found = [] if benchmark is None else list(leakage.find(book, given, benchmark))
    book.db.execute("BEGIN")
    book.db.executemany("INSERT INTO leaks VALUES (?)", ((sample.number,) for sample, _ in found))
    book.db.execute("COMMIT")
    return [{"id": sample.id} | dataclasses.asdict(match) for sample, match in found]


def _sets(book: Ledger, given: Config, options: Export) -> dict[str, dict]:
    """What each set has and what was left out of it; the temporary table ``picked`` has the numbers."""
    book.db.create_function("lot", 1, lambda name: picking.lot(options.seed, name), deterministic=True)
    book.db.executescript(
        "DROP TABLE IF EXISTS temp.picked;"
        "CREATE TEMP TABLE picked (part TEXT, number INTEGER, PRIMARY KEY (part, number)) WITHOUT ROWID"
    )
    found = {REFERENCE: _pick(book, given, REFERENCE, "v.kept", set(REFERENCES), options)}
    if options.instruct != "none":
        where = "v.instruct" if options.instruct == "all" else "v.instruct AND NOT v.kept"
        found[INSTRUCT] = _pick(book, given, INSTRUCT, where, set(CATEGORIES), options)
    return found


def _pick(book: Ledger, given: Config, name: str, where: str, possible: set[str], options: Export) -> dict:
    verify = stages.plan(given)["verify"]
    arguments: dict = {"part": name}
    join = book.join(verify, arguments)
    quality = "v.overall"
    if name == REFERENCE:
        quality += "".join(f" + coalesce(json_extract(verify.\"values\", '$.{one}'), 0)" for one in ("same", "usable"))
    book.db.executescript("DROP TABLE IF EXISTS temp.candidates")
    book.db.execute(
        f"CREATE TEMP TABLE candidates AS SELECT v.number AS number, v.category AS category, lot(v.id) AS lot,"
        f" coalesce(c.accepted, 0) AS accepted, {quality} AS quality, l.number IS NOT NULL AS leaks"
        f" FROM verdicts v JOIN samples s ON s.number = v.number {join}"
        f" LEFT JOIN choices c ON c.sample = v.number LEFT JOIN leaks l ON l.number = v.number WHERE {where}",
        arguments,
    )
    counted = dict(book.db.execute("SELECT category, count(*) FROM candidates WHERE NOT leaks GROUP BY 1"))
    try:
        quotas = picking.quotas(counted, options.balance, options.limit, possible)
    except ValueError as error:
        raise ValueError(f"In the set {name}: {error}") from error
    order = "lot" if options.pick == "random" else "accepted DESC, quality DESC, lot"
    limits = [("1", options.limit or -1)] if quotas is None else [
        (f"category = '{category}'", count) for category, count in quotas.items()
    ]  # fmt: skip
    for condition, limit in limits:
        book.db.execute(
            "INSERT INTO picked SELECT :part, number FROM candidates"
            f" WHERE NOT leaks AND {condition} ORDER BY {order}, number LIMIT :limit",
            {"part": name, "limit": limit},
        )
    return _told(book, name, counted)


def _referring(sample: samples.Sample, options: Export) -> samples.Sample:
    lot = picking.lot(options.seed, f"refer {sample.id}")
    if lot % 10_000 >= 10_000 * options.refer:
        return sample
    told = sample.values["locate"]
    return dataclasses.replace(sample, prompt=referring.refer(sample.prompt, told["name"], told["kind"], lot // 10_000))


def _told(book: Ledger, name: str, counted: dict[str, int]) -> dict:
    def by(column: str) -> dict[str, int]:
        query = f"SELECT v.{column}, count(*) FROM picked p JOIN verdicts v ON v.number = p.number WHERE p.part = ?"
        return dict(book.db.execute(f"{query} GROUP BY 1 ORDER BY 1", (name,)))

    taken = by("category")
    leaks = book.db.execute("SELECT count(*) FROM candidates WHERE leaks").fetchone()[0]
    dropped = {category: count - taken.get(category, 0) for category, count in sorted(counted.items())}
    return {
        "samples": sum(taken.values()),
        "categories": taken,
        "origins": by("origin"),
        "left_out": {"benchmark": leaks, "balance": {one: count for one, count in dropped.items() if count}},
        "files": {},
    }


def _check_root(book: Ledger, root: Path | None) -> None:
    if root is None:
        return
    begin = f"{root}{os.sep}".replace(os.sep * 2, os.sep)
    for column in ("source", "target"):
        row = book.db.execute(
            f"SELECT s.{column} FROM picked p JOIN samples s ON s.number = p.number"
            f" WHERE substr(s.{column}, 1, ?) <> ? LIMIT 1",
            (len(begin), begin),
        ).fetchone()
        if row:
            raise ValueError(f"{row[0]} lies outside of {root}; give a root that all clips lie in, or none.")


def _write(
    book: Ledger, given: Config, name: str, formats: Sequence[str], options: Export, temporary: Path, folder: Path
) -> dict[str, list]:
    """Write a set; returns its files by format."""
    size = options.megabytes * 1_000_000
    place = Place(book.folder, temporary / name, folder / name, options.root, name == REFERENCE, size)
    writers = [made(place) for format, made in WRITERS.items() if format in formats]
    total = book.db.execute("SELECT count(*) FROM picked WHERE part = ?", (name,)).fetchone()[0]
    where = "v.number IN (SELECT number FROM picked WHERE part = :part)"
    rows = samples.read(book, given, where, {"part": name})
    try:
        for sample in tqdm(rows, total=total, desc=name, unit="sample", mininterval=1, dynamic_ncols=True):
            if name == REFERENCE:
                sample = _referring(sample, options)
            for writer in writers:
                writer.add(sample)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error.filename} is gone; run the pipeline again with --retry-failed, then export."
        ) from error
    for writer in writers:
        writer.close()
    return {writer.name: writer.files for writer in writers}
