"""Rows sorted by kind, and those that are held out."""

import os
from types import SimpleNamespace

import pytest
import torch
import training_data

from kiwi_core import media
from training import sources
from training.data import dataset
from training.data.index import Index
from training.data.media import Media
from training.data.prepare import Rules

RULES = Rules(64 * 64, 81, 16)


@pytest.fixture
def read(tmp_path):
    def read(rows, **options):
        table = training_data.write_table(tmp_path / "data", rows)
        return dataset.read([str(table)], "", RULES, 64, Index(tmp_path / "media.jsonl"), **options)

    return read


@pytest.fixture
def pair(tmp_path):
    return lambda name, number=0, **options: training_data.write_pair(tmp_path / "data", name, number, **options)


def names(rows):
    return sorted(row.target.name.rpartition("/")[2] for part in rows.values() for row in part.rows)


def test_a_target_that_is_held_out_is_not_trained_on_under_another_instruction(read, pair):
    rows = [pair(f"v{number}", number) for number in range(6)]
    rows += [{**row, "prompt": f"{row['prompt']} Please."} for row in rows]
    reference = pair("r", 7, reference=True)["ref_image"]
    rows += [{**row, "ref_image": reference} for row in rows[:6]]
    found = read(rows, validation_rows=1)
    held = set(names(found.validation))
    assert [len(part.rows) for part in found.validation.values()] == [1, 1]
    assert not held & set(names(found.training))
    assert len(names(found.training)) == 3 * (6 - len(held))


def test_a_target_is_held_out_however_its_path_is_written(read, pair, tmp_path):
    rows = [pair(f"v{number}", number) for number in range(6)]
    reference = pair("r", 7, reference=True)["ref_image"]
    os.symlink(tmp_path / "data", tmp_path / "link")
    for folder in ("data", "link"):
        rows += [
            {"prompt": "Please.", "ref_image": reference}
            | {name: str(tmp_path / folder / row[name]) for name in ("src_video", "tgt_video")}
            for row in rows[:6]
        ]
    found = read(rows, validation_rows=1)
    assert {kind: len(part.rows) for kind, part in found.validation.items()} == {"video": 1, "ref": 1}
    assert not set(names(found.validation)) & set(names(found.training))
    before = read(rows, validation_rows=1, as_before=True)  # as a run that has begun goes on
    assert set(names(before.validation)) & set(names(before.training))


def test_a_pair_of_other_lengths_and_rates_is_a_broken_row(read, pair, tmp_path):
    long, rows = pair("long", 0, frames=9), [pair("v", 0)]
    rows.append({**rows[0], "src_video": long["src_video"]})  # what both have is used: they are of one rate
    frames = media.load_video(tmp_path / "data" / long["src_video"]).frames
    media.save_video(tmp_path / "data" / "fast.mkv", frames, 24, crf=1)
    rows.append({**rows[0], "src_video": "fast.mkv"})
    found = read(rows)
    assert [[shape.frames for shape in part.shapes] for part in found.training.values()] == [[5, 5]]
    assert "9 frames of 48x48 and 5 frames of 48x48" in found.broken[0][1]
    assert read(rows, as_before=True).broken == []


def test_validation_data_of_other_kinds_are_told(read, pair, tmp_path, caplog):
    rows, still = [pair(f"v{number}", number) for number in range(3)], pair("i", 9, frames=1)
    stills = training_data.write_table(tmp_path / "data", [still], "stills.csv")
    with pytest.raises(ValueError, match=r"--validation-data has no rows of the kinds that are trained on \(video\)"):
        read(rows, validation_data=[str(stills)])
    mixed = training_data.write_table(tmp_path / "data", [still, {**rows[0], "prompt": "Else."}], "mixed.csv")
    assert list(read(rows, validation_data=[str(mixed)]).validation) == ["video"]
    assert "1 image rows of --validation-data are not used" in caplog.text


def test_the_main_process_looks_first_and_all_must_find_the_same(pair, tmp_path, monkeypatch):
    table = training_data.write_table(tmp_path / "data", [pair(f"v{number}", number) for number in range(3)])
    config = training_data.config("tiny_stage2", tmp_path / "model", table, tmp_path / "run", kinds=("video",))
    parts = SimpleNamespace(
        source_embedder={"patch_embedding.weight": torch.zeros(1, 16)}, limits=SimpleNamespace(max_object_token=64)
    )
    looked, calls, theirs = [], [], []
    probe = Media.probe
    monkeypatch.setattr(Media, "probe", lambda media: looked.append(media) or calls.append("look") or probe(media))

    def read(is_main):
        calls.clear()
        processes = SimpleNamespace(
            is_main=is_main, wait=lambda: calls.append("wait"), gather_list=lambda mine: [*mine, *theirs]
        )
        return sources.read(config, parts, None, processes)[0]

    first = read(True)
    assert calls == ["look"] * 6 + ["wait"]
    assert read(False).digest == first.digest
    assert calls == ["wait"] and len(looked) == 6
    theirs.append(("other", ""))
    with pytest.raises(ValueError, match="The processes do not read the same rows"):
        read(True)


def test_names_that_are_not_utf_8_do_no_harm(read, pair, tmp_path):
    rows = [pair(f"v{number}", number) for number in range(2)]
    folder = tmp_path / "clips"
    folder.mkdir()
    for row, name in zip(rows, (b"caf\xe9", b"tea")):
        for key, ending in (("src_video", b".mkv"), ("tgt_video", b"_edit.mkv")):
            os.rename(tmp_path / "data" / row[key], os.path.join(os.fsencode(folder), name + ending))
    (folder / "prompt.txt").write_text("Go.")
    found = dataset.read([str(folder)], "", RULES, 64, Index(tmp_path / "media.jsonl"), validation_rows=1)
    assert [len(part.rows) for part in (*found.training.values(), *found.validation.values())] == [1, 1]


def test_validation_data_that_are_trained_on_are_told(read, pair, tmp_path, caplog):
    rows = [pair(f"v{number}", number) for number in range(3)]
    other = training_data.write_table(tmp_path / "data", [{**rows[0], "prompt": "Another instruction."}], "held.csv")
    found = read(rows, validation_data=[str(other)])
    assert "The targets of 1 of the validation rows are trained on too." in caplog.text
    assert len(names(found.training)) == 3


def test_of_a_kind_with_few_rows_one_is_trained_on(read, pair, caplog):
    """The README's folder: clips, and one of them with a reference."""
    rows = [pair(f"v{number}", number) for number in range(12)] + [pair("r", 20, reference=True)]
    found = read(rows, validation_rows=1)
    assert {kind: len(part.rows) for kind, part in found.training.items()} == {"video": 11, "ref": 1}
    assert {kind: len(part.rows) for kind, part in found.validation.items()} == {"video": 1, "ref": 0}
    assert "Of the 1 ref rows, 0 are held out" in caplog.text
    assert "There are 1 ref rows and 11 of another kind" in caplog.text
