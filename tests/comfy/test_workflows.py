"""The canvas files say what the API files say, and nothing that belongs to them is missing."""

import json
from pathlib import Path

import comfyui
import pytest
from canvas_files import widget_values
from PIL import Image

WORKFLOWS = sorted((comfyui.REPO / "workflows" / "api").glob("*.json"))
NOTES = ("Note", "MarkdownNote")


def companion(path: Path, suffix: str) -> Path:
    return path.parents[1] / f"{path.stem}{suffix}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_canvas_has_the_nodes_links_and_values_of_the_api_file(path):
    api = json.loads(path.read_text(encoding="utf-8"))
    canvas = json.loads(companion(path, ".json").read_text(encoding="utf-8"))
    nodes = {str(node["id"]): node for node in canvas["nodes"] if node["type"] not in NOTES}
    assert {name: node["type"] for name, node in nodes.items()} == {n: node["class_type"] for n, node in api.items()}

    links = {}
    for _, source, output, target, slot, _ in canvas["links"]:
        links[str(target), nodes[str(target)]["inputs"][slot]["name"]] = [str(source), output]
    for name, node in api.items():
        values = dict(node["inputs"])
        for key in [key for key, value in values.items() if isinstance(value, list)]:
            assert links.pop((name, key)) == values.pop(key)
        # As texts, for which 1, 1.0 and true are three things.
        assert json.dumps(values, sort_keys=True) == json.dumps(widget_values(nodes[name]), sort_keys=True)
    assert not links


def test_every_task_has_its_workflow():
    names = {path.stem for path in WORKFLOWS}
    assert names >= {
        "instruct_video_edit", "reference_video_edit", "reference_background", "image_edit", "long_video",
        "masked_edit", "lora_style", "low_memory", "batch_clips",
    }  # fmt: skip
    assert {path.stem for path in WORKFLOWS[0].parents[1].glob("*.json")} == names


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_loader_says_where_to_get_its_folder(path):
    canvas = json.loads(companion(path, ".json").read_text(encoding="utf-8"))
    loaders = 0
    for node in canvas["nodes"]:
        for value in node.get("widgets_values", []):
            if isinstance(value, str) and value.endswith("-diffusers/"):
                loaders += 1
                (link,) = node["properties"]["models"]
                assert link["name"] == value
                assert link["directory"] == "diffusers"
                assert link["url"] == f"https://huggingface.co/linyq/{value.rstrip('/')}"
    assert loaders in (1, 4)  # Load All, or a loader for each part


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_workflow_has_a_picture(path):
    with Image.open(companion(path, ".jpg")) as picture:
        assert picture.width > 1000


@pytest.mark.parametrize("page", sorted((comfyui.REPO / "web" / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_every_help_page_has_a_picture_of_its_node(page):
    assert f"]({page.stem}.jpg)" in page.read_text(encoding="utf-8")
    with Image.open(page.with_suffix(".jpg")) as picture:
        assert picture.width > 300
