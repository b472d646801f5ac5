"""The small model that comes with the pack really edits, in ComfyUI as in the library."""

import json
import shutil

import av
import comfyui
import numpy as np
import pytest
import torch
from differences import record
from PIL import Image

from kiwi_core import KiwiEditPipeline
from kiwi_core.checkpoints.convert import convert
from training import cache_data, recipes, trainer
from training.nano import bench, edits, measure, rows, world

NAME = "kiwi-edit-nano"
STYLE = "infrared.safetensors"
FOLDER = comfyui.REPO / "models" / "diffusers" / NAME
STYLE_CLIPS = 48
BOUND, OF_A_CATEGORY = 0.8, 0.5
"""Share of the fixed items that the shipped weights must edit rightly and leave the rest of as it is."""


def fixed_items():
    """64 items: of every category four or five of the split that training knows, and of one that it does not."""
    chosen = bench.items({"seen": 5, "composition": 5})
    return sorted(chosen, key=lambda item: item.name.rpartition("/")[2])[:64]


FROM_FOLDER = {
    part: {"class_type": f"KiwiEditLoad{kind}", "inputs": {f"{part}_name": f"{NAME}/"}}
    for part, kind in {"model": "Model", "vae": "VAE", "mllm": "MLLM", "connector": "Connector"}.items()
}
FROM_FOLDER["model"]["inputs"]["weight_dtype"] = "default"
FROM_FILES = {
    "model": {"class_type": "UNETLoader", "inputs": {"unet_name": f"{NAME}.safetensors", "weight_dtype": "default"}},
    "vae": {"class_type": "VAELoader", "inputs": {"vae_name": f"{NAME}_vae.safetensors"}},
    "mllm": {"class_type": "KiwiEditLoadMLLM", "inputs": {"mllm_name": f"{NAME}_mllm.safetensors"}},
    "connector": {
        "class_type": "KiwiEditLoadConnector", "inputs": {"connector_name": f"{NAME}_connector.safetensors"},
    },
}  # fmt: skip
"""With the stock loaders where there are such."""


def save_for_comfyui(path, frames):
    """Without loss, and in the pixel format that ComfyUI takes as it is: of others it makes floats 0.4% too dark."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=12)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def graph(server, items, folder, lora=None, loaders=FROM_FOLDER):
    """One prompt with the loaders once and a branch for each item, whose frames are saved as pictures."""
    nodes, model = dict(loaders), ["model", 0]
    if lora:
        said = {"lora_name": lora, "model": model, "strength_model": 1.0}
        nodes["lora"], model = {"class_type": "LoraLoaderModelOnly", "inputs": said}, ["lora", 0]

    def add(name, kind, **inputs):
        nodes[name] = {"class_type": kind, "inputs": inputs}
        return [name, 0]

    vae = ["vae", 0]
    for number, item in enumerate(items):
        path = folder / f"nano{number}.mov"
        save_for_comfyui(path, world.render(item.edit.before))
        clip = server.put_input(path)
        video = add(f"video{number}", "LoadVideo", file=clip)
        size = {"max_pixels": 128 * 128, "max_frames": world.FRAMES, "multiple": 32}
        frames = add(f"frames{number}", "KiwiEditPrepareVideo", video=video, **size)
        said = {"prompt": item.edit.prompt, "mllm_references": "first", "window_frames": 0, "source": [frames[0], 1]}
        said |= {"mllm": ["mllm", 0], "connector": ["connector", 0]}
        picture = item.edit.reference_picture()
        if picture is not None:
            Image.fromarray(picture).save(path := folder / f"nano{number}.png")
            said["reference"] = add(f"picture{number}", "LoadImage", image=server.put_input(path))
        asked = add(f"asked{number}", "KiwiEditEncodeInstruction", **said)
        given = add(f"given{number}", "KiwiEditSourceVideo", conditioning=asked, vae=vae, frames=frames)
        latent = [given[0], 1]
        if picture is not None:
            given = add(
                f"shown{number}", "KiwiEditReferenceImage", conditioning=given, vae=vae, latent=latent,
                reference=said["reference"],
            )  # fmt: skip
        made = add(
            f"made{number}", "KiwiEditSampler", model=model, conditioning=given, latent=latent, seed=item.seed,
            steps=bench.STEPS, shift=5, denoise=1, cfg=1, window_frames=81, window_overlap=16,
        )  # fmt: skip
        images = add(f"images{number}", "VAEDecode", samples=made, vae=vae)
        add(f"saved{number}", "SaveImage", images=images, filename_prefix=f"nano/{number:03d}")
    return nodes


def through_the_graph(server, items, folder, **given):
    """Frames of each item, uint8 ``[T, 64, 64, 3]``."""
    by_item = {number: [] for number in range(len(items))}
    for path in sorted(server.output_files(server.run(graph(server, items, folder, **given)))):
        by_item[int(path.name.split("_")[0])].append(np.asarray(Image.open(path).convert("RGB")))
    return [np.stack(frames) for frames in by_item.values()]


def successes(items, made):
    return sum(measure.score(item.edit, frames).success for item, frames in zip(items, made))


def passed(items, made):
    """Whether each is right where it was asked for, and as it was elsewhere."""
    return [measure.score(item.edit, frames).passed for item, frames in zip(items, made)]


@pytest.fixture(scope="module")
def pipeline():
    pipeline = KiwiEditPipeline.from_pretrained(FOLDER, torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_library_succeeds_on_the_fixed_items_and_the_graph_alike(server, pipeline, tmp_path):
    items = fixed_items()
    by_library = [bench.model(pipeline)(item) for item in items]
    right = passed(items, by_library)
    assert sum(right) >= BOUND * len(items)
    for category in bench.CATEGORIES:
        mine = [one for item, one in zip(items, right) if item.edit.category == category]
        assert len(mine) >= 8
        assert sum(mine) >= OF_A_CATEGORY * len(mine), category
    some = range(2 * len(bench.CATEGORIES))  # of every category one that training knows, and one that it does not
    assert len({items[number].name.rpartition("/")[0] for number in some}) == len(some)
    made = through_the_graph(server, [items[number] for number in some], tmp_path)
    for number, theirs in zip(some, made, strict=True):
        difference = np.abs(by_library[number].astype(int) - theirs.astype(int)).mean()
        record("comfy toy model (mean levels)", difference, 5e-4)
    assert passed([items[number] for number in some], made) == [right[number] for number in some]


def test_its_single_files_edit_alike(server, tmp_path):
    for path in convert(FOLDER, "comfyui", tmp_path / "files"):
        target = server.models_dir / path.relative_to(tmp_path / "files")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    items = bench.items({"seen": 1}, ["local_remove", "subject_reference"])
    folder, files = (
        through_the_graph(server, items, tmp_path, loaders=loaders) for loaders in (FROM_FOLDER, FROM_FILES)
    )
    for one, other in zip(folder, files, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_style_that_nothing_teaches_is_learned_from_a_few_clips(server, pipeline, tmp_path):
    table = [
        rows.write_row(tmp_path, f"{seed}", edits.new_style(seed)) | {"id": str(seed)} for seed in range(STYLE_CLIPS)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    config = recipes.get("nano_style_lora").replace(
        model=str(FOLDER), data=(str(tmp_path / "rows.jsonl"),), cache=str(tmp_path / "cache"),
        output=str(tmp_path / "infrared"), workers=0, device="cpu",
    )  # fmt: skip
    cache_data.cache_data(config)
    (lora,) = [path for path in trainer.train(config) if path.name == STYLE]
    (server.models_dir / "loras").mkdir(exist_ok=True)
    shutil.copy(lora, server.models_dir / "loras" / STYLE)

    seeds = range(edits.BENCH_SEEDS, edits.BENCH_SEEDS + 12)
    items = [bench.Item(f"new_style/{seed}", seed, edits.new_style(seed)) for seed in seeds]
    assert successes(items, map(bench.ceiling(pipeline), items)) == len(items)  # the VAE can carry it
    plain = successes(items, through_the_graph(server, items, tmp_path))
    styled = successes(items, through_the_graph(server, items, tmp_path, lora=STYLE))
    assert plain <= 1
    assert styled >= 9
