"""Which samples come when, and what is drawn for each."""

import dataclasses
import errno
import itertools
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import training_data

from training import batches
from training.data import loader
from training.data.media import Media, ParquetCell, TarMember
from training.data.prepare import Rules, Shape
from training.data.row import Row
from training.data.stream import BatchStream, derive
from training.encode import Encoded

SHAPES = ["wide"] * 7 + ["tall"] * 4 + ["square"]


def stream(batch_size=3, seed=0, name="video", shapes=SHAPES, units=None, **options):
    return BatchStream(shapes, units or [None] * len(shapes), batch_size, seed, name, **options)


def epoch(stream, number=0):
    count = stream.batches_per_epoch
    return [stream.batch(number * count + place) for place in range(count)]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_sample_comes_once_an_epoch(batch_size):
    for number in range(3):
        seen = [sample for batch in epoch(stream(batch_size), number) for sample in batch]
        assert sorted(seen) == list(range(len(SHAPES)))


def test_a_batch_has_one_shape_and_only_the_last_of_a_shape_is_smaller():
    for number in range(5):
        found = epoch(stream(), number)
        assert all(len({SHAPES[sample] for sample in batch}) == 1 for batch in found)
        sizes = sorted((SHAPES[batch[0]], len(batch)) for batch in found)
        assert sizes == [("square", 1), ("tall", 1), ("tall", 3), ("wide", 1), ("wide", 3), ("wide", 3)]


def test_a_place_is_the_same_whenever_it_is_asked_for():
    whole = stream()
    expected = [whole.batch(place) for place in range(30)]
    other = stream()
    for place in (29, 0, 17, 3, 17, 28, 1):
        assert other.batch(place) == expected[place]
        assert stream().batch(place) == expected[place]


def test_seed_name_and_epoch_decide_the_order():
    orders = [epoch(stream(1, 0, "video")), epoch(stream(1, 1, "video")), epoch(stream(1, 0, "image"))]
    orders += [epoch(stream(1), 1), epoch(stream(1), 2)]
    for one, other in itertools.combinations(orders, 2):
        assert one != other
    assert epoch(stream(1)) == orders[0]


def test_an_order_is_not_that_of_the_rows():
    assert epoch(stream(1)) != [[sample] for sample in range(len(SHAPES))]
    first = Counter(stream(1, seed).batch(0)[0] for seed in range(600))
    assert all(20 < first[sample] < 90 for sample in range(len(SHAPES)))  # 50 of each on average


def test_a_few_files_are_mixed():
    files = ["subject.parquet"] * 300 + ["background.parquet"] * 300
    found = [files[batch[0]] for batch in epoch(stream(1, shapes=["one"] * 600, units=files))]
    for start in range(0, 600, 60):
        assert 15 <= found[start : start + 60].count("subject.parquet") <= 45


def test_of_many_files_a_few_are_read_at_once_and_rows_without_lie_between():
    units = [("a.parquet", sample % 80) for sample in range(800)] + [None] * 800
    orders = set()
    for number in range(3):
        found = [units[batch[0]] for batch in epoch(stream(1, shapes=["one"] * 1600, units=units), number)]
        for start in range(0, 1600, 160):
            assert 50 <= found[start : start + 160].count(None) <= 110
        located = [unit for unit in found if unit]
        windows = [frozenset(located[start : start + 160]) for start in range(0, 800, 160)]
        assert [len(window) for window in windows] == [16] * 5  # each file comes in one of them
        orders.add(windows[0])
    assert len(orders) == 3


def test_batches_of_rare_shapes_do_not_wait_for_the_end():
    shapes = ["one"] * 380 + [f"rare{number}" for number in range(20)]
    for units in (None, [("a.tar", 0)] * 200 + [("b.tar", 0)] * 200):
        found = epoch(stream(4, shapes=shapes, units=units))
        rare = [place for place, batch in enumerate(found) if shapes[batch[0]] != "one"]
        assert len(rare) == 20
        assert sum(place < len(found) / 2 for place in rare) >= 4


def test_a_run_of_before_keeps_its_order():
    """As these lines put it, before files were mixed."""
    files = [f"{sample % 4}.tar" for sample in range(40)]
    for names in (files, [""] * 40):
        for number in range(2):
            draw = random.Random(derive(0, "video", number))  # noqa: S311
            shuffled, order = sorted(set(names)), list(range(40))
            draw.shuffle(shuffled)
            draw.shuffle(order)
            order = [[sample] for name in shuffled for sample in order if names[sample] == name]
            if len(shuffled) == 1:
                draw.shuffle(order)
            assert epoch(stream(1, shapes=["one"] * 40, units=names, by_file=True), number) == order


def test_seeds_are_the_same_on_every_machine():
    # Half of the eight bytes that `printf '7|video|sample|3|0' | b2sum -l 64` prints.
    assert derive(7, "video", "sample", 3, 0) == 0xC02C7B6C9DA13F96 // 2
    assert derive(1, 23) != derive(12, 3)
    assert all(0 <= derive(0, number) < 2**63 for number in range(100))


# With media


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    found = []
    for number in range(6):
        fields = training_data.write_pair(folder, f"image{number}", number, frames=1)
        media = [Media(str(folder / fields[column])) for column in ("src_video", "tgt_video")]
        found.append(Row(f"row{number}", *media, fields["prompt"]))
    return found


def samples(rows, batch_size=2, seed=5, kind="image", count=None, **changes):
    rows = rows if count is None else rows * (count // len(rows) + 1)
    shapes = [Shape(1, 32, 32)] * len(rows)
    return loader.Samples(rows, shapes, shapes, kind, batch_size, seed, Rules(64 * 64, 9, 16), **changes)


def take(iterator, count):
    return [unpacked(loaded) for loaded in itertools.islice(iterator, count)]


def unpacked(loaded):
    """A batch as something that can be compared."""

    def plain(value):
        return value.tobytes() if isinstance(value, np.ndarray) else value

    fields = [{name: plain(value) for name, value in vars(sample).items()} for sample in loaded.samples]
    return loaded.place, fields, loaded.broken


def test_workers_change_nothing(rows):
    alone = take(loader.batches(samples(rows), 0, 0, 1, 0), 7)
    assert [place for place, _, _ in alone] == list(range(7))
    assert all(len(fields) == 2 and fields[0]["source"] for _, fields, _ in alone)
    assert take(loader.batches(samples(rows), 0, 0, 1, 2), 7) == alone


def test_a_start_in_the_middle_continues(rows):
    whole = take(loader.batches(samples(rows), 0, 0, 1, 0), 8)
    assert take(loader.batches(samples(rows), 5, 0, 1, 0), 3) == whole[5:]
    second = take(loader.batches(samples(rows), 0, 1, 2, 0), 4)
    assert take(loader.batches(samples(rows), 2, 1, 2, 0), 2) == second[2:]


def test_processes_share_the_stream(rows):
    whole = take(loader.batches(samples(rows), 0, 0, 1, 0), 9)
    parts = [take(loader.batches(samples(rows), 0, rank, 3, 0), 3) for rank in range(3)]
    assert [batch for turn in zip(*parts) for batch in turn] == whole


def test_loading_draws_nothing_from_torch(rows):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    take(loader.batches(samples(rows), 0, 0, 1, 0), 2)
    assert torch.rand(1) == expected


def test_a_broken_row_is_named_and_the_others_stay(rows, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    bad = dataclasses.replace(rows[0], id="bad", source=Media(str(tmp_path / "broken.png")))
    loaded = samples([*rows[1:4], bad], batch_size=4)[0]
    assert sorted(sample.row_id for sample in loaded.samples) == ["row1", "row2", "row3"]
    assert [row for row, _ in loaded.broken] == ["bad"]
    assert "broken.png" in loaded.broken[0][1]


def test_an_error_that_no_one_foresaw_is_a_broken_row_and_a_full_disk_is_none(rows):
    loaded = samples(rows[:2], prepare=lambda sample: {}["tags"])[0]
    assert {problem for _, problem in loaded.broken} == {"KeyError: 'tags'"} and not loaded.samples

    def full(sample):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise ValueError("It cannot be read.") from error

    def out_of_memory(sample):
        raise MemoryError

    with pytest.raises(ValueError, match="cannot be read"):
        samples(rows[:2], prepare=full)[0]
    with pytest.raises(MemoryError):
        samples(rows[:2], prepare=out_of_memory)[0]


def test_a_row_is_read_with_its_shard_or_its_row_group():
    clip, cell = Media("a.mp4"), Media("a.parquet", ParquetCell(3, 5, "ref_image_bytes"))
    in_tar = Media("a.tar", TarMember("0.src.mp4", 512, 9))
    assert Row("x", clip, clip, "").unit is None
    assert Row("x", clip, clip, "", cell, "a.parquet").unit == ("a.parquet", 3)
    assert Row("x", clip, clip, "", None, "a.parquet").unit is None
    assert Row("x", in_tar, in_tar, "", None, "a.tar").unit == ("a.tar", 0)


def drawn(of, count, slots=1):
    row = of.rows[0]
    return [of.draw(row, place, slot) for place in range(count // slots) for slot in range(slots)]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_spread_timesteps_cover_the_range_evenly(rows, batch_size, seed):
    ids = [sample.timestep_id for sample in drawn(samples(rows, batch_size, seed), 1000, batch_size)]
    assert all(0 <= each <= 999 for each in ids)
    tenths = Counter(each // 100 for each in ids)
    assert all(abs(tenths[tenth] - 100) <= 4 for tenth in range(10))
    for start in (0, 500, 980):  # a few in a row are spread as well
        assert all(abs(count - 2) <= 2 for count in Counter(each // 100 for each in ids[start : start + 20]).values())


def test_uniform_timesteps_are_drawn_each_on_its_own(rows):
    ids = np.array([sample.timestep_id for sample in drawn(samples(rows, 1, spread=False), 1000)])
    assert ids.min() >= 0
    assert ids.max() <= 999
    tenths = np.bincount(ids // 100, minlength=10)
    assert np.abs(tenths - 100).max() <= 45  # chance alone: deviations of about 9.5
    assert np.abs(tenths - 100).max() > 4
    assert len(np.unique(ids)) < 700  # of independent draws, about 632 differ
    spread = np.array([sample.timestep_id for sample in drawn(samples(rows, 1), 1000)])
    assert len(np.unique(spread)) > 800


def test_draws_differ_by_place_slot_seed_and_kind(rows):
    row = rows[0]
    of = samples(rows)
    found = [of.draw(row, 0, 0), of.draw(row, 1, 0), of.draw(row, 0, 1)]
    found += [samples(rows, seed=6).draw(row, 0, 0), samples(rows, kind="video").draw(row, 0, 0)]
    assert len({sample.noise_seed for sample in found}) == len(found)
    assert len({sample.timestep_id for sample in found}) == len(found)
    assert of.draw(row, 1, 0) == found[1]


def test_reference_scales_are_those_of_the_cache_or_any(rows):
    few = drawn(samples(rows, reference_scales=4), 200)
    values = [0.7375, 0.8125, 0.8875, 0.9625]
    assert {sample.scale for sample in few} == {0, 1, 2, 3}
    assert all(sample.scale_value == pytest.approx(values[sample.scale]) for sample in few)
    any_size = [sample.scale_value for sample in drawn(samples(rows, reference_scales=0), 200)]
    assert len(set(any_size)) == 200
    assert 0.7 <= min(any_size) < 0.72
    assert 0.98 < max(any_size) <= 1.0


def test_noise_does_not_depend_on_the_batch():
    def sample(number):
        latents = torch.full((16, 1, 4, 4), float(number))
        encoded = Encoded(latents, latents, torch.zeros(4, 8), torch.ones(1, 3), context=torch.zeros(2, 8))
        return loader.Sample(f"row{number}", "image", "Go.", 100 + number, 7000 + number, 0, 1.0, encoded)

    encoder = SimpleNamespace(device=torch.device("cpu"), assemble=None)  # not asked: the context is known
    one, two = sample(0), sample(1)
    both = batches.collate(encoder, [one, two])
    for place, each in enumerate((one, two)):
        alone = batches.collate(encoder, [each])
        assert torch.equal(alone.noise[0], both.noise[place])
        assert alone.timestep_ids.tolist() == [100 + place]
    assert both.timestep_ids.tolist() == [100, 101]
    assert not torch.equal(both.noise[0], both.noise[1])
    assert abs(both.noise.mean()) < 0.2
    assert abs(both.noise.std() - 1) < 0.2
    assert both.row_ids == ("row0", "row1")
