"""Clips and pictures in files of their own, in tars and in Parquet cells."""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kiwi_core.media import load_video, save_video
from training.data import places
from training.data.media import Media, ParquetCell, Probe, TarMember


def counting(count, height=32, width=48) -> np.ndarray:
    """Frame n is grey at level 8 n, so that every frame can be told from its neighbours after H.264."""
    levels = np.arange(count, dtype=np.uint8) * 8
    return np.tile(levels[:, None, None, None], (1, height, width, 3))


def shown(frames) -> list[int]:
    """The numbers of the frames that :func:`counting` made."""
    assert frames.dtype == np.uint8 and frames.shape[1:] == (32, 48, 3)
    return [round(float(frame.mean()) / 8) for frame in frames]


def in_tar(path, file) -> Media:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("before.txt")
        info.size = 7
        archive.addfile(info, io.BytesIO(b"padding"))
        archive.add(file, f"in/{file.name}")
    with tarfile.open(path) as archive:
        member = archive.getmember(f"in/{file.name}")
    return Media(str(path), TarMember(member.name, member.offset_data, member.size))


def in_parquet(path, file, struct=False) -> Media:
    cells = [data and ({"bytes": data, "path": "x"} if struct else data) for data in (b"a", None, file.read_bytes())]
    pq.write_table(pa.table({"other": [1, 2, 3], "clip": cells}), path, row_group_size=2)
    return Media(str(path), ParquetCell(1, 0, "clip", file.suffix))


@pytest.fixture(params=["file", "tar", "parquet", "struct"])
def place(request, tmp_path):
    """A function that puts a file somewhere and gives the media."""
    return {
        "file": lambda file: Media(str(file)),
        "tar": lambda file: in_tar(tmp_path / "s.tar", file),
        "parquet": lambda file: in_parquet(tmp_path / "s.parquet", file),
        "struct": lambda file: in_parquet(tmp_path / "s.parquet", file, struct=True),
    }[request.param]


def temporary_files(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif"])
def test_clips_are_the_same_wherever_they_lie(tmp_path, monkeypatch, place, name):
    file = save_video(tmp_path / name, counting(6), 10)
    media, folder = place(file), temporary_files(tmp_path, monkeypatch)
    assert np.array_equal(media.frames(), load_video(file).frames)
    assert media.probe() == media.probe(decode=True) == Probe(6, 32, 48, Fraction(10))
    assert media.digest() == hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
    with media.open_path() as path:
        assert path.suffix == file.suffix and path.read_bytes() == file.read_bytes()
    assert path.exists() == (path == file) and not list(folder.iterdir())


def test_pictures_are_the_same_wherever_they_lie(tmp_path, place):
    file = save_video(tmp_path / "a.png", counting(4)[3:], 10)
    media = place(file)
    assert media.picture().mode == "RGB" and np.array_equal(np.asarray(media.picture()), counting(4)[3])
    assert media.probe() == Probe(1, 32, 48, Fraction(1))
    assert np.array_equal(media.frames(frame_rate=25), counting(4)[3:])


def test_media_are_plain_values(tmp_path, place):
    media = place(save_video(tmp_path / "a.png", counting(1), 10))
    again = pickle.loads(pickle.dumps(media))  # noqa: S301
    assert again == media and hash(again) == hash(media) and again.digest() == media.digest()


def test_names_tell_the_place():
    assert Media("x/a.mp4").name == "x/a.mp4"
    assert Media("s.tar", TarMember("000.src.mp4", 512, 9)).name == "s.tar:000.src.mp4"
    assert Media("t.parquet", ParquetCell(2, 5, "clip")).name == "t.parquet:clip[2.5]"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"max_frames": 4}, [0, 1, 2, 3]),
        ({"start": 7}, [7, 8]),
        ({"start": 2, "max_frames": 3}, [2, 3, 4]),
        ({"frame_rate": 30}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"frame_rate": 15}, [0, 2, 4, 6, 8]),
        ({"frame_rate": 10}, [0, 3, 6]),
        ({"frame_rate": 20}, [0, 1, 3, 4, 6, 7]),  # 1.5 and 4.5 are as near to the earlier frame
        ({"frame_rate": 24}, [0, 1, 2, 4, 5, 6, 7, 8]),  # 0, 1.25, 2.5, 3.75, 5, 6.25, 7.5, 8.75
        ({"frame_rate": 60, "max_frames": 5}, [0, 0, 1, 1, 2]),
        ({"frame_rate": 15, "max_frames": 2, "start": 1}, [2, 4]),
        ({"frame_rate": 15, "max_frames": 9, "start": 4}, [8]),
        ({"frame_rate": 0.5}, [0]),
        ({"frame_rate": 1000, "max_frames": 18}, [0] * 17 + [1]),  # frame 1 is nearer from 17 ms on
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_are_picked_by_time(tmp_path, suffix, options, expected):
    file = save_video(tmp_path / f"a{suffix}", counting(9), 30)
    assert shown(Media(str(file)).frames(**options)) == expected


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001)])
def test_rates_that_come_as_floats_add_no_frame_and_drop_none(tmp_path, rate):
    media = Media(str(save_video(tmp_path / "a.mp4", counting(31), rate)))
    assert shown(media.frames(frame_rate=rate)) == list(range(31))
    assert shown(media.frames(frame_rate=float(rate))) == list(range(31))


def refused(call, *args, kind=ValueError, **options):
    """The message, checked to be one sentence that ends."""
    with pytest.raises(kind) as error:
        call(*args, **options)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and 20 < len(text) < 400
    return text


@pytest.mark.parametrize(
    "options",
    [
        {"max_frames": 0},
        {"start": -1},
        {"start": 3},
        {"start": 2, "frame_rate": 15},
        {"frame_rate": 0},
        {"frame_rate": float("nan")},
        {"frame_rate": float("inf")},
    ],
)
def test_what_cannot_be_picked_is_refused(tmp_path, options):
    file = save_video(tmp_path / "a.mp4", counting(3), 30)
    refused(Media(str(file)).frames, **options)


def test_damage_is_told_by_the_name_of_the_media(tmp_path, monkeypatch, place):
    file = tmp_path / "a.mp4"
    file.write_bytes(b"no video at all " * 9)
    media, folder = place(file), temporary_files(tmp_path, monkeypatch)
    for call in (media.frames, media.probe, media.picture):
        text = refused(call)
        assert media.name in text and str(folder) not in text
    assert not list(folder.iterdir())


@pytest.mark.parametrize("where", [None, TarMember("a.mp4", 512, 9), ParquetCell(0, 0, "clip")])
def test_missing_files_are_named(tmp_path, where):
    media = Media(str(tmp_path / "gone"), where)
    for call in (media.frames, media.probe, media.picture, media.digest):
        assert str(tmp_path / "gone") in refused(call, kind=FileNotFoundError)


def test_folders_have_no_digest(tmp_path):
    assert "cannot be opened" in refused(Media(str(tmp_path)).digest)


def test_short_tars_are_refused(tmp_path):
    media = in_tar(tmp_path / "s.tar", save_video(tmp_path / "a.mp4", counting(3), 10))
    with open(media.path, "r+b") as file:
        file.truncate(media.place.offset + media.place.size - 1)
    for call in (media.frames, media.digest):
        assert "s.tar ends 1 bytes too early" in refused(call)


@pytest.mark.parametrize(
    "cell",
    [
        ParquetCell(0, 1, "clip"),
        ParquetCell(1, 5, "clip"),
        ParquetCell(9, 0, "clip"),
        ParquetCell(0, 0, "gone"),
        ParquetCell(0, 0, "other"),
    ],
    ids=["null", "row", "group", "column", "number"],
)
def test_cells_without_bytes_are_refused(tmp_path, cell):
    file = save_video(tmp_path / "a.png", counting(1), 10)
    media = Media(in_parquet(tmp_path / "s.parquet", file).path, cell)
    assert "s.parquet" in refused(media.picture)


def test_parquet_files_that_change_are_read_anew(tmp_path):
    for level in (1, 2):
        Image.new("RGB", (16 * level, 16)).save(tmp_path / "a.png")
        assert in_parquet(tmp_path / "s.parquet", tmp_path / "a.png").picture().width == 16 * level


def test_neighbours_of_a_cell_are_read_with_it_once_and_not_all_are_kept(tmp_path, monkeypatch):
    cells = [bytes([number]) * 100 for number in range(40)]
    pq.write_table(pa.table({"clip": cells}), tmp_path / "s.parquet", row_group_size=10)
    media = [Media(str(tmp_path / "s.parquet"), ParquetCell(*divmod(number, 10), "clip")) for number in range(40)]
    reads, opened = [], places.open_parquet
    monkeypatch.setattr(places, "open_parquet", lambda path: reads.append(path) or opened(path))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(Media.digest, media))
    assert found == [hashlib.blake2b(cell, digest_size=16).hexdigest() for cell in cells]
    for number in (39, 0, 25, 11):
        media[number].digest()
    assert len(reads) == 4
    monkeypatch.setattr(places, "_KEPT", 2500)  # two groups
    for number in (39, 0, 39, 0, 20):
        media[number].digest()
    assert len(reads) == 6


def test_damaged_parquet_files_are_refused(tmp_path):
    (tmp_path / "s.parquet").write_bytes(b"PAR1" + bytes(100))
    assert "s.parquet cannot be read" in refused(Media(str(tmp_path / "s.parquet"), ParquetCell(0, 0, "clip")).digest)


def test_without_pyarrow_the_message_says_what_to_install(tmp_path, monkeypatch):
    media = in_parquet(tmp_path / "s.parquet", save_video(tmp_path / "a.png", counting(1), 10))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'kiwi-edit[train]'" in refused(media.picture)
