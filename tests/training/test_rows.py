"""Rows from tables, Parquet files, shards and folders."""

from __future__ import annotations

import csv
import io
import json
import pickle
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.media import Media, ParquetCell, Probe
from training.data.row import digest_id
from training.data.rows import Row, kind_of, read_rows

PAIR = {"src_video": "a.mp4", "tgt_video": "b.mp4", "prompt": "Make it snow, softly."}


def write_table(path, rows, columns=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns or list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sample(key, prompt=b"Make it snow."):
    return [(f"{key}.src.mp4", b"source"), (f"{key}.tgt.mp4", b"edited"), (f"{key}.txt", prompt)]


def touch(folder, *names, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"not opened")
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def refused(paths, kind=ValueError, **options):
    """The message, checked to be one sentence that ends."""
    with pytest.raises(kind) as error:
        read_rows(paths, **options)
    text = str(error.value)
    for line in text.splitlines():
        assert line.endswith(".") and len(line) < 500
    assert len(text) > 20
    return text


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_tables_give_rows_in_order(tmp_path, suffix):
    rows = [
        {"id": "first", **PAIR, "ref_image": "", "mood": "calm"},
        {"id": "second", **PAIR, "prompt": "Größer", "ref_image": "sub/r.png", "mood": "wild"},
    ]
    read = read_rows([write_table(tmp_path / f"t{suffix}", rows)])
    source, target = Media(str(tmp_path / "a.mp4")), Media(str(tmp_path / "b.mp4"))
    assert read == [
        Row("first", source, target, "Make it snow, softly."),
        Row("second", source, target, "Größer", Media(str(tmp_path / "sub" / "r.png"))),
    ]


def test_the_root_folder_is_where_relative_paths_start(tmp_path):
    touch(tmp_path / "clips", "a.mp4")
    absolute = str(tmp_path / "clips" / "a.mp4")
    table = write_table(tmp_path / "t.json", [{**PAIR, "tgt_video": absolute, "src_video": "x/../a.mp4"}])
    (row,) = read_rows(table, root=tmp_path / "clips")
    assert row.source == row.target == Media(absolute)
    assert "no-such" in refused(table, FileNotFoundError, root=tmp_path / "no-such")


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_ids_come_from_the_table_or_from_the_fields(tmp_path, suffix):
    assert read_rows(write_table(tmp_path / f"a{suffix}", [{"iid": "x7", **PAIR}]))[0].id == "x7"
    without = [PAIR, {**PAIR, "prompt": "Rain"}, PAIR]
    first, other, again = (row.id for row in read_rows(write_table(tmp_path / f"b{suffix}", without)))
    assert first == digest_id("a.mp4", "b.mp4", PAIR["prompt"], "") and again == f"{first}-2"
    assert other not in (first, again)
    moved = read_rows(write_table(tmp_path / "elsewhere" / f"c{suffix}", without[:1]))
    assert [row.id for row in moved] == [first]


def test_numbers_serve_as_ids_and_missing_prompts_are_left_to_the_check(tmp_path):
    (row,) = read_rows(write_table(tmp_path / "t.jsonl", [{"id": 0, **PAIR, "prompt": None, "ref_image": None}]))
    assert (row.id, row.prompt, row.reference) == ("0", "", None)


@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.jsonl", "t.parquet"])
@pytest.mark.parametrize("column", list(PAIR))
def test_missing_columns_are_named(tmp_path, name, column):
    row = {key: value for key, value in PAIR.items() if key != column}
    text = refused(write_table(tmp_path / name, [row]))
    assert f"no {column}" in text.replace("no column", "no") and name in text


@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.jsonl", "t.parquet"])
@pytest.mark.parametrize("column", ["src_video", "tgt_video"])
def test_paths_that_leave_the_root_are_refused_those_that_lead_nowhere_left_to_the_check(tmp_path, name, column):
    good = {"iid": "good", **PAIR}
    for path in ("../b.mp4", "x/../../b.mp4"):
        text = refused(write_table(tmp_path / name, [good, {**good, column: path}]))
        assert name in text and path in text and "leaves" in text and column in text
    gone = str(tmp_path / "gone.mp4")
    rows = read_rows(write_table(tmp_path / name, [good, {**good, "iid": "other", column: gone}]))
    assert rows[1].source == Media(gone) or rows[1].target == Media(gone)
    text = refused(write_table(tmp_path / name, [good, {**good, column: " "}]))
    assert f"has no {column}" in text and ("row 2" in text or "line 3" in text)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_all_faulty_rows_are_told_at_once(tmp_path, name):
    rows = [{"iid": str(number), **PAIR, "tgt_video": " "} for number in range(3)]
    table = write_table(tmp_path / name, rows)
    other = write_table(tmp_path / "u.jsonl", [{**PAIR, "src_video": ""}] * 40)
    lines = refused([table, other]).splitlines()
    assert len(lines) == 20 and lines[-1] == "and 24 more."
    assert [line.startswith(str(table)) for line in lines[:4]] == [True, True, True, False]
    assert len(refused(table).splitlines()) == 3


def test_references_may_not_leave_the_root_either(tmp_path):
    assert "ref_image" in refused(write_table(tmp_path / "t.csv", [{**PAIR, "ref_image": "../r.png"}]))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.csv", "", "no column src_video"),
        ("t.csv", "src_video,tgt_video,prompt\n", "no rows"),
        ("t.csv", "src_video,tgt_video,prompt\na,b,c\na,b\n", "line 3"),
        ("t.csv", "src_video,tgt_video,prompt\na,b,snow, please\n", "line 2"),
        ("t.csv", 'src_video,tgt_video,prompt\na,b,"snow', "not CSV"),
        ("t.csv", "src_video;tgt_video;prompt\na;b;snow\n", "commas, not semicolons"),
        ("t.json", "[]", "no rows"),
        ("t.json", "{}", "not a list"),
        ("t.json", "[1]", "row 1 is not an object"),
        ("t.json", '[\n{"prompt": 1,\n}]', "line 3 is not JSON"),
        ("t.json", json.dumps([{**PAIR, "prompt": 3}]), "row 1 has a prompt"),
        ("t.json", json.dumps([{**PAIR, "src_video": 3}]), "row 1 has no src_video"),
        ("t.json", json.dumps([{**PAIR, "id": [3]}]), "row 1 has an id"),
        ("t.jsonl", "\n", "no rows"),
        ("t.jsonl", json.dumps(PAIR) + "\n\n{oops}\n", "line 3 is not JSON"),
        ("t.jsonl", "[]", "line 1 is not an object"),
        ("t.parquet", "PAR1 is missing", "Parquet"),
        ("t.tar", "no tar", "tar"),
        ("t.xlsx", "a table", "no table"),
    ],
)
def test_faulty_files_are_refused_with_the_place(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    text = refused([tmp_path / name])
    assert name in text and expected in text


@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.jsonl"])
def test_tables_in_other_encodings_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes("src_video,tgt_video,prompt\na,b,Größe".encode("latin-1"))
    assert "UTF-8" in refused([tmp_path / name])


def test_a_reference_that_is_no_number_is_none(tmp_path):
    """As pandas writes empty cells."""
    table = write_table(tmp_path / "t.jsonl", [{**PAIR, "ref_image": float("nan")}])
    assert "NaN" in table.read_text()
    assert read_rows([table])[0].reference is None


def test_byte_order_marks_are_skipped(tmp_path):
    table = write_table(tmp_path / "t.csv", [PAIR])
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert len(read_rows([table])) == 1


def refvie(*references):
    return [{"iid": f"r{index}", **PAIR, "ref_image_bytes": data} for index, data in enumerate(references)]


def test_parquet_rows_find_their_reference_only_when_asked(tmp_path):
    table = write_table(tmp_path / "t.parquet", refvie(b"first", None, b"third"))
    pq.write_table(pq.read_table(table), table, row_group_size=2)
    rows = read_rows([table])
    assert [row.id for row in rows] == ["r0", "r1", "r2"] and {row.shard for row in rows} == {str(table)}
    cells = [row.reference and row.reference.place for row in rows]
    assert cells == [ParquetCell(0, 0, "ref_image_bytes"), None, ParquetCell(1, 0, "ref_image_bytes")]
    with rows[2].reference.open_path() as path:
        assert path.read_bytes() == b"third"


@pytest.mark.parametrize("statistics", [True, False])
def test_references_as_structs_have_bytes_or_a_path(tmp_path, statistics):
    structs = [
        {"bytes": b"x", "path": "look.jpg"},
        {"bytes": None, "path": "refs/other.webp"},
        {"bytes": None, "path": None},
        None,
    ]
    table = pa.Table.from_pylist(refvie(*structs))
    pq.write_table(table, tmp_path / "t.parquet", write_statistics=statistics)
    first, second, *rest = (row.reference for row in read_rows([tmp_path / "t.parquet"]))
    assert first.place == ParquetCell(0, 0, "ref_image_bytes", ".jpg")
    assert second == Media(str(tmp_path / "refs" / "other.webp"))
    assert rest == [None, None]


def test_parquet_rows_may_lack_references_and_ids(tmp_path):
    rows = read_rows(write_table(tmp_path / "t.parquet", [{**PAIR, "score": 3}, PAIR]))
    assert [row.reference for row in rows] == [None, None] and rows[0].id != rows[1].id


@pytest.mark.parametrize("statistics", [True, False])
def test_cells_that_are_all_null_are_no_references(tmp_path, statistics):
    kind = pa.schema([("iid", pa.string()), *((name, pa.string()) for name in PAIR), ("ref_image_bytes", pa.binary())])
    table = pa.Table.from_pylist(refvie(None, None, b"x", b"y"), kind)
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2, write_statistics=statistics)
    references = [row.reference is not None for row in read_rows([tmp_path / "t.parquet"])]
    assert references == [False, False, True, True]


def test_empty_parquet_files_are_refused(tmp_path):
    pq.write_table(pa.Table.from_pylist([PAIR]).slice(0, 0), tmp_path / "t.parquet")
    assert "no rows" in refused([tmp_path / "t.parquet"])


def test_without_pyarrow_the_message_says_what_to_install(tmp_path, monkeypatch):
    table = write_table(tmp_path / "t.parquet", [PAIR])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'kiwi-edit[train]'" in refused([table])


def test_shards_are_indexed_not_extracted(tmp_path):
    members = [
        *sample("./a/000"),
        ("a/000.ref.PNG", b"picture"),
        ("a/._000.src.mp4", b"left by macOS"),
        (".json", b"hidden"),
        ("001.json", b'{"prompt": "Rain", "mood": 3}'),
        ("001.tgt.webp", b"t"),
        ("001.src.mkv", b"s"),
        ("001.mask.png", b"ignored"),
        ("README.md", b"ignored"),
    ]
    shard = write_tar(tmp_path / "s.tar", members)
    first, second = read_rows([shard])
    assert (first.id, first.prompt, first.shard) == ("a/000", "Make it snow.", str(shard))
    assert (second.id, second.prompt, second.shard) == ("001", "Rain", str(shard))
    assert second.reference is None
    found = []
    for media in (first.source, first.target, first.reference, second.source, second.target):
        with media.open_path() as path:
            found.append((path.suffix, path.read_bytes()))
    assert found == [(".mp4", b"source"), (".mp4", b"edited"), (".png", b"picture"), (".mkv", b"s"), (".webp", b"t")]
    assert first.source.name == f"{shard}:./a/000.src.mp4"


def test_texts_win_over_json(tmp_path):
    members = [*sample("0"), ("0.json", b'{"prompt": "other"}')]
    assert read_rows([write_tar(tmp_path / "s.tar", members)])[0].prompt == "Make it snow."


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (sample("0")[1:], "no source for 0"),
        (sample("0")[::2], "no target for 0"),
        (sample("0")[:2], "no prompt for 0"),
        ([*sample("0")[:2], ("0.json", b"{}")], "no prompt for 0"),
        ([*sample("0")[:2], ("0.json", b"[\n1,]")], "0.json line 2 is not JSON"),
        ([*sample("0")[:2], ("0.json", b'{"prompt": 3}')], "0.json has a prompt"),
        (sample("0", b"Gr\xf6\xdfe"), "UTF-8"),
        ([*sample("0"), ("0.src.mkv", b"")], "two members for 0.src"),
        ([*sample("0"), *sample("0")], "two members for 0.src"),
        ([("README.md", b"")], "no rows"),
        ([*sample("0"), ("0.ref.heic", b"")], "0.ref.heic cannot be read by its suffix; ref takes .bmp"),
        ([*sample("0"), *sample("clip.2")], "clip.2.src.mp4 has a dot in its key"),
    ],
)
def test_faulty_shards_are_refused(tmp_path, members, expected):
    text = refused([write_tar(tmp_path / "s.tar", members)])
    assert expected in text and "s.tar" in text


def test_links_and_compressed_and_cut_shards_are_refused(tmp_path):
    shard = write_tar(tmp_path / "s.tar", sample("0"))
    with tarfile.open(shard, "a") as archive:
        link = tarfile.TarInfo("1.src.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert "1.src.mp4 is a link" in refused([shard])
    assert "not an uncompressed tar" in refused([write_tar(tmp_path / "z.tar", sample("0"), "w:gz")])
    cut = write_tar(tmp_path / "cut.tar", [*sample("0"), ("1.src.mp4", bytes(4000))])
    cut.write_bytes(cut.read_bytes()[:4000])
    assert "damaged" in refused([cut])


def test_folders_pair_clips_by_name(tmp_path):
    folder = touch(
        *(tmp_path / "f", "b.mp4", "b_edit.MOV", "a.png", "a_edit.jpg", "a_ref.webp", ".hidden.mp4", "notes.pdf"),
        a="Paint it.\n",
        prompt="Make it snow.",
    )
    first, second = read_rows([folder])
    a, a_edit, a_ref, b, b_edit = (
        Media(str(folder / name)) for name in ("a.png", "a_edit.jpg", "a_ref.webp", "b.mp4", "b_edit.MOV")
    )
    assert first == Row("a", a, a_edit, "Paint it.", a_ref)
    assert second == Row("b", b, b_edit, "Make it snow.")


@pytest.mark.parametrize(
    ("names", "texts", "expected"),
    [
        ((), {}, "no clips"),
        (("a.mp4", "b.mp4", "b_edit.mp4"), {"b": "x"}, "without a partner: a.mp4"),
        (("a_edit.mp4",), {}, "without a partner: a_edit.mp4"),
        (("a.mp4", "a_edit.mp4", "b_ref.png"), {"a": "x", "b": "y"}, "without a partner: b_ref.png, b.txt"),
        (("a.mp4", "a_edit.mp4", "a_ref.mp4"), {"a": "x"}, "without a partner: a_ref.mp4"),
        (("a.mp4", "a_edit.mp4"), {}, "write it to a.txt"),
        (("a.mp4", "a.mov", "a_edit.mp4"), {"a": "x"}, "both a.mov and a.mp4"),
        (("a.mp4", "a_edit.mp4", "a_ref.heic"), {"a": "x"}, "a_ref.heic cannot be read by its suffix"),
        (("a.heic", "a_edit.heic", "b.mp4", "b_edit.mp4"), {"b": "x"}, "a_edit.heic cannot be read by its suffix"),
        (("rows.csv",), {}, "give the table itself"),
        (("a.mp4", "a_edit.mp4", "old.tar"), {"a": "x"}, "both a_edit.mp4 and old.tar"),
    ],
)
def test_faulty_folders_are_refused(tmp_path, names, texts, expected):
    assert expected in refused([touch(tmp_path / "f", *names, **texts)])


def test_folders_with_text_in_other_encodings_are_refused(tmp_path):
    folder = touch(tmp_path / "f", "a.mp4", "a_edit.mp4")
    (folder / "a.txt").write_bytes(b"Gr\xf6\xdfe")
    assert "a.txt is not UTF-8" in refused([folder])


def test_folders_and_patterns_of_shards_are_read_by_name(tmp_path):
    folder = tmp_path / "shards"
    for index in (2, 0, 1):
        write_tar(folder / f"{index}.tar", sample(f"key{index}"))
    write_table(folder / "1b.parquet", refvie(None))
    assert [row.id for row in read_rows([folder])] == ["key0", "key1", "r0", "key2"]
    assert [row.id for row in read_rows([f"{folder}/[12].tar", folder / "0.tar"])] == ["key1", "key2", "key0"]
    text = refused([f"{folder}/*.zip"], FileNotFoundError)
    assert "*.zip" in text
    assert "gone.csv" in refused([tmp_path / "gone.csv"], FileNotFoundError)
    assert "no rows" in refused([])


def test_one_id_twice_in_a_table_is_refused_with_both_places(tmp_path):
    table = write_table(tmp_path / "t.csv", [{"id": "y", **PAIR}, {"id": "x", **PAIR}, {"id": "y", **PAIR}])
    text = refused([table])
    assert f"{table} line 2" in text and f"{table} line 4" in text and "same id y" in text and "column id" in text


def test_an_id_that_comes_again_in_another_file_has_its_name_before_it(tmp_path):
    folders = [touch(tmp_path / name / "clips", "1.mp4", "1_edit.mp4", prompt="x") for name in "abc"]
    tables = [write_table(tmp_path / name / "t.csv", [PAIR]) for name in "ab"]
    shard = write_tar(tmp_path / "s.tar", sample("1"))
    rows = read_rows([*folders, *tables, shard])
    digest = digest_id("a.mp4", "b.mp4", PAIR["prompt"], "")
    assert [row.id for row in rows] == ["1", "clips/1", "clips/1-2", digest, f"t/{digest}", "s/1"]
    assert len({row.target for row in rows}) == 6
    assert "given twice" in refused([shard, tmp_path / "a" / ".." / "s.tar"])


def test_rows_travel_between_processes_and_serve_as_keys(tmp_path):
    rows = read_rows(write_table(tmp_path / "t.parquet", refvie(b"first", None)))
    assert pickle.loads(pickle.dumps(rows)) == rows and len({*rows, *rows}) == 2  # noqa: S301


def test_the_kind_follows_reference_and_target():
    still, clip = Probe(1, 32, 32, 1), Probe(5, 32, 32, 10)
    plain = Row("x", Media("a"), Media("b"), "p")
    shown = Row("x", Media("a"), Media("b"), "p", Media("r"))
    assert [kind_of(plain, still), kind_of(plain, clip)] == ["image", "video"]
    assert [kind_of(shown, still), kind_of(shown, clip)] == ["ref", "ref"]
