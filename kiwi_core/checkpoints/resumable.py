"""A model's files written so that a killed run can go on, and so that no half of one is taken for a model."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .lazy import LazyTensor, Source, Tensor, as_bytes, nbytes
from .streaming import FileLayout, write_all

logger = logging.getLogger(__name__)


class Journal:
    """What an unfinished run has written: a first line that tells which run, then a line a tensor."""

    def __init__(self, path: Path, key: Mapping):
        self.path = path
        self.digests: dict[tuple[str, str], str] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        first, *lines = text.splitlines() or [""]
        self.is_ours = first == json.dumps(key, sort_keys=True)
        self.stale = [] if self.is_ours else _partials(first, path.parent)
        self._key = key
        for line in lines if self.is_ours else ():
            try:
                file, tensor, digest = json.loads(line)
            except ValueError:  # the kill cut it short
                continue
            self.digests[file, tensor] = digest

    def start(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path in self.stale:
            path.unlink(missing_ok=True)
        lines = [json.dumps(self._key, sort_keys=True)]
        lines += [json.dumps([*place, digest]) for place, digest in self.digests.items()]
        _write_text(self.path, "\n".join(lines) + "\n")

    @contextmanager
    def adding(self) -> Iterator[Callable[[str, str, str], None]]:
        with open(self.path, "ab", buffering=0) as file:

            def add(name: str, tensor: str, digest: str) -> None:
                write_all(file, json.dumps([name, tensor, digest]).encode() + b"\n")
                self.digests[name, tensor] = digest

            yield add


def _partials(key: str, folder: Path) -> list[Path]:
    """Unfinished files of the run that a journal's first line is of."""
    try:
        return [partial(folder / name) for name in json.loads(key)["files"]]
    except (ValueError, KeyError, TypeError):
        return []


def partial(path: Path) -> Path:
    """Where a file grows until it is whole."""
    return path.with_name(f".{path.name}.partial")


def write_files(
    folder: Path,
    weights: Mapping[str, Mapping[str, Tensor]],
    texts: Mapping[str, str] | None = None,
    *,
    label: str,
    options: Mapping[str, object],
    overwrite: bool = False,
    remove: Iterable[Path] = (),
) -> list[Path]:
    """Write a model's files under ``folder``; started again after a kill, it goes on where it stopped.

    All files are read back before any takes its name. What goes on must come from the same sources by the same
    options: it is kept beside the files, with a journal that is named by ``label``.

    Args:
        weights: tensors by the file's path under ``folder``. texts: further files, written after these; the last one
            is what makes the others a model, so an old one goes before the first file takes its name.
        options: what else the result depends on. overwrite: replace files that are there.
        remove: files and folders of another model, removed before the new files take their names.

    Returns:
        The files' paths.

    Raises:
        ValueError: a file is there already, or is one of the sources; the disk is too small.
        OSError: a file does not read back as written.
    """
    layouts, texts = {name: FileLayout(tensors) for name, tensors in weights.items()}, dict(texts or {})
    key = _key(layouts, texts, options)
    journal = Journal(folder / f".{label}.journal", key)
    growing, finished = _found(folder, layouts, journal)
    _check_outputs(folder, {name for name in layouts if name not in finished}, texts, layouts, overwrite)
    _check_space(folder, layouts, growing, finished, journal.stale)
    if journal.digests:
        logger.info("Going on with a conversion that was stopped.")
    journal.start()
    try:
        _write(folder, layouts, growing, finished, journal)
    except ValueError:  # the sources are at fault, so there is nothing to go on with
        for path in (*(partial(folder / name) for name in layouts), journal.path):
            path.unlink(missing_ok=True)
        raise
    _check(folder, layouts, finished, journal)

    if texts:
        (folder / [*texts][-1]).unlink(missing_ok=True)
    for path in remove:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in layouts:
        if name not in finished:
            os.replace(partial(folder / name), folder / name)
    for name, text in texts.items():
        _write_text(folder / name, text)
    journal.path.unlink()
    return [folder / name for name in layouts]


def _write_text(path: Path, text: str) -> None:
    """As :func:`kiwi_core.atomic.replacing`, but a kill leaves nothing that the next run does not know of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial(path).write_text(text, encoding="utf-8")
    os.replace(partial(path), path)


def _key(layouts: Mapping[str, FileLayout], texts: Mapping[str, str], options: Mapping) -> dict:
    """What tells one conversion from another: sources as they are now, options, and all that is in memory already."""
    sources: set[Source] = set()
    digest = hashlib.blake2b(json.dumps(texts).encode(), digest_size=16)
    for layout in layouts.values():
        digest.update(layout.header)
        for tensor in layout.tensors.values():
            if isinstance(tensor, LazyTensor):
                sources |= tensor.sources
            else:
                digest.update(as_bytes(tensor.contiguous()))
    return {
        "version": 1,
        "files": [*layouts, *texts],
        "options": dict(options),
        "sources": sorted([str(path), size, mtime_ns] for path, size, mtime_ns in sources),
        "contents": digest.hexdigest(),
    }


def _found(folder: Path, layouts: Mapping[str, FileLayout], journal: Journal) -> tuple[set[str], set[str]]:
    """Names of the files that a stopped run left growing, and of those that it finished."""
    growing, finished = set(), set()
    for name, layout in layouts.items() if journal.is_ours else ():
        path = folder / name
        if _size(partial(path)) == layout.size:
            growing.add(name)
        elif _size(path) == layout.size and all((name, tensor) in journal.digests for tensor in layout.begins):
            finished.add(name)
        else:
            journal.digests = {place: found for place, found in journal.digests.items() if place[0] != name}
    return growing, finished


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _check_outputs(folder: Path, names: set[str], texts: Mapping[str, str], layouts, overwrite: bool) -> None:
    tensors = (tensor for layout in layouts.values() for tensor in layout.tensors.values())
    sources = {source.path for tensor in tensors if isinstance(tensor, LazyTensor) for source in tensor.sources}
    for name in layouts:
        if (folder / name).resolve() in sources:
            raise ValueError(f"{folder / name} is the source itself; choose another output.")
    there = [folder / name for name in sorted(names) if (folder / name).exists()]
    there += [
        path
        for path, text in ((folder / name, text) for name, text in texts.items())
        if path.exists() and (not path.is_file() or path.read_bytes() != text.encode())
    ]
    if there and not overwrite:
        raise ValueError(f"{there[0]} is there already; choose another output, or replace it with --overwrite.")
    for path in there:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; choose another output.")


def _check_space(folder: Path, layouts, growing: set[str], finished: set[str], stale: Iterable[Path]) -> None:
    needed: Counter[int] = Counter()  # by disk: ComfyUI's folders may be links to other ones
    parents: dict[int, Path] = {}
    for name, layout in layouts.items():
        if name not in finished:
            parent = next(parent for parent in (folder / name).absolute().parents if parent.exists())
            disk = parent.stat().st_dev
            needed[disk] += layout.size
            parents.setdefault(disk, parent)
    for path in (*(partial(folder / name) for name in growing), *(path for path in stale if path.is_file())):
        # A growing file has its full length from the start, but only takes what was written.
        stat = path.stat()
        needed[stat.st_dev] -= 512 * getattr(stat, "st_blocks", 0)
    for disk, parent in parents.items():
        free = shutil.disk_usage(parent).free
        if needed[disk] > free:
            raise ValueError(
                f"{size_text(needed[disk])} are needed under {parent} and {size_text(free)} are free; make room, or "
                "choose another disk."
            )


def size_text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _bar(text: str, layouts: Mapping[str, FileLayout]):
    from tqdm import tqdm

    total = sum(nbytes(tensor) for layout in layouts.values() for tensor in layout.tensors.values())
    return tqdm(desc=text, total=total, unit="B", unit_scale=True)


def _write(folder: Path, layouts, growing: set[str], finished: set[str], journal: Journal) -> None:
    with journal.adding() as add, _bar("Writing", layouts) as bar:
        for name, layout in layouts.items():
            path = partial(folder / name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in finished:
                bar.update(layout.size - len(layout.header))
                continue
            with open(path, "r+b" if name in growing else "wb", buffering=0) as file:
                file.truncate(layout.size)
                write_all(file, layout.header)
                for tensor in sorted(layout.begins):  # a scale comes right after its weight
                    if (name, tensor) in journal.digests:
                        bar.update(nbytes(layout.tensors[tensor]))
                    else:
                        add(name, tensor, layout.write(file, tensor, bar.update))
                os.fsync(file.fileno())


def _check(folder: Path, layouts, finished: set[str], journal: Journal) -> None:
    """Compare what is on the disk with what was written."""
    wrong = []
    with _bar("Checking", layouts) as bar:
        for name, layout in layouts.items():
            with open(folder / name if name in finished else partial(folder / name), "rb") as file:
                if file.read(len(layout.header)) != layout.header:
                    wrong += [(name, tensor) for tensor in layout.begins]
                for tensor in layout.begins:
                    if layout.digest(file, tensor, bar.update) != journal.digests[name, tensor]:
                        wrong.append((name, tensor))
    if wrong:
        for place in wrong:
            journal.digests.pop(place, None)
        journal.start()
        raise OSError(
            f"{wrong[0][1]} of {folder / wrong[0][0]} does not read back as it was written; check the disk and run "
            "this again."
        )
