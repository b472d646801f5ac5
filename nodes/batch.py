"""Clips of a folder, one a run."""

import os
import re
from pathlib import Path

import folder_paths
from comfy_api.latest import InputImpl, io


def _folder(folder: str) -> Path:
    """The folder; ValueError unless it is inside ComfyUI's input, output or temp folder, as for its own nodes."""
    inside = Path(folder_paths.get_input_directory()).absolute()
    path = Path(os.path.normpath(inside / folder.strip()))
    roots = (inside, folder_paths.get_output_directory(), folder_paths.get_temp_directory())
    if not any(path.is_relative_to(os.path.abspath(root)) for root in roots):
        raise ValueError(f"{folder} is outside of ComfyUI's input folder; put the clips, or a link to them, in there.")
    if not path.is_dir():
        raise ValueError(f"There is no folder {path}; name one in ComfyUI's input folder.")
    return path


def _natural(name: str) -> tuple[list, str]:
    """Sort key: clip2 before clip10."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], name


def clips(folder: str) -> list[Path]:
    """The videos of a folder in natural order; ValueError if there is none."""
    path = _folder(folder)
    names = [entry.name for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    videos = sorted(folder_paths.filter_files_content_types(names, ["video"]), key=_natural)
    if not videos:
        raise ValueError(f"There is no video in {path}; put clips there.")
    return [path / name for name in videos]


def _clip(folder: str, index: int) -> tuple[Path, int]:
    """The clip of that number, and how many there are."""
    found = clips(folder)
    if index < 0:
        raise ValueError(f"There is no clip {index}; clips are counted from 0.")
    if index >= len(found):
        raise ValueError(f"There is no clip {index}: the folder has {len(found)}, counted from 0. All are done.")
    return found[index], len(found)


class KiwiEditClipFromFolder(io.ComfyNode):
    """The next clip with every run."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditClipFromFolder",
            display_name="Clip from Folder (Kiwi-Edit)",
            category="video/kiwi-edit",
            description="Gives one clip of a folder and, with the next run, the next one: queue as many runs as there "
            "are clips. A run past the last clip is refused.",
            search_aliases=["kiwi batch", "load videos", "folder of videos", "batch of clips", "load video path"],
            inputs=[
                io.String.Input("folder", default="", tooltip="Inside ComfyUI's input folder; empty is that itself."),
                io.Int.Input(
                    "index", default=0, min=0, max=100000, control_after_generate=io.ControlAfterGenerate.increment,
                    tooltip="Which clip, from 0, in order of their names (clip2 before clip10).",
                ),
            ],
            outputs=[
                io.Video.Output(),
                io.String.Output(display_name="name", tooltip="Without its ending: for the name to save under."),
                io.Int.Output(display_name="count", tooltip="How many clips there are."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, folder=None, index=None):
        try:
            if folder is not None:
                _clip(folder, index or 0)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder=None, index=None):  # None is a link: not known yet
        if folder is None:
            return float("nan")
        stats = ((path, path.stat()) for path in clips(folder))
        files = [f"{path} {stat.st_mtime_ns} {stat.st_size}" for path, stat in stats]
        return f"{files if index is None else files[index]} {len(files)}"

    @classmethod
    def execute(cls, folder, index) -> io.NodeOutput:
        path, count = _clip(folder, index)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), path.stem, count)


NODES = [KiwiEditClipFromFolder]
