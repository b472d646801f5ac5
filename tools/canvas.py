"""ComfyUI's real frontend in headless Chromium: open workflows on its canvas, run them, take pictures of them.

Needs Chromium (on the PATH, or its path in CHROMIUM) and the [browser] extra. As a command it says which Chromium
will be used.
"""

import io
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfyui
from PIL import Image
from playwright.sync_api import Browser, Page, Route, sync_playwright

NO_CHROMIUM = "Chromium is not installed: apt-get install chromium, or set CHROMIUM to the path of one."
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types?.KiwiEditSampler"
_BARE = """
body * { visibility: hidden !important }
canvas#graph-canvas, .dom-widget, .dom-widget * { visibility: visible !important }
"""  # everything but the canvas and the text fields on it
_FRAME = """([margin, zoom]) => {
    const {graph, canvas} = window.app;
    const boxes = graph._nodes.map(node => node.getBounding());
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
    const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]));
    const area = canvas.canvas.getBoundingClientRect();
    const scale = Math.min((area.width - 120) / (right - left), (area.height - 160) / (bottom - top), zoom);
    canvas.deselectAll();
    canvas.ds.scale = scale;
    canvas.ds.offset = [60 / scale - left, 90 / scale - top];
    canvas.setDirty(true, true);
    return {
        x: area.x + 60 - margin, y: area.y + 90 - margin,
        width: (right - left) * scale + 2 * margin, height: (bottom - top) * scale + 2 * margin,
    };
}"""


def chromium() -> str:
    """Path of a Chromium; RuntimeError says how to get one."""
    if path := os.environ.get("CHROMIUM"):
        return path
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise RuntimeError(NO_CHROMIUM)


class Canvas:
    """The frontend of one server in one page."""

    def __init__(self, page: Page, server: comfyui.Server):
        self.page, self.server = page, server

    def setting(self, name: str, value: Any) -> None:
        """Store a setting of the frontend on the server; it holds from the next :meth:`start` on."""
        request = urllib.request.Request(  # noqa: S310
            f"{self.server.url}/settings/{name}", json.dumps(value).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request).close()  # noqa: S310

    def start(self) -> None:
        """Load the frontend with an empty canvas. No host but the server is called."""

        def local(route: Route) -> None:
            route.continue_() if route.request.url.startswith((self.server.url, "data:", "blob:")) else route.abort()

        self.setting("Comfy.TutorialCompleted", True)  # no first-run template browser
        self.setting("Comfy.Workflow.Persist", False)
        self.setting("Comfy.Graph.CanvasInfo", False)
        self.setting("LiteGraph.Canvas.MinFontSizeForLOD", 0)
        self.setting("Comfy.NodeBadge.NodeSourceBadgeMode", "None")
        self.page.route("**/*", local)
        self.page.goto(self.server.url)
        self.page.wait_for_function(_READY, timeout=120_000)
        self.page.evaluate("() => window.app.graph.clear()")

    def open(self, graph: dict, name: str = "workflow") -> None:
        """Open a canvas file as if it had been dropped onto the canvas."""
        self.page.evaluate("([graph, name]) => window.app.loadGraphData(graph, true, true, name)", [graph, name])
        self.page.wait_for_timeout(500)  # previews and checks for missing files come after

    def complaints(self) -> list[str]:
        """What the frontend complains of: missing nodes and files, failed runs, anything in a dialog or a toast."""
        places = "[data-testid=error-overlay], [role=dialog], .p-toast-message"
        return [text.strip() for text in self.page.locator(places).all_inner_texts() if text.strip()]

    def graph(self) -> dict:
        """The canvas file of what is on the canvas."""
        return self.page.evaluate("() => window.app.graph.serialize()")

    def prompt(self) -> dict[str, dict]:
        """What would be queued, without ``_meta``."""
        output = self.page.evaluate("async () => (await window.app.graphToPrompt()).output")
        for node in output.values():
            node["inputs"].pop("video-preview", None)  # the frontend's own player, which has no input
        return {
            name: {"class_type": node["class_type"], "inputs": node["inputs"]} for name, node in sorted(output.items())
        }

    def run(self, timeout: float = 300.0) -> dict:
        """Queue what is on the canvas as the Run button does; the history entry, once it has run."""
        with self.page.expect_response(lambda response: response.url.endswith("/prompt")) as answer:
            self.page.evaluate("() => window.app.queuePrompt(0)")
        told = answer.value.json()
        if "prompt_id" not in told:
            raise RuntimeError(comfyui.refusal(told))
        return self.server.wait(told["prompt_id"], timeout)

    def picture(self, margin: int = 40, zoom: float = 1.0) -> Image.Image:
        """The graph without the frontend's menus; at most ``zoom`` times as large."""
        box = self.page.evaluate(_FRAME, [margin, zoom])
        style = self.page.add_style_tag(content=_BARE)
        self.page.wait_for_timeout(700)
        shot = self.page.screenshot(clip=box)
        style.evaluate("element => element.remove()")
        return Image.open(io.BytesIO(shot)).convert("RGB")


@contextmanager
def launched() -> Iterator[Browser]:
    """Chromium, headless."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=_ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def browse(server: comfyui.Server, width: int = 2800, height: int = 1700) -> Iterator[Canvas]:
    """A started :class:`Canvas` of a running server, in a window of this size in pixels."""
    with launched() as browser:
        yield started(browser, server, width, height)


def started(browser: Browser, server: comfyui.Server, width: int = 2800, height: int = 1700) -> Canvas:
    """A :class:`Canvas` of a running server, in a window of this size in pixels."""
    canvas = Canvas(browser.new_page(viewport={"width": width, "height": height}), server)
    canvas.start()
    return canvas


if __name__ == "__main__":
    try:
        print(chromium())
    except RuntimeError as error:
        sys.exit(str(error))
