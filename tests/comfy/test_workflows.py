"""The canvas files say what the API files say."""

import json
from pathlib import Path

import comfyui
import pytest
from PIL import Image

WORKFLOWS = sorted((comfyui.REPO / "workflows").glob("*.api.json"))


def companion(path: Path, suffix: str) -> Path:
    return path.with_name(path.name.removesuffix(".api.json") + suffix)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_canvas_has_the_nodes_links_and_values_of_the_api_file(path):
    api = json.loads(path.read_text(encoding="utf-8"))
    canvas = json.loads(companion(path, ".json").read_text(encoding="utf-8"))
    nodes = {str(node["id"]): node for node in canvas["nodes"]}
    assert {name: node["type"] for name, node in nodes.items()} == {n: node["class_type"] for n, node in api.items()}

    links = {}
    for _, source, output, target, slot, _ in canvas["links"]:
        links[str(target), nodes[str(target)]["inputs"][slot]["name"]] = [str(source), output]
    for name, node in api.items():
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                assert links.pop((name, key)) == value
            else:
                assert value in nodes[name]["widgets_values"]
    assert not links


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_workflow_has_a_picture(path):
    with Image.open(companion(path, ".jpg")) as picture:
        assert picture.width > 1000
