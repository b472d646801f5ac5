"""The pack in the real ComfyUI server."""

import asyncio
import subprocess
import sys

import comfyui
import pytest


@pytest.fixture(scope="module")
def node_ids(pack) -> set[str]:
    async def node_list():
        return await (await pack.comfy_entrypoint()).get_node_list()

    return {node.GET_SCHEMA().node_id for node in asyncio.run(node_list())}


def test_the_server_lists_every_node_of_the_pack(server, node_ids):
    module = f"custom_nodes.{comfyui.PACK}"
    listed = {name for name, info in server.object_info().items() if info["python_module"] == module}
    assert listed == node_ids
    assert listed
    assert all(name.startswith("KiwiEdit") for name in listed)


def test_the_pack_loads_without_a_word_in_the_log(server):
    start = server.log.partition("Starting server")[0]
    mentions = [line for line in start.splitlines() if f"custom_nodes/{comfyui.PACK}" in line]
    assert len(mentions) == 1, mentions  # its import time
    assert "seconds: " in mentions[0]
    assert "pyproject.toml" not in start  # ComfyUI warns where it cannot parse the pack's


def test_the_pack_needs_no_diffusers(server):
    done = subprocess.run(
        [sys.executable, "-c", "import diffusers"], env=server.env, capture_output=True, text=True
    )
    assert "diffusers is broken here" in done.stderr  # so it is for the server, see conftest.py
    assert "diffusers is broken here" not in server.log


def test_every_node_has_a_help_page(node_ids):
    assert {page.stem for page in (comfyui.REPO / "web" / "docs").glob("*.md")} == node_ids
