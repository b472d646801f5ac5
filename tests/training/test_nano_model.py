"""The small model's parts: the VAE's whole-clip pass is the walk over chunks, every step goes on, all fits together."""

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from lock_holder import held

from kiwi_core import vae as vae_ops
from kiwi_core.checkpoints import files, released, single_files
from kiwi_core.checkpoints.lazy import load
from kiwi_core.checkpoints.vae_keys import LATENTS_MEAN
from kiwi_core.mllm import SYSTEM_PROMPT
from kiwi_core.pipeline import KiwiEditPipeline
from training import base, batches, model
from training.data.loader import Sample
from training.encode import Encoder
from training.model import At
from training.nano import (
    ablations,
    autoencoder,
    bench,
    build,
    edits,
    feed,
    language,
    pretraining,
    tokens,
    words,
    world,
)
from training.nano.__main__ import Bench, measure

SHIPPED = Path(__file__).parents[2] / "models" / "diffusers" / "kiwi-edit-nano"
TINY = {
    "scale": 0.0005, "rows": (12_000, 16_000, 12_000, 8000), "batch_size": 2, "clips": 2, "pictures": 2, "questions": 4,
    "workers": 0, "device": "cpu", "fused": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return autoencoder.new().requires_grad_(False)


@pytest.fixture(scope="module")
def clips():
    return feed.pixels(feed.ClipFeed(2, 2, 0, 0)[1], torch.device("cpu"))


def test_windows_at_once_give_what_they_give_one_by_one():
    torch.manual_seed(0)
    visual = language.new(tokens.build()).visual
    grids = torch.tensor([[1, 8, 8], [3, 8, 8], [1, 4, 4], [1, 8, 12]])
    pixels = torch.randn(int(grids.prod(1).sum()), 1176)
    parameters, expected = dict(visual.named_parameters()), visual(pixels, grid_thw=grids).pooler_output
    expected.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    visual.zero_grad()
    with language.windows_at_once(visual):
        made = visual(pixels, grid_thw=grids).pooler_output
    made.square().sum().backward()
    assert dict(visual.named_parameters()).keys() == parameters.keys()
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-3, rtol=1e-3)


def test_whole_clips_give_what_the_walk_over_chunks_gives(vae, clips):
    walked = vae_ops.encode(vae, clips)
    decoded = vae_ops.decode(vae, walked)
    for fused in (False, True):
        # What is compiled is the same in eager mode, without the minute that it takes.
        with autoencoder.whole_clips(vae, fused), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            mean = vae.quant_conv(vae.encoder(clips)).chunk(2, dim=1)[0]
            made = vae.decoder(vae.post_quant_conv(vae_ops.denormalize(vae, walked)))
        assert torch.allclose(vae_ops.normalize(vae, mean), walked, atol=1e-5)
        assert torch.allclose(made, decoded, atol=1e-4)
    assert torch.equal(vae_ops.encode(vae, clips), walked)  # and the layers are as they were


def test_folded_statistics_change_the_latents_scale_and_nothing_else(clips):
    torch.manual_seed(0)
    vae = autoencoder.new().requires_grad_(False)
    with autoencoder.whole_clips(vae):
        raw = vae.quant_conv(vae.encoder(clips)).chunk(2, dim=1)[0]
        before = vae.decoder(vae.post_quant_conv(raw))
    rows = raw.transpose(0, 1).flatten(1)
    autoencoder.fold_statistics(vae, rows.mean(dim=1), rows.std(dim=1))
    latents = vae_ops.encode(vae, clips)
    channels = latents.transpose(0, 1).flatten(1)
    assert torch.allclose(channels.mean(dim=1), torch.zeros(16), atol=1e-4)
    assert torch.allclose(channels.std(dim=1), torch.ones(16), atol=1e-4)
    assert torch.allclose(vae_ops.decode(vae, latents), before, atol=1e-4)
    assert list(vae.config.latents_mean) == list(LATENTS_MEAN[16])  # ComfyUI's, which it fixes


def test_the_tokenizer_is_short_and_always_the_same():
    tokenizer = tokens.build()
    assert tokenizer.to_str() == tokens.build().to_str()
    assert len(tokenizer.encode(SYSTEM_PROMPT).ids) < 30
    for category in (*edits.CATEGORIES, *edits.REFERENCE_CATEGORIES):
        for split in edits.SPLITS:
            text = edits.draw(category, edits.BENCH_SEEDS, split).prompt
            assert tokenizer.decode(tokenizer.encode(text).ids) == text
            assert len(tokenizer.encode(text).ids) < 24


def test_a_question_has_its_answer_behind_it():
    tokenizer = tokens.build()
    batch = language.QuestionFeed(tokenizer, 6, seed=3)[0]
    pictures = sum(batch.ids == kind for kind in language.pad_ids(tokenizer)).bool()
    assert int(batch.grids.prod(dim=1).sum()) == len(batch.pixels) == 4 * int(pictures.sum())
    for ids, labels in zip(batch.ids, batch.labels):
        places = (labels >= 0).nonzero().flatten()
        assert torch.equal(labels[places][:-1], ids[places + 1][:-1])
        said = tokenizer.decode(labels[places].tolist())
        assert said
        assert tokenizer.decode(ids[: places[0] + 1].tolist()).endswith("assistant\n")


def test_the_outcome_names_what_the_instruction_only_hints_at():
    for number in range(20):
        edit = edits.draw("local_remove", number)
        assert words.outcome(edit) == f"no {words.name_thing(edit.before.things[edit.thing])}"
        edit = edits.draw("subject_reference", number)
        assert words.describe_thing(edit.after.things[edit.thing]) in words.outcome(edit)


class _Numbers(torch.utils.data.Dataset):
    def __getitem__(self, step):
        return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def _pretrain(folder, stop=None):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)

    def loss(batch):
        if stop is not None and torch.equal(batch, _Numbers()[stop]):
            raise KeyboardInterrupt
        return (model(batch) - batch.flip(1)).square().mean(), {"size": float(batch.numel())}

    schedule = pretraining.Schedule(30, 1e-2, warmup_steps=5, save_every=10)
    return pretraining.train(folder, model, _Numbers(), loss, schedule, torch.device("cpu"), 0)


def test_a_stopped_part_ends_with_the_bits_of_one_that_was_not(tmp_path):
    whole = _pretrain(tmp_path / "whole" / "part").state_dict()
    with pytest.raises(KeyboardInterrupt):
        _pretrain(tmp_path / "stopped" / "part", stop=23)
    goes_on = _pretrain(tmp_path / "stopped" / "part").state_dict()
    assert all(torch.equal(whole[name], goes_on[name]) for name in whole)
    logs = [(tmp_path / name / "part" / "metrics.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    assert len(logs[0]) == len(logs[1]) == 3
    assert (tmp_path / "whole" / "part" / "loss.png").is_file()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    plan = build.Plan(output=tmp_path_factory.mktemp("nano"), **TINY)
    return plan, build.train(plan)


def test_all_steps_lead_to_a_model_in_every_layout(trained, tmp_path):
    _, folder = trained
    pipe = KiwiEditPipeline.from_pretrained(folder, torch.float32)
    assert pipe.mllm_encoder.limits.min_pixels_per_frame == 112 * 112
    edit = edits.draw("subject_reference", 0)

    def edited(pipe):
        generator = torch.Generator().manual_seed(0)
        reference = edit.reference_picture()
        video = world.render(edit.before)
        return pipe(edit.prompt, video, reference, num_inference_steps=2, generator=generator).frames

    frames = edited(pipe)
    assert frames.shape == (9, 64, 64, 3)
    paths = {part: tmp_path / f"{part}.safetensors" for part in ("model", "vae", "mllm", "connector")}
    single_files.write(pipe.to_parts(), **paths)
    again = KiwiEditPipeline.from_single_files(**paths, dtype=torch.float32)
    assert np.abs(edited(again).astype(int) - frames).max() <= 1  # one level, where a CPU rounds otherwise


def test_the_decoder_alone_is_trained_on_so_that_latents_stay_what_they_were(trained):
    plan, folder = trained
    before = files.load_tensors(plan.output / "vae" / "vae.safetensors")
    after = {name: load(tensor) for name, tensor in released.read(folder).vae.items()}
    assert after.keys() == before.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name].to(tensor.dtype))}
    kept = {name for name in after if name.startswith(("encoder.", "conv1."))}
    assert kept and not changed & kept
    assert changed > {name for name in after if name.endswith("weight")} - kept


def test_what_comes_with_the_project_fits_into_sixteen_megabytes_with_its_logs():
    assert 14_000_000 < sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 16_000_000


def test_a_trained_model_is_packed_in_16_bits_with_its_logs(trained):
    plan, folder = trained
    assert 14_000_000 < sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 15_500_000
    parts = released.read(folder)
    kinds = {part: {load(one).dtype for one in getattr(parts, part).values()} for part in ("vae", "transformer")}
    assert kinds == {"vae": {torch.float16}, "transformer": {torch.bfloat16}}
    beside = {path.name for path in (folder / "training").iterdir()}
    assert beside >= {f"{step}{end}" for step in build.STAGES for end in (".json", ".jsonl", ".png")} | {"plan.json"}
    assert not any(str(plan.output) in path.read_text() for path in (folder / "training").glob("*.json"))


def test_steps_that_are_done_are_not_done_again(trained):
    plan, folder = trained
    before = {path: path.stat().st_mtime_ns for path in plan.output.rglob("*.safetensors")}
    assert build.train(plan) == folder
    assert {path: path.stat().st_mtime_ns for path in plan.output.rglob("*.safetensors")} == before


@pytest.mark.parametrize("failing", ["", "language"])
def test_on_a_gpu_each_step_begins_when_what_it_needs_is_done(tmp_path, monkeypatch, failing):
    begun = []

    class Process:
        """Ends when it is asked, as a step of its name would."""

        def __init__(self, command):
            self.name, self.returncode = command[3], None
            begun.append((self.name, set(build._done(plan))))

        def poll(self):
            self.returncode = int(self.name == failing)
            if not self.returncode:
                (tmp_path / f"done-{self.name}.json").write_text(json.dumps({self.name: {}}))
            return self.returncode

    plan = build.Plan(output=tmp_path, **TINY)
    monkeypatch.setattr(build.Plan, "torch_device", torch.device("cuda"))
    monkeypatch.setattr(build.subprocess, "Popen", Process)
    monkeypatch.setattr(build.time, "sleep", lambda seconds: None)
    if failing:
        with pytest.raises(build.Failed, match="The step language failed"):
            build.train(plan)
        assert not {"encoders", "base", "stage1"} & {name for name, _ in begun}
    else:
        assert build.train(plan) == tmp_path / "kiwi-edit-nano"
        assert sorted(name for name, _ in begun) == sorted(build.STEPS)  # each once
        at = dict(begun)
        assert at["language"] == at["rows"] == set()
        assert at["stage2"] >= {"stage1", "cache-video"}
        assert at["base"] >= {"vae", "language", "backbone"}


def test_no_step_outlives_a_stopped_training(tmp_path, monkeypatch):
    ended = []

    class Process:
        """Goes on until it is ended."""

        def __init__(self, command):
            self.name, self.returncode = command[3], None

        def poll(self):
            return None

        def terminate(self):
            ended.append(self.name)

        def wait(self):
            assert self.name in ended

    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(build.Plan, "torch_device", torch.device("cuda"))
    monkeypatch.setattr(build.subprocess, "Popen", Process)
    monkeypatch.setattr(build.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        build.train(build.Plan(output=tmp_path, **TINY))
    assert sorted(ended) == ["language", "rows", "vae"]


def test_another_plan_is_not_taken_for_the_one_that_was_begun(trained):
    plan, folder = trained
    assert build.train(dataclasses.replace(plan, workers=1)) == folder
    with pytest.raises(ValueError, match=r"begun with another language_steps \(2500 there, 9 here\)"):
        build.train(dataclasses.replace(plan, language_steps=9))


def test_a_step_is_one_processs_at_a_time(tmp_path):
    plan = build.Plan(output=tmp_path, **TINY)
    with (
        held(tmp_path / ".language.lock"),
        pytest.raises(ValueError, match="Another process does the step language in"),
    ):
        build.do(plan, "language")
    build.do(plan, "language")
    assert (tmp_path / "language" / "qwen.safetensors").is_file()


def test_a_plan_survives_its_command_line():
    plan = build.Plan(output=Path("somewhere"), **TINY | {"rows": (1, 2, 3, 4), "stage_steps": (4, 5, 6)})
    assert tyro.cli(build.Plan, args=build._arguments(plan)) == plan


def test_the_vae_is_saved_with_the_names_that_comfyui_reads(trained):
    plan, _ = trained
    assert "encoder.conv1.weight" in files.load_tensors(plan.output / "vae" / "vae.safetensors")


def test_the_benchmark_measures_a_model_beside_what_bounds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "COUNTS", {"seen": 1})
    options = Bench(model=SHIPPED, output=tmp_path / "bench", steps=1)
    text = measure(options)
    for system in ("ceiling", "copy", "random weights", "model", "wrong reference"):
        assert f"## {system}" in text
    lines = [json.loads(line) for line in (tmp_path / "bench" / "results.jsonl").read_text().splitlines()]
    by_item = {(line["system"], line["item"]): line for line in lines}
    for item in bench.items({"seen": 1}):
        if item.edit.category != "global_style":  # of which everything is to change
            assert by_item["copy", item.name]["preservation_psnr"] == math.inf
        # In one step it edits badly, but better than with the same numbers in another order.
        order = [by_item[system, item.name]["region_psnr"] for system in ("ceiling", "model", "random weights")]
        assert order == sorted(order, reverse=True)
    assert {name for system, name in by_item if system == "wrong reference"} == {
        "subject_reference/seen/000", "background_reference/seen/000",
    }  # fmt: skip
    with pytest.raises(SystemExit, match="There is no system 'modell'"):
        measure(dataclasses.replace(options, systems=("modell",)))
    with pytest.raises(ValueError, match="begun with another steps"):
        measure(dataclasses.replace(options, steps=2))


def ablated(plan, **changes):
    given = {field.name: getattr(plan, field.name) for field in dataclasses.fields(build.Plan)}
    return ablations.Plan(**given | {"updates": (2, 1, 1), "seeds": (0,)} | changes)


def test_the_ablations_are_trained_measured_and_reported_once(trained, monkeypatch):
    plan, _ = trained
    monkeypatch.setattr(ablations, "COUNTS", {"seen": 1})
    monkeypatch.setattr(bench, "STEPS", 1)
    chosen = (
        "everything", "without the reference latents", "all in one stage", "stages 1 and 2",
        "without learnable queries", "the source added as it is",
    )  # fmt: skip
    plan = ablated(plan, variants=chosen)
    table = ablations.run(plan).splitlines()
    assert [sum(line.startswith(f"| {name} |") for line in table) for name in chosen] == [2] * 6  # success and loss
    measured = {
        name: files.read_json(plan.output / "ablations" / f"{name.replace(' ', '-')}-0" / "measured.json")
        for name in chosen
    }
    assert measured["everything"]["loss"].keys() == set(bench.CATEGORIES)
    assert all(0 < loss < 10 for loss in measured["everything"]["loss"].values())
    assert measured["everything"] != measured["without the reference latents"]
    # How instructions are followed is compared before references are taught.
    without = [measured[name] for name in ("without learnable queries", "the source added as it is")]
    for one in (measured["stages 1 and 2"], *without):
        assert one["loss"].keys() == set(edits.CATEGORIES)
    assert measured["stages 1 and 2"] not in without
    assert not torch.equal(*(
        load(released.read(plan.output / base).connector["connector.0.weight"]) for base in ("base", "base-words")
    ))  # fmt: skip
    folder = plan.output / "ablations"
    made = {path.relative_to(folder).as_posix() for path in folder.glob("*/stage*")}
    # What comes before a variant differs is trained once, for all.
    assert {name for name in made if "reference-latents" in name} == {"without-the-reference-latents-0/stage3"}
    assert {name for name in made if name.endswith("stage1")} == {
        "everything-0/stage1", "without-learnable-queries-0/stage1",
    }  # fmt: skip
    assert not any(name.startswith("stages-1-and-2") for name in made)
    steps = [files.read_json(folder / name / "config.json")["steps"] for name in made if name.startswith("all-in-one")]
    assert steps == [(2 * 1 + 1 * 2 + 1 * 3) // 3]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert ablations.run(plan).splitlines() == table
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before
    with pytest.raises(ValueError, match="There is no variant 'everythin'; there are 'stages 1 and 2', "):
        ablations.run(dataclasses.replace(plan, variants=("everythin",)))
    # Results of other settings are not put into one table with these.
    with pytest.raises(ValueError, match="begun with another updates"):
        ablations.run(dataclasses.replace(plan, updates=(2, 2, 1)))


def test_stage_3_alone_is_ablated_from_a_released_model(trained, tmp_path, monkeypatch):
    plan, model = trained
    monkeypatch.setattr(ablations, "COUNTS", {"seen": 1})
    monkeypatch.setattr(bench, "STEPS", 1)
    chosen = ("everything", "references alone in stage 3")
    started = ablated(plan, output=tmp_path, start=str(model), variants=chosen)
    table = ablations.run(started).splitlines()
    assert [sum(line.startswith(f"| {name} |") for line in table) for name in chosen] == [2, 2]
    assert {path.name for path in (tmp_path / "ablations").glob("*/stage*")} == {"stage3"}
    given, begun = released.read(model), released.read(tmp_path / "base-new-references")
    assert torch.equal(load(begun.transformer["proj_out.weight"]), load(given.transformer["proj_out.weight"]))
    assert torch.equal(load(begun.connector["connector.0.weight"]), load(given.connector["connector.0.weight"]))
    assert not torch.equal(load(begun.connector["ref_queries"]), load(given.connector["ref_queries"]).float())
    assert not any(load(tensor).any() for tensor in begun.ref_embedder.values())
    with pytest.raises(ValueError, match="There is no variant 'without learnable queries'"):
        ablations.run(dataclasses.replace(started, variants=("without learnable queries",)))
    with pytest.raises(ValueError, match="begun with another start"):
        ablations.run(dataclasses.replace(started, start=str(tmp_path / "base-new-references")))


def test_without_pictures_there_are_none_with_a_reference_either(trained):
    plan, _ = trained
    plan = ablated(plan, start="a folder")
    known = {variant.name: variant for variant in ablations.variants(plan)}

    def kinds(name):
        data = ablations.config(plan, known[name], 0, "stage3").data
        return {path.parent.name.rsplit("-", 2)[0] for table in data for path in Path("/").glob(table.lstrip("/"))}

    assert kinds("everything") == {"image", "video", "ref", "ref-image"}
    assert kinds("without pictures in stage 3") == {"video", "ref"}
    assert kinds("references alone in stage 3") == {"ref", "ref-image"}


@pytest.mark.parametrize(
    ("mine", "said"),
    [((0.2, 0.3), "agrees"), ((0.6, 0.7), "disagrees"), ((0.5, 0.4), "undecided"), ((0.5, 0.5), "undecided")],
)
def test_the_table_says_whether_all_seeds_go_the_papers_way(tmp_path, mine, said):
    plan = ablations.Plan(output=tmp_path, start="a folder")
    for name, values in {"everything": (0.5, 0.5), "without the reference connector": mine}.items():
        for seed, value in enumerate(values):
            numbers = dict.fromkeys(bench.CATEGORIES, value)
            path = ablations._folder(plan, name, seed) / ablations.MEASURED
            files.save_json({ablations.SUCCESS: numbers, ablations.LOSS: dict.fromkeys(numbers, 0.1)}, path)
    success, loss = [line for line in ablations.report(plan).splitlines() if "reference connector" in line]
    assert f"| {said}: " in success
    assert "| undecided: +0.0 (seeds +0.0, +0.0) |" in loss


def test_the_curriculum_starts_with_connectors_that_tell_colours_apart(trained):
    plan, _ = trained
    pipe = KiwiEditPipeline.from_pretrained(plan.output / build.BASE, torch.float32)
    states, contexts = [], []
    pipe.mllm_encoder.connector.connector.register_forward_hook(
        lambda _, given, made: (states.append(given[0][0]), contexts.append(made[0]))
    )
    with torch.no_grad():
        for seed in range(60):
            edit = edits.draw("local_change", seed)
            pipe.mllm_encoder(pipe.mllm_encoder.prepare(edit.prompt, world.render(edit.before)))

    def quiet(rows):
        """How far the tenth direction is below the loudest."""
        strengths = torch.linalg.svdvals(torch.cat(rows) - torch.cat(rows).mean(dim=0))
        return strengths[9] / strengths[0]

    assert quiet(contexts) > 2 * quiet(states)
    assert 0.1 < torch.cat(contexts).square().mean().sqrt() < 0.6


@pytest.fixture(scope="module")
def ref_batch(trained):
    """What an ablated model is given, and a way to build one whose embedders and connectors say something."""
    plan, _ = trained
    config = build.stage_config(plan, "stage3", start="")
    parts, start = base.read(config)

    def build_model(model_class):
        built = model.from_parts(parts, config, start, model_class).eval()
        torch.manual_seed(1)
        for name, parameter in built.named_parameters():
            if "vae_condition" in name or "connector" in name:
                parameter.data.normal_(std=0.1)
        return built

    sample = sample_of("subject_reference", 0)
    return batches.collate(Encoder(build_model(model.KiwiModel), "cpu"), [sample]), build_model


def sample_of(category, seed):
    edit = edits.draw(category, seed)
    return Sample(
        "row", "ref" if edit.reference else "video", edit.prompt, 500, seed, 0, 1.0, None,
        world.render(edit.before), world.render(edit.after), edit.reference_picture(),
    )  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")])])  # fmt: skip
def test_samples_of_a_cache_and_new_ones_make_one_batch(ref_batch, device):
    _, build_model = ref_batch
    encoder = Encoder(build_model(model.KiwiModel), device)
    new = batches.collate(encoder, [sample_of("subject_reference", seed) for seed in range(2)])
    mixed = [sample_of("subject_reference", seed) for seed in range(2)]
    batches.encode(encoder, mixed[:1])
    mixed[0].encoded = mixed[0].encoded.to(torch.device("cpu"))
    mixed = batches.collate(encoder, mixed)
    for name in ("latents", "source_latents", "reference_latents", "noise"):
        torch.testing.assert_close(getattr(mixed, name), getattr(new, name), atol=1e-5, rtol=1e-5)
        assert getattr(mixed, name).device.type == device


@torch.no_grad()
def test_each_ablation_leaves_out_what_it_is_named_for(ref_batch):
    batch, build_model = ref_batch
    other = replace(batch, reference_latents=batch.reference_latents + 1)
    whole, without = build_model(model.KiwiModel), build_model(ablations.WithoutReferenceLatents)
    assert whole(batch) != whole(other)
    assert without(batch) == without(other)

    seen = whole(batch, context_only=True)
    assert seen.shape[1] == 16 + 16
    assert build_model(ablations.WithoutReferenceConnector)(batch, context_only=True).shape[1] == 16

    words_alone = build_model(ablations.WithoutQueries)
    before = words_alone(batch, context_only=True)
    for each in (whole, words_alone):
        each.mllm.connector.ref_queries.data.normal_()
    assert torch.equal(words_alone(batch, context_only=True), before)
    assert not torch.equal(whole(batch, context_only=True), seen)

    # Far down the noise, the scaled source has all but gone; the plain one has not.
    late = replace(batch, timestep_ids=torch.tensor([999]), context=seen)
    gone = replace(late, source_latents=late.source_latents + 1)
    plain = build_model(ablations.PlainSource)
    whole = build_model(model.KiwiModel)
    points = [At(late.noise, torch.tensor([0.001]))] * 2
    faded, kept = ((each(late, points[0]) - each(gone, points[1])).abs().mean() for each in (whole, plain))
    assert faded < kept / 100
