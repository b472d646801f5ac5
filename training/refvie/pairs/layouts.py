"""Which columns of a table say what, for our own tables and those of the public sets.

What is known of the sets, which say little about their tables themselves:

- Ditto-1M. Its card names ``source_path``, ``instruction`` and ``edited_path`` for the JSON files in
  ``training_metadata``; the CSV files in ``csvs_for_DiffSynth`` have ``vace_video`` (source), ``video`` (target) and
  ``prompt``, as its training script passes them on. Paths begin at the set's folder ``videos``. No column tells the
  kind of an edit, but the edited clips' folders do: ``global_style1`` and ``global_style2``; ``global_freeform1`` to
  ``3`` and ``local`` hold edits of several kinds.
- OpenVE-3M. Its card tells no columns. Two public trainings on it (ThinkV2V, ReCo's with references) read
  ``original_video`` (source), ``video`` (target) and ``prompt`` from one CSV for each kind, such as
  ``local_remove.csv``, with ";" or "," between fields; paths begin at the folder of the videos. Its benchmark's table
  also has ``edited_type``, and ``edited_result_path`` for a model's results.
- ReCo-Data. Its reader takes ``src_video``, ``tar_video`` and ``instruction_final_refine`` from
  ``add/add_data_configs.json`` and the like for remove, replace and style. Paths begin at the set's folder, so they
  start with ``add/tar_videos/``, which tells the kind.

None is known to have ids. For other tables name the columns, see :func:`find`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .pair import ADD, BACKGROUND, CATEGORIES, CHANGE, REMOVE, STYLE

AUTO = "auto"
NEEDED = ("source", "target", "prompt")
ROLES = (*NEEDED, "id", "category")

_OWN = {category: category for category in CATEGORIES}
_RECO = {"add": ADD, "remove": REMOVE, "replace": CHANGE, "style": STYLE}
_KINDS = {**_OWN, **_RECO, "background": BACKGROUND}
"""What values of a category column mean. OpenVE's subtitle, camera and creative edits are none of the paper's five."""


@dataclass(frozen=True)
class Layout:
    """For each role the columns that may have it, the first one first."""

    name: str
    source: tuple[str, ...]
    target: tuple[str, ...]
    prompt: tuple[str, ...]
    id: tuple[str, ...] = ("id", "iid")
    category: tuple[str, ...] = ("category", "edit_type", "edited_type")
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Categories that names of folders and tables stand for."""
    origin: str = ""
    """Name of the set, "" where the table's own name is it."""


LAYOUTS = (
    Layout("pairs", ("src_video", "source"), ("tgt_video", "target"), ("prompt", "instruction")),
    Layout(
        "ditto", ("source_path", "vace_video"), ("edited_path", "video"), ("instruction", "prompt"),
        kinds=dict.fromkeys(("global_style", "global_style1", "global_style2"), STYLE), origin="ditto",
    ),
    Layout(
        "openve", ("original_video",), ("video", "edited_result_path"), ("prompt",), kinds=_OWN, origin="openve"
    ),
    Layout("reco", ("src_video",), ("tar_video",), ("instruction_final_refine",), kinds=_RECO, origin="reco"),
)  # fmt: skip
"""In the order in which they are tried; "pairs" is our own."""


def check(layout: str, columns: Mapping[str, str] | None) -> None:
    """Raises ValueError for a layout or a role that there is not."""
    names = [AUTO, *(known.name for known in LAYOUTS)]
    if layout not in names:
        raise ValueError(f"There is no layout {layout!r}; use {', '.join(names)}.")
    for role in columns or ():
        if role not in ROLES:
            raise ValueError(f"Columns are named for {role!r}; name them for {', '.join(ROLES)}.")


def find(
    found: Sequence[str] | None, layout: str = AUTO, columns: Mapping[str, str] | None = None
) -> tuple[Layout, dict[str, str]]:
    """The layout of a table with the columns ``found``, and its columns by role; "id" and "category" may be missing.

    Args:
        found: None for a table without a sound row, which has any layout and no columns.
        layout: name of the one that it must have. columns: names by role, before those of the layout.

    Raises ValueError, with words that go on after the table's name, for columns that are missing or there twice.
    """
    check(layout, columns)
    columns = columns or {}
    tried = [known for known in LAYOUTS if layout in (AUTO, known.name)]
    if found is None:
        return tried[0], {}
    best: list[str] | None = None
    for known in tried:
        names = {role: (columns[role],) if role in columns else getattr(known, role) for role in ROLES}
        chosen = {role: next((name for name in names[role] if name in found), "") for role in ROLES}
        lacking = [role for role in ROLES if not chosen[role] and (role in NEEDED or role in columns)]
        missing = [f"{role} ({' or '.join(names[role])})" for role in lacking]
        if not missing:
            chosen = {role: name for role, name in chosen.items() if name}
            for name in chosen.values():
                if found.count(name) > 1:
                    raise ValueError(f"has the column {name} twice; rename one.")
            return known, chosen
        if best is None or len(missing) < len(best):
            best = missing
    raise ValueError(
        f"has no column for the {' and the '.join(best)}, only {', '.join(found) or 'none'}; rename them, or name them "
        "with columns."
    )


def category(value: object, layout: Layout, target: object, table: Path) -> str:
    """One of the paper's categories, or "".

    Args:
        value: what the table says, decisive if it is text; else the folders of ``target``'s path, the nearest one
            first, and then the names of the table and its folder tell it, for layouts whose names do.
    """
    if isinstance(value, str) and value.strip():
        return _KINDS.get(_plain(value), "")
    if not layout.kinds:
        return ""
    folders = PurePosixPath(target.replace("\\", "/")).parts if isinstance(target, str) else ()
    names = (*reversed(folders), table.stem, table.parent.name)
    return next((layout.kinds[name] for name in map(_plain, names) if name in layout.kinds), "")


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "_", text.strip().lower())
