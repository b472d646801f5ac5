"""Nodes stay as released, so that old workflows keep their meaning: widgets, inputs and outputs are only ever
appended, and a widget keeps its type, its default and every value that it takes.

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


def widget(name: str, kind: str | list, options: dict) -> dict:
    """What of a widget is in old workflows, and whether the canvas counts it on after a run."""
    kind, choices = ("COMBO", kind) if isinstance(kind, list) else (kind, options.get("options"))
    kept = {key: options[key] for key in ("default", "min", "max", "control_after_generate") if key in options}
    if choices and not name.endswith("_name"):  # those list files
        kept["options"] = choices
    return {"name": name, "type": kind, **kept}


def snapshot(info: dict) -> dict[str, list]:
    """A node's widgets, inputs and outputs in the canvas's order: all that are required come before the optional."""
    widgets, inputs = [], []
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, ()):
            kind, options = info["input"][group][name][0], info["input"][group][name][1]
            if (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput"):
                widgets.append(widget(name, kind, options))
            else:
                inputs.append(name)
    return {"widgets": widgets, "inputs": inputs, "outputs": info["output"]}


def takes_as_much(new: dict, old: dict) -> bool:
    """Whether a widget is as it was, but for more values that it takes."""
    wider = {"min": new.get("min", 0) <= old.get("min", 0), "max": new.get("max", 0) >= old.get("max", 0)}
    wider["options"] = {*new.get("options", ())} >= {*old.get("options", ())}
    same = {key: new.get(key) == old.get(key) for key in (new.keys() | old.keys()) - wider.keys()}
    return all((wider | same).values())


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


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
@pytest.mark.parametrize("node", sorted(json.loads(RELEASED.read_text(encoding="utf-8"))))
def test_what_was_released_comes_first_and_unchanged(today, node, kind):
    released = json.loads(RELEASED.read_text(encoding="utf-8"))[node][kind]
    assert today[node][kind][: len(released)] == released


@pytest.mark.parametrize("node", sorted(json.loads(RELEASED.read_text(encoding="utf-8"))))
def test_released_widgets_come_first_and_take_what_they_took(today, node):
    released = json.loads(RELEASED.read_text(encoding="utf-8"))[node]["widgets"]
    for new, old in zip(today[node]["widgets"], released):
        assert takes_as_much(new, old), new
    assert len(today[node]["widgets"]) >= len(released)
