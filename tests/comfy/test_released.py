"""Nodes stay as released: widgets, inputs and outputs are only ever appended, so that old workflows keep their meaning.

``tests/fixtures/released_nodes.json`` holds what was released. After a release, add what is new to it with

    RECORD_RELEASE=1 .venv/bin/pytest tests/comfy/test_released.py

which still refuses anything but additions.
"""

import json
import os

import comfyui
import pytest

RELEASED = comfyui.REPO / "tests" / "fixtures" / "released_nodes.json"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def snapshot(info: dict) -> dict[str, list]:
    """A node's widgets, inputs and outputs in the canvas's order: all that are required come before the optional."""
    widgets, inputs = [], []
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, ()):
            kind, options = info["input"][group][name][0], info["input"][group][name][1]
            is_widget = (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput")
            (widgets if is_widget else inputs).append(name)
    return {"widgets": widgets, "inputs": inputs, "outputs": info["output"]}


@pytest.fixture(scope="module")
def today(server):
    module = f"custom_nodes.{comfyui.PACK}"
    listed = {name: info for name, info in server.object_info().items() if info["python_module"] == module}
    return {name: snapshot(info) for name, info in sorted(listed.items())}


@pytest.fixture(scope="module", autouse=True)
def record(today, request):
    yield
    if os.environ.get("RECORD_RELEASE") and not request.session.testsfailed:
        RELEASED.write_text(json.dumps(today, indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize("kind", ["widgets", "inputs", "outputs"])
@pytest.mark.parametrize("node", sorted(json.loads(RELEASED.read_text(encoding="utf-8"))))
def test_what_was_released_comes_first_and_unchanged(today, node, kind):
    released = json.loads(RELEASED.read_text(encoding="utf-8"))[node][kind]
    assert today[node][kind][: len(released)] == released
