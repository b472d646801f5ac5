"""An artist's path: train a style on a few clips, drop the file into models/loras, run the LoRA workflow."""

import shutil
import subprocess
import sys

import comfyui
import edit_graph
import pytest
import random_model
import sample_graph
import torch
import training_data
from edit_graph import node
from safetensors import safe_open

from kiwi_core import KiwiEditPipeline, media

STYLE = "my_style.safetensors"


@pytest.fixture(scope="module")
def graph(server, tmp_path_factory):
    return edit_graph.EditGraph(server, tmp_path_factory.mktemp("style_models"))


@pytest.fixture(scope="module")
def style(server, tmp_path_factory):
    """The file that the commands of the tutorial leave, in ``models/loras``."""
    folder = tmp_path_factory.mktemp("style")
    random_model.write(folder / "models")
    for number in range(3):
        row = training_data.write_pair(folder / "clips", f"clip{number}", 2 * number)
        (folder / "clips" / f"clip{number}.txt").write_text(row["prompt"])
    model, output = folder / "models" / "released", folder / "my_style"
    common = ["tiny_style_lora", "--model", model, "--data", folder / "clips", "--cache", folder / "cache",
              "--output", output, "--device", "cpu"]  # fmt: skip
    run("check-data", folder / "clips")
    run("cache", *common)
    run("train", *common, "--steps", "8")
    loras = server.models_dir / "loras"
    loras.mkdir(exist_ok=True)
    shutil.copy(output / "exports" / STYLE, loras)
    shutil.copytree(model, server.models_dir / "diffusers" / "style_base", dirs_exist_ok=True)
    return loras / STYLE


def run(*words):
    done = subprocess.run(
        [sys.executable, "-m", "training", *map(str, words)], cwd=comfyui.REPO, capture_output=True, text=True,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def loaded(prompt, class_type, **widgets):
    """The graph with a LoRA loader behind its model."""
    prompt = prompt | {"lora": node(class_type, lora_name=STYLE, model=["model", 0], **widgets)}
    prompt["sampled"]["inputs"]["model"] = ["lora", 0]
    return prompt


def test_the_stock_loader_and_ours_apply_the_trained_style_alike_and_the_library_takes_all_of_it(server, graph, style):
    plain = graph.latents(graph.prompt())
    before = len(server.log)
    stock = graph.latents(loaded(graph.prompt(), "LoraLoaderModelOnly", strength_model=1.0))
    assert "lora key not loaded" not in server.log[before:]
    ours = graph.latents(loaded(graph.prompt(), "KiwiEditLoadLoRA", strength=1.0, mllm_strength=1.0))
    assert (stock - plain).abs().max() > 0.01
    torch.testing.assert_close(stock, ours, atol=1e-5, rtol=1e-5)

    pipe = KiwiEditPipeline.from_pretrained(server.models_dir / "diffusers" / "style_base", dtype=torch.float32)
    report = pipe.load_lora(style)
    assert report.matched == report.total


def test_the_file_says_where_it_comes_from(style):
    with safe_open(style, "pt") as file:
        about, names = file.metadata(), list(file.keys())
    assert about["kiwi_edit.recipe"] == "tiny_style_lora"
    assert about["kiwi_edit.base"] == "released"
    assert about["kiwi_edit.step"] == "8"
    assert len(about["kiwi_edit.data"]) == 16
    assert all(name.startswith("diffusion_model.blocks.") for name in names)


def test_the_lora_workflow_runs_with_it(server, style, tmp_path):
    clip = media.save_video(tmp_path / "style_clip.mp4", sample_graph.draw_clip()[:5, ::2, ::2], 12)
    prompt = sample_graph.workflow("lora_style", {"steps": 2, "lora_name": STYLE, "model_name": "style_base/"})
    for each in prompt.values():
        if each["class_type"] == "LoadVideo":
            each["inputs"]["file"] = server.put_input(clip)
    (path,) = server.output_files(server.run(prompt))
    assert media.load_video(path).frames.shape[0] == 5
