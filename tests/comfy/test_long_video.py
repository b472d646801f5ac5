"""Clips longer than a window: the sampler's preset, the node, and the stock nodes, against the library's windows."""

import importlib
import inspect

import comfy.context_windows
import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import edit_graph
import numpy as np
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from edit_graph import node

import nodes as stock
from kiwi_core import KiwiEditPipeline, media, schedule, windows

FRAMES, WINDOW, OVERLAP, STEPS, SEED = 29, 13, 8, 2, 3  # 8 latent frames in windows of 4 that share 2
# Older ones show no frame before a window.
ANCHOR = "causal_window_fix" in inspect.signature(comfy.context_windows.IndexListContextHandler.__init__).parameters


@pytest.fixture(scope="module")
def loaded(pack, tmp_path_factory):
    return edit_graph.load(pack, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pipeline(loaded):
    import folder_paths
    import random_model

    folder = folder_paths.models_dir
    pipeline = KiwiEditPipeline.from_single_files(
        **{part: f"{folder}/{path}" for part, path in random_model.FILES.items()}, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(autouse=True)
def same_anchor(monkeypatch):
    if not ANCHOR:
        monkeypatch.setattr(windows, "ANCHOR", 0)


@pytest.fixture(scope="module")
def sampling(pack):
    return pack.nodes.sampling


@pytest.fixture(scope="module")
def dit(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.dit")


@pytest.fixture(scope="module")
def clip():
    return edit_graph.clip(FRAMES, 32, 48)


@pytest.fixture(scope="module")
def edit(loaded, pipeline, clip):
    """A conditioning and a latent of the library's own encodings."""
    raw = loaded.model.model.process_latent_out
    reference = pipeline._encode_references(_pictures(), 32, 48)
    latent = {"samples": raw(pipeline.encode_video(clip))}
    values = {"kiwi_source_latent": latent["samples"], "kiwi_reference_latents": [raw(reference)]}
    return [[pipeline.encode_prompt(edit_graph.PROMPT, clip, _pictures()), values]], latent


def _pictures():
    from PIL import Image

    return [Image.fromarray(edit_graph.pictures()[0])]


def sample(sampling, model, edit, **changes):
    inputs = dict(seed=SEED, steps=STEPS, shift=5.0, denoise=1.0, window_frames=WINDOW, window_overlap=OVERLAP)
    conditioning, latent = edit
    (sampled,) = sampling.KiwiEditSampler.execute(model, conditioning, latent, **inputs | changes)
    return model.model.process_latent_in(sampled["samples"])


def stock_sample(model, edit):
    """With ComfyUI's KSampler."""
    conditioning, latent = edit
    return stock.common_ksampler(model, SEED, 2, 1.0, "euler", "simple", conditioning, conditioning, latent)


def library(pipeline, clip, **changes):
    inputs = dict(window_frames=WINDOW, window_overlap=OVERLAP, num_inference_steps=STEPS, output_type="latent")
    return pipeline(
        edit_graph.PROMPT, clip, _pictures(), generator=torch.Generator().manual_seed(SEED), **inputs | changes
    ).latents


def spied(model, kept=lambda args, kwargs: args[0].shape):
    """A clone of a MODEL, and what its DiT is called with."""
    seen = []

    def spy(executor, *args, **kwargs):
        seen.append(kept(args, kwargs))
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, spy)
    return model, seen


def stock_windows(model, length, overlap, schedule="standard_static", fuse="pyramid", **options):
    model = model.clone()
    model.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule(schedule),
        fuse_method=comfy.context_windows.get_matching_fuse_method(fuse),
        context_length=length, context_overlap=overlap, dim=2, **options,
    )  # fmt: skip
    return model


@pytest.mark.parametrize("total, length, overlap", [(101, 21, 4), (22, 21, 4), (38, 21, 4), (9, 3, 0), (13, 4, 3)])
def test_the_librarys_windows_and_weights_are_comfyuis(loaded, total, length, overlap):
    handler = stock_windows(loaded.model, length, overlap).model_options["context_handler"]
    stock = handler.get_context_windows(None, torch.empty(1, 1, total, 1, 1), {})
    assert [window.index_list for window in stock] == [list(span) for span in windows.split(total, length, overlap)]
    weights = handler.fuse_method.func(length, full_length=total, idxs=stock[0].index_list, handler=handler)
    assert list(weights) == windows.weights(length).tolist()


@pytest.mark.parametrize("changes", [{}, {"window_frames": 9, "window_overlap": 0}, {"window_frames": 17}])
def test_graph_in_windows_gives_the_latents_of_the_library(sampling, loaded, edit, pipeline, clip, changes):
    found = sample(sampling, loaded.model, edit, **changes)
    assert (found - library(pipeline, clip, **changes)).abs().max() < 1e-3
    assert (found - sample(sampling, loaded.model, edit, window_frames=0)).abs().max() > 1e-2


def test_a_clip_of_one_window_is_sampled_at_once(sampling, loaded, edit):
    model, seen = spied(loaded.model)
    one, without = (sample(sampling, model, edit, window_frames=frames) for frames in (FRAMES, 0))
    assert torch.equal(one, without)
    assert {shape[2] for shape in seen} == {8} and len(seen) == 2 * STEPS


def test_the_node_gives_other_samplers_the_same_windows(sampling, loaded, edit):
    conditioning, latent = edit
    (model,) = sampling.KiwiEditContextWindows.execute(loaded.model, WINDOW, OVERLAP)
    assert "context_handler" not in loaded.model.model_options
    noise = comfy.sample.prepare_noise(latent["samples"], SEED)
    found = comfy.sample.sample_custom(
        model, noise, 1.0, comfy.samplers.sampler_object("euler"), schedule.flow_sigmas(STEPS), conditioning,
        conditioning, latent["samples"], disable_pbar=True, seed=SEED,
    )  # fmt: skip
    assert torch.equal(model.model.process_latent_in(found), sample(sampling, loaded.model, edit))


def test_windows_that_are_on_the_model_already_are_kept(sampling, loaded, edit):
    stock = stock_windows(loaded.model, 5, 1, fuse="flat")
    found = sample(sampling, stock, edit)
    assert torch.equal(found, sample(sampling, stock, edit, window_frames=0))
    assert not torch.equal(found, sample(sampling, loaded.model, edit))


def test_each_window_sees_its_source_and_every_reference(sampling, loaded, edit):
    conditioning, latent = edit
    context, values = conditioning[0]
    references = values["kiwi_reference_latents"] * 8  # as many as latent frames
    conditioning = [[context, values | {"kiwi_reference_latents": references}]]
    kept = lambda args, kwargs: (args[0], kwargs["source_latents"], kwargs["reference_latents"])  # noqa: E731
    model, seen = spied(loaded.model, kept)
    sample(sampling, model, (conditioning, latent), steps=1)
    source = model.model.process_latent_in(latent["samples"])
    before = 1 if ANCHOR else 0
    spans = windows.split(8, 4, 2)
    assert len(seen) == len(spans)
    for (x, cut, reference), span in zip(seen, spans):
        shown = slice(max(0, span.start - before), span.stop)
        torch.testing.assert_close(cut, source[:, :, shown], atol=1e-5, rtol=0)
        assert x.shape == cut.shape
        assert reference.shape[2] == 8


def test_the_model_never_sees_more_than_a_window(sampling, loaded, dit):
    """401 frames in windows of 33; the DiT's calls are those of a clip of any length."""
    largest = {}
    for frames in (81, 161, 401):
        latents = torch.randn(1, 16, (frames + 3) // 4, 2, 2, generator=torch.Generator().manual_seed(0))
        edit = [[torch.randn(1, 4, 256), {dit.SOURCE: latents}]], {"samples": latents}
        model, seen = spied(loaded.model)
        found = sample(sampling, model, edit, steps=1, window_frames=33)
        assert found.shape == latents.shape and found.isfinite().all()
        largest[frames] = max(shape[2] for shape in seen)
        assert len(seen) == len(windows.split(latents.shape[2], 9, 2))
    assert set(largest.values()) == {9 + int(ANCHOR)}


# A context for each part of the clip


def parts(edit, count=3, lengths=None):
    """The conditioning with contexts of ``count`` equal parts of the clip."""
    conditioning, latent = edit
    context, values = conditioning[0]
    generator = torch.Generator().manual_seed(7)
    lengths = lengths or [context.shape[1]] * count
    contexts = [torch.randn(1, length, context.shape[2], generator=generator) for length in lengths]
    centres = [(index + 0.5) / count for index in range(count)]
    return [[context, values | {"kiwi_window_contexts": list(zip(centres, contexts))}]], latent, contexts


@pytest.mark.parametrize("lengths", [None, [5, 6, 7]])
def test_a_window_gets_the_context_of_its_part(sampling, loaded, edit, lengths):
    conditioning, latent, contexts = parts(edit, lengths=lengths)
    model, seen = spied(loaded.model, lambda args, kwargs: args[2])
    sample(sampling, model, (conditioning, latent), steps=1, window_overlap=4)
    spans = windows.split(8, 4, 1)  # 0-3, 3-6, 4-7: middles at 0.3, 0.7, 0.8
    assert [span.start for span in spans] == [0, 3, 4]
    assert len(seen) == 3
    for context, part in zip(seen, (0, 2, 2)):
        torch.testing.assert_close(context.float(), contexts[part], atol=1e-6, rtol=0)


def test_without_windows_the_whole_clips_context_is_used(sampling, loaded, edit):
    conditioning, latent, _ = parts(edit)
    assert torch.equal(
        sample(sampling, loaded.model, (conditioning, latent), window_frames=0),
        sample(sampling, loaded.model, edit, window_frames=0),
    )


@pytest.mark.parametrize("window_schedule", ["standard_static", "standard_uniform", "looped_uniform", "batched"])
def test_stock_windows_of_any_schedule_choose_the_context_too(sampling, loaded, edit, window_schedule):
    conditioning, latent, contexts = parts(edit, 2)
    model, seen = spied(stock_windows(loaded.model, 4, 1, window_schedule), lambda args, kwargs: args[2])
    sample(sampling, model, (conditioning, latent), steps=1)
    chosen = [[torch.equal(context.float(), part) for part in contexts] for context in seen]
    assert all(sum(which) == 1 for which in chosen)
    assert {which.index(True) for which in chosen} == {0, 1}


def test_contexts_of_other_lengths_do_not_break_guidance(sampling, loaded, edit):
    conditioning, latent, _ = parts(edit, lengths=[5, 6, 7])
    negative = edit[0]
    found = sample(sampling, loaded.model, (conditioning, latent), cfg=2.0, negative=negative)
    plain = sample(sampling, loaded.model, (conditioning, latent))
    assert found.isfinite().all() and not torch.equal(found, plain)


@pytest.mark.parametrize("width", [2, 8])
def test_a_context_is_never_cut(sampling, loaded, dit, width):
    """Not even where one of its sizes is the number of latent frames."""
    handler = stock_windows(loaded.model, 4, 1).model_options["context_handler"]
    handler._model = loaded.model.model
    x = torch.zeros(1, 16, 8, 2, 2)
    (window, *_) = handler.get_context_windows(None, x, {})
    context = comfy.conds.CONDRegular(torch.zeros(1, width, 8))
    (resized,) = handler.get_resized_cond([{"model_conds": {"c_crossattn": context}}], x, window)
    assert resized["model_conds"]["c_crossattn"].cond.shape == (1, width, 8)


# What does not go together


@pytest.mark.parametrize("where", ["ours", "stock"])
@pytest.mark.parametrize("sampler", ["ours", "stock"])
def test_easycache_is_refused_in_windows(sampling, loaded, edit, where, sampler):
    easycache = importlib.import_module("comfy_extras.nodes_easycache")

    def run(node, windowed=True):
        (model,) = node.execute(loaded.model, 0.2, 0.15, 0.95, False)
        if sampler == "ours" and where == "ours":
            return sample(sampling, model, edit, **{} if windowed else {"window_frames": FRAMES})
        if windowed and where == "ours":
            (model,) = sampling.KiwiEditContextWindows.execute(model, WINDOW, OVERLAP)
        elif windowed:
            model = stock_windows(model, 4, 1)
        if sampler == "ours":
            return sample(sampling, model, edit, **{} if windowed else {"window_frames": 0})
        return stock_sample(model, edit)[0]["samples"]

    with pytest.raises(ValueError, match="EasyCache") as refused:
        run(easycache.EasyCacheNode)
    assert str(refused.value).count(". ") == 0
    assert run(easycache.EasyCacheNode, windowed=False).isfinite().all()
    assert run(easycache.LazyCacheNode).isfinite().all()


@pytest.mark.parametrize(
    "changes, sentence", [({"window_frames": 3}, "too short"), ({"window_overlap": 16}, "lower it")]
)
def test_windows_that_cannot_be_are_refused(sampling, loaded, edit, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        sample(sampling, loaded.model, edit, **changes)


def test_several_clips_at_once_are_refused_in_windows_only(sampling, loaded, edit):
    conditioning, latent = edit
    both = conditioning, {"samples": latent["samples"].repeat(2, 1, 1, 1, 1)}
    with pytest.raises(ValueError, match="2 clips were given and windows take one; choose one with Latent From Batch"):
        sample(sampling, loaded.model, both)
    assert len(sample(sampling, loaded.model, both, steps=1, window_frames=0)) == 2
    (windowed,) = sampling.KiwiEditContextWindows.execute(loaded.model, WINDOW, OVERLAP)
    with pytest.raises(ValueError, match="2 clips were given and windows take one"):
        stock_sample(windowed, both)


def test_cancel_stops_within_a_window(sampling, loaded, edit):
    calls = []

    def cancel(args, kwargs):
        calls.append(1)
        comfy.model_management.interrupt_current_processing()

    model, _ = spied(loaded.model, cancel)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(sampling, model, edit)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert len(calls) == 1
    assert sample(sampling, loaded.model, edit).isfinite().all()


def test_every_step_shows_a_preview(sampling, loaded, edit, monkeypatch):
    shown = []
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: shown.append((value, total, preview))
    )
    sample(sampling, loaded.model, edit)
    assert {(value, total) for value, total, preview in shown if preview} == {(1, STEPS), (2, STEPS)}


# In the server


@pytest.fixture(scope="module")
def graph(server, tmp_path_factory):
    graph = edit_graph.EditGraph(server, tmp_path_factory.mktemp("graph"))
    folder = tmp_path_factory.mktemp("long")
    long = edit_graph.clip(401, 32, 48)
    server.put_input(media.save_video(folder / "long.mkv", long, 24, crf=0), "long.mkv")
    return graph


def long_prompt(graph, **sampler):
    prompt = graph.prompt()
    prompt["video"]["inputs"]["file"] = "long.mkv"
    prompt["prepared"]["inputs"] |= {"max_frames": 401, "max_pixels": 16384}
    prompt["sampled"]["inputs"] |= {"steps": 1} | sampler
    return prompt


def test_401_frames_run_from_end_to_end(graph):
    prompt = long_prompt(graph)
    prompt["decoded"] = node("VAEDecode", samples=["sampled", 0], vae=["vae", 0])
    prompt["matched"] = node(
        "KiwiEditMatchColours", frames=["decoded", 0], source=["prepared", 0], strength=1.0
    )
    prompt["finished"] = node("KiwiEditFinishVideo", frames=["matched", 0], original=["video", 0])
    prompt["saved"] = node(
        "SaveVideo", video=["finished", 0], filename_prefix="long", format="mp4", codec="h264"
    )
    values = []

    def listen(kind, data):
        if kind == "progress" and data.get("node") == "sampled":
            values.append(data["value"])

    (path,) = graph.server.output_files(graph.run(prompt, "saved", on_event=listen))
    found = media.load_video(path)
    assert found.frames.shape == (401, 32, 48, 3) and found.frame_rate == 24
    assert values[-1] == 1
    assert np.ptp(found.frames.astype(int)) > 10
