"""Pairs from tables of every kind and layout, and what becomes of rows and tables that are at fault."""

import csv
import errno
import inspect
import json
import os
import re
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.refvie.pairs import ingest, layouts
from training.refvie.pairs.pair import ADD, BACKGROUND, CATEGORIES, CHANGE, REMOVE, STYLE, Pair

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
ROW = {"src_video": "a.mp4", "tgt_video": "b.mp4", "prompt": "Make it snow, softly."}


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def write(path, rows, delimiter=","):
    """A table with two clips beside it, a.mp4 and b.mp4."""
    touch(path.parent, "a.mp4", "b.mp4")
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def raw(path, data):
    touch(path.parent, "a.mp4", "b.mp4")
    path.write_bytes(data)
    return path


def read(*tables, **options):
    return list(ingest.read(tables, **options))


def refused(*tables, kind=ValueError, **options):
    with pytest.raises(kind) as error:
        read(*tables, **options)
    return sentence(str(error.value))


def sentence(text):
    assert "\n" not in text and text[0].isupper() | text.startswith("/") and text.endswith(".") and len(text) < 600
    return text


def problems(pairs):
    return [sentence(pair.problem) if pair.problem else "" for pair in pairs]


# What is read


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_table_gives_its_pairs_in_order(tmp_path, suffix):
    rows = [
        {"id": "first", **ROW, "category": "local_add", "mood": "calm"},
        {"id": "second", **ROW, "prompt": " Größer\nals zuvor ", "category": "", "mood": "wild"},
    ]
    table = write(tmp_path / f"mine{suffix}", rows)
    source, target = str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")
    assert read(table) == [
        Pair("first", source, target, "Make it snow, softly.", "mine", ADD),
        Pair("second", source, target, "Größer\nals zuvor", "mine"),
    ]


def test_rows_come_one_by_one(tmp_path):
    pairs = ingest.read([write(tmp_path / "t.jsonl", [ROW, ROW])])
    assert inspect.isgenerator(pairs) and next(pairs).prompt == ROW["prompt"]


@pytest.mark.parametrize("names", [
    {"source": "src_video", "target": "tgt_video", "prompt": "prompt", "id": "id", "category": "category"},
    {"source": "source", "target": "target", "prompt": "instruction", "id": "iid", "category": "edit_type"},
])  # fmt: skip
def test_our_own_columns_have_two_names(tmp_path, names):
    row = {"source": "a.mp4", "target": "b.mp4", "prompt": "Rain.", "id": 7, "category": "background_change"}
    (pair,) = read(write(tmp_path / "t.csv", [{names[role]: value for role, value in row.items()}]))
    assert (pair.id, pair.prompt, pair.category, pair.origin, pair.problem) == ("7", "Rain.", BACKGROUND, "t", "")


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_both_layouts_of_ditto(tmp_path, suffix):
    touch(tmp_path, "source/1.mp4", "global_style1/1.mp4", "global_freeform3/1.mp4", "local/1.mp4")
    made = ("global_style1/1.mp4", "global_freeform3/1.mp4", "local/1.mp4")
    names = ("vace_video", "video", "prompt") if suffix == ".csv" else ("source_path", "edited_path", "instruction")
    table = write(tmp_path / f"t{suffix}", [dict(zip(names, ("source/1.mp4", one, "Paint it."))) for one in made])
    pairs = read(table)
    assert [pair.category for pair in pairs] == [STYLE, "", ""] and problems(pairs) == [""] * 3
    assert pairs[1].source == str(tmp_path / "source" / "1.mp4")
    assert pairs[1].target == str(tmp_path / "global_freeform3" / "1.mp4") and pairs[1].origin == "ditto"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_openve_has_a_table_for_each_kind(tmp_path, delimiter):
    touch(tmp_path / "videos", "o/1.mp4", "e/1.mp4")
    row = {"original_video": "o/1.mp4", "video": "e/1.mp4"}
    names = [*CATEGORIES, "creative_edit"]
    tables = [write(tmp_path / f"{name}.csv", [{**row, "prompt": f"Do; {name}, so."}], delimiter) for name in names]
    pairs = read(*tables, root=tmp_path / "videos")
    assert [pair.category for pair in pairs] == [*CATEGORIES, ""] and problems(pairs) == [""] * 6
    assert [pair.prompt for pair in pairs] == [f"Do; {name}, so." for name in names]
    source, target = (str(tmp_path / "videos" / name / "1.mp4") for name in "oe")
    assert {(pair.source, pair.target, pair.origin) for pair in pairs} == {(source, target, "openve")}


def test_openve_names_kinds_in_a_column_too(tmp_path):
    kinds = ["Local Change", "local_remove", "subtitle_edit", "camera_edit", "creative_edit"]
    rows = [
        {"edited_type": kind, "prompt": f"Do {kind}.", "original_video": "a.mp4", "edited_result_path": "b.mp4"}
        for kind in kinds
    ]
    pairs = read(write(tmp_path / "global_style.csv", rows))
    assert [pair.category for pair in pairs] == [CHANGE, REMOVE, "", "", ""] and problems(pairs) == [""] * 5


def test_reco_has_a_folder_for_each_task(tmp_path):
    categories, root = {"add": ADD, "remove": REMOVE, "replace": CHANGE, "style": STYLE}, tmp_path / "style"
    for task in categories:
        touch(root, f"{task}/src_videos/v.mp4", f"{task}/tar_videos/v.mp4")
        row = {"src_video": f"{task}/src_videos/v.mp4", "tar_video": str(root / task / "tar_videos" / "v.mp4")}
        write(root / task / f"{task}_data_configs.json", [row | {"instruction_final_refine": f"Do {task}."}])
    pairs = read(root, root=root)
    assert {pair.prompt: pair.category for pair in pairs} == {f"Do {task}.": categories[task] for task in categories}
    assert {pair.origin for pair in pairs} == {"reco"} and problems(pairs) == [""] * 4


def test_a_layout_can_be_forced_and_an_origin_given(tmp_path):
    row = {**ROW, "tar_video": "a.mp4", "instruction_final_refine": "Only that."}
    table = write(tmp_path / "t.jsonl", [row])
    assert [(pair.prompt, pair.origin) for pair in read(table)] == [(ROW["prompt"], "t")]
    (forced,) = read(table, layout="reco", origin="theirs")
    assert (forced.prompt, forced.origin, forced.target) == ("Only that.", "theirs", str(tmp_path / "a.mp4"))
    assert "no layout 'other'" in refused(table, layout="other")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_that_no_layout_knows_can_be_named(tmp_path, suffix):
    row = {"before": "a.mp4", "after": "b.mp4", "text": "Rain.", "key": "k", "task": "remove"}
    table = write(tmp_path / f"t{suffix}", [row])
    columns = {"source": "before", "target": "after", "prompt": "text", "id": "key", "category": "task"}
    source, target = str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")
    assert read(table, columns=columns) == [Pair("k", source, target, "Rain.", "t", REMOVE)]
    assert "id (number)" in refused(table, columns=columns | {"id": "number"})
    assert "'clip'" in refused(table, columns={"clip": "before"})
    some = write(tmp_path / f"u{suffix}", [{"original_video": "a.mp4", "video": "b.mp4", "caption": "Sun."}])
    assert [pair.origin for pair in read(some, columns={"prompt": "caption"})] == ["openve"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("column", list(ROW))
def test_missing_columns_are_named_with_those_that_there_are(tmp_path, suffix, column):
    row = {key: value for key, value in ROW.items() if key != column}
    text = refused(write(tmp_path / f"some{suffix}", [row | {"mood": "calm"}]))
    assert f"some{suffix}" in text and column in text.split("only")[0]
    assert all(name in text.split("only")[1] for name in (*row, "mood"))


def test_a_header_alone_is_looked_at(tmp_path, caplog):
    assert "tgt_video" in refused(raw(tmp_path / "t.csv", b"src_video,prompt\n"))
    assert "twice" in refused(raw(tmp_path / "u.csv", b"src_video,tgt_video,prompt,prompt\n"))
    assert "names of columns" in refused(raw(tmp_path / "v.csv", "src_vidéo,b\n".encode("latin-1")))
    assert read(raw(tmp_path / "w.csv", b"src_video,tgt_video,prompt\n")) == [] and "w.csv has no rows" in caplog.text


# Tables


def test_folders_patterns_and_files_are_read_in_order_and_once(tmp_path):
    for name in ("b/2.jsonl", "b/1.csv", "a.json", ".hidden/x.csv", "c.parquet"):
        write(tmp_path / name, [{**ROW, "id": name}])
    touch(tmp_path, "notes.txt")
    everything = ["a.json", "b-1.csv", "b-2.jsonl", "c.parquet"]

    def ids(*tables):
        return [re.sub(r"-[0-9a-f]{16}$", "", pair.id) for pair in read(*tables)]

    assert ids(tmp_path) == everything
    assert ids(str(tmp_path / "**" / "*.[cj]s*")) == everything[:3]
    assert ids(tmp_path / "c.parquet", tmp_path, tmp_path / "a.json") == ["c.parquet", *everything[:3]]
    assert [pair.id for pair in ingest.read(str(tmp_path / "a.json"))] == ["a.json"]


def test_what_names_no_table_is_refused_at_once(tmp_path):
    touch(tmp_path, "empty/x.mp4")
    for given, kind, part in (
        ("no-such.csv", FileNotFoundError, "does not exist"),
        ("*.csv", FileNotFoundError, "does not exist"),
        ("empty", ValueError, "has no tables"),
        ("empty/x.mp4", ValueError, "is no table"),
    ):
        with pytest.raises(kind, match=part) as error:
            ingest.read([tmp_path / given])
        sentence(str(error.value))
    with pytest.raises(FileNotFoundError, match="root folder"):
        ingest.read([write(tmp_path / "t.csv", [ROW])], root=tmp_path / "no-such")


def test_csv_and_json_lines_may_have_a_byte_order_mark(tmp_path):
    for suffix in (".csv", ".json", ".jsonl"):
        table = write(tmp_path / f"t{suffix}", [ROW])
        table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
        assert problems(read(table)) == [""]


def test_broken_json_is_named_after_the_rows_before(tmp_path):
    whole = json.dumps([{**ROW, "id": number} for number in range(100)]).encode()
    for number, data in enumerate((
        whole[:-30], whole[:-1], b"{}", b"", b'"text"', b'[{"a": \xff}]', whole + b"[]", b"[" * 100_000,
        whole.replace(b"}, {", b"} {", 1),
    )):  # fmt: skip
        path = raw(tmp_path / f"t{number}.json", data)
        assert path.name in refused(path)
    pairs = ingest.read([tmp_path / "t0.json"])
    assert [next(pairs).id for _ in range(99)] == [str(number) for number in range(99)]
    with pytest.raises(ValueError, match="after row 99"):
        next(pairs)
    assert read(raw(tmp_path / "empty.json", b" [ ] \n")) == []


def test_json_longer_than_what_is_held_at_once(tmp_path):
    long = {2: 3_000_000}
    rows = [{**ROW, "prompt": f'{number} "] , \\ é' + "x" * long.get(number, 500)} for number in range(9000)]
    for indent in (None, 1):
        table = raw(tmp_path / f"{indent}.json", json.dumps(rows, indent=indent).encode())
        assert [pair.prompt for pair in read(table)] == [row["prompt"] for row in rows]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_is_never_held_whole(tmp_path, suffix):
    rows = [{**ROW, "id": str(number), "prompt": f"{number} {'long ' * 1600}"} for number in range(2000)]
    table = write(tmp_path / f"t{suffix}", rows)
    del rows
    list(ingest.read([write(tmp_path / f"warm{suffix}", [ROW])]))
    tracemalloc.start()
    try:
        count = sum(1 for _ in ingest.read([table]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 2000 and peak < 8_000_000  # of 16


def test_a_cut_off_parquet_file_is_named(tmp_path):
    table = write(tmp_path / "t.parquet", [ROW])
    table.write_bytes(table.read_bytes()[:-100])
    assert "t.parquet" in refused(table)


def test_rows_before_a_damaged_part_of_parquet_are_kept(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    table = tmp_path / "t.parquet"
    rows = [{**ROW, "prompt": f"Number {number}."} for number in range(2000)]
    pq.write_table(pa.Table.from_pylist(rows), table, row_group_size=1000, compression="zstd", use_dictionary=False)
    part = pq.ParquetFile(table).metadata.row_group(1).column(2)
    data = bytearray(table.read_bytes())
    begin = part.data_page_offset + part.total_compressed_size // 3
    data[begin : begin + part.total_compressed_size // 2] = b"\0" * (part.total_compressed_size // 2)
    table.write_bytes(data)
    pairs, found = ingest.read([table]), []
    with pytest.raises(ValueError, match=r"t\.parquet"):
        for pair in pairs:
            found.append(pair.prompt)
    assert found == [row["prompt"] for row in rows[:1000]]


def test_text_in_parquet_that_is_none(tmp_path):
    column = pa.array([b"Rain.", b"\xff\xfe", b"Sun."]).view(pa.string())
    table = pa.table({"src_video": ["a.mp4"] * 3, "tgt_video": ["b.mp4"] * 3, "prompt": column})
    touch(tmp_path, "a.mp4", "b.mp4")
    pq.write_table(table, tmp_path / "t.parquet", use_dictionary=False)
    pairs = read(tmp_path / "t.parquet")
    assert [pair.prompt for pair in pairs] == ["Rain.", "", "Sun."]
    assert [bool(pair.problem) for pair in pairs] == [False, True, False]


# Rows


def test_lines_of_a_csv_that_are_not_utf_8(tmp_path):
    data = b"src_video,tgt_video,prompt\na.mp4,b.mp4,Rain.\na.mp4,b.mp4,Gr\xf6\xdfer\na.mp4,b.mp4,\"Two\nlin\xe9s\"\n"
    pairs = read(raw(tmp_path / "t.csv", data + b"a.mp4,b.mp4,Sun.\n"))
    assert [pair.prompt for pair in pairs] == ["Rain.", "", "", "Sun."]
    first, second = problems(pairs)[1:3]
    assert "Line 3" in first and "is not UTF-8" in first and "Line 5" in second
    assert len({pair.id for pair in pairs}) == 4 and problems(pairs)[::3] == ["", ""]


def test_rows_of_a_csv_with_too_many_or_too_few_fields(tmp_path):
    lines = ("src_video,tgt_video,prompt", "a.mp4,b.mp4,Rain, please.", "a.mp4,b.mp4", "", "a.mp4,b.mp4,Sun.")
    pairs = read(raw(tmp_path / "t.csv", "\r\n".join(lines).encode()))
    assert [pair.prompt for pair in pairs] == ["", "", "Sun."]
    many, few, sound = problems(pairs)
    assert "Line 2" in many and "4 fields" in many and "Line 3" in few and "2 fields" in few and not sound


@pytest.mark.parametrize("broken", ['a.mp4,b.mp4,"Rain', '"a.mp4,b.mp4,Rain', 'a.mp4,b.mp4,"Rain" now'])
@pytest.mark.parametrize("after", [1, 300])
def test_a_stray_quote_takes_no_other_row_along(tmp_path, broken, after):
    rest = [f"a.mp4,b.mp4,Sun {number}." for number in range(after)]
    lines = ["src_video,tgt_video,prompt", "a.mp4,b.mp4,First.", broken, 'a.mp4,b.mp4,"Snow, ""soft""\nand white."']
    pairs = read(raw(tmp_path / "t.csv", "\n".join(lines + rest).encode()))
    expected = ["First.", "", 'Snow, "soft"\nand white.', *(f"Sun {number}." for number in range(after))]
    assert [pair.prompt for pair in pairs] == expected
    assert [bool(pair.problem) for pair in pairs] == [not text for text in expected] and "Line 3" in pairs[1].problem


def test_broken_lines_of_json(tmp_path):
    sound = json.dumps(ROW).encode()
    lines = [b"{broken", sound, b"", b"[1, 2]", b'"text"', b"null", b'{"prompt": "\xff"}', b"[" * 100_000, b"{broken"]
    pairs = read(raw(tmp_path / "t.jsonl", b"\n".join(lines)))
    texts = problems(pairs)
    assert [bool(text) for text in texts] == [True, False] + [True] * 6
    for place, text in zip((1, 4, 5, 6, 7, 8, 9), texts[:1] + texts[2:]):
        assert f"Line {place} of" in text
    assert "not JSON" in texts[0] and "no object" in texts[2] and "not UTF-8" in texts[5] and "not JSON" in texts[7]
    assert len({pair.id for pair in pairs}) == len(pairs)


def test_a_table_of_nothing_but_broken_lines(tmp_path):
    pairs = read(raw(tmp_path / "t.jsonl", b"nothing\nat all\n"))
    assert [pair.origin for pair in pairs] == ["t", "t"] and all(problems(pairs))
    assert "no object" in refused(raw(tmp_path / "u.jsonl", b"nothing\n" * 100))
    assert "has no column" in refused(raw(tmp_path / "v.jsonl", b"{}\n"))


def test_rows_of_json_that_are_no_objects(tmp_path):
    pairs = read(write(tmp_path / "t.json", [3, ROW, None, [ROW]]))
    assert [bool(text) for text in problems(pairs)] == [True, False, True, True]
    assert "Row 3" in pairs[2].problem and "no object" in pairs[2].problem


@pytest.mark.parametrize("value", [None, "", "  \n", 5, ["Rain."], {"text": "Rain."}, True, "half \ud800"])
def test_instructions_that_are_none(tmp_path, value):
    table = write(tmp_path / "t.json", [{**ROW, "id": "x", "prompt": value}, ROW])
    pairs = read(table)
    assert "instruction" in problems(pairs)[0] and pairs[0].id == "x" and not pairs[1].problem
    pairs[0].prompt.encode()


def test_a_row_without_a_column_that_others_have(tmp_path):
    pairs = read(write(tmp_path / "t.jsonl", [{"src_video": "a.mp4", "prompt": "Rain."}, ROW]))
    assert "no target" in problems(pairs)[0] and not pairs[1].problem


# Paths


def test_paths_begin_at_the_root_or_the_folder_of_their_table(tmp_path):
    touch(tmp_path / "clips", "x/a.mp4", "b.mp4")
    table = write(tmp_path / "tables" / "t.csv", [{**ROW, "src_video": "y/../x/a.mp4"}])
    (pair,) = read(table, root=tmp_path / "clips")
    assert (pair.source, pair.target) == (str(tmp_path / "clips" / "x" / "a.mp4"), str(tmp_path / "clips" / "b.mp4"))
    assert "source does not exist" in problems(read(table))[0]


def test_relative_tables_and_roots_give_absolute_paths(tmp_path, monkeypatch):
    write(tmp_path / "sub" / "t.csv", [ROW])
    monkeypatch.chdir(tmp_path)
    expected = str(tmp_path / "sub" / "a.mp4")
    assert read("sub/t.csv")[0].source == read("sub/t.csv", root="sub")[0].source == expected
    assert read("sub/t.csv")[0].id == read(tmp_path / "sub" / "t.csv")[0].id


def test_absolute_paths_must_lie_in_the_root(tmp_path):
    touch(tmp_path, "in/a.mp4", "in-other/a.mp4")
    (tmp_path / "way-in").symlink_to(tmp_path / "in")
    names = ("in/a.mp4", "in-other/a.mp4", "way-in/a.mp4")
    rows = [{**ROW, "src_video": str(tmp_path / name), "tgt_video": "a.mp4"} for name in names]
    inside, *outside = read(write(tmp_path / "t.jsonl", rows), root=tmp_path / "in")
    assert inside.source == inside.target == str(tmp_path / "in" / "a.mp4") and not inside.problem
    assert [pair.source for pair in outside] == ["", ""]
    assert all("source" in text and "outside" in text for text in problems(outside))


@pytest.mark.parametrize("path", ["../secret.mp4", "x/../../secret.mp4", "leave/secret.mp4", "secret-link.mp4",
                                  "leave/no-such.mp4", "broken-link.mp4"])  # fmt: skip
def test_paths_that_leave_the_root_are_never_looked_at(tmp_path, path, monkeypatch):
    touch(tmp_path, "secret.mp4", "root/a.mp4", "root/b.mp4")
    (tmp_path / "root" / "leave").symlink_to(tmp_path)
    (tmp_path / "root" / "secret-link.mp4").symlink_to(tmp_path / "secret.mp4")
    (tmp_path / "root" / "broken-link.mp4").symlink_to(tmp_path / "no-such.mp4")
    table = write(tmp_path / "root" / "t.json", [{**ROW, "tgt_video": path}, ROW])
    looked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda given, **options: looked.append(given) or stat(given, **options))
    outside, sound = read(table)
    assert outside.target == "" and f"target {path} lies outside" in sentence(outside.problem) and not sound.problem
    assert not [given for given in looked if "secret" in str(given) or "no-such" in str(given)]


def test_symlinks_that_stay_in_the_root_are_followed(tmp_path):
    touch(tmp_path, "real/deep/a.mp4")
    (tmp_path / "real" / "b.mp4").symlink_to(tmp_path / "real" / "deep" / "a.mp4")
    (tmp_path / "real" / "short").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    rows = [{**ROW, "src_video": "short/a.mp4"}, {**ROW, "src_video": str(tmp_path / "real" / "b.mp4")}]
    table = tmp_path / "t.json"
    table.write_text(json.dumps(rows))
    pairs = read(table, root=tmp_path / "link")
    assert problems(pairs) == ["", ""] and pairs[0].source == str(tmp_path / "link" / "short" / "a.mp4")


def test_missing_files_keep_their_path_and_their_id(tmp_path):
    table = write(tmp_path / "t.csv", [ROW, {**ROW, "src_video": "a.mp4/x.mp4"}])
    before = read(table)
    (tmp_path / "b.mp4").unlink()
    after = read(table)
    assert [pair.id for pair in after] == [pair.id for pair in before]
    assert [(pair.source, pair.target) for pair in after] == [(pair.source, pair.target) for pair in before]
    assert "target does not exist" in problems(after)[0] and "source does not exist" in problems(before)[1]


def test_paths_that_cannot_be_clips(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    values = ["folder", "pipe", ".", "loop", "x" * 5000, "nul\0.mp4", "nul\0/x.mp4", "half\ud800.mp4", "half\udc80.mp4"]
    values += ["", None, 7, ["a.mp4"]]
    pairs = read(write(tmp_path / "t.json", [{**ROW, "src_video": value} for value in values]))
    assert all("source" in text for text in problems(pairs))
    for pair in pairs:
        "".join((pair.source, pair.problem)).encode()


def test_what_the_disk_says_is_told_or_raised(tmp_path, monkeypatch):
    table = write(tmp_path / "t.json", [ROW])
    answers = [PermissionError(errno.EACCES, "no"), OSError(errno.EIO, "failed")]

    def lstat(path, **options):
        raise answers[0]

    monkeypatch.setattr(os, "lstat", lstat)
    (pair,) = read(table)
    assert "may not be read" in sentence(pair.problem) and pair.source == str(tmp_path / "a.mp4")
    del answers[0]  # a disk that fails is no row's fault
    with pytest.raises(OSError, match="failed"):
        read(table)


# Ids


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_ids_they_are_made_of_origin_and_fields(tmp_path, suffix):
    rows = [ROW, {**ROW, "prompt": "Rain."}, {**ROW, "tgt_video": "a.mp4"}]
    ids = [pair.id for pair in read(write(tmp_path / f"t{suffix}", rows))]
    assert len(set(ids)) == 3 and all(re.fullmatch("[0-9a-f]{16}", name) for name in ids)
    assert [pair.id for pair in read(write(tmp_path / "elsewhere" / f"t{suffix}", rows[::-1]))] == ids[::-1]
    assert not {pair.id for pair in read(tmp_path / f"t{suffix}", origin="other")} & set(ids)


def test_ids_are_fit_to_be_names_of_files(tmp_path):
    given = [
        "plain-1_a.b", "a/b", "a:b", "a b", "..", ".hidden", "-dash", "end.", "Größe", "图", "x" * 300, "x" * 301, "",
        0, 12.0, 10**30, "line\nbreak", "half \udc80",
    ]  # fmt: skip
    rows = [{**ROW, "id": name, "prompt": f"Number {number}."} for number, name in enumerate(given)]
    pairs = read(write(tmp_path / "t.json", rows))
    ids = [pair.id for pair in pairs]
    assert problems(pairs) == [""] * len(given) and len({name.lower() for name in ids}) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,98}(?<!\.)", name) for name in ids)
    assert ids[0] == "plain-1_a.b" and ids[13:15] == ["0", "12"] and ids[1].startswith("a-b-")
    for name in ids:
        (tmp_path / name).write_text("")


@pytest.mark.parametrize("value", [True, 1.5, ["x"], {"x": 1}])
def test_ids_that_are_none(tmp_path, value):
    pairs = read(write(tmp_path / "t.json", [{**ROW, "id": value}, {**ROW, "id": None, "prompt": "Rain."}]))
    assert "id is neither" in problems(pairs)[0] and not pairs[1].problem


def test_the_same_row_again_is_a_problem_that_names_the_first(tmp_path):
    rows = [{**ROW, "id": "x"}, {**ROW, "id": "y"}, {**ROW, "id": "x"}, {**ROW, "id": "x"}]
    pairs = read(write(tmp_path / "t.jsonl", rows))
    assert [pair.id for pair in pairs] == ["x", "y", "x-2", "x-3"]
    assert problems(pairs)[:2] == ["", ""] and all("same as x," in text for text in problems(pairs)[2:])
    first, second = read(write(tmp_path / "u.jsonl", [ROW, ROW]))
    assert not first.problem and f"same as {first.id}," in second.problem and second.id == f"{first.id}-2"


def test_an_id_of_another_row_is_told_apart(tmp_path):
    rows = [
        {**ROW, "id": "x"}, {**ROW, "id": "x", "prompt": "Rain."}, {**ROW, "id": "x-2"}, {**ROW, "id": "X"},
        {**ROW, "id": "x", "prompt": "Rain."}, {**ROW, "id": "X", "prompt": "Sun."}, {**ROW, "id": "x"},
    ]  # fmt: skip
    pairs = read(write(tmp_path / "t.jsonl", rows))
    ids = [pair.id for pair in pairs]
    assert len({name.lower() for name in ids}) == len(ids)
    assert [bool(text) for text in problems(pairs)] == [False, False, False, True, True, False, True]
    assert ids[0] == "x" and ids[1].startswith("x-") and f"same as {ids[1]}," in pairs[4].problem
    alone = read(write(tmp_path / "other" / "t.jsonl", [rows[0], rows[5], rows[1]]))
    assert alone[2].id == ids[1]


def test_tables_of_other_folders_with_the_same_rows_are_other_pairs(tmp_path):
    tables = [write(tmp_path / name / "t.csv", [ROW]) for name in "abc"]
    pairs = read(*tables)
    assert problems(pairs) == [""] * 3 and len({pair.id for pair in pairs}) == 3
    assert [Path(pair.source).parent.name for pair in pairs] == ["a", "b", "c"]
    rows = [{**ROW, "src_video": str(tmp_path / "a" / "a.mp4"), "tgt_video": str(tmp_path / "a" / "b.mp4"), "id": 1}]
    tables = [write(tmp_path / "a" / "u.json", rows), write(tmp_path / "v.json", rows)]
    assert "same as 1," in problems(read(*tables, root=tmp_path))[1]
    assert "same as 1," in problems(read(*tables))[1]


def test_the_same_tables_give_the_same_pairs(tmp_path):
    rows = [{**ROW, "id": number % 5, "prompt": f"Number {number % 7}."} for number in range(60)]
    for name in ("b.csv", "a.jsonl", "sub/c.parquet", "sub/d.json"):
        write(tmp_path / name, rows)
    first = read(tmp_path)
    assert first == read(tmp_path) and len({pair.id for pair in first}) == 240


def test_many_rows_of_one_id_take_no_longer_each(tmp_path):
    count, part = 10_000, 1000
    table = raw(tmp_path / "t.csv", b"src_video,tgt_video,prompt,id\n" + b"a.mp4,b.mp4,Rain.,x\n" * count)
    pairs, ids, seconds = ingest.read([table]), set(), []
    for _ in range(count // part):
        begin = time.process_time()
        ids |= {next(pairs).id for _ in range(part)}
        seconds.append(time.process_time() - begin)
    assert len(ids) == count and {"x", f"x-{count}"} < ids
    assert seconds[-1] < 10 * min(seconds)


def test_every_layout_has_what_a_pair_needs():
    for known in layouts.LAYOUTS:
        row = {role: getattr(known, role)[-1] for role in layouts.NEEDED}
        assert layouts.find(list(row.values()))[0] is known
        assert set(known.kinds.values()) <= {*CATEGORIES}
