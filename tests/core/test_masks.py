"""A mask limits the edit, and outside of it the source comes through to the byte."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from kiwi_core import cli, geometry, masks, media

PICTURE = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def clip(count, height=64, width=96, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def box(top, left, bottom, right, height=64, width=96):
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def edit(pipe, video, reference=None, **changes):
    changes = {"num_inference_steps": 2} | changes
    return pipe("Make it red.", video, reference, generator=torch.Generator().manual_seed(0), **changes)


# What is taken for a mask


@pytest.mark.parametrize(
    "form",
    [
        lambda mask: mask,
        lambda mask: mask[None],
        lambda mask: mask.astype(np.float32),
        lambda mask: torch.from_numpy(mask),
        lambda mask: mask.astype(np.uint8) * 255,
        lambda mask: torch.from_numpy(mask).to(torch.bfloat16),
        lambda mask: mask[..., None],
        lambda mask: mask[None, ..., None].astype(np.uint8) * 255,
        lambda mask: np.repeat(mask[..., None], 3, axis=-1).astype(np.uint8) * 255,
        lambda mask: np.repeat(mask[..., None], 3, axis=-1).astype(np.float32),
        lambda mask: Image.fromarray(mask),
        lambda mask: [Image.fromarray(mask).convert("RGB")],
    ],
)
def test_a_mask_comes_in_many_forms(form):
    mask = box(8, 8, 24, 40)
    found = masks.as_mask(form(mask))
    assert found.dtype == torch.bool and found.shape == (1, 64, 96)
    assert np.array_equal(found[0].numpy(), mask)


def test_what_is_transparent_is_not_edited(tmp_path):
    mask = box(8, 8, 24, 40)
    strokes = np.full((64, 96, 4), 255, np.uint8)
    strokes[..., 3] = mask * 255
    Image.fromarray(strokes).save(tmp_path / "strokes.png")
    for form in (tmp_path / "strokes.png", Image.fromarray(strokes), [Image.fromarray(strokes)], strokes[None]):
        assert np.array_equal(masks.as_mask(form)[0].numpy(), mask)


def test_a_mask_comes_from_a_picture_or_a_video(tmp_path):
    moving = np.stack([box(8, left, 40, left + 32) for left in (0, 8, 16, 24)])
    Image.fromarray(moving[0]).save(tmp_path / "mask.png")
    frames = np.repeat(moving[..., None], 3, axis=-1).astype(np.uint8) * 255
    media.save_video(tmp_path / "mask.mkv", frames, 24, crf=0)
    assert np.array_equal(masks.as_mask(tmp_path / "mask.png")[0].numpy(), moving[0])
    assert np.array_equal(masks.as_mask(tmp_path / "mask.mkv").numpy(), moving)
    assert np.array_equal(masks.as_mask(tmp_path / "mask.mkv", max_frames=3).numpy(), moving[:3])
    with pytest.raises(FileNotFoundError):
        masks.as_mask(tmp_path / "missing.png")


def test_no_more_of_a_mask_is_read_than_of_the_clip(random_pipe, tmp_path, monkeypatch):
    frames = np.full((9, 64, 96, 3), 255, np.uint8)
    media.save_video(tmp_path / "mask.mkv", frames, 24)
    read, load = [], media.load_video
    monkeypatch.setattr(media, "load_video", lambda *args: read.append(load(*args).frames) or load(*args))
    edit(random_pipe, clip(5), mask=tmp_path / "mask.mkv", output_type="latent")
    assert [len(frames) for frames in read] == [5]


@pytest.mark.parametrize(
    "mask, sentence",
    [
        (np.ones((64, 96), np.uint8), "holds 0 and 1; give bool"),
        (np.full((64, 96), 255.0), "float64 from 255.0 to 255.0"),
        (np.ones((64, 96), np.int64), "int64"),
        (np.full((64, 96), np.nan), "floats 0 to 1"),
        ([np.ones((64, 96), bool)], "list of PIL images"),
        (1.0, "not float"),
    ],
)
def test_what_cannot_be_a_mask_is_refused(mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        masks.as_mask(mask)


@pytest.mark.parametrize(
    "mask, sentence",
    [
        (np.zeros((3, 64, 96), bool), "3 frames and the clip 9"),
        (np.zeros((64, 96), bool), "mask is empty"),
        (np.concatenate([np.zeros((9, 8, 8), bool), np.ones((4, 8, 8), bool)]), "mask is empty"),  # in these frames
        (np.zeros((2, 2, 2, 2)), "has shape"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_before_the_work(random_pipe, monkeypatch, mask, sentence):
    monkeypatch.setattr(random_pipe, "encode_prompt", lambda *_: pytest.fail("it was at work already"))
    with pytest.raises(ValueError, match=sentence) as refused:
        edit(random_pipe, clip(9), mask=mask)
    assert str(refused.value).count(". ") == 0


# On the latents


def test_any_masked_pixel_of_a_group_of_four_frames_opens_its_cell():
    mask = torch.zeros(9, 32, 48, dtype=torch.bool)
    mask[0, 0, 0] = mask[4, 9, 17] = mask[5, 31, 47] = True
    found = masks.latent_mask(mask, 3, 4, 6, grow=0)
    assert found.shape == (1, 1, 3, 4, 6) and found.dtype == torch.bool
    assert found.nonzero()[:, 2:].tolist() == [[0, 0, 0], [1, 1, 2], [2, 3, 5]]


def test_one_mask_serves_every_frame():
    mask = torch.from_numpy(box(8, 16, 16, 32))[None]
    found = masks.latent_mask(mask, 3, 8, 12, grow=0)
    assert found[0, 0, 0].nonzero().tolist() == [[1, 2], [1, 3]]
    assert torch.equal(found[0, 0, 0], found[0, 0, 2])


def test_growing_reaches_the_next_cells():
    mask = torch.from_numpy(box(8, 16, 16, 24))[None]
    assert masks.latent_mask(mask, 1, 8, 12, grow=0).sum() == 1
    assert masks.latent_mask(mask, 1, 8, 12, grow=1).sum() == 9
    assert masks.latent_mask(mask, 1, 8, 12, grow=8).sum() == 9


def test_a_mask_of_another_size_keeps_its_place():
    small = torch.from_numpy(box(1, 2, 2, 3, height=8, width=12))[None]
    large = torch.from_numpy(box(75, 160, 76, 239, height=600, width=960))[None]
    assert masks.latent_mask(small, 1, 8, 12, grow=0)[0, 0, 0].nonzero().tolist() == [[1, 2]]
    assert masks.latent_mask(large, 1, 8, 12, grow=0)[0, 0, 0].nonzero().tolist() == [[1, 2]]


def test_repeated_last_frames_repeat_the_mask():
    mask = torch.stack([torch.from_numpy(box(8 * i, 0, 8 * i + 8, 8)) for i in range(7)])
    found = masks.latent_mask(mask, 3, 8, 12, grow=0)  # of 9 frames, two of them repeated
    assert found[0, 0, 2].nonzero().tolist() == [[5, 0], [6, 0]]


# On the frames


@pytest.mark.parametrize("feather", [0, 1, 8])
def test_the_seam_lies_within_the_mask(feather):
    mask = torch.from_numpy(box(16, 0, 56, 64))[None]
    (alpha,) = masks.alphas(mask, 1, 64, 96, feather)
    assert alpha.dtype == torch.float32
    assert torch.equal(alpha > 0, mask[0])
    row = alpha[36, :64].flip(0)  # from the mask's right edge inwards
    steps = torch.arange(1, feather + 1) / (feather + 1)
    torch.testing.assert_close(row[:feather], steps)
    assert (row[feather:] == 1).all()  # up to the edge of the frame


@pytest.mark.parametrize("feather", [0, 8])
def test_outside_the_mask_a_composite_is_the_source(feather):
    edited, source = clip(3, seed=1), clip(3)
    moving = np.stack([box(8, left, 40, left + 40) for left in (0, 20, 56)])
    found = masks.composite(edited, source, torch.from_numpy(moving), feather)
    assert np.array_equal(found[~moving], source[~moving])
    deep = np.stack([box(8 + feather, left + feather, 40 - feather, left + 40 - feather) for left in (0, 20, 56)])
    assert np.array_equal(found[deep], edited[deep])
    between = np.minimum(edited, source) <= found
    assert (between & (found <= np.maximum(edited, source))).all()


REFERENCES = {"no reference": None, "reference": PICTURE}
MASKS = {
    "picture": box(20, 30, 50, 70),
    "clip": np.stack([box(20, 4 * i, 50, 4 * i + 40) for i in range(7)]),
}


@pytest.mark.parametrize("size", [(64, 96), (70, 100)])
@pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES.keys())
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_an_edit_is_the_resized_source_outside_the_mask(random_pipe, mask, reference, size):
    video = clip(7, *size)
    found = edit(random_pipe, video, reference, mask=mask, height=64, width=96).frames
    source = geometry.resize_frames(video, 64, 96)
    inside = np.broadcast_to(mask, (7, 64, 96))
    assert np.array_equal(found[~inside], source[~inside])
    assert (found[inside] != source[inside]).mean() > 0.5


def test_what_is_kept_stays_the_source_in_the_latents(random_pipe):
    video, mask = clip(9), box(20, 30, 50, 70)
    seen, sigmas = [], []

    def keep(pipe, step, timestep, values):
        seen.append(values["latents"])
        sigmas.append(timestep.item() / 1000)

    found = edit(random_pipe, video, PICTURE, mask=mask, callback_on_step_end=keep, num_inference_steps=3).latents
    source = random_pipe.encode_video(video)
    kept = ~masks.latent_mask(masks.as_mask(mask), 3, 8, 12)
    kept = kept.expand_as(source)
    torch.testing.assert_close(found[kept], source[kept], atol=1e-6, rtol=0)
    assert (found - source)[~kept].abs().mean() > 0.1
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(0))
    for latents, sigma in zip(seen, sigmas[1:]):  # on the way, at the noise of the step
        expected = (1 - sigma) * source + sigma * noise
        torch.testing.assert_close(latents[kept], expected[kept], atol=1e-5, rtol=0)


def test_a_mask_works_in_windows(random_pipe):
    video, mask = clip(21, 32, 48), box(0, 0, 16, 16, 32, 48)
    found = edit(random_pipe, video, mask=mask, window_frames=9, window_overlap=4, num_inference_steps=1)
    assert np.array_equal(found.frames[:, ~mask], video[:, ~mask])
    assert (found.frames[:, mask] != video[:, mask]).mean() > 0.5


def test_without_a_feather_frames_stay_as_decoded(random_pipe):
    mask = box(20, 30, 50, 70)
    plain = edit(random_pipe, clip(5), mask=mask, mask_feather=None).frames
    assert (plain[:, ~mask] != clip(5)[:, ~mask]).any()
    latents = edit(random_pipe, clip(5), mask=mask, output_type="latent").latents
    assert np.array_equal(plain, random_pipe._decode(latents))


def test_a_mask_over_everything_is_no_mask(random_pipe, caplog):
    with caplog.at_level(logging.WARNING):
        masked = edit(random_pipe, clip(5), mask=np.ones((64, 96), bool)).frames
    assert np.array_equal(masked, edit(random_pipe, clip(5)).frames)


# On the command line


@pytest.fixture
def run(random_model, tmp_path):
    """``kiwi-edit edit`` of a file, with further options."""

    def run(video, output, *options) -> int:
        given = {"video": video, "output": output, "model": random_model / "released", "prompt": "make it red"}
        arguments = [str(item) for name, value in given.items() for item in (f"--{name}", value)]
        more = ["--steps", "1", "--dtype", "fp32", "--device", "cpu", "--max-pixels", "4096"]
        return cli.main(["edit", *arguments, *more, *map(str, options)])

    return run


@pytest.fixture
def files(tmp_path):
    """A video, a picture, a mask of each and a reference, as files; the masks as arrays too."""
    moving = np.stack([box(20, 4 * i, 60, 4 * i + 50, 70, 100) for i in range(7)])
    frames = np.repeat(moving[..., None], 3, axis=-1).astype(np.uint8) * 255
    media.save_video(tmp_path / "clip.mp4", clip(7, 70, 100), 24)
    media.save_video(tmp_path / "mask.mkv", frames, 24, crf=0)
    Image.fromarray(clip(1, 70, 100)[0]).save(tmp_path / "picture.png")
    Image.fromarray(frames[0]).save(tmp_path / "mask.png")
    Image.fromarray(PICTURE).save(tmp_path / "reference.png")
    return {"mask.mkv": moving, "mask.png": np.broadcast_to(moving[:1], moving.shape), "folder": tmp_path}


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("mask", ["mask.mkv", "mask.png"])
def test_frames_go_to_the_encoder_at_the_videos_size_and_are_its_own_outside_the_mask(
    run, files, monkeypatch, mask, reference
):
    folder, written = files["folder"], []
    save = media.save_video
    monkeypatch.setattr(media, "save_video", lambda path, frames, *rest, **more: written.append(frames.copy()))
    options = ["--mask", folder / mask, "--feather", "4"]
    if reference:
        options += ["--reference", folder / "reference.png"]
    assert run(folder / "clip.mp4", folder / "out.mp4", *options) == 0
    monkeypatch.setattr(media, "save_video", save)
    (frames,), source = written, media.load_video(folder / "clip.mp4").frames
    inside = files[mask]
    assert frames.shape == source.shape == (7, 70, 100, 3)  # sampled at 48x80
    assert np.array_equal(frames[~inside], source[~inside])
    assert (frames[inside] != source[inside]).mean() > 0.5


@pytest.mark.parametrize("reference", [False, True])
def test_a_masked_picture_is_its_own_to_the_byte_in_the_file(run, files, reference):
    folder = files["folder"]
    options = ["--reference", folder / "reference.png"] if reference else []
    assert run(folder / "picture.png", folder / "out.png", "--mask", folder / "mask.png", *options) == 0
    found, source = (np.asarray(Image.open(folder / name)) for name in ("out.png", "picture.png"))
    inside = files["mask.png"][0]
    assert np.array_equal(found[~inside], source[~inside])
    assert (found[inside] != source[inside]).mean() > 0.5


def test_long_video_options_reach_the_pipeline(run, files, monkeypatch):
    from kiwi_core import KiwiEditPipeline

    given, edit = {}, KiwiEditPipeline.__call__
    monkeypatch.setattr(
        KiwiEditPipeline, "__call__", lambda pipe, *args, **kwargs: given.update(kwargs) or edit(pipe, *args, **kwargs)
    )
    folder = files["folder"]
    options = ("--window", 5, "--window-overlap", 4, "--mllm-view", "window", "--guidance", 2, "--match-colours")
    assert run(folder / "clip.mp4", folder / "out.mp4", *options) == 0
    wanted = dict(window_frames=5, window_overlap=4, mllm_view="window", guidance_scale=2.0, match_colours=True)
    assert wanted.items() <= given.items()
    assert len(media.load_video(folder / "out.mp4").frames) == 7


@pytest.mark.parametrize(
    "options, words",
    [
        (("--mask", "missing.png"), "does not exist"),
        (("--mask", "black.png"), "mask is empty"),
        (("--mask", "short.mkv"), "3 frames and the clip 7"),
        (("--mask", "mask.png", "--feather", "-1"), "--feather"),
        (("--guidance", "-1"), "--guidance"),
        (("--window", "3"), "too short"),
        (("--window", "5", "--window-overlap", "8"), "lower it"),
    ],
)
def test_bad_options_are_told_in_a_sentence_before_the_model_is_loaded(run, files, monkeypatch, capsys, options, words):
    folder = files["folder"]
    Image.new("L", (8, 8)).save(folder / "black.png")
    media.save_video(folder / "short.mkv", np.full((3, 16, 16, 3), 255, np.uint8), 24)
    monkeypatch.setattr("kiwi_core.KiwiEditPipeline.from_pretrained", lambda *_: pytest.fail("it was loaded"))
    options = [folder / option if option.endswith(("png", "mkv")) else option for option in options]
    assert run(folder / "clip.mp4", folder / "out.mp4", *options) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (folder / "out.mp4").exists()
