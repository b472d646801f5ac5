"""Rows in a plain folder: x.mp4, x_edit.mp4, x.txt or one prompt.txt for all, and perhaps x_ref.png."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .media import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Media
from .row import Placed, Row

SHARED_PROMPT = "prompt"


def read_folder(folder: Path) -> Iterator[Placed]:
    """The rows of a folder by name; clips are any video or picture, other files and folders are left alone.

    Raises ValueError for a folder without clips, a clip or text without a partner, and two files of one stem.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    clips: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES:
            if path.stem in clips:
                raise ValueError(f"{folder} has both {clips[path.stem].name} and {path.name}; rename or remove one.")
            clips[path.stem] = path
    if not clips:
        raise ValueError(f"{folder} has no clips, tables or shards; give the folder that they lie in.")
    texts = {path.stem: path for path in files if path.suffix.lower() == ".txt"}

    rows = [stem for stem in clips if f"{stem}_edit" in clips]
    references = {f"{stem}_ref" for stem in rows} & {
        stem for stem, path in clips.items() if path.suffix.lower() in PICTURE_SUFFIXES
    }
    used = {*rows, *(f"{stem}_edit" for stem in rows), *references}
    lonely = [path.name for stem, path in clips.items() if stem not in used]
    lonely += [path.name for stem, path in texts.items() if stem not in rows and stem != SHARED_PROMPT]
    if lonely:
        raise ValueError(f"{folder} has files without a partner: {', '.join(lonely)}; pair x.mp4 with x_edit.mp4.")
    shared = _text(texts[SHARED_PROMPT]) if SHARED_PROMPT in texts else None
    for stem in rows:
        prompt = _text(texts[stem]) if stem in texts else shared
        if prompt is None:
            raise ValueError(f"{clips[stem]} has no prompt; write it to {stem}.txt, or to prompt.txt for all clips.")
        source, target = Media(str(clips[stem])), Media(str(clips[f"{stem}_edit"]))
        reference = Media(str(clips[f"{stem}_ref"])) if f"{stem}_ref" in references else None
        yield str(clips[stem]), Row(stem, source, target, prompt, reference)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
