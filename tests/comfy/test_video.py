"""Clips into a graph and out of it: no more is read than is used, and nothing is lost without a word."""

import weakref
from fractions import Fraction

import av
import comfy.model_management
import edit_graph
import numpy as np
import pytest
import torch
from comfy_api.latest import InputImpl, Types

from kiwi_core import geometry, media

RATE, SOUND = 12, 8000


@pytest.fixture(scope="module")
def nodes(pack):
    return pack.nodes


def level(number):
    """Each frame has a brightness of its own."""
    return 5 * number


def write(path, count, times=None, sound=0.0):
    """A clip; ``times``: of the frames, in frames; ``sound``: seconds of it."""
    with av.open(str(path), "w") as container:
        lossless = path.suffix == ".mkv"
        video = container.add_stream("ffv1" if lossless else "libx264", rate=RATE)
        video.width, video.height, video.pix_fmt = 96, 64, "bgr0" if lossless else "yuv420p"
        video.codec_context.time_base = Fraction(1, RATE)
        audio = container.add_stream("pcm_s16le", rate=SOUND, layout="mono") if sound else None
        for number in range(count):
            picture = np.full((64, 96, 3), level(number), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=video.pix_fmt)
            frame.pts, frame.time_base = (times or range(count))[number], Fraction(1, RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for start in range(0, round(sound * SOUND), 400):
            wave = np.arange(start, start + 400, dtype=np.int16)[None] % 20000
            frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            frame.sample_rate, frame.pts = SOUND, start
            container.mux(audio.encode(frame))
        if audio:
            container.mux(audio.encode())
    return path


@pytest.fixture
def decoded(monkeypatch):
    """How many frames each reading of a file has decoded."""
    counts, read = [], InputImpl.VideoFromFile.get_components

    def counting(self):
        components = read(self)
        counts.append(len(components.images))
        return components

    monkeypatch.setattr(InputImpl.VideoFromFile, "get_components", counting)
    return counts


def numbers(images):
    return [round(value / level(1)) for value in (images.mean(dim=(1, 2, 3)) * 255).tolist()]


@pytest.mark.parametrize("container", ["mkv", "mp4"])
def test_only_what_is_edited_is_read(nodes, tmp_path, decoded, caplog, container):
    video = InputImpl.VideoFromFile(str(write(tmp_path / f"clip.{container}", 45)))
    frames, source = nodes.video.KiwiEditPrepareVideo.execute(video, geometry.MAX_PIXELS, 8, 32)
    assert numbers(frames) == numbers(source) == list(range(9))
    assert sum(decoded) <= 11
    assert "longer than 9 frames" in caplog.text
    decoded.clear()
    finished, pictures = nodes.video.KiwiEditFinishVideo.execute(frames, video)
    assert numbers(pictures) == list(range(9)) and finished.get_frame_rate() == RATE
    assert sum(decoded) <= 11


def test_a_clip_that_is_not_longer_is_whole_and_nothing_is_said(nodes, tmp_path, caplog):
    video = InputImpl.VideoFromFile(str(write(tmp_path / "clip.mkv", 9)))
    frames, source = nodes.video.KiwiEditPrepareVideo.execute(video, geometry.MAX_PIXELS, 9, 32)
    assert numbers(frames) == numbers(source) == list(range(9))
    assert not caplog.records


@pytest.mark.parametrize(
    "times",
    [[*range(6), *range(60, 90, 3)], [n + 40 for n in range(16)], [*range(0, 60, 6), *range(60, 66)]],
    ids=["faster at first", "late", "slower at first"],
)
def test_frames_are_counted_whatever_their_times(nodes, tmp_path, times):
    video = InputImpl.VideoFromFile(str(write(tmp_path / "clip.mkv", 16, times)))
    frames, source = nodes.video.KiwiEditPrepareVideo.execute(video, geometry.MAX_PIXELS, 9, 32)
    assert numbers(frames) == numbers(source) == list(range(9))


def test_a_trimmed_video_is_read_within_its_bounds(nodes, tmp_path):
    video = InputImpl.VideoFromFile(str(write(tmp_path / "clip.mkv", 45))).as_trimmed(20 / RATE, 7 / RATE)
    frames, source = nodes.video.KiwiEditPrepareVideo.execute(video, geometry.MAX_PIXELS, 81, 32)
    assert numbers(source) == list(range(20, 27))
    assert numbers(frames) == [*range(20, 27), 26, 26]
    assert numbers(nodes.video.KiwiEditFinishVideo.execute(frames, video)[1]) == list(range(20, 27))


def test_the_sound_of_the_edited_part_is_kept(nodes, tmp_path):
    video = InputImpl.VideoFromFile(str(write(tmp_path / "clip.mkv", 45, sound=45 / RATE)))
    finished, _ = nodes.video.KiwiEditFinishVideo.execute(torch.rand(9, 64, 96, 3), video)
    audio = finished.get_components().audio
    wanted = video.get_components().audio["waveform"][..., : round(9 / RATE * SOUND)]
    assert audio["sample_rate"] == SOUND
    assert torch.equal(audio["waveform"], wanted)


def test_videos_that_are_in_memory_are_not_encoded_to_be_read(nodes, monkeypatch, caplog):
    images = torch.rand(30, 64, 96, 3)
    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, audio=None, frame_rate=Fraction(RATE)))
    monkeypatch.setattr(InputImpl.VideoFromComponents, "save_to", None)
    assert torch.equal(nodes.video.KiwiEditPrepareVideo.execute(video, geometry.MAX_PIXELS, 9, 32)[1], images[:9])
    assert "longer than 9 frames" in caplog.text
    caplog.clear()
    assert torch.equal(nodes.video.KiwiEditPrepareVideo.execute(images, geometry.MAX_PIXELS, 9, 32)[1], images[:9])
    assert "longer than 9 frames" in caplog.text


def test_a_broken_file_is_told_in_a_sentence(nodes, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no video" * 100)
    video = InputImpl.VideoFromFile(str(tmp_path / "clip.mp4"))
    with pytest.raises(ValueError, match="load another file, or convert it to mp4"):
        nodes.video.KiwiEditPrepareVideo.execute(video, geometry.MAX_PIXELS, 9, 32)


def test_what_is_transparent_is_white(nodes, tmp_path):
    path = tmp_path / "clear.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("qtrle", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "argb"
        picture = np.zeros((64, 96, 4), np.uint8)
        picture[:32, :, 0] = picture[:32, :, 3] = 200  # as RGBA: red above, and below it nothing
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format="argb")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    video = InputImpl.VideoFromFile(str(path))
    if not hasattr(video.get_components(), "alpha"):
        pytest.skip("this ComfyUI does not read transparency")
    _, source = nodes.video.KiwiEditPrepareVideo.execute(video, geometry.MAX_PIXELS, 5, 32)
    wanted = media.load_video(path).frames
    assert np.abs((source * 255).round().numpy().astype(int) - wanted).max() <= 1
    assert wanted[0, 40].min() == 255 and wanted[0, 10, 0, 1] < 60


def test_variations_are_not_cut_to_the_first(nodes):
    edited, original = torch.rand(18, 64, 96, 3), torch.rand(9, 64, 96, 3)
    for run in (
        lambda: nodes.video.KiwiEditFinishVideo.execute(edited, original),
        lambda: nodes.mask.KiwiEditComposite.execute(edited, original, torch.ones(64, 96), 8),
    ):
        with pytest.raises(ValueError, match=r"18 frames and the original 9; .* Latent From Batch"):
            run()
    with pytest.raises(ValueError, match="2 frames and the original 1"):
        nodes.video.KiwiEditFinishVideo.execute(edited[:2], original[:1])
    assert len(nodes.video.KiwiEditFinishVideo.execute(edited[:9], original[:6])[1]) == 6  # the repeated ones


def test_the_edit_comes_back_at_the_size_of_the_original(nodes, tmp_path):
    original = torch.rand(5, 90, 160, 3)
    frames, _ = nodes.video.KiwiEditPrepareVideo.execute(original, geometry.MAX_PIXELS, 5, 32)
    assert frames.shape == (5, 64, 160, 3)
    kept = nodes.video.KiwiEditFinishVideo.execute(frames, original)[1]
    assert torch.equal(kept, frames)
    video, full = nodes.video.KiwiEditFinishVideo.execute(frames, original, original_size=True)
    assert full.shape == original.shape == video.get_components().images.shape
    odd, pictures = nodes.video.KiwiEditFinishVideo.execute(frames, original[:, 1:, 1:], original_size=True)
    assert pictures.shape[1:3] == (89, 159)
    odd.save_to(str(tmp_path / "odd.mp4"))  # which has no odd sides
    assert InputImpl.VideoFromFile(str(tmp_path / "odd.mp4")).get_dimensions() == (158, 88)
    wanted = geometry.resize_frames((frames * 255).round().to(torch.uint8).numpy(), 90, 160)
    assert torch.equal((full * 255).round().to(torch.uint8), torch.from_numpy(wanted))


def test_frames_take_the_rate_that_is_asked_for_and_a_video_keeps_its_own(nodes, tmp_path):
    clip = InputImpl.VideoFromFile(str(write(tmp_path / "clip.mkv", 5)))
    frames = torch.rand(5, 64, 96, 3)
    for original, rate in ((frames, Fraction("23.976")), (clip, RATE)):
        video = nodes.video.KiwiEditFinishVideo.execute(frames, original, frame_rate=23.976)[0]
        assert video.get_frame_rate() == rate


@pytest.fixture(scope="module")
def loaded(pack, tmp_path_factory):
    return edit_graph.load(pack, tmp_path_factory.mktemp("models"))


def test_a_new_instruction_does_not_encode_the_clip_again(nodes, loaded, monkeypatch):
    encoded, encode = [], nodes.encode.encode_frames
    monkeypatch.setattr(nodes.encode, "encode_frames", lambda vae, frames: encoded.append(1) or encode(vae, frames))
    frames, pictures = torch.rand(5, 64, 96, 3), [torch.rand(1, 40, 40, 3), torch.rand(1, 30, 50, 3)]

    def run(frames=frames, reference=pictures[0], further=pictures[1], vae=loaded.vae):
        given, latent, _ = nodes.encode.KiwiEditSourceVideo.execute([[torch.rand(1, 4, 8), {}]], vae, frames)
        given, _ = nodes.encode.KiwiEditReferenceImage.execute(
            given, vae, latent, reference, references={"reference_2": further}
        )
        return given[0][0], given[0][1]["kiwi_source_latent"], given[0][1]["kiwi_reference_latents"]

    first, again = run(), run()
    assert len(encoded) == 3
    assert not torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1]) and all(map(torch.equal, first[2], again[2]))
    assert len(run(frames=frames.clone())[2]) == 2 and len(encoded) == 4
    run(reference=pictures[1])
    assert len(encoded) == 7  # other frames again, and the references
    swapped = run(reference=pictures[1], further=pictures[0])[2]
    assert len(encoded) == 9
    assert torch.equal(swapped[0], first[2][1]) and torch.equal(swapped[1], first[2][0])


def test_what_was_computed_is_not_kept_longer_than_its_inputs(nodes):
    last, images = nodes.memo.Last(), [torch.rand(3)]
    alive = weakref.ref(last.get(images, 1, lambda: torch.rand(2)))
    assert last.get(images, 1, None) is alive()
    images.clear()
    assert alive() is None


def test_other_samplers_refuse_a_conditioning_without_the_clip(nodes, loaded):
    import nodes as stock

    latent = {"samples": torch.zeros(1, 16, 2, 8, 12)}
    width = loaded.model.model.diffusion_model.dim
    bare = [[torch.zeros(1, 4, width), {}]]
    whole = [[torch.zeros(1, 4, width), {"kiwi_source_latent": latent["samples"]}]]
    for positive, negative in ((bare, whole), (whole, bare)):
        with pytest.raises(ValueError, match="no source clip"):
            stock.common_ksampler(loaded.model, 0, 1, 2.0, "euler", "simple", positive, negative, latent)
    assert stock.common_ksampler(loaded.model, 0, 1, 2.0, "euler", "simple", whole, whole, latent)


@pytest.mark.parametrize("which", ["mask", "composite"])
def test_masks_of_long_clips_can_be_cancelled(nodes, which):
    clip, mask = torch.rand(9, 64, 96, 3), torch.ones(9, 64, 96)
    comfy.model_management.interrupt_current_processing()
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            if which == "mask":
                nodes.mask.KiwiEditMask.execute({"samples": torch.zeros(1, 16, 3, 8, 12)}, mask, 8)
            else:
                nodes.mask.KiwiEditComposite.execute(clip, clip, mask, 8)
    finally:
        comfy.model_management.interrupt_current_processing(False)
