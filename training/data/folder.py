"""Rows in a plain folder: x.mp4, x_edit.mp4, x.txt or one prompt.txt for all, and perhaps x_ref.png."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .media import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Media
from .row import Placed, Row, attempt
from .tables import SUFFIXES as TABLE_SUFFIXES

SHARED_PROMPT = "prompt"


def read_folder(folder: Path) -> Iterator[Placed]:
    """The rows of a folder by name; clips are any video or picture, other files and folders are left alone.

    A pair without a prompt comes as a ValueError in its place. Raises ValueError for a folder without clips, a clip or
    text without a partner, an edit or reference that cannot be read by its suffix, and two files of one stem.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    clips: dict[str, Path] = {}
    for path in files:
        if _is_clip(path):
            if path.stem in clips:
                raise ValueError(f"{folder} has both {clips[path.stem].name} and {path.name}; rename or remove one.")
            clips[path.stem] = path
    if not clips:
        tables = [path.name for path in files if path.suffix.lower() in TABLE_SUFFIXES]
        way = f"give the table itself, {folder / tables[0]}" if tables else "give the folder that they lie in"
        raise ValueError(f"{folder} has no clips or shards; {way}.")
    texts = {path.stem: path for path in files if path.suffix.lower() == ".txt"}

    rows = [stem for stem in clips if f"{stem}_edit" in clips]
    for path in files:
        part = path.stem.endswith("_edit") or path.stem.removesuffix("_ref") in rows
        if part and path.stem not in clips and path.suffix.lower() != ".txt":
            known = ", ".join(sorted(PICTURE_SUFFIXES | VIDEO_SUFFIXES))
            raise ValueError(f"{path} cannot be read by its suffix; save it as one of {known}.")
    references = {f"{stem}_ref" for stem in rows} & {
        stem for stem, path in clips.items() if path.suffix.lower() in PICTURE_SUFFIXES
    }
    used = {*rows, *(f"{stem}_edit" for stem in rows), *references}
    lonely = [path.name for stem, path in clips.items() if stem not in used]
    lonely += [path.name for stem, path in texts.items() if stem not in rows and stem != SHARED_PROMPT]
    if lonely:
        raise ValueError(f"{folder} has files without a partner: {', '.join(lonely)}; pair x.mp4 with x_edit.mp4.")
    shared = _text(texts[SHARED_PROMPT]) if SHARED_PROMPT in texts else None

    def row(stem: str) -> Row:
        prompt = _text(texts[stem]) if stem in texts else shared
        if prompt is None:
            raise ValueError(f"{clips[stem]} has no prompt; write it to {stem}.txt, or to prompt.txt for all clips.")
        source, target = Media(str(clips[stem])), Media(str(clips[f"{stem}_edit"]))
        reference = Media(str(clips[f"{stem}_ref"])) if f"{stem}_ref" in references else None
        return Row(stem, source, target, prompt, reference)

    for stem in rows:
        yield str(clips[stem]), attempt(row, stem)


def is_edit(path: Path) -> bool:
    """Whether a file is the second of a pair."""
    return _is_clip(path) and path.stem.endswith("_edit")


def _is_clip(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
