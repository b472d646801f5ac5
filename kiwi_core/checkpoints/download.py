"""Published models into ComfyUI's folders: resumed after a kill, checked by hash, offline once all is there."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout

from . import files as file_io
from .hub import MODELS, PATTERNS, explain

logger = logging.getLogger(__name__)

INDEX = "model_index.json"
STATE = ".download"
"""Folder within a model's: the manifest, and files that are not whole yet."""

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|git:[0-9a-f]{40}")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub describes it."""

    name: str
    """Path in the model's folder, with slashes."""
    size: int
    digest: str
    """``sha256:`` of a large file; ``git:`` of a small one, whose hash covers its length too."""

    def is_at(self, path: Path, read: bool = True) -> bool:
        """Whether ``path`` has this size and, if it is to be read, this content."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        return not read or _digest(path, self.digest.partition(":")[0]) == self.digest


def download(
    name: str,
    models: str | os.PathLike,
    revision: str = "main",
    files: Sequence[str] | None = None,
    verify: bool = False,
    endpoint: str | None = None,
) -> Path:
    """Fetch a model's weights and settings, never code or pickles, into ``models/diffusers/<name>/``.

    What is there already is kept if its hash is the hub's, and what a killed run left is gone on with.
    ``model_index.json`` comes last but for a manifest, by which a later call sees without network that all is there.
    A token for gated models is taken from HF_TOKEN only.

    Args:
        name: a key of ``MODELS``, or ``owner/name``.
        models: ComfyUI's ``models`` folder.
        revision: branch, tag or commit. A branch is looked up again only if a file is missing.
        files: fetch only what matches one of these patterns, such as ``transformer/*``.
        verify: read all files again and replace the damaged ones.
        endpoint: address of the hub; None for HF_ENDPOINT, or huggingface.co.

    Returns:
        The model's folder.

    Raises:
        ValueError: a name that is none, or a folder that is none or holds another model.
        FileNotFoundError: no such model or revision. PermissionError: it needs a token.
        ConnectionError: no network. OSError: the disk is too small, or a file arrives damaged twice.
    """
    name = MODELS.get(name, name)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name} is no model's name; use owner/name, or one of {', '.join(MODELS)}.")
    if not Path(models).is_dir():
        raise ValueError(f"{models} is no folder; name ComfyUI's models folder.")
    folder = Path(models) / "diffusers" / name.partition("/")[2]
    wanted = {"name": name, "revision": revision, "patterns": sorted(files) if files else None}
    known, given = _read_manifest(folder, wanted)
    if known and given == wanted and all(file.is_at(folder / file.name, read=verify) for file in known):
        logger.info("%s is complete.", folder)
        return folder

    hub = _Hub(name, revision, endpoint)
    listed, commit = hub.list_files(files)
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # not in a folder that may never be
    try:
        with FileLock(Path(tempfile.gettempdir()) / f"kiwi-edit-{place}.lock", timeout=0):
            _bring(hub, folder, listed, commit, known, given, wanted, verify)
    except Timeout:
        raise OSError(f"Another download into {folder} is running; wait for it.") from None
    logger.info("%s is complete.", folder)
    return folder


def _bring(
    hub: _Hub, folder: Path, listed: list[RemoteFile], commit: str, known: list[RemoteFile], given: dict, wanted: dict,
    verify: bool,
) -> None:  # fmt: skip
    """Fetch what is missing and drop what no longer belongs there; see :func:`download`."""
    trusted = set() if verify else set(known)
    missing = [file for file in listed if not file.is_at(folder / file.name, read=file not in trusted)]
    _check_space(folder, missing)
    if missing:
        logger.info("%d files, %s, into %s.", len(missing), _size(sum(file.size for file in missing)), folder)
    entries = {file.name: {"size": file.size, "digest": file.digest} for file in listed}
    dropped = [file.name for file in known if file.name not in entries and given["patterns"] == wanted["patterns"]]
    _fetch_all(hub, folder, listed, missing, dropped, commit)
    for path in (folder / STATE).glob("*.partial"):  # of another revision
        path.unlink()
    file_io.save_json({**wanted, "commit": commit, "files": entries}, folder / STATE / "manifest.json")


def _read_manifest(folder: Path, wanted: dict) -> tuple[list[RemoteFile], dict]:
    """Files that the last finished call has left, and what it was called for; empty if there was none."""
    path = folder / STATE / "manifest.json"
    if not path.is_file():
        return [], {}
    try:
        found = file_io.read_json(path)
        known = [RemoteFile(name, entry["size"], entry["digest"]) for name, entry in found["files"].items()]
        given = {key: found[key] for key in wanted}
    except (ValueError, KeyError, TypeError, AttributeError):  # damaged: as if there were none
        return [], {}
    if given["name"] != wanted["name"]:
        raise ValueError(f"{folder} holds {given['name']}; move it away to download {wanted['name']}.")
    return known, given


def _fetch_all(
    hub: _Hub,
    folder: Path,
    listed: list[RemoteFile],
    missing: list[RemoteFile],
    dropped: list[str],
    commit: str,
) -> None:
    """Every file to its place; the index leaves it before another file changes, and comes back last."""
    index = next((file for file in listed if file.name == INDEX), None)
    others = [file for file in missing if file is not index]
    for file in others:
        partial = hub.fetch(file, folder, commit)
        if file is others[0]:
            (folder / STATE / "manifest.json").unlink(missing_ok=True)
            if index and index in missing:
                (folder / INDEX).unlink(missing_ok=True)
            elif index:
                os.replace(folder / INDEX, _partial(folder, index))
                missing.append(index)
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, folder / file.name)
    for name in dropped:
        (folder / name).unlink(missing_ok=True)
    if index in missing:
        os.replace(hub.fetch(index, folder, commit), folder / INDEX)


def _partial(folder: Path, file: RemoteFile) -> Path:
    return folder / STATE / f"{file.digest.replace(':', '-')}.partial"


def _check_space(folder: Path, missing: list[RemoteFile]) -> None:
    here = [path.stat().st_size for file in missing if (path := _partial(folder, file)).is_file()]
    needed = sum(file.size for file in missing) - sum(here)
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
    if needed > free:
        raise OSError(
            f"{folder} needs {_size(needed)} more and the disk has {_size(free)} free; make room or choose a folder on "
            "another disk."
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _digest(path: Path, kind: str) -> str:
    if kind == "sha256":
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"


class _Hub:
    """One model on the hub. All that goes wrong there becomes one sentence."""

    def __init__(self, name: str, revision: str, endpoint: str | None):
        from huggingface_hub import constants

        self.name, self.revision = name, revision
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.token = os.environ.get("HF_TOKEN") or False  # False: not one that is stored on this machine

    def list_files(self, patterns: Sequence[str] | None) -> tuple[list[RemoteFile], str]:
        """Files that may be fetched and match one of ``patterns``, and their commit."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint, token=self.token)
        info = self._ask(lambda: api.model_info(self.name, revision=self.revision, files_metadata=True, timeout=30))
        listed = []
        for sibling in info.siblings or ():
            name = sibling.rfilename
            chosen = [any(fnmatch(name, pattern) for pattern in group) for group in (PATTERNS, patterns or ("*",))]
            if all(chosen):
                digest = f"sha256:{sibling.lfs.sha256}" if sibling.lfs else f"git:{sibling.blob_id}"
                listed.append(self._checked(RemoteFile(name, sibling.size, digest)))
        if not listed:
            raise FileNotFoundError(f"{self.name} has no weights or settings to fetch; check the name and the files.")
        return listed, info.sha

    def _checked(self, file: RemoteFile) -> RemoteFile:
        """The file, unless it would land outside of the folder or could not be checked."""
        parts = file.name.split("/")
        if {"", ".", ".."} & set(parts) or parts[0] == STATE or re.search(r"[\\:\0]", file.name):
            raise ValueError(f"{self.name} lists a file named {file.name!r}, which is no path; do not use this model.")
        if not isinstance(file.size, int) or not _DIGEST.fullmatch(file.digest):
            raise OSError(f"{self.endpoint} gives no size or hash for {file.name}, so it cannot be checked.")
        return file

    def fetch(self, file: RemoteFile, folder: Path, commit: str) -> Path:
        """The whole file at its partial path, gone on with from what is there."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get  # the library's downloads do not all resume
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(self.name, file.name, revision=commit, endpoint=self.endpoint)
        headers = build_hf_headers(token=self.token, library_name="kiwi-edit")
        path = _partial(folder, file)
        path.parent.mkdir(parents=True, exist_ok=True)

        def get() -> None:
            options = {"expected_size": file.size, "displayed_filename": file.name, "headers": headers}
            with path.open("ab") as partial:
                http_get(url, partial, resume_size=partial.tell(), **options)

        for _ in range(2):
            if path.is_file() and path.stat().st_size > file.size:
                path.unlink()
            self._ask(get, size_may_differ=True)
            if file.is_at(path):
                return path
            if path.stat().st_size >= file.size:
                path.unlink()
        raise OSError(f"{file.name} arrives damaged from {self.endpoint}; try again later.")

    def _ask(self, request: Callable, size_may_differ: bool = False):
        try:
            return request()
        except Exception as error:  # of the HTTP library, which is another in each of the hub library's releases
            if size_may_differ and type(error) is OSError and error.errno is None:
                return None
            raise explain(error, self.name, self.revision, self.endpoint) from error
