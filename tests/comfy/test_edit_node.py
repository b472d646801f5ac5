"""The short path: two nodes give what the single ones give, and only what changed is computed again."""

import importlib
import shutil

import numpy as np
import pytest
import random_model
import sample_graph
from PIL import Image

from kiwi_core import media

FRAMES, PROMPT = 6, "Turn the scene into a watercolor painting."


@pytest.fixture(scope="module")
def ready(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit")
    random_model.write(folder)
    shutil.copytree(folder / "released", server.models_dir / "diffusers" / "random", dirs_exist_ok=True)
    media.save_video(folder / "edit_clip.mp4", sample_graph.draw_clip()[:FRAMES, ::2, ::2], 12)
    Image.fromarray(sample_graph.draw_clip()[20, ::3, ::3]).save(folder / "edit_reference.png")
    mask = Image.new("RGB", (96, 64))
    mask.paste((255, 255, 255), (16, 16, 80, 48))
    mask.save(folder / "edit_mask.png")
    for path in folder.glob("edit_*"):
        server.put_input(path)
    return server


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def short(seed=3, steps=2, video=("1", 0), reference=None, mask=None, prompt=PROMPT):
    """Load Video, Load All, Edit Video, Save Video; and the frames as pictures."""
    options = {} if reference is None else {"reference": reference}
    options |= {} if mask is None else {"mask": mask}
    return {
        "1": node("LoadVideo", file="edit_clip.mp4"),
        "2": node("KiwiEditLoadAll", model_name="random/", weight_dtype="default"),
        "3": node(
            "KiwiEditEditVideo", model=["2", 0], vae=["2", 1], mllm=["2", 2], connector=["2", 3], video=list(video),
            prompt=prompt, seed=seed, steps=steps, max_pixels=921600, max_frames=81, **options,
        ),
        "4": node("SaveVideo", video=["3", 0], filename_prefix="short", format="auto", codec="auto"),
        "5": node("SaveImage", images=["3", 1], filename_prefix="short"),
        "picture": node("LoadImage", image="edit_reference.png"),
        "mask": node("LoadImageMask", image="edit_mask.png", channel="red"),
    }  # fmt: skip


def long(seed=3, steps=2, reference=None, mask=None):
    """The same out of single nodes."""
    picture = {} if reference is None else {"reference": reference}
    graph = short(seed, steps)
    del graph["3"]
    graph |= {
        "6": node("KiwiEditPrepareVideo", video=["1", 0], max_pixels=921600, max_frames=81, multiple=32),
        "7": node(
            "KiwiEditEncodeInstruction", mllm=["2", 2], connector=["2", 3], prompt=PROMPT, source=["6", 1], **picture
        ),
        "8": node("KiwiEditSourceVideo", conditioning=["7", 0], vae=["2", 1], frames=["6", 0]),
        "9": node(
            "KiwiEditReferenceImage", conditioning=["8", 0], vae=["2", 1], latent=["8", 1], reference=["picture", 0]
        ),
        "10": node("KiwiEditMask", latent=["8", 1], mask=["mask", 0], grow=8),
        "11": node(
            "KiwiEditSampler", model=["2", 0], conditioning=["9" if reference else "8", 0],
            latent=["10", 0] if mask else ["8", 1], seed=seed, steps=steps, shift=5.0, denoise=1.0,
        ),
        "12": node("VAEDecode", samples=["11", 0], vae=["2", 1]),
        "13": node("KiwiEditComposite", frames=["12", 0], source=["6", 1], mask=["mask", 0], feather=8),
        "14": node("KiwiEditFinishVideo", frames=["13" if mask else "12", 0], original=["1", 0]),
        "4": node("SaveVideo", video=["14", 0], filename_prefix="long", format="auto", codec="auto"),
        "5": node("SaveImage", images=["14", 1], filename_prefix="long"),
    }  # fmt: skip
    return graph


def results(server, prompt):
    """The clip and the pictures that a prompt saves."""
    files = server.output_files(server.run(prompt))
    pictures = [np.asarray(Image.open(path)) for path in files if path.suffix == ".png"]
    (video,) = (media.load_video(path) for path in files if path.suffix == ".mp4")
    return video, np.stack(pictures)


@pytest.mark.parametrize(
    "options", [{}, {"reference": ["picture", 0]}, {"mask": ["mask", 0], "reference": ["picture", 0]}]
)
def test_the_short_graph_gives_what_the_single_nodes_give(ready, options):
    video, pictures = results(ready, short(**options))
    wanted, wanted_pictures = results(ready, long(**options))
    assert video.frames.shape == (FRAMES, 64, 96, 3)
    assert video.frame_rate == 12
    assert np.array_equal(pictures, wanted_pictures)
    assert video.frames.shape == wanted.frames.shape


def test_another_seed_does_not_encode_again(ready):
    inner = []

    def follow(kind, data):
        if kind == "progress_state":
            inner.extend(name for name, state in data["nodes"].items() if state["state"] == "running")

    first = results(ready, short(seed=21))[1]
    ready.run(short(seed=22), follow)
    second = results(ready, short(seed=22))[1]
    assert not np.array_equal(first, second)
    ran = sorted({int(name.rpartition(".")[2]) for name in inner if name.startswith("3.")})
    assert ran == [4, 5, 6]  # sampler, decode, finish; not prepare, instruction, source


def test_a_picture_gives_a_picture(ready):
    graph = short(video=("picture", 0))
    video, pictures = results(ready, graph)
    height, width = np.asarray(Image.open(ready.base_dir / "input" / "edit_reference.png")).shape[:2]
    assert pictures.shape == (1, height // 32 * 32, width // 32 * 32, 3)
    assert len(video.frames) == 1


def test_the_edit_comes_back_at_the_size_of_the_original(ready):
    graph = short(video=("picture", 0))
    graph["3"]["inputs"]["original_size"] = True
    _, pictures = results(ready, graph)
    original = np.asarray(Image.open(ready.base_dir / "input" / "edit_reference.png"))
    assert any(side % 32 for side in original.shape[:2])
    assert pictures.shape == (1, *original.shape)


def test_frames_without_a_video_get_the_published_rate(ready):
    graph = short(video=("frames", 0))
    graph["frames"] = node("GetVideoComponents", video=["1", 0])
    video, pictures = results(ready, graph)
    assert len(pictures) == len(video.frames) == FRAMES
    assert video.frame_rate == 15


def test_steps_and_decoding_show_progress_on_the_node(ready):
    seen = {}

    def follow(kind, data):
        if kind == "progress_state":
            for name, state in data["nodes"].items():
                if state["display_node_id"] == "3":
                    seen.setdefault(name, []).append(state["value"] / max(1, state["max"]))

    ready.run(short(seed=31, steps=3), follow)
    inner = [name for name in seen if name != "3"]
    assert len(inner) >= 3  # sampler, decode and finish at the least, each under its own name
    assert all(seen[name][-1] == 1 for name in inner)
    assert any(0 < value < 1 for values in seen.values() for value in values)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_instruction_is_refused_before_the_run(ready, prompt):
    with pytest.raises(RuntimeError, match="The instruction is empty; say in a sentence what to change"):
        ready.run(short(prompt=prompt))


def test_a_missing_folder_is_refused_with_those_that_are_there(ready):
    graph = short()
    graph["2"]["inputs"]["model_name"] = "elsewhere/"
    with pytest.raises(RuntimeError, match=r"elsewhere/ is not in models/diffusers; choose one that is \(.*random/"):
        ready.run(graph)


@pytest.mark.parametrize(
    "node, widget",
    [("Model", "model_name"), ("VAE", "vae_name"), ("MLLM", "mllm_name"), ("Connector", "connector_name")],
)
def test_single_loaders_say_where_a_missing_folder_or_file_belongs(ready, node, widget):
    graph = {"1": {"class_type": f"KiwiEditLoad{node}", "inputs": {widget: "kiwi-edit-5b-instruct-only-diffusers/"}}}
    graph["1"]["inputs"] |= {"weight_dtype": "default"} if node == "Model" else {}
    graph["2"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    with pytest.raises(RuntimeError, match=r"download huggingface\.co/linyq/kiwi-edit-5b-instruct-only-diffusers into"):
        ready.run(graph)
    graph["1"]["inputs"][widget] = "absent.safetensors"
    with pytest.raises(RuntimeError, match=r"absent\.safetensors is not in models/.*; put it there and press R"):
        ready.run(graph)


def test_without_any_folder_the_node_says_how_to_get_one(pack, monkeypatch, tmp_path):
    edit = importlib.import_module(f"{pack.__name__}.nodes.edit")
    monkeypatch.setattr(edit.loaders, "folders", dict)
    (choice,) = (part for part in edit.KiwiEditLoadAll.define_schema().inputs if part.id == "model_name")
    assert choice.options == ["(no downloaded model)"]
    assert "download huggingface.co/linyq/kiwi-edit-" in edit.KiwiEditLoadAll.validate_inputs(choice.options[0])
    with pytest.raises(ValueError, match=r"download huggingface\.co/linyq/"):
        edit.KiwiEditLoadAll.execute(choice.options[0], "default")
