"""What ComfyUI shows of the pack around the canvas: templates, blueprint, help, Chinese, missing model folders."""

import contextlib
import json
import re

import comfyui
import props
import pytest
from playwright import sync_api

WORKFLOWS = comfyui.REPO / "workflows"
BLUEPRINT = "Video Edit (Kiwi-Edit)"
SIZE = {"width": 1600, "height": 1000}


def workflow(name):
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def page(canvas):
    before = canvas.page.viewport_size
    canvas.page.set_viewport_size(SIZE)
    yield canvas.page
    canvas.page.set_viewport_size(before)


def select(page, node_type):
    page.evaluate(
        """type => {
            const {graph, canvas} = window.app;
            const node = graph._nodes.find(node => node.type === type);
            canvas.selectItems([node]);
            canvas.centerOnNode(node);
        }""",
        node_type,
    )


def search(page):
    """The canvas's search box. A double click while the frontend still starts is lost, on a slow machine."""
    box = page.get_by_role("dialog").get_by_role("combobox")
    for _ in range(5):
        page.locator("canvas#graph-canvas").dblclick(position={"x": 500, "y": 300})
        with contextlib.suppress(sync_api.TimeoutError):
            box.wait_for(timeout=6000)
            break
    return box


def test_the_template_browser_shows_every_workflow_with_its_picture(page, server, screenshots):
    answers = {}
    page.on("response", lambda response: answers.update({response.url: response.status}))
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_text(comfyui.PACK, exact=True).first.click()
    names = {path.stem for path in WORKFLOWS.glob("*.json")}
    for name in sorted(names):
        page.get_by_text(name, exact=True).first.scroll_into_view_if_needed()
        page.wait_for_timeout(300)  # pictures are fetched once they come into sight
    page.screenshot(path=screenshots / "templates.png")
    folder = f"{server.url}/api/workflow_templates/{comfyui.PACK}"
    assert {name for name in names if answers.get(f"{folder}/{name}.jpg") == 200} == names


def test_the_blueprint_goes_onto_an_empty_canvas_and_runs(page, canvas, server, screenshots):
    search(page).fill(BLUEPRINT)
    page.get_by_role("dialog").get_by_text(BLUEPRINT, exact=True).first.click()
    page.wait_for_function("() => window.app.graph._nodes.length === 1")  # it hangs on the mouse until a click
    page.mouse.move(600, 300)
    page.mouse.click(600, 300)
    page.wait_for_timeout(500)
    page.evaluate(
        """() => {
            const {graph} = window.app, [edit] = graph._nodes;
            const add = (type, x) => {
                const node = window.LiteGraph.createNode(type);
                graph.add(node);
                node.pos = [edit.pos[0] + x, edit.pos[1]];
                return node;
            };
            const load = add('LoadVideo', -400), save = add('SaveVideo', 400);
            load.widgets[0].value = 'clip.mp4';
            load.connect(0, edit, edit.inputs.findIndex(input => input.name === 'video'));
            edit.connect(0, save, 0);
        }"""
    )
    page.screenshot(path=screenshots / "blueprint.png")
    prompt = canvas.prompt()
    (edit,) = [node for node in prompt.values() if node["class_type"] == "KiwiEditEditVideo"]
    assert prompt[edit["inputs"]["video"][0]]["class_type"] == "LoadVideo"
    assert prompt[edit["inputs"]["model"][0]]["class_type"] == "KiwiEditLoadAll"
    (file,) = server.output_files(canvas.run())
    assert file.stat().st_size
    assert canvas.complaints() == []


def test_the_help_panel_shows_the_page_with_its_picture(page, canvas, screenshots):
    canvas.open(workflow("instruct_video_edit"))
    select(page, "KiwiEditSampler")
    page.get_by_test_id("info-button").click()
    picture = page.locator(f"img[src*='/extensions/{comfyui.PACK}/docs/KiwiEditSampler.jpg']")
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    page.screenshot(path=screenshots / "help.png")


def test_titles_inputs_and_widgets_are_chinese_in_chinese(page, canvas, screenshots):
    canvas.setting("Comfy.Locale", "zh")
    try:
        canvas.start()
        canvas.open(workflow("reference_background"))
        shown = page.evaluate(
            """() => window.app.graph._nodes.filter(node => node.type.startsWith('KiwiEdit')).map(node => [
                node.title,
                ...node.inputs.filter(input => !input.name.includes('.')).map(input => input.localized_name),
                ...node.outputs.map(output => output.localized_name),
            ])"""
        )
        canvas.picture().save(screenshots / "chinese.png")
    finally:
        canvas.setting("Comfy.Locale", "en")
    assert len(shown) > 5
    chinese = json.loads((comfyui.REPO / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    slots = [slot for node in chinese.values() for slot in (node["inputs"] | node["outputs"]).values()]
    names = {slot["name"] for slot in slots}
    for title, *found in shown:
        assert re.search("[\u4e00-\u9fff]", title)
        assert {*found} <= names


def test_a_missing_model_folder_is_offered_and_a_present_one_is_not(page, canvas, server, screenshots):
    folder = server.models_dir / "diffusers" / props.MODEL
    away = folder.rename(server.base_dir / "away")
    try:
        canvas.start()
        canvas.open(workflow("quick_edit"))
        page.wait_for_timeout(1000)
        told, stand_in = canvas.complaints()
        page.screenshot(path=screenshots / "missing_folder.png")
    finally:
        away.rename(folder)
    assert f"https://huggingface.co/linyq/{props.MODEL}" in told
    assert f"models/diffusers/{props.MODEL}/" in told
    assert "The toy model is chosen" in stand_in  # it comes with the pack, and is the only other one here
    canvas.start()
    canvas.open(workflow("quick_edit"))
    page.wait_for_timeout(1000)
    assert canvas.complaints() == []


def test_a_missing_lora_is_named_by_the_frontend(page, canvas, server):
    lora = server.models_dir / "loras" / "kiwi_edit_style.safetensors"
    away = lora.rename(server.base_dir / lora.name)
    try:
        canvas.start()
        canvas.open(workflow("lora_style"))
        page.wait_for_timeout(1000)
        assert any(lora.name in text for text in canvas.complaints())
    finally:
        away.rename(lora)
