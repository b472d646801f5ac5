"""Rows sorted by kind, and those that are held out."""

import pytest
import training_data

from training.data import dataset
from training.data.index import Index
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
