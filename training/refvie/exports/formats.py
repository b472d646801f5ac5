"""Files that samples are exported to. The same samples give the same bytes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePath

from ...data.media import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from .. import pictures
from ..ledger import INGEST
from ..samples import Sample

FOLDER_FILES = 1000
"""Files that are put in one folder at most."""
THUMBNAIL = 160
"""Height of a thumbnail in pixels."""
_GROUP_ROWS, _GROUP_BYTES = 100, 16 << 20
"""Of a row group of Parquet: a reader has to read all of its references for one."""
_SUFFIXES = PICTURE_SUFFIXES | VIDEO_SUFFIXES


@dataclass(frozen=True)
class Place:
    """Where a set is written, and how files name each other."""

    run: Path
    """Folder of the run, which the references lie in."""
    folder: Path
    """Where the set is being written."""
    final: Path
    """Where it will lie."""
    root: Path | None
    """Folder that paths of clips begin at; None for absolute ones."""
    references: bool
    """Whether the set has them."""
    size: int
    """Bytes after which another file is begun."""

    def clip(self, path: str) -> str:
        return path if self.root is None else PurePath(path).relative_to(self.root).as_posix()

    def own(self, path: Path, table: Path) -> str:
        """A file of the set, as a reader of one of its tables finds it: it takes paths from the root if there is one,
        else from the table's folder."""
        if self.root is None:
            return path.relative_to(table.parent).as_posix()
        final = self.final / path.relative_to(self.folder)
        return final.relative_to(self.root).as_posix() if final.is_relative_to(self.root) else str(final)

    def reference(self, sample: Sample) -> Path:
        return self.run / sample.artefacts["synthesise"]


class Writer:
    """Takes samples one by one.

    ``files`` has for each written one its path in the set, the number of its samples and a digest of their ids.
    """

    name: str

    def __init__(self, place: Place):
        self.place, self.files = place, []
        self.folder = place.folder / self.name
        self.folder.mkdir(parents=True)
        self._count, self._ids = 0, hashlib.blake2b(digest_size=16)

    def add(self, sample: Sample) -> None:
        """Raises FileNotFoundError or ValueError for a clip or picture that is not what it was."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def _written(self, sample: Sample) -> None:
        self._count += 1
        self._ids.update(f"{sample.id}\n".encode())

    def _finish(self, path: Path) -> None:
        if self._count:
            found = {"path": path.relative_to(self.place.folder).as_posix(), "samples": self._count}
            self.files.append(found | {"ids": self._ids.hexdigest()})
        self._count, self._ids = 0, hashlib.blake2b(digest_size=16)


class Parquet(Writer):
    """As RefVIE is published: ``iid, prompt, src_video, tgt_video, ref_image_bytes``, and category and origin."""

    name = "parquet"

    def __init__(self, place: Place):
        import pyarrow

        super().__init__(place)
        text = ("iid", "prompt", "src_video", "tgt_video", "category", "origin")
        fields = [pyarrow.field(name, pyarrow.string()) for name in text]
        if place.references:
            fields.insert(4, pyarrow.field("ref_image_bytes", pyarrow.binary()))
        self._schema = pyarrow.schema(fields)
        self._rows, self._bytes = [], 0
        self._file, self._path = None, None

    def add(self, sample):
        source, target = self.place.clip(sample.source), self.place.clip(sample.target)
        row = {"iid": sample.id, "prompt": sample.prompt, "src_video": source, "tgt_video": target}
        row |= {"category": sample.category, "origin": sample.origin}
        if self.place.references:
            row["ref_image_bytes"] = self.place.reference(sample).read_bytes()
            self._bytes += len(row["ref_image_bytes"])
        self._rows.append(row)
        self._written(sample)
        if len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._flush()
            if self._path.stat().st_size >= self.place.size:
                self._end()

    def close(self):
        self._flush()
        self._end()

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if not self._rows:
            return
        if self._file is None:
            self._path = self.folder / f"{len(self.files):05d}.parquet"
            how = {name: "none" if name == "ref_image_bytes" else "zstd" for name in self._schema.names}
            plain = [name for name in self._schema.names if name in ("category", "origin")]
            self._file = pyarrow.parquet.ParquetWriter(
                self._path, self._schema, compression=how, use_dictionary=plain
            )
        self._file.write_table(pyarrow.Table.from_pylist(self._rows, self._schema))
        self._rows, self._bytes = [], 0

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._finish(self._path)
            self._file = None


class Csv(Writer):
    """``rows.csv``, with the references beside it."""

    name = "csv"

    def __init__(self, place: Place):
        super().__init__(place)
        self._path = self.folder / "rows.csv"
        self._file = self._path.open("w", encoding="utf-8", newline="")
        columns = ["id", "src_video", "tgt_video", "prompt", *(["ref_image"] * place.references), "category", "origin"]
        self._rows = csv.writer(self._file)  # ends lines with \r\n, and so quotes texts with either
        self._rows.writerow(columns)

    def add(self, sample):
        reference = []
        if self.place.references:
            path = _numbered(self.folder / "references", self._count, sample, ".png")
            shutil.copyfile(self.place.reference(sample), path)
            reference = [self.place.own(path, self._path)]
        clips = [self.place.clip(path) for path in (sample.source, sample.target)]
        self._rows.writerow([sample.id, *clips, sample.prompt, *reference, sample.category, sample.origin])
        self._written(sample)

    def close(self):
        self._file.close()
        self._finish(self._path)


class Webdataset(Writer):
    """Tars with ``KEY.src.mp4``, ``KEY.tgt.mp4``, ``KEY.json`` and ``KEY.ref.png``. They hold the clips themselves."""

    name = "webdataset"

    def __init__(self, place: Place):
        super().__init__(place)
        self._file, self._path = None, None

    def add(self, sample):
        if self._file is None:
            self._path = self.folder / f"{len(self.files):06d}.tar"
            self._file = tarfile.open(self._path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        name = key(sample.id)
        for role, path in (("src", sample.source), ("tgt", sample.target)):
            suffix = Path(path).suffix.lower()
            kind = "source" if role == "src" else "target"
            member = f"{name}.{role}{suffix if suffix in _SUFFIXES else '.mp4'}"
            self._copy(member, path, sample.values[INGEST][f"{kind}_digest"])
        told = {name: getattr(sample, name) for name in ("id", "prompt", "category", "origin")}
        text = json.dumps(told | {"scores": sample.scores()}, ensure_ascii=False, sort_keys=True).encode()
        self._file.addfile(_member(f"{name}.json", len(text)), io.BytesIO(text))
        if self.place.references:
            data = self.place.reference(sample).read_bytes()
            self._file.addfile(_member(f"{name}.ref.png", len(data)), io.BytesIO(data))
        self._written(sample)
        if self._file.offset >= self.place.size:
            self.close()

    def _copy(self, name: str, path: str, digest: str) -> None:
        with Path(path).open("rb") as file:
            read = _Hashed(file)
            try:
                self._file.addfile(_member(name, os.fstat(file.fileno()).st_size), read)
            except OSError as error:
                if not read.short:
                    raise
                raise ValueError(f"{path} is being written; wait for it, and run the pipeline again.") from error
        if read.digest.hexdigest() != digest:
            raise ValueError(f"{path} is not what it was when it was judged; run the pipeline again.")

    def close(self):
        if self._file is not None:
            self._file.close()
            self._finish(self._path)
            self._file = None


class Thumbnails(Writer):
    """JPEG strips of source, reference and target."""

    name = "thumbnails"

    def add(self, sample):
        frames = self.place.run / sample.artefacts[INGEST]
        shown = [pictures.frame(frames, role, side=2 * THUMBNAIL) for role in ("source", "target")]
        if self.place.references:
            shown.insert(1, pictures.opened(self.place.reference(sample)))
        path = _numbered(self.folder, self._count, sample, ".jpg")
        path.write_bytes(pictures.jpeg(pictures.strip(shown, THUMBNAIL)))
        self._written(sample)

    def close(self):
        self._finish(self.folder)


WRITERS: dict[str, type[Writer]] = {one.name: one for one in (Parquet, Csv, Webdataset, Thumbnails)}


class _Hashed:
    """A file that is digested as it is read."""

    def __init__(self, file):
        self._file = file
        self.digest, self.short = hashlib.blake2b(digest_size=16), False

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.short = len(data) < size
        self.digest.update(data)
        return data


def key(name: str) -> str:
    """An id as a name without dots, which end a key in a shard, or anything else but letters, digits, _ and -."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    if plain == name and len(name) <= 80:
        return name
    return f"{plain[:70]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def _numbered(folder: Path, number: int, sample: Sample, suffix: str) -> Path:
    path = folder / f"{number // FOLDER_FILES:04d}" / f"{key(sample.id)}{suffix}"
    if number % FOLDER_FILES == 0:
        path.parent.mkdir(parents=True)
    return path


def _member(name: str, size: int) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.mode, found.mtime = size, 0o644, 0
    return found
