"""The real frontend in headless Chromium on a real server, with a small random model under the released names."""

import canvas as canvases
import comfyui
import props
import pytest

SCREENSHOTS = comfyui.REPO / "output" / "browser"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("server")
    props.place(base)
    with comfyui.Server(comfyui.DEFAULT_VERSION, base, cpu=True) as server:
        yield server


@pytest.fixture(scope="session")
def chromium():
    with canvases.launched() as browser:
        yield browser


@pytest.fixture(scope="session")
def browser(chromium, server):
    return canvases.started(chromium, server)


@pytest.fixture
def canvas(browser):
    """A frontend just loaded, its canvas empty."""
    browser.start()
    return browser


@pytest.fixture(scope="session")
def screenshots():
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS
