"""Runs from their beginning to their end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import training_data
from PIL import Image
from safetensors.torch import load_file

from kiwi_core import KiwiEditPipeline, media
from training import base, broken, flow_match, metrics, model, trainer
from training.batches import collate
from training.data.loader import Sample
from training.data.stream import BatchStream
from training.encode import Encoder


def losses(config) -> list[float]:
    return [line["loss"] for line in metrics.read(Path(config.output)) if "loss" in line]


def test_a_run_leaves_weights_numbers_and_plots(quick):
    config = quick(steps=3)
    trainer.train(config)
    folder = Path(config.output)
    lines = metrics.read(folder)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {"loss", "loss/kind/image", "loss/kind/video", "loss/kind/ref", "lr", "gradient_norm"} <= lines[0].keys()
    assert any(name.startswith("loss/sigma/") for name in lines[0])
    weights = load_file(folder / "exports" / "training.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    for name in ("loss.png", "loss_by_part.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 500
    assert json.loads((folder / "config.json").read_text())["recipe"] == "tiny_stage3"


def test_tensorboard_has_the_numbers_and_other_trackers_are_asked_for(quick, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = quick(steps=3, trackers=("tensorboard",), save_every=1)
    trainer.train(config.replace(steps=2))
    trainer.train(config)  # goes on in the same plot
    found = {}
    for folder in {path.parent for path in (Path(config.output) / "logs").rglob("events*")}:
        events = EventAccumulator(str(folder))
        events.Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend((event.step, event.value) for event in events.Scalars(name))
    assert [step for step, _ in found["loss"]] == [1, 2, 3]
    assert [value for _, value in found["loss"]] == pytest.approx(losses(config))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="wandb is not installed; pip install wandb"):
        trainer.train(quick(output="other", trackers=("wandb",)))


def test_a_cached_run_has_the_losses_of_an_uncached_one(quick):
    cached, uncached = quick(output="cached", steps=2), quick(output="uncached", steps=2, cache="")
    trainer.train(cached)
    trainer.train(uncached)
    # The cache encodes several at once, which changes last bits.
    assert losses(cached) == pytest.approx(losses(uncached), rel=1e-5)


def test_a_cached_style_has_the_losses_of_an_uncached_one(quick):
    """Its language model is frozen, so that whole contexts are cached."""
    given = {"recipe": "tiny_style_lora", "steps": 2, "kinds": ("video", "ref")}
    cached, uncached = quick(output="cached", **given), quick(output="uncached", cache="", **given)
    from training.cache_data import cache_data

    folder = str(Path(cached.output).parent / "style_cache")
    cached = cached.replace(cache=folder)
    assert cache_data(cached).made == 8
    trainer.train(cached)
    trainer.train(uncached)
    # The cache encodes several at once, which changes last bits.
    assert losses(cached) == pytest.approx(losses(uncached), rel=1e-5)


@pytest.fixture(scope="module")
def built(tiny_model, pairs, tmp_path_factory):
    """A model as stage 3 trains it, before any step."""
    config = training_data.config("tiny_stage3", tiny_model / "released", pairs, tmp_path_factory.mktemp("built"))
    parts, start = base.read(config)
    return model.from_parts(parts, config, start)


def sample(kind: str, seed: int = 3, timestep: int = 400) -> tuple[Sample, dict]:
    """A sample as a worker hands it over, and what it is made of."""
    source = training_data.scene(seed, 1 if kind == "image" else training_data.FRAMES)
    given = {"prompt": "Make it red.", "source": source, "target": 255 - source}
    if kind == "ref":
        given["reference"] = training_data.scene(9, 1)[0, :40, :30]
    clips = {name: given.get(name) for name in ("source", "target", "reference")}
    return Sample("row", kind, given["prompt"], timestep, 7, 0, 1.0, **clips), given


@pytest.mark.parametrize("kind", ["image", "video", "ref"])
def test_the_loss_is_the_published_one_of_what_the_pipeline_encodes(built, kind):
    drawn, given = sample(kind)
    batch = collate(Encoder(built, "cpu"), [drawn])
    with torch.no_grad():
        loss = built(batch)
        pipe = built.pipe
        reference = given.get("reference")
        context = pipe.encode_prompt(given["prompt"], given["source"], reference)
        latents, source = pipe.encode_video(given["target"], 48, 48), pipe.encode_video(given["source"], 48, 48)
        boxed = None
        if reference is not None:
            boxed = pipe._encode_references([Image.fromarray(reference)], 48, 48)
        noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(7))[None]
        wanted = flow_match.flow_match_loss(
            *(pipe.transformer, pipe.source_embedder, pipe.ref_embedder, latents, noise, 400, context, source, boxed)
        )
    torch.testing.assert_close(loss[0], wanted, rtol=1e-5, atol=1e-6)


def test_samples_of_a_batch_have_the_losses_that_they_have_alone(built):
    encoder = Encoder(built, "cpu")
    short, long = (sample("video", seed, timestep)[0] for seed, timestep in ((3, 200), (4, 700)))
    long.prompt = "A much longer instruction, so that the two sequences differ in length."
    with torch.no_grad():
        alone = torch.cat([built(collate(encoder, [each])) for each in (short, long)])
        together = built(collate(encoder, [short, long]))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_batch_is_the_mean_of_its_samples(tiny_model, pairs, tmp_path):
    config = training_data.config("tiny_stage3", tiny_model / "released", pairs, tmp_path)
    built = model.from_parts(*_read(config)).train()
    encoder = Encoder(built, "cpu")
    drawn = [sample("video", seed, timestep)[0] for seed, timestep in ((3, 200), (4, 700))]
    found = []
    for groups in ([drawn], [[each] for each in drawn]):
        for group in groups:
            (built(collate(encoder, group)).mean() / len(groups)).backward()
        found.append({n: p.grad.clone() for n, p in built.trained().items() if p.grad is not None})
        built.zero_grad(set_to_none=True)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-5)


def _read(config):
    parts, start = base.read(config)
    return parts, config, start


def test_checkpointing_changes_no_gradient(tiny_model, pairs, tmp_path):
    found = []
    for checkpointing in (False, True):
        config = training_data.config(
            "tiny_stage3", tiny_model / "released", pairs, tmp_path, checkpointing=checkpointing
        )
        parts, start = base.read(config)
        each = model.from_parts(parts, config, start).train()
        each(collate(Encoder(each, "cpu"), [sample("ref")[0]])).sum().backward()
        found.append({name: parameter.grad for name, parameter in each.trained().items()})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        if gradient is None:
            assert found[1][name] is None
        else:
            torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-6)


def test_compiled_blocks_leave_the_same_weights(quick, monkeypatch):
    blocks, original = [], torch.nn.Module.compile

    def noted(module, **given):
        blocks.append(type(module).__name__)
        original(module, **given)

    monkeypatch.setattr(torch.nn.Module, "compile", noted)
    plain, compiled = quick(output="plain", steps=2), quick(output="compiled", steps=2, compile=True)
    trainer.train(plain)
    assert blocks == []
    # The same without the minute that compiling takes.
    with torch.compiler.set_stance("force_eager"):
        trainer.train(compiled)
    assert blocks == ["WanTransformerBlock"] * 2
    weights = [load_file(Path(config.output) / "exports" / "training.safetensors") for config in (plain, compiled)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_only_what_a_kind_uses_has_gradients(tiny_model, pairs, tmp_path):
    config = training_data.config("tiny_stage3", tiny_model / "released", pairs, tmp_path)
    parts, start = base.read(config)
    built = model.from_parts(parts, config, start).train()
    built(collate(Encoder(built, "cpu"), [sample("video")[0]])).sum().backward()
    silent = {name for name, parameter in built.trained().items() if parameter.grad is None}
    assert {"mllm.connector.image_queries", "mllm.connector.ref_queries"} <= silent
    assert all("ref" in name or "image" in name for name in silent)


def test_a_broken_sample_is_reported_and_left_out_the_same_way_every_time(quick, tmp_path, caplog):
    table = training_data.write_all(tmp_path / "data", 3)
    broken = tmp_path / "data" / "video1_edit.mkv"
    training_data.cut(broken)
    runs = []
    for name in ("first", "second"):
        config = quick(
            output=name, data=(str(table),), cache="", steps=3, kinds=("video",), batch_size=1, max_broken_share=0.5
        )
        trainer.train(config)
        runs.append(losses(config))
        (line,) = (Path(config.output) / "broken.jsonl").read_text().splitlines()
        assert str(broken) in json.loads(line)["problem"]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 3
    assert str(broken) in caplog.text


def test_too_many_broken_samples_stop_the_run(quick, tmp_path):
    table = training_data.write_all(tmp_path / "data", 3)
    for number in range(2):
        (tmp_path / "data" / f"video{number}_edit.mkv").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"2 of 3 samples cannot be read .* raise --max-broken-share"):
        trainer.train(quick(data=(str(table),), cache="", kinds=("video",)))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_with_the_batch_saved(quick, monkeypatch, what):
    config = quick(steps=3, save_every=1)
    if what == "loss":
        original = model.KiwiModel.forward
        calls = iter(range(100))
        monkeypatch.setattr(
            model.KiwiModel, "forward", lambda *args: original(*args) * (float("nan") if next(calls) == 4 else 1.0)
        )
    else:
        original = trainer.Parallel.clip
        calls = iter(range(100))
        monkeypatch.setattr(
            trainer.Parallel, "clip", lambda *args: float("inf") if next(calls) == 1 else original(*args)
        )
    with pytest.raises(ValueError, match=f"The {what} is not finite at update 2 .*bad_batch.safetensors"):
        trainer.train(config)
    saved = load_file(Path(config.output) / "bad_batch.safetensors")
    assert saved["0.latents"].shape == saved["0.noise"].shape
    monkeypatch.undo()
    trainer.train(config)  # goes on from the first update
    assert [line["step"] for line in metrics.read(Path(config.output))] == [1, 2, 3]


def test_a_few_broken_ones_among_the_first_are_no_reason_to_stop(tmp_path):
    """Draws are a sample: one of 1% broken, of which any of 32 processes meets two in twenty, is to go on."""
    draw = np.random.default_rng(0)

    def stopped(rate, draws=600):
        found = broken.Broken(tmp_path, 0.05)
        try:
            for _ in range(draws):
                found.draw(*((0, [("row", "it is broken.")]) if draw.random() < rate else (1, [])))
        except ValueError as error:
            assert "raise --max-broken-share" in str(error)
            return True
        return False

    assert sum(stopped(0.01) for _ in range(100)) <= 5
    assert all(stopped(0.2) for _ in range(20))
    with pytest.raises(ValueError, match="None of the samples can be read"):
        broken.Broken(tmp_path, 1.0, 19, 19).draw(0, [("row", "it is broken.")])


def test_another_run_in_the_same_folder_is_refused(quick):
    trainer.train(quick(steps=1))
    with pytest.raises(ValueError, match=r"other settings \(weight_decay is 0.0\d* there and 0.5 here\)"):
        trainer.train(quick(steps=2, weight_decay=0.5))


def test_a_run_may_go_on_at_another_rate(quick, caplog):
    trainer.train(quick(steps=1, save_every=1))
    trainer.train(quick(steps=2, lr=0.001, max_grad_norm=0.5))
    assert "lr was 0.002 so far and is 0.001 from here on." in caplog.text
    assert [line["lr"] for line in metrics.read(Path(quick().output))] == [0.002, 0.001]


def test_until_there_is_a_checkpoint_nothing_is_settled(quick, monkeypatch):
    def fail(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.KiwiModel, "forward", fail)
    with pytest.raises(RuntimeError):
        trainer.train(quick())
    monkeypatch.undo()
    trainer.train(quick(batch_size=1, steps=1))


def test_an_empty_instruction_is_a_broken_row_from_the_start(quick, tmp_path):
    folder = tmp_path / "data"
    rows = [training_data.write_pair(folder, f"i{number}", number, frames=1) for number in range(4)]
    rows[1]["prompt"], rows[2]["prompt"] = " ", "Show <|image_pad|>."
    table = training_data.write_table(folder, rows)
    config = quick("tiny_stage1", data=(str(table),), cache="", steps=2, max_broken_share=0.5)
    trainer.train(config)
    problems = [json.loads(line)["problem"] for line in (Path(config.output) / "broken.jsonl").read_text().splitlines()]
    assert len(problems) == 2 and "instruction is empty" in problems[0] and "reserved token" in problems[1]


def test_stages_see_the_same_data_in_orders_of_their_own(quick):
    def drawn(config):
        images = trainer._Run(config)._datasets()["image"]
        return [(sample.row_id, sample.noise_seed) for place in range(8) for sample in images[place].samples]

    first = quick("tiny_stage2", output="first", steps=1)
    again = quick("tiny_stage2", output="again", steps=1)
    assert drawn(first) == drawn(again)
    other = drawn(quick("tiny_stage3", output="other"))
    assert not set(other) & set(drawn(first))
    trainer.train(first)
    after = drawn(quick("tiny_stage2", output="after", start=first.output))
    assert not set(after) & set(drawn(again)) and not set(after) & set(other)
    moved = shutil.move(first.output, Path(first.output).with_name("moved"))
    assert drawn(quick("tiny_stage2", output="moved_after", start=str(moved))) == after


def test_a_run_of_before_keeps_its_order(quick, monkeypatch):
    config = quick(steps=2, save_every=1)
    trainer.train(config.replace(steps=1))
    (state,) = Path(config.output).glob("checkpoints/*/state.json")
    old = json.loads(state.read_text())
    assert old.pop("order") != config.seed
    state.write_text(json.dumps(old))
    assert trainer._Run(config).order == config.seed


def test_a_run_of_before_keeps_its_rows_and_their_order(quick):
    """Checkpoints had no version before files were mixed and sources looked at."""
    config = quick(steps=1)
    trainer.train(config)
    (state,) = Path(config.output).glob("checkpoints/*/state.json")
    old = json.loads(state.read_text())
    for name in ("version", "validation", "bases"):
        del old[name]
    state.write_text(json.dumps(old))
    run = trainer._Run(config)
    dataset = run._datasets()["image"]
    before = BatchStream([()] * 4, [""] * 4, 2, run.order, "image", by_file=True)
    assert [dataset.stream.batch(place) for place in range(6)] == [before.batch(place) for place in range(6)]
    assert run.version == 1
    run._save()
    assert json.loads(state.read_text())["version"] == 1  # for good


def test_a_run_goes_on_after_data_and_model_were_moved(quick, tmp_path, tiny_model):
    table = training_data.write_all(tmp_path / "data", 2)
    rows = [training_data.write_pair(table.parent, "held", 9, frames=1)]
    held = training_data.write_table(table.parent, rows, "held.csv")
    given = {"model": str(shutil.copytree(tiny_model / "released", tmp_path / "model")), "cache": ""}
    given |= {"data": (str(table),), "validation_data": (str(held),), "validate_every": 0}
    config = quick("tiny_stage1", steps=1, **given)
    trainer.train(config)
    moved, there = (shutil.move(tmp_path / name, tmp_path / f"moved_{name}") for name in ("data", "model"))
    given = {"model": str(there), "data": (f"{moved}/rows.csv",), "validation_data": (f"{moved}/held.csv",)}
    config = config.replace(steps=2, **given)
    trainer.train(config)
    assert len(losses(config)) == 2
    with pytest.raises(ValueError, match="The data have changed"):
        trainer.train(config.replace(steps=3, validation_data=(f"{moved}/rows.csv",)))
    other = shutil.copytree(there, tmp_path / "other")
    weights = next(other.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"other settings \(model is"):
        trainer.train(config.replace(steps=3, model=str(other)))


def test_a_run_whose_rate_falls_names_the_way_on(quick):
    trainer.train(quick("tiny_stage1", steps=1, schedule="cosine"))
    with pytest.raises(ValueError, match=r"steps is 1 there and 2 here\); to train on, use --start .+run with another"):
        trainer.train(quick("tiny_stage1", steps=2, schedule="cosine"))


def test_a_run_in_its_own_folder_names_its_files(quick, tmp_path, monkeypatch):
    config = quick("tiny_stage1", steps=1, exports=("comfyui",), output="my_style")
    Path(config.output).mkdir()
    monkeypatch.chdir(config.output)
    (made,) = trainer.train(config.replace(output="."))
    assert made.name == "my_style.safetensors"


def test_sample_clips_of_any_id_have_files_of_their_own(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from training import samples

    monkeypatch.setattr(samples, "decode", lambda model, latents: latents)
    frames = np.zeros((1, 32, 32, 3), np.uint8)
    ids = ["plain-1", "a/1", "a_1", "水" * 300, "水" * 299, "x" * 300]
    sheets = []
    for row_id in ids:
        batch = SimpleNamespace(row_ids=(row_id,), source_latents=frames, latents=frames)
        sheets.append(samples.write(None, batch, frames, tmp_path))
    assert len(set(sheets)) == len(ids) and all(sheet.is_file() for sheet in sheets)
    assert sheets[0].name == "plain-1_sheet.jpg"


def test_a_run_notices_that_its_data_have_changed(quick, tmp_path):
    table = training_data.write_all(tmp_path / "data", 3)
    trainer.train(quick(data=(str(table),), cache="", steps=1))
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"The data have changed since the run .* began"):
        trainer.train(quick(data=(str(table),), cache="", steps=2))


def test_a_broken_validation_row_is_left_out(quick, tmp_path):
    table = training_data.write_all(tmp_path / "data", 3)
    held = training_data.write_all(tmp_path / "held", 1)
    training_data.cut(tmp_path / "held" / "video0_edit.mkv")
    config = quick(data=(str(table),), validation_data=(str(held),), cache="", steps=1, validate_every=1)
    trainer.train(config)
    (last,) = [line for line in metrics.read(Path(config.output)) if "validation/loss" in line and line["step"]]
    assert "validation/kind/image" in last
    assert "validation/kind/video" not in last


def test_published_epochs_end_with_the_smallest_kind(quick, tmp_path):
    rows = [training_data.write_pair(tmp_path / "data", f"i{n}", n, frames=1) for n in range(5)]
    rows += [training_data.write_pair(tmp_path / "data", f"v{n}", n) for n in range(2)]
    table = training_data.write_table(tmp_path / "data", rows)
    seen = {}
    for epochs in ("own", "shortest"):
        config = quick("tiny_stage2", data=(str(table),), cache="", batch_size=1, epochs=epochs, output=epochs)
        run = trainer._Run(config)
        images = run._datasets()["image"]
        seen[epochs] = [images[place].samples[0].row_id for place in range(10)]
    assert len(set(seen["own"][:5])) == 5
    # Two of the five a time, from a new shuffling each.
    assert [len(set(seen["shortest"][place : place + 2])) for place in (0, 2, 4)] == [2, 2, 2]
    assert seen["shortest"][:4] != seen["own"][:4]


def test_an_update_does_not_read_what_was_logged_before(quick, monkeypatch):
    """The log of a long run is large: it is read at the start and for the plots."""
    read, calls = metrics.read, []
    monkeypatch.setattr(metrics, "read", lambda folder: calls.append(folder) or read(folder))
    counts = []
    for steps in (1, 4):
        trainer.train(quick(output=f"of{steps}", steps=steps, kinds=("image",)))
        counts.append(len(calls))
        calls.clear()
    assert counts[0] == counts[1]


def test_noise_levels_are_logged_without_their_weights(quick):
    """They are compared with one another, and with validation."""
    for weights in ("bell", "even"):
        config = quick(steps=3, output=weights, loss_weights=weights)
        trainer.train(config)
        for line in metrics.read(Path(config.output)):
            bands = [value for name, value in line.items() if name.startswith("loss/sigma/")]
            assert all(0.3 < value < 6 for value in bands)  # of noise and data of about one
            if weights == "even":
                assert line["loss/unweighted"] == pytest.approx(line["loss"])


def test_samples_and_validation_are_of_held_out_rows(quick):
    config = quick(steps=2, validation_rows=1, validate_every=1, sample_every=2, sample_rows=1, sample_steps=2)
    trainer.train(config)
    folder = Path(config.output)
    validated = [line for line in metrics.read(folder) if "validation/loss" in line]
    assert [line["step"] for line in validated] == [0, 1, 2]
    assert {"validation/kind/ref", "validation/timestep/500"} <= validated[0].keys()
    sheets = sorted((folder / "samples" / "step-00000002").glob("*_sheet.jpg"))
    assert len(sheets) == 3
    clips = list((folder / "samples" / "step-00000002").glob("*.mp4"))
    assert len(clips) == 2
    assert media.load_video(clips[0]).frames.shape == (training_data.FRAMES, 48, 48, 3)


def test_a_sample_is_what_the_pipeline_samples(built, monkeypatch):
    from training.samples import sample as euler

    drawn, given = sample("ref")
    batch = collate(Encoder(built, "cpu"), [drawn])

    built.eval()
    latents = euler(built, batch, 3)
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: batch.noise.clone())
    wanted = built.pipe(
        given["prompt"], given["source"], Image.fromarray(given["reference"]), 48, 48, num_inference_steps=3,
        output_type="latent", generator=torch.Generator(),
    ).latents  # fmt: skip
    torch.testing.assert_close(latents, wanted, rtol=1e-4, atol=1e-4)


def test_an_export_is_the_model_that_was_trained(quick):
    config = quick(steps=2, exports=("training", "diffusers"), lr=1e-2)
    trainer.train(config)
    folder = Path(config.output) / "exports"
    assert json.loads((folder / "diffusers" / "training.json").read_text())["kiwi_edit.recipe"] == "tiny_stage3"
    clip, reference = training_data.scene(3), training_data.scene(9, 1)[0]
    results = []
    for pipe in (
        KiwiEditPipeline.from_pretrained(folder / "diffusers", dtype=torch.float32),
        _pipe_of_checkpoint(config, folder),
        KiwiEditPipeline.from_pretrained(config.model, dtype=torch.float32),
    ):
        pipe.set_progress_bar_config(disable=True)
        results.append(
            pipe(
                "Make it red.", clip, Image.fromarray(reference), 48, 48, num_inference_steps=2, output_type="latent",
                generator=torch.Generator().manual_seed(0),
            ).latents
        )  # fmt: skip
    diffusers, checkpoint, untrained = results
    assert (diffusers - untrained).abs().max() > 0.1
    assert (diffusers - checkpoint).abs().mean() < 0.02 * (diffusers - untrained).abs().mean()  # one is in bfloat16


def _pipe_of_checkpoint(config, folder):
    model_folder = Path(config.model).parent / "training"
    return KiwiEditPipeline.from_training_checkpoint(
        folder / "training.safetensors", mllm=model_folder / "qwen", vae=model_folder / "vae.safetensors",
        dtype=torch.float32,
    )  # fmt: skip


def test_noise_is_of_the_sample_not_of_the_batch():
    from training.batches import noise_of

    assert torch.equal(noise_of(5, (2, 3)), noise_of(5, [2, 3]))
    assert not torch.equal(noise_of(5, (2, 3)), noise_of(6, (2, 3)))
    assert np.isfinite(noise_of(5, (2, 3)).numpy()).all()
