"""The numbers of a run, through kills, and their plots."""

import json

import pytest
from PIL import Image

from training import metrics

LINES = [{"loss": 2.0 / step, "lr": 1e-4, "loss/kind/video": 1.0, "loss/sigma/0.00-0.75": 0.5} for step in range(1, 9)]


def write(folder, steps=8, **more):
    kept = metrics.Metrics(folder)
    for step in range(1, steps + 1):
        kept.add(step, LINES[step - 1] | more)
    return folder / "metrics.jsonl"


def steps(folder):
    return [line["step"] for line in metrics.read(folder)]


def test_lines_come_back_as_they_were(tmp_path):
    path = write(tmp_path)
    assert metrics.read(tmp_path) == [{"step": step, **line} for step, line in enumerate(LINES, start=1)]
    assert len(path.read_text().splitlines()) == 8


def test_there_are_none_at_first(tmp_path):
    assert metrics.read(tmp_path) == []
    assert metrics.read(tmp_path / "missing") == []


@pytest.mark.parametrize("step", [0, 5, 8, 100])
def test_lines_after_the_checkpoint_are_dropped(tmp_path, step):
    write(tmp_path)
    again = metrics.Metrics(tmp_path, step)
    assert steps(tmp_path) == list(range(1, min(step, 8) + 1))
    again.add(step + 1, {"loss": 9.0})
    assert metrics.read(tmp_path)[-1] == {"step": step + 1, "loss": 9.0}


def test_a_torn_line_is_left_out_and_what_follows_is_kept(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text()[:-15])
    assert steps(tmp_path) == list(range(1, 8))
    again = metrics.Metrics(tmp_path, 7)
    again.add(8, {"loss": 1.0})
    assert steps(tmp_path) == list(range(1, 9))
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_trackers_get_every_line(tmp_path):
    seen = []
    kept = metrics.Metrics(tmp_path, 0, lambda values, step: seen.append((step, values)))
    kept.add(1, {"loss": 2.0})
    kept.add(2, {"loss": 1.0})
    assert seen == [(1, {"loss": 2.0}), (2, {"loss": 1.0})]


def test_smoothing():
    assert metrics.smooth([3.0] * 200) == pytest.approx([3.0] * 200)
    assert metrics.smooth([]) == []
    assert metrics.smooth([1.0, 2.0, 6.0], weight=0.0) == [1.0, 2.0, 6.0]
    # Weights 1/2 and 1 of the first two, then 1/4, 1/2 and 1.
    assert metrics.smooth([3.0, 6.0, 9.0], weight=0.5) == pytest.approx([3.0, 5.0, 51 / 7])


def colours(path):
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.size, {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}


BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


def test_plots_are_pictures(tmp_path):
    write(tmp_path)
    made = metrics.plot(tmp_path)
    assert [path.name for path in made] == ["loss.png", "loss_by_part.png"]
    for path, size in zip(made, [(880, 495), (1210, 440)]):
        found, seen = colours(path)
        assert found == size
        assert BLUE in seen
    assert ORANGE not in colours(made[0])[1]


def test_the_validation_is_drawn_too(tmp_path):
    write(tmp_path, **{"validation/loss": 0.7})
    assert ORANGE in colours(metrics.plot(tmp_path)[0])[1]


def test_plots_are_drawn_over(tmp_path):
    write(tmp_path, 3)
    first = metrics.plot(tmp_path)[0].read_bytes()
    write(tmp_path, 8)
    assert metrics.plot(tmp_path)[0].read_bytes() != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "loss_by_part.png", "metrics.jsonl"]


def test_a_run_without_parts_has_one_plot(tmp_path):
    metrics.Metrics(tmp_path).add(1, {"loss": 1.0})
    assert [path.name for path in metrics.plot(tmp_path)] == ["loss.png"]


def test_without_losses_there_is_no_plot(tmp_path):
    assert metrics.plot(tmp_path) == []
    metrics.Metrics(tmp_path).add(1, {"lr": 1.0})
    assert metrics.plot(tmp_path) == []
    assert not list(tmp_path.glob("*.png"))
