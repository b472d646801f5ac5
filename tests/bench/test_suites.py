"""Items of the official layouts, and one sentence for what is wrong with one."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from kiwi_core import media
from training.bench import suites
from training.bench.folder import Folder
from training.bench.items import BACKGROUND, INSTRUCTION, SUBJECT, Item
from training.nano import bench as nano_bench
from training.nano import world


def test_refvie_bench(refvie_bench):
    items = suites.read("refvie", refvie_bench, seed=5)
    assert [item.kind for item in items] == [SUBJECT, BACKGROUND] * 2
    assert [item.seed for item in items] == [5, 6, 7, 8] and len({item.id for item in items}) == 4
    assert all(item.source.is_file() and item.reference.is_file() and item.prompt for item in items)
    assert suites.read(str(refvie_bench), seed=5) == items


@pytest.mark.parametrize("shape", ["names", "heading", "bare files"])
def test_refvie_bench_in_other_shapes(refvie_bench, tmp_path, shape):
    rows = yaml.safe_load((refvie_bench / "refvie_bench.yaml").read_text())
    for name in ("source_videos", "ref_images"):
        (tmp_path / name).symlink_to(refvie_bench / name)
        for path in (refvie_bench / name).iterdir():
            (tmp_path / name).unlink(missing_ok=True) if (tmp_path / name).is_symlink() else None
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    told = {
        "names": {f"item{number}": row for number, row in enumerate(rows)},
        "heading": {"items": rows},
        "bare files": [row | {name: row[name].rpartition("/")[2] for name in ("src_video", "ref_img")} for row in rows],
    }[shape]
    (tmp_path / "refvie_bench.yaml").write_text(yaml.safe_dump(told))
    items = suites.read("refvie", tmp_path)
    assert sorted(item.prompt for item in items) == sorted(row["instruction"] for row in rows)
    if shape == "names":
        assert {item.id for item in items} == set(told)


def test_openve_bench_has_five_scored_types(openve_bench):
    items = suites.read("openve", openve_bench)
    assert [item.category for item in items] == [*suites.OPENVE_CATEGORIES] * 2
    assert {item.kind for item in items} == {INSTRUCTION}
    assert all(item.source.is_file() for item in items)


def test_nano_bench_is_the_toy_worlds(tmp_path):
    items = suites.nano(tmp_path, share=0.05)
    known = {item.name.replace("/", "-"): item for item in nano_bench.items(suites.NANO_COUNTS)}
    assert len(items) == 7 * 2 * 2
    for item in items:
        edit = known[item.id].edit
        assert (item.prompt, item.seed, item.category) == (edit.prompt, known[item.id].seed, edit.category)
        assert (item.reference is None) == (edit.reference is None)
    frames = media.load_video(items[0].source).frames
    assert np.array_equal(frames, world.render(known[items[0].id].edit.before))
    stamps = [item.source.stat().st_mtime_ns for item in items]
    assert suites.nano(tmp_path, share=0.05) == items
    assert [item.source.stat().st_mtime_ns for item in items] == stamps
    with pytest.raises(ValueError, match="--share is 0"):
        suites.nano(tmp_path, share=0)


def own(folder, rows):
    media.save_video(folder / "a.mp4", np.zeros((2, 32, 32, 3), np.uint8), 8)
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_a_folder_of_ones_own(tmp_path):
    rows = [
        {"src_video": "a.mp4", "prompt": "Make it red.", "id": "my id/1", "category": "Local Change"},
        {"source": "a.mp4", "instruction": "Make it blue.", "mask": "a.mp4"},
        {"src_video": "a.mp4", "prompt": "Add this.", "ref_image": "a.mp4"},
    ]
    first, second, third = suites.read(own(tmp_path, rows))
    assert (first.id, first.category, first.region) == ("my-id-1", "local_change", None)
    assert (second.id, second.region) == ("0001-a", (tmp_path / "a.mp4").resolve())
    assert (third.kind, third.category) == (SUBJECT, "subject")


@pytest.mark.parametrize(("row", "sentence"), [
    ({"src_video": "b.mp4", "prompt": "x"}, "item 2 names b.mp4, which is not there"),
    ({"src_video": "../a.mp4", "prompt": "x"}, "item 2 names ../a.mp4, which is not there"),
    ({"src_video": "a.mp4", "prompt": " "}, "item 2 has no prompt"),
    ({"prompt": "x"}, "item 2 has no src_video"),
    ({"src_video": "a.mp4", "prompt": "x", "id": "one"}, "item 2 has the id one, which was there before"),
])  # fmt: skip
def test_what_is_wrong_is_told_at_once(tmp_path, row, sentence):
    (tmp_path / "data").mkdir()
    folder = own(tmp_path / "data", [{"src_video": "a.mp4", "prompt": "x", "id": "one"}, row])
    (tmp_path / "a.mp4").write_bytes(b"outside")
    with pytest.raises(ValueError, match=sentence):
        suites.read(folder)


def test_what_is_no_benchmark_is_told_in_a_sentence(tmp_path, openve_bench):
    with pytest.raises(ValueError, match="--data FOLDER"):
        suites.read("refvie")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        suites.read(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"no refvie_bench\.yaml"):
        suites.read("refvie", tmp_path)
    with pytest.raises(FileNotFoundError, match="no table of items"):
        suites.read(str(tmp_path))
    (tmp_path / "refvie_bench.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is no YAML"):
        suites.read("refvie", tmp_path)
    (tmp_path / "refvie_bench.yaml").write_text("just words")
    with pytest.raises(ValueError, match="is no list of items"):
        suites.read("refvie", tmp_path)
    rows = list(csv.reader((openve_bench / "benchmark_videos.csv").open(encoding="utf-8-sig")))
    (tmp_path / "benchmark_videos.csv").write_text("\n".join(f"{row[0]};x;Camera Edit" for row in rows))
    with pytest.raises(ValueError, match="no edited_type of"):
        suites.read("openve", tmp_path)


def test_a_run_that_is_another_is_refused(tmp_path):
    items = [Item("a", "subject", "Add this.", tmp_path / "a.mp4", tmp_path / "a.png", None, 3)]
    folder = Folder.begin(tmp_path / "run", {"bench": "x", "system": {"name": "y"}}, items)
    assert Folder(tmp_path / "run").items == items == folder.items
    assert folder.run["versions"]["torch"] and folder.run["versions"]["kiwi_edit"]
    Folder.begin(tmp_path / "run", {"bench": "x", "system": {"name": "y"}}, items)
    for run, chosen in (({"bench": "x", "system": {"name": "z"}}, items), (folder.run, [])):
        with pytest.raises(ValueError, match="another folder"):
            Folder.begin(tmp_path / "run", run, chosen)
    with pytest.raises(FileNotFoundError, match="There is no run in"):
        Folder(tmp_path)


def test_nano_benchs_media_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = suites.nano(Path("run"), share=0.01)
    monkeypatch.chdir("/")
    assert all(path.is_file() for item in found for path in (item.source, item.reference) if path is not None)
    assert any(item.reference for item in found)
