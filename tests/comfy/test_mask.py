"""A mask limits the edit, and outside of it the source comes through to the byte: in the graph."""

import edit_graph
import numpy as np
import pytest
import torch
from edit_graph import FRAMES, PROMPT, SEED, STEPS, node
from PIL import Image

from kiwi_core import KiwiEditPipeline, masks, media


@pytest.fixture(scope="module")
def nodes(pack):
    return pack.nodes.mask


def box(top, left, bottom, right, height=64, width=96):
    mask = torch.zeros(height, width)
    mask[top:bottom, left:right] = 1
    return mask


def moving(frames=FRAMES):
    return torch.stack([box(16, 4 * index, 48, 4 * index + 40) for index in range(frames)])


def latent(frames=3, height=8, width=12):
    return {"samples": torch.zeros(1, 16, frames, height, width), "kept": "as it is"}


# Edit Mask


def test_the_latent_gets_a_mask_of_its_own_size(nodes):
    (found,) = nodes.KiwiEditMask.execute(latent(), moving(), 0)
    assert found["kept"] == "as it is"
    assert torch.equal(found["noise_mask"], masks.latent_mask(moving() >= 0.5, 3, 8, 12, 0).float())
    assert found["noise_mask"].shape == (1, 1, 3, 8, 12)


@pytest.mark.parametrize("mask", [box(16, 0, 48, 40), box(16, 0, 48, 40)[None], box(8, 0, 24, 20, 32, 48)[None]])
def test_one_mask_of_any_size_serves_the_clip(nodes, mask):
    (found,) = nodes.KiwiEditMask.execute(latent(), mask, 0)
    for frame in found["noise_mask"][0, 0]:
        assert frame.nonzero().tolist() == [[row, column] for row in range(2, 6) for column in range(5)]


def test_grow_widens_it(nodes):
    small, large = (
        nodes.KiwiEditMask.execute(latent(), box(16, 16, 24, 24), grow)[0]["noise_mask"].sum() for grow in (0, 8)
    )
    assert (small, large) == (3, 27)


@pytest.mark.parametrize(
    "mask, sentence", [(moving(5), "5 frames and the clip 9"), (torch.zeros(1, 64, 96), "mask is empty")]
)
def test_a_mask_that_does_not_fit_is_told_in_a_sentence(nodes, mask, sentence):
    clip = torch.zeros(9, 64, 96, 3)
    for run in (
        lambda: nodes.KiwiEditMask.execute(latent(), mask, 8),
        lambda: nodes.KiwiEditComposite.execute(clip, clip, mask, 8),
    ):
        with pytest.raises(ValueError, match=sentence) as refused:
            run()
        assert str(refused.value).count(". ") == 0


def test_what_edit_mask_takes_the_others_take_too(nodes, pack):
    clip, short = torch.rand(9, 64, 96, 3), moving(7)
    nodes.KiwiEditMask.execute(latent(), short, 8)
    assert len(nodes.KiwiEditComposite.execute(clip, clip, short, 8)[0]) == 9
    assert len(pack.nodes.colour.KiwiEditMatchColours.execute(clip, clip, 1.0, short)[0]) == 9


# Composite


@pytest.mark.parametrize("size", [(64, 96), (32, 48), (70, 100)])
@pytest.mark.parametrize("mask", [box(16, 20, 48, 60), moving()], ids=["picture", "clip"])
def test_outside_the_mask_the_sources_floats_come_through(nodes, mask, size):
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(FRAMES, 64, 96, 3, generator=generator)
    frames = torch.rand(FRAMES, *size, 3, generator=generator)
    (found,) = nodes.KiwiEditComposite.execute(frames, source, mask, 8)
    assert found.shape == source.shape
    inside = (mask >= 0.5).expand(FRAMES, 64, 96)
    assert torch.equal(found[~inside], source[~inside])
    assert (found[inside] != source[inside]).float().mean() > 0.9
    if size == (64, 96):
        torch.testing.assert_close(found[0, 28:36, 30], frames[0, 28:36, 30])  # ten pixels from every edge


def test_the_result_has_the_length_of_the_trimmed_edit(nodes):
    source, padded = torch.rand(7, 64, 96, 3), torch.rand(9, 64, 96, 3)
    for mask in (moving(7), moving(9), box(0, 0, 8, 8)):
        assert len(nodes.KiwiEditComposite.execute(padded, source, mask, 4)[0]) == 7
    assert len(nodes.KiwiEditComposite.execute(padded[:5], source, moving(7), 4)[0]) == 5  # a clip cut by max_frames


def test_half_precision_frames_are_taken(nodes):
    source, frames = torch.zeros(2, 64, 96, 3).half(), torch.ones(2, 64, 96, 3)
    (found,) = nodes.KiwiEditComposite.execute(frames, source, box(16, 16, 48, 48), 1)
    assert found.dtype == torch.float16 and found[0, 32, 15:18, 0].tolist() == [0, 0.5, 1]


def test_the_source_is_not_changed(nodes):
    source = torch.rand(2, 64, 96, 3)
    before = source.clone()
    nodes.KiwiEditComposite.execute(torch.zeros_like(source), source, box(0, 0, 64, 96), 4)
    assert torch.equal(source, before)


# Against the library


@pytest.fixture(scope="module")
def loaded(pack, tmp_path_factory):
    return edit_graph.load(pack, tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("window", [0, 5])
def test_graph_gives_the_masked_latents_of_the_library(pack, loaded, nodes, reference, window, monkeypatch):
    import comfy.context_windows
    import folder_paths
    import random_model

    if "causal_window_fix" not in comfy.context_windows.IndexListContextHandler.__init__.__code__.co_varnames:
        monkeypatch.setattr("kiwi_core.windows.ANCHOR", 0)
    pipeline = KiwiEditPipeline.from_single_files(
        **{part: f"{folder_paths.models_dir}/{path}" for part, path in random_model.FILES.items()}, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    clip = edit_graph.clip()
    picture = Image.fromarray(edit_graph.pictures()[0]) if reference else None
    wanted = pipeline(
        PROMPT, clip, picture, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(SEED),
        output_type="latent", mask=moving().numpy(), window_frames=window or None, window_overlap=0,
    ).latents  # fmt: skip

    raw = loaded.model.model.process_latent_out
    source = raw(pipeline.encode_video(clip))
    values = {"kiwi_source_latent": source}
    if reference:
        values["kiwi_reference_latents"] = [raw(pipeline._encode_references([picture], 64, 96))]
    conditioning = [[pipeline.encode_prompt(PROMPT, clip, picture), values]]
    (limited,) = nodes.KiwiEditMask.execute({"samples": source}, moving(), masks.GROW)
    (found,) = pack.nodes.sampling.KiwiEditSampler.execute(
        loaded.model, conditioning, limited, SEED, STEPS, 5.0, 1.0, window_frames=window, window_overlap=0
    )
    assert (loaded.model.model.process_latent_in(found["samples"]) - wanted).abs().max() < 1e-3
    kept = (limited["noise_mask"] == 0).expand_as(source)
    torch.testing.assert_close(found["samples"][kept], source[kept], atol=1e-5, rtol=0)


# In the server: PNGs that are compared by the byte


@pytest.fixture(scope="module")
def graph(server, tmp_path_factory):
    graph = edit_graph.EditGraph(server, tmp_path_factory.mktemp("graph"))
    folder = tmp_path_factory.mktemp("masks")
    frames = (moving()[..., None].repeat(1, 1, 1, 3) * 255).to(torch.uint8).numpy()
    server.put_input(media.save_video(folder / "mask.mkv", frames, 12, crf=0), "mask.mkv")
    Image.fromarray(frames[0]).save(server.base_dir / "input" / "mask.png")
    for frame in range(FRAMES):
        Image.fromarray(edit_graph.clip()[frame]).save(server.base_dir / "input" / f"source{frame}.png")
    return graph


def masked(graph, kind, reference=False, sampler="own", multiple=16, window=0):
    """The edit within a mask, and the source's own frames, both saved as PNG."""
    prompt = graph.prompt()
    prompt["prepared"]["inputs"]["multiple"] = multiple
    if kind == "clip":
        prompt["maskvideo"] = node("LoadVideo", file="mask.mkv")
        prompt["maskframes"] = node("GetVideoComponents", video=["maskvideo", 0])
        prompt["mask"] = node("ImageToMask", image=["maskframes", 0], channel="red")
    else:
        prompt["maskpicture"] = node("LoadImage", image="mask.png")
        prompt["mask"] = node("ImageToMask", image=["maskpicture", 0], channel="red")
    prompt["limited"] = node("KiwiEditMask", latent=["source", 1], mask=["mask", 0], grow=8)
    conditioning = ["source", 0]
    if reference:
        prompt["encoded"]["inputs"]["reference"] = ["picture0", 0]
        prompt["referenced"] = node(
            "KiwiEditReferenceImage", conditioning=["source", 0], vae=["vae", 0], latent=["source", 1],
            reference=["picture0", 0],
        )  # fmt: skip
        conditioning = ["referenced", 0]
    own = prompt["sampled"]["inputs"] | {"latent": ["limited", 0], "conditioning": conditioning}
    if sampler == "own":
        prompt["sampled"]["inputs"] = own | {"window_frames": window, "window_overlap": 0}
    else:
        prompt["sampled"] = node(
            "KSampler", model=own["model"], positive=conditioning, negative=conditioning, latent_image=["limited", 0],
            seed=SEED, steps=4, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        )  # fmt: skip
    prompt["decoded"] = node("VAEDecode", samples=["sampled", 0], vae=["vae", 0])
    prompt["composed"] = node(
        "KiwiEditComposite", frames=["decoded", 0], source=["prepared", 1], mask=["mask", 0], feather=4
    )
    prompt["edited"] = node("SaveImage", images=["composed", 0], filename_prefix="edited")
    prompt["original"] = node("SaveImage", images=["prepared", 1], filename_prefix="original")
    files = graph.server.output_files(graph.run(prompt, "edited", "original"))
    pixels = {name: [] for name in ("edited", "original")}
    for path in files:
        pixels[path.name.split("_")[0]].append(np.asarray(Image.open(path)))
    return np.stack(pixels["edited"]), np.stack(pixels["original"])


@pytest.mark.parametrize(
    "options",
    [
        dict(kind="picture"),
        dict(kind="clip"),
        dict(kind="clip", reference=True),
        dict(kind="picture", reference=True, sampler="stock"),
        dict(kind="clip", sampler="stock"),
        dict(kind="clip", multiple=64, reference=True),  # edited at 64x64
        dict(kind="clip", reference=True, window=5),
    ],
    ids=str,
)
def test_outside_the_mask_the_saved_frames_are_the_sources(graph, options):
    edited, original = masked(graph, **options)
    inside = moving().numpy() >= 0.5
    if options["kind"] == "picture":
        inside = np.broadcast_to(inside[:1], inside.shape)
    assert edited.shape == original.shape == (FRAMES, 64, 96, 3)
    assert np.array_equal(edited[~inside], original[~inside])
    assert (edited[inside] != original[inside]).mean() > 0.5
