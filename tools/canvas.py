"""Draw the shipped workflows on ComfyUI's real canvas: workflows/NAME.api.json -> NAME.json and NAME.jpg.

    make workflows

Needs Chromium (/usr/bin/chromium, or its path in CHROMIUM) and the [browser] extra.
"""

import json
import os
import tempfile
import urllib.request
from pathlib import Path

import comfyui
from PIL import Image
from playwright.sync_api import Page, Route, sync_playwright

WORKFLOWS = comfyui.REPO / "workflows"
COLUMN, ROW, BAND = 400, 60, 4
_HIDE = """() => {  // everything but the canvas and the text fields on it
    const canvas = document.querySelector('canvas#graph-canvas');
    for (const element of document.querySelectorAll('body *')) {
        const kept = element.contains(canvas) || element.closest('.dom-widget') || element.querySelector('.dom-widget');
        if (!kept) element.style.visibility = 'hidden';
    }
}"""
_LOAD = """async (api) => {
    const app = window.app;
    await app.loadApiJson(api, 'workflow');
    for (const node of app.graph._nodes) {
        const inputs = api[node.id]?.inputs ?? {};
        for (const widget of node.widgets ?? []) {
            if (widget.name in inputs) widget.value = inputs[widget.name];
            if (widget.name === 'control_after_generate') widget.value = 'fixed';
        }
        node.setSize(node.computeSize().map((side, axis) => axis ? side : Math.max(side, 340)));
    }
}"""
_PLACE = """(places) => {
    const app = window.app;
    for (const [id, pos] of Object.entries(places)) app.graph.getNodeById(Number(id)).pos = pos;
    app.graph.setDirtyCanvas(true, true);
}"""
_FRAME = """() => {
    const {graph, canvas} = window.app;
    const boxes = graph._nodes.map(node => node.getBounding());
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
    const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]));
    const area = canvas.canvas.getBoundingClientRect();
    const scale = Math.min((area.width - 120) / (right - left), (area.height - 160) / (bottom - top), 1);
    canvas.ds.scale = scale;
    canvas.ds.offset = [60 / scale - left, 90 / scale - top];
    canvas.setDirty(true, true);
    return [60, 90, (right - left) * scale, (bottom - top) * scale];
}"""


def columns(api: dict) -> dict[str, int]:
    """How many nodes away from a loader each node stands."""

    def depth(name: str) -> int:
        links = [value[0] for value in api[name]["inputs"].values() if isinstance(value, list)]
        return max((depth(parent) + 1 for parent in links), default=0)

    return {name: depth(name) for name in api}


def places(api: dict, sizes: dict[str, list[float]]) -> dict[str, list[float]]:
    """Where each node goes: loaders in the first column, the others in bands of four columns beside them."""
    found, bottoms, tops = {}, {}, {0: 0.0}
    for name, depth in sorted(columns(api).items(), key=lambda item: (item[1], int(item[0]))):
        band, column = divmod(depth - 1, BAND) if depth else (0, -1)
        if band not in tops:
            tops[band] = max(bottom for (above, place), bottom in bottoms.items() if above < band and place >= 0)
        y = bottoms.get((band, column), tops[band])
        found[name] = [COLUMN * (column + 1), y]
        bottoms[band, column] = y + sizes[name][1] + ROW
    return found


def stand_in_files(server: comfyui.Server) -> None:
    """Empty files and folders under the names that the workflows use, so that the canvas shows no missing ones."""
    for path in WORKFLOWS.glob("*.api.json"):
        for node in json.loads(path.read_text(encoding="utf-8")).values():
            for widget, value in node["inputs"].items():
                if widget in ("file", "image") and isinstance(value, str):
                    (server.base_dir / "input" / value).touch()
                if isinstance(value, str) and value.endswith("/"):
                    folder = server.models_dir / "diffusers" / value
                    (folder / "mllm_encoder").mkdir(parents=True, exist_ok=True)
                    (folder / "model_index.json").touch()


def open_canvas(page: Page, server: comfyui.Server) -> None:
    """The frontend with its graph ready and the first-run tutorial out of the way; other hosts are not called."""
    request = urllib.request.Request(  # noqa: S310
        f"{server.url}/settings/Comfy.TutorialCompleted", b"true", {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request).close()  # noqa: S310  # noqa: S310

    def local(route: Route) -> None:
        route.continue_() if route.request.url.startswith((server.url, "data:", "blob:")) else route.abort()

    page.route("**/*", local)
    page.goto(server.url)
    page.wait_for_function(
        "() => window.app?.graph && window.LiteGraph?.registered_node_types?.KiwiEditSampler", timeout=120_000
    )


def draw(page: Page, api: dict) -> tuple[dict, Image.Image]:
    """Lay an API workflow out on the canvas; its canvas JSON and a picture of it."""
    page.evaluate(_LOAD, api)
    page.wait_for_function("count => window.app.graph._nodes.length === count", arg=len(api))
    sizes = page.evaluate("() => Object.fromEntries(window.app.graph._nodes.map(n => [n.id, [...n.size]]))")
    page.evaluate(_PLACE, places(api, sizes))
    page.wait_for_timeout(500)
    left, top, width, height = page.evaluate(_FRAME)
    page.wait_for_timeout(1000)
    graph = page.evaluate("() => window.app.graph.serialize()")
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    if {name: node["inputs"] for name, node in prompt.items()} != {n: node["inputs"] for n, node in api.items()}:
        raise SystemExit("The canvas does not give the API file back; look at the widgets of its nodes.")
    page.evaluate(_HIDE)
    box = page.locator("canvas#graph-canvas").bounding_box()
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "canvas.png"
        clip = {"x": box["x"] + left - 40, "y": box["y"] + top - 70, "width": width + 80, "height": height + 110}
        page.screenshot(path=shot, clip=clip)
        return graph, Image.open(shot).convert("RGB")


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        comfyui.Server(comfyui.DEFAULT_VERSION, folder) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 2200, "height": 1400})
        stand_in_files(server)
        open_canvas(page, server)
        for path in sorted(WORKFLOWS.glob("*.api.json")):
            name = path.name.removesuffix(".api.json")
            graph, picture = draw(page, json.loads(path.read_text(encoding="utf-8")))
            (WORKFLOWS / f"{name}.json").write_text(json.dumps(graph, indent=1) + "\n", encoding="utf-8")
            picture.save(WORKFLOWS / f"{name}.jpg", quality=88)
            print(f"workflows/{name}.json, {name}.jpg")
        browser.close()


if __name__ == "__main__":
    main()
