"""Rows in WebDataset shards: KEY.src.mp4, KEY.tgt.mp4, KEY.txt or KEY.json, and perhaps KEY.ref.png in a tar."""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path

from .media import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Media, TarMember
from .row import Placed, Row, attempt

_ROLES = ("src", "tgt", "ref")


def read_shard(path: Path) -> Iterator[Placed]:
    """The rows of a tar in the order of their first members; nothing is extracted.

    A key is a member's name, with its folder, up to the first dot of the last part. Members are any video or
    picture for ``src`` and ``tgt``, a picture for ``ref``; others are left alone. ``.txt`` wins over the
    ``prompt`` of ``.json``.

    An incomplete row comes as a ValueError in its place. Raises ValueError for what is not an uncompressed tar, for an
    ambiguous row, and for a part of a row that cannot be read by its suffix or has a dot in its key.
    """
    groups: dict[str, dict[str, Media | str]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                key, role = _split(member.name, f"{path}:{member.name}")
                if role is None:
                    continue
                group = groups.setdefault(key, {})
                if role in group:
                    raise ValueError(f"{path} has two members for {key}.{role}, the second is {member.name}; keep one.")
                if not member.isfile() or member.issparse():
                    raise ValueError(f"{path}:{member.name} is a link or sparse; pack the file itself.")
                if role in ("txt", "json"):
                    group[role] = _text(archive.extractfile(member).read(), f"{path}:{member.name}", role)
                else:
                    group[role] = Media(str(path), TarMember(member.name, member.offset_data, member.size))
    except tarfile.TarError as error:
        raise ValueError(f"{path} is damaged or not an uncompressed tar; pack it again.") from error
    for key, group in groups.items():
        yield f"{path}:{key}", attempt(_row, path, key, group)


def _row(path: Path, key: str, group: dict[str, Media | str]) -> Row:
    for role, name in (("src", "source"), ("tgt", "target")):
        if role not in group:
            raise ValueError(f"{path} has no {name} for {key}; add {key}.{role}.mp4.")
    prompt = group.get("txt", group.get("json"))
    if prompt is None:
        raise ValueError(f"{path} has no prompt for {key}; add {key}.txt, or a prompt in {key}.json.")
    return Row(key, group["src"], group["tgt"], prompt, group.get("ref"), str(path))


def _split(name: str, place: str) -> tuple[str, str | None]:
    """A member's key and role: "src", "tgt", "ref", "txt", "json", or None for members that are no part of a row."""
    folder, base = posixpath.split(posixpath.normpath(name))
    stem, _, rest = base.partition(".")
    role, _, suffix = rest.lower().rpartition(".")
    key = posixpath.join(folder, stem)
    if not stem:  # hidden, such as what macOS adds for each file
        return key, None
    if not role and suffix in ("txt", "json"):
        return key, suffix
    dotted, _, last = role.rpartition(".")
    if last not in _ROLES:
        return key, None
    if dotted:
        whole = f"{stem}.{dotted}".replace(".", "_")
        raise ValueError(f"{place} has a dot in its key, which ends at the first one; name it {whole}.{last}.{suffix}.")
    suffixes = PICTURE_SUFFIXES if role == "ref" else PICTURE_SUFFIXES | VIDEO_SUFFIXES
    if f".{suffix}" not in suffixes:
        raise ValueError(f"{place} cannot be read by its suffix; {role} takes {', '.join(sorted(suffixes))}.")
    return key, role


def _text(data: bytes, place: str, role: str) -> str | None:
    try:
        text = data.decode("utf-8-sig")
        if role == "txt":
            return text.strip()
        fields = json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 text; save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} line {error.lineno} is not JSON ({error.msg}); correct it.") from error
    prompt = fields.get("prompt") if isinstance(fields, dict) else None
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"{place} has a prompt that is no text; put it in quotes.")
    return prompt
