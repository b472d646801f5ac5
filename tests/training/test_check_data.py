"""What the check finds in the rows."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from kiwi_core.media import save_video
from training.data.check import check_rows
from training.data.media import Media
from training.data.rows import Row, read_rows


@pytest.fixture
def clip(tmp_path):
    """A function that writes a clip of noise, another one for each name, and gives its media."""

    def write(name, count=5, height=32, width=48, rate=10):
        pixels = np.random.default_rng(list(name.encode())).integers(0, 255, (count, height, width, 3), np.uint8)
        return Media(str(save_video(tmp_path / name, pixels, rate)))

    return write


@pytest.fixture
def row(clip):
    return Row("r", clip("s.mp4"), clip("t.mp4"), "Make it snow.")


def found(rows, **options) -> list[tuple[str, str, str]]:
    """Severity, row and media of each problem, whose messages are checked to be sentences that end."""
    report = check_rows(rows, **options)
    for problem in report.problems:
        assert "\n" not in problem.message and problem.message.endswith(".") and len(problem.message) > 20
    assert [*report.errors, *report.warnings] == sorted(report.problems, key=lambda problem: problem.severity)
    return [(problem.severity, problem.row_id, problem.media) for problem in report.problems]


def only_message(row, severity="error", **options) -> str:
    (problem,) = check_rows([row], **options).problems
    assert problem.severity == severity
    return problem.message


@pytest.mark.parametrize("decode", [True, False])
def test_good_rows_have_no_problems_and_are_counted(clip, row, decode):
    still = Row("i", clip("s.png", 1, 64, 32), clip("t.png", 1, 64, 32), "Paint it.")
    shown = replace(row, id="v", source=clip("a.mkv", 9), target=clip("b.mkv", 9), reference=clip("r.png", 1, 16, 16))
    report = check_rows([row, still, shown], decode=decode)
    assert report.problems == [] and report.rows == 3
    assert report.kinds == {"video": 1, "image": 1, "ref": 1}
    assert report.sizes == {(32, 48): 2, (64, 32): 1}
    assert report.frames == {5: 1, 1: 1, 9: 1}


@pytest.mark.parametrize("side", ["source", "target", "reference"])
def test_missing_and_broken_media_are_named(tmp_path, row, side):
    gone = Media(str(tmp_path / "gone.mp4"))
    assert found([replace(row, **{side: gone})]) == [("error", "r", gone.name)]
    assert "does not exist" in only_message(replace(row, **{side: gone}))
    broken = Media(str(tmp_path / "broken.mp4"))
    (tmp_path / "broken.mp4").write_bytes(b"nothing to see " * 9)
    assert found([replace(row, **{side: broken})], decode=False) == [("error", "r", broken.name)]


def test_rows_with_an_unreadable_target_are_not_counted_by_kind(tmp_path, row):
    report = check_rows([row, replace(row, id="x", target=Media(str(tmp_path / "gone.mp4")))])
    assert (report.rows, dict(report.kinds), report.frames.total()) == (2, {"video": 1}, 1)


def test_cut_clips_are_found_by_decoding_only(clip, row):
    long = clip("long.mp4", 40, 64, 64)
    pair = replace(row, source=long, target=clip("other.mp4", 40, 64, 64))
    assert found([pair]) == []
    with open(long.path, "r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    assert found([pair], decode=False) == []
    assert ("r", long.name) in [problem[1:] for problem in found([pair])]


def test_references_are_decoded_whole(clip, row):
    reference = clip("r.jpg", 1, 64, 64)
    with open(reference.path, "r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    assert found([replace(row, reference=reference)]) == [("error", "r", reference.name)]
    assert found([replace(row, reference=reference)], decode=False) == []


def test_pairs_must_agree_in_size_and_length(clip, row):
    text = only_message(replace(row, target=clip("big.mp4", height=64)))
    assert "48x32" in text and "48x64" in text
    text = only_message(replace(row, target=clip("still.png", 1)))
    assert "5 frames" in text and " 1" in text
    longer = replace(row, target=clip("long.mp4", 6))
    assert found([longer]) == [("warning", "r", longer.target.name)]  # at the same rate


@pytest.mark.parametrize(("rate", "count"), [(10.09, 0), (9.91, 0), (10.2, 1), (9.8, 1)])
def test_frame_rates_may_differ_by_one_percent(clip, row, rate, count):
    target = clip("t2.mp4", rate=rate)
    assert found([replace(row, target=target)]) == [("warning", "r", target.name)] * count


def test_a_still_has_no_rate_to_compare(clip, row):
    source = clip("s1.mp4", 1, rate=25)
    assert found([replace(row, source=source, target=clip("t.png", 1))]) == []


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("Add <|image_pad|> here", "<|image_pad|>"),
        ("Say <|im_end|>", "<|im_end|>"),
    ],
)
def test_prompts_are_text_without_reserved_tokens(row, prompt, expected):
    assert expected in only_message(replace(row, prompt=prompt))
    assert found([replace(row, prompt=prompt)]) == [("error", "r", "")]


def test_other_angle_brackets_are_fine(row):
    assert found([replace(row, prompt="Make <b>it</b> | snow, <| or not |>")]) == []


@pytest.mark.parametrize(("height", "width", "expected"), [(30, 48, "48x30"), (48, 16, "16x48"), (32, 6432, "200:1")])
def test_tiny_and_elongated_clips_are_refused(clip, row, height, width, expected):
    bad = replace(row, source=clip("a.png", 1, height, width), target=clip("b.png", 1, height, width))
    report = check_rows([bad])
    assert [problem.media for problem in report.errors] == [bad.source.name, bad.target.name]
    assert all(expected in problem.message for problem in report.problems)


def test_sides_of_32_pixels_and_200_to_1_are_accepted(clip, row):
    good = replace(row, source=clip("a.png", 1, 32, 6400), target=clip("b.png", 1, 32, 6400))
    assert found([good]) == []


def test_elongated_references_are_refused(clip, row):
    assert "200:1" in only_message(replace(row, reference=clip("r.png", 1, 2, 402)))


def test_an_unchanged_target_is_a_warning(tmp_path, row):
    copy = Media(str(tmp_path / "copy.mp4"))
    with row.source.open_path() as path:
        (tmp_path / "copy.mp4").write_bytes(path.read_bytes())
    assert "identical" in only_message(replace(row, target=copy), "warning")
    assert found([replace(row, target=copy)], decode=False) == []
    assert "identical" in only_message(replace(row, target=row.source), "warning", decode=False)


@pytest.mark.parametrize("decode", [True, False])
def test_the_same_row_twice_is_a_warning(row, decode):
    rows = [row, replace(row, id="other", prompt="Rain."), replace(row, id="again")]
    assert found(rows, decode=decode) == [("warning", "again", row.target.name)]
    assert "Row r has" in check_rows(rows, decode=decode).problems[0].message


@pytest.mark.parametrize("decode", [True, False])
def test_a_pair_with_another_reference_is_another_row(clip, row, decode):
    first, second = (replace(row, id=name, reference=clip(f"{name}.png", 1)) for name in "ab")
    again = replace(first, id="again")
    assert found([row, first, second, again], decode=decode) == [("warning", "again", row.target.name)]


def test_a_frame_that_cannot_be_converted_is_found(row, monkeypatch):
    """As training converts it, whatever error that raises; looking at it is not enough."""

    def fail(*args):
        raise SyntaxError("not a TIFF file")

    assert found([row]) == []
    monkeypatch.setattr("training.data.check.load_video", fail)
    messages = [problem.message for problem in check_rows([row]).errors]
    assert messages == ["SyntaxError: not a TIFF file"] * 2


def test_lengths_that_fit_by_time_are_told_the_way(clip, row):
    pair = replace(row, source=clip("long.mkv", 10, rate=10), target=clip("t.mkv", 5, rate=5))
    (error,) = check_rows([pair]).errors
    assert "cut them to one length, or bring both to one rate with --frame-rate" in error.message


def test_all_problems_of_a_row_are_found_at_once(tmp_path, clip, row):
    gone = Media(str(tmp_path / "gone.png"))
    bad = replace(row, prompt="", target=clip("b.mp4", 3, 30, 48), reference=gone)
    assert [media for *_, media in found([bad])] == ["", bad.target.name, gone.name, bad.target.name, bad.target.name]


def test_rows_in_shards_are_checked_in_place(tmp_path, row):
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "PNG")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, media in (("k.src.mp4", row.source), ("k.tgt.mp4", row.target)):
            archive.add(media.path, name)
        for name, data in (("k.txt", b"Make it snow."), ("k.ref.png", picture.getvalue()[:60])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    shard = tmp_path / "s.tar"
    assert found(read_rows([shard])) == [("error", "k", f"{shard}:k.ref.png")]
    (problem,) = check_rows(read_rows([shard])).problems
    assert problem.media in problem.message


def test_workers_find_the_same_in_the_same_order(tmp_path, row):
    rows = [replace(row, id=str(index), prompt="" if index % 2 else f"Edit {index}.") for index in range(5)]
    rows.append(replace(row, id="gone", source=Media(str(tmp_path / "gone.mp4"))))
    calls = []
    report = check_rows(rows, workers=2, progress=lambda *done: calls.append(done))
    assert report == check_rows(rows) and len(report.errors) == 3
    assert calls == [(number, 6) for number in range(1, 7)]


def test_what_cannot_be_checked_is_refused(row):
    with pytest.raises(ValueError, match="no rows to check"):
        check_rows([])
    with pytest.raises(ValueError, match="workers is -1"):
        check_rows([row], workers=-1)


def test_reports_can_be_read_and_written(tmp_path, row):
    report = check_rows([replace(row, prompt=""), replace(row, id="größer", target=row.source)])
    text = str(report)
    assert "Rows: 2. Errors: 1. Warnings: 1." in text and "video (2)" in text and "48x32 (2)" in text
    assert "error: row r: The prompt is empty" in text and f"warning: row größer, {row.source.name}: " in text
    path = report.write(tmp_path / "new" / "problems.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["row_id"] for line in lines] == ["r", "größer"] and [*path.parent.iterdir()] == [path]
    assert set(lines[0]) == {"row_id", "media", "message", "severity"}


def test_long_reports_are_cut_when_shown_not_when_written(tmp_path, row):
    report = check_rows([replace(row, id=str(index), prompt=" <|a|> " + "x" * index) for index in range(30)])
    assert len(report.errors) == 30 and "and 10 more problems" in str(report)
    assert len(report.write(tmp_path / "p.jsonl").read_text().splitlines()) == 30
