"""The numbers of a run: a file of JSON lines, trackers, and plots."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from kiwi_core.atomic import replacing

FILE = "metrics.jsonl"
UNWEIGHTED = "loss/unweighted"
"""The mean with every noise level counting the same, as validation's."""


class Metrics:
    """Appends to ``metrics.jsonl`` and hands on to trackers.

    Args:
        folder: of the run. step: that the run goes on from; lines of later ones, which a killed run left, are dropped.
        track: called with (values, step), such as ``accelerator.log``; None for none.
    """

    def __init__(self, folder: Path, step: int = 0, track=None):
        self.path, self._track = folder / FILE, track
        kept = [line for line in read(folder) if line["step"] <= step] if step else []  # a new run begins anew
        write_lines(self.path, kept)

    def add(self, step: int, values: dict) -> None:
        """Values of an update, from 1 on."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._track is not None:
            self._track(values, step)


def read(folder: Path) -> list[dict]:
    """The lines of a run so far; a torn last one is left out."""
    return read_lines(folder / FILE)


def read_lines(path: Path) -> list[dict]:
    """A file of JSON lines, if it is there; a torn line is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def write_lines(path: Path, lines: Iterable[dict]) -> None:
    """Write a file of JSON lines, whole or not at all; before one is added to, this takes a torn end off."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def smooth(values: Iterable[float], weight: float = 0.95) -> list[float]:
    """Running average without a bias towards the first value."""
    average, total, result = 0.0, 0.0, []
    for value in values:
        average, total = weight * average + (1 - weight) * value, weight * total + 1 - weight
        result.append(average / total)
    return result


def plot(folder: Path) -> list[Path]:
    """Draw the losses of a run as ``loss.png`` and ``loss_by_part.png``; returns those that were made."""
    lines = read(folder)
    if not any("loss" in line for line in lines):
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []

    def series(name: str) -> tuple[list[int], list[float]]:
        found = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), (int, float))]
        return [step for step, _ in found], [value for _, value in found]

    validated, (steps, losses) = series("validation/loss"), series("loss")
    figure, panels = pyplot.subplots(
        1, 1 + bool(validated[0]), figsize=(11 if validated[0] else 8, 4.5), layout="constrained", squeeze=False
    )
    axes, *beside = panels[0]
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="loss of each update")
    axes.plot(steps, smooth(losses), color="tab:blue", label="smoothed")
    _finish(axes, "update", "loss")
    for axes in beside:  # on another scale than a weighted loss
        steps, values = series(UNWEIGHTED)
        axes.plot(steps, smooth(values), color="tab:blue", label="training, smoothed")
        axes.plot(*validated, "o-", color="tab:orange", label="validation, fixed timesteps and noise")
        axes.set_title("every noise level counts the same")
        _finish(axes, "update", "loss")
    made.append(_save(figure, folder / "loss.png"))
    pyplot.close(figure)

    groups = {
        "by kind": sorted({name for line in lines for name in line if name.startswith("loss/kind/")}),
        "by noise level": sorted({name for line in lines for name in line if name.startswith("loss/sigma/")}),
    }
    if any(groups.values()):
        figure, panels = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
        for axes, (title, names) in zip(panels, groups.items()):
            for name in names:
                steps, values = series(name)
                axes.plot(steps, smooth(values), label=name.rpartition("/")[2])
            axes.set_title(title)
            _finish(axes, "update", "loss, smoothed")
        made.append(_save(figure, folder / "loss_by_part.png"))
        pyplot.close(figure)
    return made


def _finish(axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def _save(figure, path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path
