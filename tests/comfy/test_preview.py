"""The preview: single frames edited as pictures, in one batch."""

import comfyui
import edit_graph
import numpy as np
import pytest
from edit_graph import PROMPT, SEED, STEPS, node
from PIL import Image

from kiwi_core import media


@pytest.fixture(scope="module")
def graph(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    large = media.save_video(folder / "large_clip.mkv", edit_graph.clip(height=256, width=384), 12, crf=0)
    server.put_input(large)
    return edit_graph.EditGraph(server, folder)


def previewed(graph, **inputs):
    prompt = graph.prompt()
    values = {"video": ["video", 0], "frames": 3, "steps": STEPS, "seed": SEED, "max_pixels": 921600} | inputs
    prompt["preview"] = node(
        "KiwiEditPreview", model=["model", 0], vae=["vae", 0], mllm=["mllm", 0], connector=["connector", 0],
        prompt=PROMPT, **values,
    )  # fmt: skip
    return prompt


def edited_alone(graph, index, file="small_clip.mkv", max_pixels=921600, **references):
    """Frame ``index`` through the nodes of an image edit, as uint8 (before, after)."""
    prompt = graph.prompt()
    prompt["video"]["inputs"]["file"] = file
    prompt["prepared"]["inputs"]["max_pixels"] = max_pixels
    prompt["frames"] = node("GetVideoComponents", video=["video", 0])
    prompt["frame"] = node("ImageFromBatch", image=["frames", 0], batch_index=index, length=1)
    prompt["prepared"]["inputs"]["video"] = ["frame", 0]
    if references:
        prompt["encoded"]["inputs"] |= references
        prompt["reference"] = node(
            "KiwiEditReferenceImage", conditioning=["source", 0], vae=["vae", 0], latent=["source", 1], **references
        )
        prompt["sampled"]["inputs"]["conditioning"] = ["reference", 0]
    prompt["decoded"] = node("VAEDecode", samples=["sampled", 0], vae=["vae", 0])
    for name, image in (("before", ["prepared", 0]), ("after", ["decoded", 0])):
        prompt[name] = node("SaveImage", images=image, filename_prefix=name)
    before, after = graph.server.output_files(graph.run(prompt, "before", "after"))
    if "after" in before.name:
        before, after = after, before
    return np.asarray(Image.open(before)), np.asarray(Image.open(after))


def sheet_of(graph, prompt):
    """The picture that is shown on the node, and the same as an output."""
    prompt["saved"] = node("SaveImage", images=["preview", 0], filename_prefix="sheet")
    history = graph.run(prompt, "preview", "saved")
    shown, saved = (
        np.asarray(Image.open(graph.server.base_dir / image["type"] / image["subfolder"] / image["filename"]))
        for name in ("preview", "saved")
        for image in history["outputs"][name]["images"]
    )
    assert history["outputs"]["preview"]["images"][0]["type"] == "temp"
    assert np.array_equal(shown, saved)
    return shown


TWO = {"reference": ["picture0", 0], "references.reference_2": ["picture1", 0]}


@pytest.mark.parametrize(
    "file, max_pixels, references",
    [("small_clip.mkv", 921600, {}), ("small_clip.mkv", 921600, TWO), ("large_clip.mkv", 16384, {})],
    ids=["none", "two", "smaller"],
)
def test_each_frame_is_the_picture_that_it_gives_alone(graph, file, max_pixels, references):
    prompt = previewed(graph, max_pixels=max_pixels, **references)
    prompt["video"]["inputs"]["file"] = file
    sheet = sheet_of(graph, prompt)
    before, after = zip(*(edited_alone(graph, index, file, max_pixels, **references) for index in (0, 4, 8)))
    assert before[0].shape[0] * before[0].shape[1] <= max_pixels
    wanted = np.asarray(
        media.contact_sheet(
            {"Source": np.stack(before), "Edit": np.stack(after)}, names=["frame 0", "frame 4", "frame 8"], box=480
        )
    )
    assert sheet.shape == wanted.shape
    # A batch sums in another order, and SaveImage cuts decimals off where we round.
    difference = np.abs(sheet.astype(int) - wanted)
    assert difference.max() <= 3
    assert difference.mean() < 0.5


def test_one_frame_is_the_middle(graph):
    sheet = sheet_of(graph, previewed(graph, frames=1))
    wide = sheet_of(graph, previewed(graph, frames=3))
    assert sheet.shape[1] < wide.shape[1] / 2
    margin, box = 24, 480
    left = margin + box + 8
    middle = wide[54 : 54 + 320, left : left + box]
    assert np.array_equal(sheet[54 : 54 + 320, margin : margin + box], middle)


def test_frames_are_of_what_is_to_be_edited(graph):
    margin, box, height = 24, 480, 320
    left = margin + box + 8
    sheet = sheet_of(graph, previewed(graph, max_frames=5, frames=2))
    wide = sheet_of(graph, previewed(graph))  # of all nine: 0, 4 and 8
    assert np.array_equal(sheet[54 : 54 + height, left : left + box], wide[54 : 54 + height, left : left + box])


def test_cancel_stops_it_and_leaves_the_server_working(graph):
    steps = []

    def stop(kind, data):
        if kind == "progress" and data["max"] == 500:
            steps.append(data["value"])
            if len(steps) == 2:
                graph.server.interrupt()

    with pytest.raises(comfyui.Interrupted):
        graph.run(previewed(graph, steps=500), "preview", on_event=stop)
    assert len(steps) < 20
    assert sheet_of(graph, previewed(graph)).size


def test_an_empty_instruction_is_refused_before_the_run(graph):
    prompt = previewed(graph)
    prompt["preview"]["inputs"]["prompt"] = " "
    with pytest.raises(RuntimeError, match="instruction is empty"):
        graph.server.queue(edit_graph.upstream(prompt, ["preview"]))
