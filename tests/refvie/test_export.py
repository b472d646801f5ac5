"""What is exported: all that is kept, readable by training, whole or not at all, balanced, and in no benchmark."""

import csv
import dataclasses
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import refvie_runs
import refvie_synthetic
from PIL import Image

from kiwi_core.media import load_video, save_video
from training.data.media import Media
from training.data.rows import read_rows
from training.nano import edits, world
from training.refvie import pipeline, samples, select
from training.refvie.exports import export, leakage, picking
from training.refvie.exports.export import Export
from training.refvie.pairs.pair import ADD, BACKGROUND, CHANGE, REMOVE, STYLE

COUNT = 55  # every fate with every category
KEPT, INSTRUCT = 15, 40
LIGHT = ("parquet", "csv")
TABLES = {"parquet": "parquet", "csv": "csv/rows.csv", "webdataset": "webdataset"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("synthetic")
    prompts = {2: 'Make it "red", \nplease,\rgrößer', 7: "=1+1"}
    refvie_synthetic.fill(folder, COUNT, prompts=[prompts.get(place, f"Do {place}.") for place in range(COUNT)])
    return folder


@pytest.fixture
def book(run):
    book, given = pipeline.opened(run)
    with book:
        yield book, given


@pytest.fixture
def own(run, tmp_path):
    """A run of one's own."""
    shutil.copytree(run, tmp_path / "run")
    book, given = pipeline.opened(tmp_path / "run")
    with book:
        yield book, given


def kept(book, where="v.kept"):
    return {one.id: one for one in samples.read(*book, where)}


def read(folder, name, root=None):
    return {row.id: row for row in read_rows([folder / TABLES[name]], root)}


def content(media):
    with media.open_path() as path:
        return path.read_bytes()


def tree(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def rank(sample):
    return -sum(sample.scores()[name] for name in ("score.overall", "verify.same", "verify.usable"))


def beside(folder):
    return sorted(path.name for path in folder.parent.iterdir())


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """A whole export. Not to be changed."""
    book, given = pipeline.opened(run)
    with book:
        return export.export(book, given, tmp_path_factory.mktemp("exported") / "out")


@pytest.mark.parametrize("name", list(TABLES))
def test_training_reads_what_is_kept(exported, book, run, name):
    expected = kept(book)
    assert len(expected) == KEPT == exported.manifest["sets"]["reference"]["samples"]
    rows = read(exported.folder / "reference", name)
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        sample = expected[key]
        assert row.prompt == sample.prompt
        assert content(row.source) == Path(sample.source).read_bytes()
        assert content(row.target) == Path(sample.target).read_bytes()
        assert content(row.reference) == (run / sample.artefacts["synthesise"]).read_bytes()
    pairs = read(exported.folder / "instruct", name)
    assert pairs.keys() == kept(book, "v.instruct AND NOT v.kept").keys()
    assert all(row.reference is None for row in pairs.values())
    assert len(pairs) == INSTRUCT - KEPT


def test_each_format_has_what_belongs_to_it(exported, book):
    folder = exported.folder / "reference"
    table = pq.read_table(next((folder / "parquet").iterdir()))
    own = ["iid", "prompt", "src_video", "tgt_video", "ref_image_bytes", "category", "origin"]
    assert table.column_names == own
    expected = kept(book)
    assert {row["iid"]: (row["category"], row["origin"]) for row in table.to_pylist()} == {
        key: (one.category, one.origin) for key, one in expected.items()
    }
    with tarfile.open(folder / "webdataset" / "000000.tar") as archive:
        names = archive.getnames()
        assert names[:4] == ["s1.src.mkv", "s1.tgt.mkv", "s1.json", "s1.ref.png"]
        assert all(member.mtime == 0 for member in archive)
        told = json.loads(archive.extractfile("s1.json").read())
    assert told.keys() == {"id", "prompt", "category", "origin", "scores"}
    assert told["scores"] == expected["s1"].scores() and told["scores"]["verify.same"] >= 6
    strips = sorted((folder / "thumbnails" / "0000").iterdir())
    assert [path.stem for path in strips] == sorted(expected)
    wide, high = Image.open(strips[0]).size
    assert (high, wide) == (160, 3 * 160 + 2 * 4)


def test_the_manifest_tells_what_was_done(exported, book):
    found = json.loads((exported.folder / "manifest.json").read_text())
    assert found == exported.manifest
    assert found["config"]["keep"]["score.overall"] == {"min": 6, "max": None}
    reference = found["sets"]["reference"]
    assert reference["categories"] == {ADD: 5, BACKGROUND: 5, CHANGE: 5}
    assert reference["origins"] == dict(Counter(one.origin for one in kept(book).values()))
    ids = hashlib.blake2b("".join(f"{one}\n" for one in kept(book)).encode(), digest_size=16).hexdigest()
    for name in export.FORMATS:
        assert [(file["samples"], file["ids"]) for file in reference["files"][name]] == [(KEPT, ids)]
    assert str(exported).splitlines()[1].strip() == f"{KEPT} reference (5 {BACKGROUND}, 5 {ADD}, 5 {CHANGE})"


def test_the_same_export_twice_has_the_same_bytes_and_replaces_the_first(exported, book, tmp_path):
    export.export(*book, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(exported.folder)
    export.export(*book, tmp_path / "out", ("csv",))
    assert {path.parts[1] for path in (tmp_path / "out").rglob("csv")} and not list(tmp_path.rglob("*.parquet"))
    assert beside(tmp_path / "out") == ["out"]


def test_files_end_at_their_size_and_row_groups_are_small(own, tmp_path):
    book, given = own
    for one in kept(own).values():
        path = book.folder / one.artefacts["synthesise"]
        noise = np.random.default_rng(one.number).integers(0, 256, (300, 300, 3), np.uint8)  # 270 kB each
        Image.fromarray(noise).save(path)
    export.export(book, given, tmp_path / "out", ("parquet", "webdataset"), Export(megabytes=1))
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())["sets"]["reference"]["files"]
    assert [file["samples"] for file in found["webdataset"]] == [4, 4, 4, 3]
    assert len(read(tmp_path / "out" / "reference", "webdataset")) == KEPT
    assert sum(file["samples"] for file in found["parquet"]) == KEPT  # what waits for a row group is not written yet
    assert len({file["ids"] for file in found["webdataset"]}) == 4


def test_a_parquet_of_many_samples_has_groups_of_a_hundred(tmp_path):
    refvie_synthetic.fill(tmp_path / "run", 300, drawn=0, fates=("waits",))  # pairs, which have no files of their own
    book, given = pipeline.opened(tmp_path / "run")
    with book:
        export.export(book, given, tmp_path / "out", ("parquet",), Export(limit=250))
    file = pq.ParquetFile(tmp_path / "out" / "instruct" / "parquet" / "00000.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [100, 100, 50]


def test_paths_begin_at_the_root_and_may_not_leave_it(own, run, tmp_path):
    book, given = own
    root = run / "clips"
    with pytest.raises(ValueError, match=r"lies outside of .*; give a root that all clips lie in, or none"):
        export.export(book, given, tmp_path / "out", LIGHT, Export(root=tmp_path))
    assert not (tmp_path / "out").exists()
    export.export(book, given, tmp_path / "out", LIGHT, Export(root=root))
    with (tmp_path / "out" / "reference" / "csv" / "rows.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["src_video"] == "s1.mkv"
    for name in LIGHT:
        rows = read(tmp_path / "out" / "reference", name, root)
        assert content(rows["s1"].source) == (root / "s1.mkv").read_bytes()
        assert content(rows["s1"].reference) == (run / "artefacts" / "s1.png").read_bytes()
    export.export(book, given, run.parent / "inside" / "out", ("csv",), Export(root=run.parent))
    rows = read(run.parent / "inside" / "out" / "reference", "csv", run.parent)
    assert content(rows["s1"].reference) == (run / "artefacts" / "s1.png").read_bytes()


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"formats": ("tfrecord",)}, "There is no format 'tfrecord'; there are parquet, csv, webdataset, thumbnails."),
    ({"formats": ()}, "No format is given"),
    ({"balance": {"addition": 1}}, "balance names 'addition'; there are global_style, "),
    ({"balance": {ADD: 0}}, "balance gives local_add a share of 0; give a number above 0"),
    ({"balance": "fair"}, "balance is 'fair'; give shares by category"),
    ({"limit": 0}, "limit is 0; give a whole number"),
    ({"pick": "worst"}, "pick is 'worst'; give one of best, random"),
    ({"instruct": "some"}, "instruct is 'some'; give one of rest, all, none"),
    ({"alike": 1.5}, "alike is 1.5; give a correlation"),
    ({"megabytes": 0}, "megabytes is 0; give a whole number"),
    ({"root": "/no/such/folder"}, "The root folder /no/such/folder does not exist"),
    ({"against": ("/no/such/table.csv",)}, "/no/such/table.csv does not exist; give tables, folders or files"),
])  # fmt: skip
def test_bad_options_are_refused_before_anything_is_written(book, tmp_path, changes, sentence):
    formats = changes.pop("formats", LIGHT)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        export.export(*book, tmp_path / "sub" / "out", formats, Export(**changes))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_is_left_alone(book, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="has something else than an export in it; give another folder"):
        export.export(*book, tmp_path / "out", LIGHT)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_nothing_kept_is_said_and_the_old_export_stays(own, tmp_path):
    book, given = own
    export.export(book, given, tmp_path / "out", LIGHT)
    before = tree(tmp_path / "out")
    select.select(book, refvie_synthetic.given(keep={"score.overall": {"min": 11}}))
    with pytest.raises(ValueError, match="Nothing is kept, so there is nothing to export"):
        export.export(book, given, tmp_path / "out", LIGHT)
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize(("spoil", "kind", "sentence"), [
    (lambda path: path.unlink(), FileNotFoundError, "s22.mkv is gone; run the pipeline again with --retry-failed"),
    (lambda path: path.write_bytes(b"another clip"), ValueError, "s22.mkv is not what it was when it was judged"),
])  # fmt: skip
def test_a_clip_that_is_gone_or_another_ends_the_export_and_the_old_one_stays(own, tmp_path, spoil, kind, sentence):
    book, given = own
    export.export(book, given, tmp_path / "out", ("csv",))
    before = tree(tmp_path / "out")
    moved = tmp_path / "clips"
    clips = Path(kept(own)["s22"].source).parent
    shutil.copytree(clips, moved)
    arguments = {"old": str(clips), "new": str(moved)}
    book.db.execute(
        "UPDATE samples SET source = replace(source, :old, :new), target = replace(target, :old, :new)", arguments
    )
    export.export(book, given, tmp_path / "other", ("webdataset",))
    spoil(moved / "s22.mkv")
    with pytest.raises(kind, match=sentence):
        export.export(book, given, tmp_path / "out", ("webdataset",))
    assert tree(tmp_path / "out") == before
    assert beside(tmp_path / "out") == ["clips", "other", "out", "run"]


_SLOW = """
import sys, time
from training.refvie import pipeline
from training.refvie.exports import export, formats
add = formats.Csv.add
def slow(self, sample):
    add(self, sample)
    print("added", flush=True)
    time.sleep(0.2)
formats.Csv.add = slow
book, given = pipeline.opened(sys.argv[1])
export.export(book, given, sys.argv[2], ("csv",), export.Export(limit=10, instruct="none"))
"""


def test_a_kill_leaves_the_old_export_and_the_next_one_cleans_up(book, run, tmp_path):
    folder = tmp_path / "out"
    export.export(*book, folder, LIGHT)
    before = tree(folder)
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(run), str(folder)], env=refvie_runs.environment(), stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    process.stdout.readline()
    with pytest.raises(ValueError, match=r"Another export writes to .*; wait for it or end it"):
        export.export(*book, folder, LIGHT)
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert tree(folder) == before
    assert ".out.new" in beside(folder)
    export.export(*book, folder, ("csv",), Export(limit=3, instruct="none"))
    assert len(read(folder / "reference", "csv")) == 3
    assert beside(folder) == ["out"]


def test_a_kill_between_the_two_names_is_made_good(book, tmp_path):
    folder = tmp_path / "out"
    export.export(*book, folder, ("csv",))
    before = tree(folder)
    folder.rename(tmp_path / ".out.old")
    (tmp_path / ".out.new").mkdir()
    with pytest.raises(FileNotFoundError):  # an export that fails
        spoiled = dataclasses.replace(kept(book)["s1"], artefacts={"synthesise": "gone.png", "ingest": "gone.zip"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(samples, "read", lambda *given: iter([spoiled]))
            export.export(*book, folder, ("csv",))
    assert tree(folder) == before
    assert beside(folder) == ["out"]


# Which are taken


def test_even_balance_takes_as_many_of_each_and_says_what_it_left(own, tmp_path):
    book, given = own
    for name in [key for key, one in kept(own).items() if one.category == ADD][:3]:
        book.choose(name, False)
    select.select(book, given)
    done = export.export(book, given, tmp_path / "out", ("csv",), Export(balance="even", instruct="none"))
    told = done.manifest["sets"]["reference"]
    assert told["categories"] == {ADD: 2, BACKGROUND: 2, CHANGE: 2}
    assert told["left_out"]["balance"] == {BACKGROUND: 3, CHANGE: 3}
    rows = read(done.folder / "reference", "csv")
    expected = set()
    for category in (ADD, BACKGROUND, CHANGE):
        mine = [one for one in kept(own).values() if one.category == category]
        expected |= {one.id for one in sorted(mine, key=rank)[:2]}
    assert rows.keys() == expected  # the best of each


def test_shares_are_kept_to_within_one_sample_and_none_is_taken_twice(book, tmp_path):
    options = Export(balance={CHANGE: 3, ADD: 1, STYLE: 9}, instruct="none")  # no reference shows a style
    done = export.export(*book, tmp_path / "out", ("csv",), options)
    assert done.manifest["sets"]["reference"]["categories"] == {ADD: 2, CHANGE: 4}  # 3 to 1 would be 4.5 and 1.5 of 6
    assert len(read(done.folder / "reference", "csv")) == 6


def test_a_category_that_is_asked_for_and_not_there_is_said(own, tmp_path):
    book, given = own
    for name, one in kept(own).items():
        if one.category == ADD:
            book.choose(name, False)
    select.select(book, given)
    with pytest.raises(ValueError, match="In the set reference: There is no sample of local_add to balance with"):
        export.export(book, given, tmp_path / "out", ("csv",), Export(balance={ADD: 1, CHANGE: 1}))
    assert beside(tmp_path / "out") == ["run"]


@pytest.mark.parametrize(("found", "balance", "limit", "expected"), [
    ({ADD: 10, CHANGE: 4}, "even", None, {ADD: 4, CHANGE: 4}),
    ({ADD: 10, CHANGE: 4, "": 7}, "even", 5, {ADD: 3, CHANGE: 2}),
    ({ADD: 10, CHANGE: 4}, {ADD: 0.75, CHANGE: 0.25}, None, {ADD: 10, CHANGE: 3}),
    ({ADD: 100, CHANGE: 100, REMOVE: 100}, {ADD: 1, CHANGE: 1, REMOVE: 1}, 100, {ADD: 34, CHANGE: 33, REMOVE: 33}),
    ({ADD: 3}, {ADD: 1, REMOVE: 5}, None, {ADD: 3}),
    ({ADD: 3}, None, 2, None),
    ({}, "even", None, {}),
])  # fmt: skip
def test_quotas(found, balance, limit, expected):
    possible = {ADD, CHANGE, BACKGROUND} | ({REMOVE} if REMOVE in found else set())
    assert picking.quotas(found, balance, limit, possible) == expected


def test_a_share_of_the_instructions_leaves_to_the_picture_what_it_would_name(own, tmp_path):
    book, given = own
    book.db.execute(  # "Do 4." is about "4"
        "UPDATE results SET \"values\" = json_set(\"values\", '$.name', CAST(sample - 1 AS TEXT))"
        " WHERE stage = 'locate'"
    )
    found = []
    for share in (0, 0.5, 1):
        made = export.export(book, given, tmp_path / str(share), ("csv",), export.Export(refer=share))
        found.append(read(made.folder / "reference", "csv"))
    named, half, every = found
    assert named.keys() == half.keys() == every.keys()
    changed = {name for name in named if half[name].prompt != named[name].prompt}
    assert 0 < len(changed) < len(named)
    asked = [row.prompt for row in every.values() if row.prompt.startswith("Do ")]
    assert asked
    assert all("picture" in prompt or "reference" in prompt for prompt in asked)


def test_a_random_pick_is_the_seeds_and_a_limit_takes_the_best(book, tmp_path):
    def ids(**options):
        export.export(*book, tmp_path / "out", ("csv",), Export(instruct="none", limit=6, **options))
        return set(read(tmp_path / "out" / "reference", "csv"))

    one, again, other, best = ids(pick="random"), ids(pick="random"), ids(pick="random", seed=1), ids()
    assert one == again and len({frozenset(one), frozenset(other), frozenset(best)}) == 3
    assert best == {sample.id for sample in sorted(kept(book).values(), key=rank)[:6]}


def test_whom_a_person_accepts_comes_first(own, tmp_path):
    book, given = own
    worst = max(kept(own).values(), key=rank)
    book.choose(worst.id, True)
    select.select(book, given)
    export.export(book, given, tmp_path / "out", ("csv",), Export(limit=1, instruct="none"))
    assert list(read(tmp_path / "out" / "reference", "csv")) == [worst.id]


@pytest.mark.parametrize(("instruct", "where"), [("all", "v.instruct"), ("rest", "v.instruct AND NOT v.kept")])
def test_pairs_by_instruction(book, tmp_path, instruct, where):
    export.export(*book, tmp_path / "out", ("csv",), Export(instruct=instruct))
    assert read(tmp_path / "out" / "instruct", "csv").keys() == kept(book, where).keys()
    done = export.export(*book, tmp_path / "out", ("csv",), Export(instruct="rest", limit=5))
    assert done.manifest["sets"]["instruct"]["samples"] == 5
    assert not read(done.folder / "instruct", "csv").keys() & read(done.folder / "reference", "csv").keys()


def test_no_pairs_without_reference_on_request(book, tmp_path):
    done = export.export(*book, tmp_path / "out", ("csv",), Export(instruct="none"))
    assert [path.name for path in sorted(done.folder.iterdir())] == ["manifest.json", "reference"]


# Benchmarks


def leaks(book, tmp_path, *against, **options):
    chosen = Export(against=against, instruct="all", **options)
    done = export.export(*book, tmp_path / "out", ("csv",), chosen)
    found = {one["id"]: (one["what"], one["how"].split(" (")[0]) for one in done.manifest["leaks"]}
    left = {name for one in done.folder.iterdir() if one.is_dir() for name in read(one, "csv")}
    assert not left & found.keys()
    assert left | found.keys() == kept(book, "v.kept OR v.instruct").keys()
    gone = sum(one.kept for one in kept(book).values() if one.id in found)
    assert done.manifest["sets"]["reference"]["left_out"]["benchmark"] == gone
    return found


def test_the_same_file_is_found_under_another_name(book, run, tmp_path):
    bench = tmp_path / "bench" / "videos"
    bench.mkdir(parents=True)
    shutil.copy(run / "clips" / "s1.mkv", bench / "clip7.mkv")
    shutil.copy(run / "clips" / "s5_edit.mkv", bench / "clip8.mkv")
    assert leaks(book, tmp_path, tmp_path / "bench") == {
        "s1": ("source", leakage.SAME_FILE), "s5": ("target", leakage.SAME_FILE),
    }  # fmt: skip


def test_a_clip_that_was_made_small_and_coded_anew_is_found_and_no_other(book, run, tmp_path):
    clip = load_video(run / "clips" / "s7_edit.mkv").frames
    small = np.stack([np.asarray(Image.fromarray(one).resize((96, 80))) for one in clip])
    save_video(tmp_path / "bench" / "a.mp4", small, 8, crf=30)
    assert leaks(book, tmp_path, tmp_path / "bench") == {"s7": ("target", leakage.SAME_PICTURE)}


def test_a_reference_picture_is_found(book, run, tmp_path):
    Image.open(run / "artefacts" / "s12.png").resize((100, 100)).save(tmp_path / "object.jpg", quality=80)
    assert leaks(book, tmp_path, tmp_path / "object.jpg") == {"s12": ("reference", leakage.SAME_PICTURE)}


def test_other_scenes_of_the_same_world_are_no_leaks(book, tmp_path):
    for place in range(20):
        edit = edits.draw(edits.CATEGORIES[place % 5], edits.BENCH_SEEDS + place, frames=5)
        frames_of = world.render(edit.before)
        save_video(tmp_path / "bench" / f"{place}.mp4", frames_of, 8)
    assert leaks(book, tmp_path, tmp_path / "bench") == {}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "tar"])
def test_tables_and_shards_of_benchmarks_are_read(exported, book, run, tmp_path, kind):
    bench = tmp_path / "bench"
    (bench / "videos").mkdir(parents=True)
    shutil.copy(run / "clips" / "s1.mkv", bench / "videos" / "x.mkv")
    if kind == "tar":
        shutil.copy(next((exported.folder / "reference" / "webdataset").iterdir()), bench / "a.tar")
        assert leaks(book, tmp_path, bench / "a.tar").keys() == kept(book).keys()
        return
    if kind == "parquet":
        import pyarrow as pa

        picture = {"bytes": (run / "artefacts" / "s12.png").read_bytes(), "path": None}
        pq.write_table(pa.table({"edited_type": ["add"], "ref_image": [picture]}), bench / "a.parquet")
        assert leaks(book, tmp_path, bench / "a.parquet") == {"s12": ("reference", leakage.SAME_PICTURE)}
        return
    text = 'original_video,prompt\nvideos/x.mkv,"Make it red, please."\n' if kind == "csv" else (
        json.dumps({"clips": ["videos/x.mkv"], "prompt": "Make it red."}) + "\n"
    )  # fmt: skip
    (bench / f"a.{kind}").write_text(text)
    assert leaks(book, tmp_path, bench / f"a.{kind}") == {"s1": ("source", leakage.SAME_FILE)}


def test_a_benchmark_that_is_not_whole_is_no_benchmark(book, tmp_path):
    (tmp_path / "bench.csv").write_text("video\nvideos/x.mkv\n")
    with pytest.raises(FileNotFoundError, match=r"bench.csv line 2 names videos/x.mkv, which is not there"):
        leaks(book, tmp_path, tmp_path / "bench.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no clips or pictures to compare with"):
        leaks(book, tmp_path, tmp_path / "empty")
    (tmp_path / "broken.mp4").write_bytes(b"no clip")
    with pytest.raises(ValueError, match=r"broken.mp4"):
        leaks(book, tmp_path, tmp_path / "broken.mp4")
    assert not (tmp_path / "out").exists()


def test_pictures_without_structure_are_like_none():
    gradient = np.linspace(0, 255, 64)[None, :, None] * np.ones((64, 1, 3))
    for picture in (np.full((64, 64, 3), 90), gradient):
        assert leakage.vector(Image.fromarray(picture.astype(np.uint8))) is None


def test_digests_are_those_of_ingest(run):
    bench = leakage.Benchmark([run / "clips" / "s1.mkv"])
    assert list(bench.digests) == [Media(str(run / "clips" / "s1.mkv")).digest()]
