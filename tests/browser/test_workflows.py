"""Every shipped workflow opens on the real canvas, says what its API file says, and runs to its files."""

import json

import comfyui
import pytest
from canvas_files import widget_values

WORKFLOWS = sorted((comfyui.REPO / "workflows").glob("*.json"))
RELEASED = sorted((comfyui.REPO / "tests" / "fixtures" / "released_workflows").glob("*.json"))
# What a text field or a player on the canvas holds besides the node's own values.
NOT_VALUES = ("MarkdownNote", "Note")


def name_of(path):
    return path.stem


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_workflow_opens_and_runs(canvas, server, screenshots, path):
    canvas.open(json.loads(path.read_text(encoding="utf-8")), path.stem)
    canvas.picture().save(screenshots / f"{path.stem}.png")
    assert canvas.complaints() == []

    api = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
    assert canvas.prompt() == {
        node_id: {"class_type": node["class_type"], "inputs": node["inputs"]} for node_id, node in sorted(api.items())
    }

    files = server.output_files(canvas.run())
    assert files
    assert all(file.stat().st_size for file in files)
    assert canvas.complaints() == []


@pytest.mark.parametrize("path", RELEASED, ids=name_of)
def test_values_of_a_released_workflow_land_on_the_same_widgets(canvas, path):
    graph = json.loads(path.read_text(encoding="utf-8"))
    canvas.open(graph, path.stem)
    assert canvas.complaints() == []
    prompt = canvas.prompt()
    for node in graph["nodes"]:
        if node["type"] in NOT_VALUES:
            continue
        now = prompt[str(node["id"])]
        assert now["class_type"] == node["type"]
        assert widget_values(node).items() <= now["inputs"].items()
        links = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
        assert {name for name, value in now["inputs"].items() if isinstance(value, list)} == links


def test_an_unknown_node_is_complained_of(canvas):
    graph = json.loads(WORKFLOWS[0].read_text(encoding="utf-8"))
    graph["nodes"][0]["type"] = "NoSuchNode"
    canvas.open(graph)
    canvas.page.wait_for_timeout(1000)
    assert any("NoSuchNode" in text for text in canvas.complaints())
