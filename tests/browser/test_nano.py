"""Where there is no other model, workflows open with the toy model that comes with the pack, and run."""

import json

import canvas as canvases
import comfyui
import demo
import pytest

from kiwi_core import media
from training.nano import world

NANO = "kiwi-edit-nano/"
MODEL_WIDGETS = ("model_name", "vae_name", "mllm_name", "connector_name")


@pytest.fixture(scope="module")
def bare(browser, tmp_path_factory):
    """The canvas of a ComfyUI without any model."""
    with comfyui.Server(comfyui.DEFAULT_VERSION, tmp_path_factory.mktemp("bare"), cpu=True) as server:
        page = browser.page.context.browser.new_page(viewport=browser.page.viewport_size)
        canvas = canvases.Canvas(page, server)
        canvas.start()
        yield canvas
        page.close()


def opened(canvas, name):
    path = comfyui.REPO / "workflows" / f"{name}.json"
    canvas.open(json.loads(path.read_text(encoding="utf-8")), name)
    return canvas.prompt()


@pytest.mark.parametrize("path", sorted((comfyui.REPO / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_the_toy_model_is_chosen(bare, path):
    prompt = opened(bare, path.stem)
    chosen = [node["inputs"][name] for node in prompt.values() for name in MODEL_WIDGETS if name in node["inputs"]]
    assert set(chosen) == {NANO}
    assert any("toy" in text.lower() for text in bare.complaints())


def test_the_shortest_workflow_runs_with_it(bare, screenshots, tmp_path):
    edit = demo.asked()["remove"]
    clip = bare.server.put_input(media.save_video(tmp_path / "toy.mp4", world.render(edit.before), demo.RATE, crf=4))
    opened(bare, "quick_edit")
    bare.page.evaluate(
        """([values]) => { for (const node of window.app.graph._nodes) for (const widget of node.widgets ?? [])
            if (widget.name in values) widget.value = values[widget.name]; }""",
        [{"file": clip, "prompt": edit.prompt, "steps": 10}],
    )
    (path,) = bare.server.output_files(bare.run())
    assert media.load_video(path).frames.shape == (world.FRAMES, world.SIZE, world.SIZE, 3)
    bare.picture().save(screenshots / "toy_model.png")
