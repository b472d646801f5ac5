"""Latents and features on disk: found by what they were made of, made once."""

import errno
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import random_model
import torch
import training_data
from safetensors.torch import load_file, save_file

from kiwi_core import media
from kiwi_core.mllm_encoder import MLLMEncoder
from training import batches, metrics, trainer
from training import cache_data as cache_step
from training.cache import Cache, digest
from training.cache_data import cache_data
from training.data import index as media_index
from training.data.index import Index
from training.data.media import Media
from training.encode import assemble
from training.parallel import Parallel


@pytest.fixture(scope="module")
def few(pairs, tmp_path_factory) -> Path:
    """One picture, one clip and one clip with a reference. Not to be changed."""
    folder = tmp_path_factory.mktemp("few")
    rows = []
    for line in pairs.read_text().splitlines()[1:]:
        row = dict(zip(("src_video", "tgt_video", "prompt", "ref_image"), line.split(",")))
        if row["src_video"].startswith(("image0.", "video0.", "ref0.")):
            rows.append(row)
            for name in filter(None, (row["src_video"], row["tgt_video"], row["ref_image"])):
                shutil.copy(pairs.parent / name, folder / name)
    return training_data.write_table(folder, rows)


def run_on(model, data, folder, **changes):
    return training_data.config(
        "tiny_stage3", model / "released", data, folder / "run", cache=str(folder / "cache"),
        steps=1, batch_size=1, max_pixels=32 * 32, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tiny_model, few, tmp_path_factory) -> Path:
    """A cache of ``few``. Not to be changed."""
    config = run_on(tiny_model, few, tmp_path_factory.mktemp("whole"))
    cache_data(config)
    return Path(config.cache)


@pytest.fixture
def data(few, tmp_path) -> Path:
    """``few``, to be changed."""
    return shutil.copytree(few.parent, tmp_path / "data") / few.name


@pytest.fixture
def config(tiny_model, data, tmp_path):
    """A run on ``data`` with an empty cache of its own."""
    return run_on(tiny_model, data, tmp_path)


@pytest.fixture
def filled(config, whole):
    """The same run with all of ``data`` in its cache."""
    shutil.copytree(whole, config.cache)
    cache_data(config)  # finds the digests of these files
    return config


def counts(config):
    found = cache_data(config)
    return found.made, found.found, found.broken


def entries(config):
    return sorted(Path(config.cache).rglob("*.safetensors"))


def broken(config):
    path = Path(config.output) / "broken.jsonl"
    return path.read_text() if path.is_file() else ""


def no_encoding(monkeypatch):
    """Nothing may be encoded or decoded from here on."""

    def refuse(*args, **kwargs):
        raise AssertionError("encoded")

    monkeypatch.setattr("training.encode.Encoder.latents", refuse)
    monkeypatch.setattr("training.encode.Encoder.features", refuse)


def test_a_second_run_encodes_nothing(config, monkeypatch):
    assert counts(config) == (3, 0, 0)
    before = {path: path.stat().st_mtime_ns for path in entries(config)}
    # Source, target and features of each, and for the reference its sizes and features.
    assert len(before) == 3 * 3 + 2
    no_encoding(monkeypatch)
    assert counts(config) == (0, 3, 0)
    assert {path: path.stat().st_mtime_ns for path in entries(config)} == before
    assert str(cache_data(config)) == f"{config.cache}: 0 samples encoded, 3 were there, 0 cannot be read."


def test_training_reads_the_cache(filled, monkeypatch):
    no_encoding(monkeypatch)
    trainer.train(filled)
    assert len(metrics.read(Path(filled.output))) == 1


def test_an_entry_holds_what_the_model_is_given(filled):
    shapes = sorted(tuple(load_file(path)["value"].shape) for path in entries(filled))
    latents = [shape for shape in shapes if len(shape) == 4]
    # Clips of 5 frames are 2 latent frames; 32 pixels are 4 latent ones.
    assert latents == [(16, 1, 4, 4)] * 2 + [(16, 2, 4, 4)] * 4
    assert [shape for shape in shapes if len(shape) == 5] == [(2, 16, 1, 4, 4)]  # two sizes of the reference
    grids = [load_file(path) for path in entries(filled) if "grid" in load_file(path)]
    assert len(grids) == 4
    for tensors in grids:
        assert tensors["value"].shape[0] == tensors["grid"].prod() // 4  # patches are merged by four


def test_a_renamed_file_keeps_its_entries(filled, data, monkeypatch):
    (data.parent / "video0.mkv").rename(data.parent / "renamed.mkv")
    (data.parent / "ref0_ref.png").rename(data.parent / "renamed.png")
    text = data.read_text().replace("video0.mkv", "renamed.mkv").replace("ref0_ref.png", "renamed.png")
    data.write_text(text)
    no_encoding(monkeypatch)
    assert counts(filled) == (0, 3, 0)


def test_another_prompt_keeps_the_entries(filled, data, monkeypatch):
    data.write_text(data.read_text().replace("Put this square into the corner.", "Put it there."))
    no_encoding(monkeypatch)
    assert counts(filled) == (0, 3, 0)


def test_a_changed_byte_is_encoded_again(filled, data):
    path = data.parent / "video0.mkv"
    path.write_bytes(path.read_bytes() + b"\0")
    assert counts(filled) == (1, 2, 0)
    picture = data.parent / "ref0_ref.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert counts(filled) == (1, 2, 0)


@pytest.mark.parametrize(
    ("changes", "made", "new"),
    [
        ({"max_pixels": 48 * 48}, 3, 10),  # all but the reference's features
        ({"max_frames": 1}, 2, 6),  # the picture stays as it is
        ({"frame_rate": 11.0}, 3, 9),  # as many frames, but others
        ({"rounding": "none"}, 3, 4),  # features alone
        ({"mllm_max_pixels": 256 * 28 * 28}, 3, 4),
        ({"reference_scales": 3}, 1, 1),
        ({"batch_size": 2, "lr": 1.0, "seed": 5, "mllm_rank": 8, "dropout": 0.1}, 0, 0),
    ],
)
def test_a_setting_that_changes_what_is_encoded_has_entries_of_its_own(filled, changes, made, new):
    before = set(entries(filled))
    assert counts(filled.replace(**changes)) == (made, 3 - made, 0)
    assert len(set(entries(filled)) - before) == new
    assert counts(filled) == (0, 3, 0)  # the others are still there


@pytest.mark.parametrize(
    ("folder", "prefix", "made", "new"),
    [("vae", "encoder", 3, 7), ("mllm_encoder", "visual", 3, 4), ("mllm_encoder", "model", 0, 0)],
)
def test_other_weights_have_entries_of_their_own(filled, tiny_model, tmp_path, folder, prefix, made, new):
    before = set(entries(filled))
    shutil.copytree(tiny_model / "released", tmp_path / "model")
    changed = 0
    for path in (tmp_path / "model" / folder).glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            if prefix in name.split(".") and name.endswith("weight") and not changed:
                tensors[name].flatten()[0] += 1
                changed = 1
        save_file(tensors, path)
    assert changed
    assert counts(filled.replace(model=str(tmp_path / "model"))) == (made, 3 - made, 0)
    assert len(set(entries(filled)) - before) == new


def test_a_digest_is_of_names_types_shapes_and_values():
    tensor = torch.arange(6.0)
    found = {
        digest({"a": tensor}), digest({"b": tensor}), digest({"a": tensor.reshape(2, 3)}), digest({"a": tensor + 1}),
        digest({"a": tensor.bfloat16()}), digest({"a": tensor}, "bf16"), digest({}), digest({"a": tensor, "b": tensor}),
    }  # fmt: skip
    assert len(found) == 8
    assert digest({"b": tensor, "a": tensor.clone()}) == digest({"a": tensor, "b": tensor})


def test_a_missing_entry_is_encoded_again(filled):
    whole = entries(filled)
    contents = [path.read_bytes() for path in whole]
    whole[4].unlink()
    assert counts(filled) == (1, 2, 0)
    assert [path.read_bytes() for path in entries(filled)] == contents


@pytest.mark.parametrize("left", [0, 400])
def test_a_torn_entry_is_encoded_again(filled, left):
    path = max(entries(filled), key=lambda path: path.stat().st_size)
    whole = path.read_bytes()
    path.write_bytes(whole[:left])  # as a power cut can leave it
    assert counts(filled) == (1, 2, 0)
    assert path.read_bytes() == whole


def test_training_does_without_a_torn_entry(filled):
    trainer.train(filled)
    for path in entries(filled):
        path.write_bytes(path.read_bytes()[:-1])
    torn = filled.replace(output=f"{filled.output}-torn")
    trainer.train(torn)
    losses = [metrics.read(Path(each.output))[0]["loss"] for each in (filled, torn)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # other batches, and so other kernels, on some CPUs
    assert not broken(torn)


def test_training_does_without_a_missing_entry(filled):
    trainer.train(filled)
    for path in entries(filled)[::2]:
        path.unlink()
    partly = filled.replace(output=f"{filled.output}-partly")
    trainer.train(partly)
    losses = [metrics.read(Path(each.output))[0]["loss"] for each in (filled, partly)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_killed_run_goes_on(config, monkeypatch):
    store, stored = Cache.store, []

    def dying(self, row, *arguments):
        if len(stored) == 2:
            raise KeyboardInterrupt
        store(self, row, *arguments)
        stored.append(row.id)

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "store", dying)
        with pytest.raises(KeyboardInterrupt):
            cache_data(config)
    kept = {path: path.stat().st_mtime_ns for path in entries(config)}
    assert counts(config) == (1, 2, 0)
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in entries(config)}.items()


def test_a_kill_within_an_entry_leaves_nothing(config, monkeypatch):
    replace, replaced = os.replace, []

    def dying(source, target):
        if str(target).startswith(config.cache) and len(replaced) == 4:
            raise KeyboardInterrupt
        replaced.append(target)
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", dying)
        with pytest.raises(KeyboardInterrupt):
            cache_data(config)
    assert len(entries(config)) == 4  # one sample, and a part of the next
    assert counts(config) == (2, 1, 0)
    assert len(entries(config)) == 11


def test_processes_share_the_samples(filled, monkeypatch, tmp_path):
    alone = [path.name for path in entries(filled)]
    shared = filled.replace(cache=str(tmp_path / "shared"))
    made = []
    for rank in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Parallel, "processes", 2)
            patch.setattr(Parallel, "rank", rank)
            found = cache_data(shared)
        assert found.found == found.broken == 0
        made.append(found.made)
    assert sorted(made) == [1, 2]
    assert [path.name for path in entries(shared)] == alone
    assert counts(shared) == (0, 3, 0)


def test_what_a_killed_process_left_half_written_goes_after_a_day(filled):
    old, new = (entries(filled)[0].with_name(f".{name}.tmp.safetensors") for name in ("old", "new"))
    for path, days in ((old, 2), (new, 0.5)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - days * 86400,) * 2)
    cache_data(filled)
    assert (old.exists(), new.exists()) == (False, True)


def test_two_that_write_the_same_do_no_harm(config, data):
    data.write_text(data.read_text() + "video0.mkv,video0_edit.mkv,Once more.,\n")
    assert counts(config) == (4, 0, 0)
    assert len(entries(config)) == 11


def test_workers_make_the_same_entries(config, tmp_path):
    cache_data(config)
    other = config.replace(cache=str(tmp_path / "other"), workers=1)
    cache_data(other)
    for one, two in zip(entries(config), entries(other), strict=True):
        assert one.name == two.name
        assert one.read_bytes() == two.read_bytes()


def test_references_in_any_size_cannot_be_cached(config):
    for attempt in (cache_data, trainer.train):
        with pytest.raises(ValueError, match=r"^References in any size cannot be cached; set --reference-scales 8"):
            attempt(config.replace(reference_scales=0))
    assert not entries(config)


def test_without_references_any_size_is_no_matter(config):
    assert counts(config.replace(reference_scales=0, kinds=("image", "video"))) == (2, 0, 0)


def test_a_cache_needs_a_folder(config):
    with pytest.raises(ValueError, match=r"^No cache folder is given; pass --cache\.$"):
        cache_data(config.replace(cache=""))


def test_broken_media_are_counted_and_left_out(config, data, caplog):
    (data.parent / "video0_edit.mkv").write_bytes(b"nothing")  # cannot even be opened
    training_data.cut(data.parent / "ref0.mkv")
    config = config.replace(kinds=())
    with caplog.at_level("WARNING"):
        assert counts(config) == (1, 0, 2)
    assert "ref0.mkv" in caplog.text
    assert counts(config) == (0, 1, 2)


def test_a_run_tells_how_much_of_its_data_is_there(config, caplog):
    caplog.set_level("INFO")
    counts(config)
    trainer.train(config)
    assert "The data are in the cache (3 samples were looked at)." in caplog.text
    assert "samples are in the cache;" not in caplog.text
    trainer.train(config.replace(output=f"{config.output}_more", frame_rate=11.0))
    assert "0 of 3 samples are in the cache;" in caplog.text
    assert "Run cache with the same recipe and settings first." in caplog.text


def test_held_out_rows_are_cached_too(tiny_model, pairs, tmp_path):
    config = run_on(tiny_model, pairs, tmp_path, kinds=("image",), validation_rows=1)
    assert counts(config) == (4, 0, 0)


@pytest.fixture
def style(config):
    """A run in which the language model stays as it is."""
    return config.replace(
        recipe="tiny_style_lora", dit="lora", mllm_rank=0, queries=(), train_connector=False, train_ref_connector=False,
        train_source_embedder=False, train_ref_embedder=False, exports=("training",),
    )  # fmt: skip


def test_a_frozen_language_model_is_not_called_in_training(style, monkeypatch):
    assert counts(style) == (3, 0, 0)
    no_encoding(monkeypatch)

    def refuse(*args, **kwargs):
        raise AssertionError("the language model was called")

    monkeypatch.setattr(MLLMEncoder, "forward", refuse)
    trainer.train(style)
    assert len(metrics.read(Path(style.output))) == 1


def test_a_cached_context_is_that_of_the_model(style):
    cache_data(style)
    contexts = sorted(
        tuple(tensor.shape) for path in entries(style) for tensor in load_file(path).values() if tensor.dim() == 2
    )
    assert [shape for shape in contexts if shape == (4, 256)]  # the picture's queries, in the DiT's width
    losses = []
    for each in (style, style.replace(cache="", output=f"{style.output}-uncached")):
        trainer.train(each)
        losses.append(metrics.read(Path(each.output))[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_context_is_of_its_prompt_and_of_the_language_model(style, data, tiny_model, tmp_path):
    cache_data(style)
    data.write_text(data.read_text().replace("Put this square into the corner.", "Put it there."))
    assert counts(style) == (1, 2, 0)
    shutil.copytree(tiny_model / "released", tmp_path / "model")
    path = tmp_path / "model" / "mllm_encoder" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path)
    assert counts(style.replace(model=str(tmp_path / "model"))) == (3, 0, 0)


def test_a_context_is_not_kept_where_the_language_model_is_trained(filled, style):
    count = len(entries(filled))
    assert counts(style) == (3, 0, 0)  # of each, the context alone is missing
    assert len(entries(style)) == count + 3


# What is known of media


@pytest.fixture
def picture(pairs, tmp_path):
    shutil.copy(pairs.parent / "image0.png", tmp_path / "image.png")
    return Media(str(tmp_path / "image.png"))


def never(*args, **kwargs):
    raise AssertionError("looked at again")


def test_what_was_found_out_is_not_asked_again(picture, tmp_path, monkeypatch):
    index = Index(tmp_path / "media.jsonl")
    assert index.known_digest(picture) is None
    found = index.probe(picture), index.digest(picture)
    assert (found[0].frames, found[0].height, found[0].width) == (1, 48, 48)
    monkeypatch.setattr(Media, "probe", never)
    monkeypatch.setattr(Media, "digest", never)
    again = Index(tmp_path / "media.jsonl")
    assert (again.probe(picture), again.digest(picture)) == found
    assert again.known_digest(picture) == found[1]


def test_a_changed_file_is_looked_at_again(picture, tmp_path):
    index = Index(tmp_path / "media.jsonl")
    before = index.digest(picture)
    path = Path(picture.path)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")  # the same size
    os.utime(path, (1_000_000_000, 1_000_000_000))
    assert index.known_digest(picture) is None
    assert index.digest(picture) != before


def test_a_missing_file_has_no_digest(picture, tmp_path):
    index = Index(tmp_path / "media.jsonl")
    index.digest(picture)
    Path(picture.path).unlink()
    assert index.known_digest(picture) is None
    with pytest.raises(FileNotFoundError):
        index.digest(picture)


@pytest.mark.parametrize("path", ["x" * 300 + ".mp4", "image.png/below.mp4", "a\0b.mp4"])
def test_what_can_be_no_file_has_no_digest(picture, tmp_path, path):
    assert Index(None).known_digest(Media(str(tmp_path / path))) is None


def test_facts_are_found_from_another_folder(picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = Index("media.jsonl")
    digest = index.digest(Media("image.png"))
    monkeypatch.chdir("/")
    assert Index(tmp_path / "media.jsonl").known_digest(picture) == digest
    # Files of before have the path as it was given.
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "media.jsonl").read_text()
    (tmp_path / "media.jsonl").write_text(text.replace(str(tmp_path / "image.png"), "image.png"))
    assert Index("media.jsonl").known_digest(Media("image.png")) == digest


def test_an_index_that_cannot_be_written_is_told_and_no_row_is_broken(picture, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    index = Index(tmp_path / "file" / "media.jsonl")
    assert media_index.each(index.digest, [picture, picture]) == [picture.digest()] * 2
    index.probe(picture)
    assert "cannot be written" in caplog.text and index.path is None


def test_errors_of_the_machine_are_no_rows(picture):
    def full(item):
        raise OSError(errno.ENOSPC, "No space left on device")

    def odd(item):
        raise KeyError(item)

    with pytest.raises(OSError, match="No space left"):
        media_index.each(full, [1])
    assert [str(error) for error in media_index.each(odd, [1])] == ["KeyError: 1"]
    assert media_index.each(str, range(2000)) == [str(item) for item in range(2000)]


def test_a_source_at_its_targets_rate_has_an_entry_of_its_own(filled, data):
    """Other frames are taken of it, where the header of the target says another rate."""
    config = filled.replace(frame_rate=6.0, kinds=("video",))
    assert counts(config) == (1, 0, 0)
    before = set(entries(config))
    target = data.parent / "video0_edit.mkv"
    media.save_video(target, media.load_video(target).frames, 24, crf=1)
    assert counts(config) == (1, 0, 0)
    assert len(set(entries(config)) - before) == 3  # the target, the source and its features


def test_an_index_in_memory_writes_nothing(picture, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert Index(None).digest(picture) == picture.digest()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_torn_last_line_is_ignored_and_what_follows_is_kept(picture, pairs, tmp_path, monkeypatch):
    path = tmp_path / "media.jsonl"
    other = Media(str(pairs.parent / "image1.png"))
    index = Index(path)
    index.digest(picture)
    index.digest(other)
    whole = path.read_text()
    path.write_text(whole[:-20])
    torn = Index(path)
    assert torn.known_digest(picture) == picture.digest()
    assert torn.known_digest(other) is None
    expected = torn.digest(other)
    assert Index(path).known_digest(other) == expected  # not written into the torn line
    assert [json.loads(line)["digest"] for line in whole.splitlines()] == [picture.digest(), expected]


def test_a_cache_made_in_batches_holds_what_one_made_one_by_one_does(tiny_model, pairs, tmp_path):
    made = {}
    for size in (1, 4):
        config = run_on(tiny_model, pairs, tmp_path / str(size)).replace(batch_size=size)
        cache_data(config)
        made[size] = {path.name: load_file(path) for path in Path(config.cache).rglob("*.safetensors")}
    assert made[1].keys() == made[4].keys()
    for name, tensors in made[1].items():
        for part, tensor in tensors.items():
            assert torch.allclose(tensor.float(), made[4][name][part].float(), atol=1e-5)


def test_workers_hand_over_what_this_process_would_have_made(filled):
    losses = []
    for workers, cache in ((0, filled.cache), (2, filled.cache), (2, "")):
        output = f"{filled.output}-{workers}{bool(cache)}"
        trainer.train(filled.replace(workers=workers, cache=cache, output=output, steps=3))
        losses.append([line["loss"] for line in metrics.read(Path(output))])
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_no_more_waits_than_is_encoded_at_once(tiny_model, tmp_path, monkeypatch):
    rows = [training_data.write_pair(tmp_path, f"clip{number}", number, (5, 9)[number % 2]) for number in range(6)]
    config = run_on(tiny_model, training_data.write_table(tmp_path, rows), tmp_path, kinds=("video",))
    fill, encode = cache_step.fill, cache_step._encode
    waiting, most, sizes = [], [], []

    def filled(sample, *rest):
        waiting.append(sample)
        most.append(len(waiting))
        return fill(sample, *rest)

    def encoded(encoder, cache, kind, group):
        del waiting[: len(group)]
        sizes.append(len(group))
        return encode(encoder, cache, kind, group)

    monkeypatch.setattr(cache_step, "fill", filled)
    monkeypatch.setattr(cache_step, "_encode", encoded)
    assert counts(config.replace(batch_size=2)) == (6, 0, 0)
    assert sizes == [2, 1, 2, 1] and max(most) == 2 and not waiting


def test_sequences_come_apart_as_they_were():
    queries, sizes = (("image", 4), ("video", 6), ("ref", 8)), ((3, 4, 8), (1, 4, 4))
    tokenizer, prompts = random_model.byte_tokenizer(), ("Make it red.", "Go on.")
    made = [assemble(tokenizer, queries, 2, "ref", prompt, sizes) for prompt in prompts]
    features = [torch.randn(2, 24, 8), torch.randn(2, 4, 8)]
    apart = batches.Sequences.of(made).split("ref", [torch.tensor([size, size]) for size in sizes], features)
    for place, (one, before) in enumerate(zip(apart, made, strict=True)):
        assert (one.mode, one.query_slice, one.reference_slice) == ("ref", before.query_slice, before.reference_slice)
        for name in ("input_ids", "position_ids", "query_mask", "picture_mask"):
            assert torch.equal(getattr(one, name), getattr(before, name))
        for number, (picture, expected) in enumerate(zip(one.vision, before.vision, strict=True)):
            assert torch.equal(picture.token_mask, expected.token_mask)
            assert torch.equal(picture.grid_thw, expected.grid_thw)
            assert torch.equal(picture.features, features[number][place])
