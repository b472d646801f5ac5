"""What a comparison leaves out, and what its gate must not overlook."""

import pytest

from training.bench import compare
from training.bench.folder import DONE, Edit, Folder, Measured, Verdict
from training.bench.items import Item


def run(path, scores, categories, items=None):
    """A run that a judge has scored; None for an item without an edit."""
    items = items or [
        Item(f"i{number}", category, "Do.", path / "none.mp4") for number, category in enumerate(categories)
    ]  # fmt: skip
    folder = Folder.begin(path, {"bench": "own", "system": {"name": path.name}}, items)
    folder.note_judge("j-1", {"model": "a-judge", "identity": "x", "settings": {}, "audit": None})
    for item, score in zip(items, scores):
        if score is not None:
            folder.note_edit(Edit(item.id, DONE, item.source))
            told = dict.fromkeys(item.criteria, float(score))
            folder.note_verdicts("j-1", [Verdict(item.id, 0, DONE, told, told)])
    return folder


def test_a_category_called_all_does_not_hide_the_mean(tmp_path):
    categories = ("all", "other", "other")
    a, b = run(tmp_path / "a", (3, 3, 3), categories), run(tmp_path / "b", (5, 1, 1), categories)
    found = compare.compare(a, b, max_drop=0.5)
    assert found.differences["all"].mean.value == pytest.approx(-2 / 3) and found.dropped == ("all",)
    assert found.differences["category all"].mean.value == 2 and found.differences["other"].mean.value == -2


def test_only_what_was_scored_is_told_to_be_left_out(tmp_path):
    a = run(tmp_path / "a", (3, 4, None, None, 2), ("edit",) * 5)
    b = run(tmp_path / "b", (3, None), ("edit",) * 2)
    found = compare.compare(a, b)
    assert found.alone == (2, 0) and found.differences["all"].mean.count == 1
    assert "2 items that only a has, 0 items that only b has" in found.text()


def test_small_differences_of_metrics_can_be_read(tmp_path):
    folders = []
    for name, value, count in (("a", 0.1234, 4), ("b", 0.1200, 3)):
        items = [Item(f"i{number}", "edit", "Do.", tmp_path / "none.mp4") for number in range(count)]
        folders.append(Folder.begin(tmp_path / name, {"bench": "own", "system": {"name": name}}, items))
        for item in items:
            folders[-1].note_measured(Measured(item.id, {"preservation_lpips": value}))
    found = compare.compare(*folders)
    assert "| preservation_lpips | 0.003 (" in found.text() and found.alone == (1, 0)


@pytest.mark.parametrize(("allowed", "passed"), [(0.25, True), (0.24, False)])
def test_a_drop_as_large_as_is_allowed_passes_however_it_is_rounded(tmp_path, allowed, passed):
    a = run(tmp_path / "a", (4,) * 4, ("edit",) * 4)
    b = run(tmp_path / "b", (4,) * 4, ("edit",) * 4)
    for item in b.items[:3]:  # a point less in one criterion of three: a quarter over all
        told = dict.fromkeys(item.criteria, 4.0) | {item.criteria[-1]: 3.0}
        b.note_verdicts("j-1", [Verdict(item.id, 0, DONE, told, told)])
    found = compare.compare(a, b, max_drop=allowed)
    assert found.differences["all"].mean.value == pytest.approx(-0.25) and found.passed == passed


def test_a_run_that_lacks_edits_does_not_pass_the_gate(tmp_path):
    a = run(tmp_path / "a", (3,) * 9, ("edit",) * 9)
    b = run(tmp_path / "b", (4, *(None,) * 8), ("edit",) * 9)  # it was killed after the first
    found = compare.compare(a, b, max_drop=0.1)
    assert not found.passed and "failed by 8 items that b lacks" in found.text()
    assert compare.compare(a, b).passed  # no gate was asked for
    assert compare.compare(b, a, max_drop=1.0).passed  # it has more
    few = run(tmp_path / "few", (3,), ("edit",))  # of a share that was chosen
    assert compare.compare(a, few, max_drop=0.1).passed


def test_without_a_judge_a_failed_edit_does_not_pass_the_gate_either(tmp_path):
    folders = []
    for name in ("a", "b"):
        items = [Item(f"i{number}", "edit", "Do.", tmp_path / "none.mp4") for number in range(3)]
        folders.append(Folder.begin(tmp_path / name, {"bench": "own", "system": {"name": name}}, items))
        for item in items:
            folders[-1].note_measured(Measured(item.id, {"preservation_psnr": 30.0}))
    assert compare.compare(*folders, max_drop=0.1).passed
    folders[1].note_measured(Measured("i2", {}, "The clip is damaged."))
    found = compare.compare(*folders, max_drop=0.1)
    assert not found.passed and found.lacking == 1
    with pytest.raises(ValueError, match="holds for metrics, not for categories"):
        compare.compare(*folders, max_drop=0.1, per_category=True)
