"""Clips of a folder, one a run."""

import importlib

import pytest
import sample_graph

from kiwi_core import media

NAMES = ("clip10.mp4", "clip2.mp4", "Clip1.mp4")  # not in their natural order


@pytest.fixture(scope="module")
def ready(server):
    folder = server.base_dir / "input" / "batch"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        media.save_video(folder / name, sample_graph.draw_clip()[number : number + 3 + number, ::4, ::4], 12)
    (folder / "notes.txt").write_text("no clip")
    (folder / ".hidden.mp4").write_text("no clip")
    return server


@pytest.fixture(scope="module")
def batch(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.batch")


def graph(index, folder="batch"):
    return {
        "clip": {"class_type": "KiwiEditClipFromFolder", "inputs": {"folder": folder, "index": index}},
        "save": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["clip", 0], "filename_prefix": ["clip", 1], "format": "auto", "codec": "auto"},
        },
        "count": {"class_type": "PreviewAny", "inputs": {"source": ["clip", 2]}},
    }


def test_each_run_takes_the_next_clip_in_natural_order(ready):
    for index, (name, frames) in enumerate((("Clip1", 5), ("clip2", 4), ("clip10", 3))):
        history = ready.run(graph(index))
        (path,) = ready.output_files(history)
        assert path.name.startswith(f"{name}_")
        assert len(media.load_video(path).frames) == frames
        assert history["outputs"]["count"]["text"] == ["3"]


def test_a_run_past_the_last_clip_is_refused(ready):
    with pytest.raises(RuntimeError, match="There is no clip 3: the folder has 3, counted from 0"):
        ready.run(graph(3))


def test_a_negative_number_is_refused(ready):
    with pytest.raises(RuntimeError, match="There is no clip -1; clips are counted from 0"):
        ready.run(graph(-1))


def test_a_linked_number_is_followed(ready):
    for index in range(2):
        linked = graph(["number", 0]) | {"number": {"class_type": "PrimitiveInt", "inputs": {"value": index}}}
        before = len(ready.log)
        cached = []

        def follow(kind, data, cached=cached):
            if kind == "execution_cached":
                cached.append("clip" in data["nodes"])

        ready.run(linked, follow)
        ready.run(linked, follow)
        assert cached == [False, True]
        assert "WARNING" not in ready.log[before:]


def test_a_clip_that_changed_is_read_again(ready):
    path = ready.base_dir / "input" / "batch" / NAMES[1]
    before = path.read_bytes()
    cached = []

    def follow(kind, data):
        if kind == "execution_cached":
            cached.extend(data["nodes"])

    ready.run(graph(1))
    ready.run(graph(1), follow)
    assert "clip" in cached
    cached.clear()
    try:
        media.save_video(path, sample_graph.draw_clip()[:7, ::4, ::4], 12)
        (saved,) = ready.output_files(ready.run(graph(1), follow))
    finally:
        path.write_bytes(before)
    assert "clip" not in cached
    assert len(media.load_video(saved).frames) == 7


@pytest.mark.parametrize("folder", ["..", "batch/../..", "/etc", "/"])
def test_folders_outside_of_comfyui_are_refused(ready, folder):
    with pytest.raises(RuntimeError, match="is outside of ComfyUI's input folder; put the clips, or a link to them"):
        ready.run(graph(0, folder))


def test_a_linked_folder_and_an_absolute_path_inside_are_taken(ready, tmp_path):
    media.save_video(tmp_path / "elsewhere.mp4", sample_graph.draw_clip()[:2, ::4, ::4], 12)
    link = ready.base_dir / "input" / "linked"
    link.symlink_to(tmp_path, target_is_directory=True)
    for folder in ("linked", str(link), " linked/ "):
        (path,) = ready.output_files(ready.run(graph(0, folder)))
        assert path.name.startswith("elsewhere_")


@pytest.mark.parametrize("folder, message", [("missing", "There is no folder"), ("empty", "There is no video in")])
def test_a_folder_without_clips_is_refused(ready, folder, message):
    (ready.base_dir / "input" / "empty").mkdir(exist_ok=True)
    with pytest.raises(RuntimeError, match=message):
        ready.run(graph(0, folder))


def test_odd_names_have_an_order(batch):
    names = ["10", "2", "a", "a²", "2b", "2a10", "2a9", "A"]
    assert sorted(names, key=batch._natural) == ["2", "2a9", "2a10", "2b", "10", "A", "a", "a²"]
