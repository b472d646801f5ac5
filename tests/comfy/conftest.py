"""A real ComfyUI for these tests, in this process and as a server; one pytest process has one version.

Test modules may import ComfyUI's modules at their top: its tree leads ``sys.path``, it computes on the CPU,
and its base directory (models, input, output) is a temporary one.
"""

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

import comfyui
import pytest


def pytest_addoption(parser):
    parser.addoption("--comfyui", default=comfyui.DEFAULT_VERSION, help="ComfyUI version to test on")


def pytest_configure(config):
    if any(Path(entry).resolve() == comfyui.REPO for entry in sys.path):
        raise pytest.UsageError("Start .venv/bin/pytest: with python -m pytest, nodes/ hides ComfyUI's own.")
    sys.path.insert(0, str(comfyui.fetch(_version(config))))
    base = Path(tempfile.mkdtemp(prefix="comfyui-"))
    config.add_cleanup(lambda: shutil.rmtree(base))
    # Only main.py turns on the parsing of the command line, so these are the defaults. ComfyUI's other
    # modules read both values when they are first imported.
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = str(base)


def _version(config) -> str:
    # Where this file is found only after the command line was parsed, the option is unknown.
    return config.getoption("--comfyui", comfyui.DEFAULT_VERSION)


@pytest.fixture(scope="session")
def comfyui_version(pytestconfig) -> str:
    return _version(pytestconfig)


@pytest.fixture(scope="session")
def comfyui_path(comfyui_version) -> Path:
    """The unpacked ComfyUI tree."""
    return comfyui.fetch(comfyui_version)


@pytest.fixture(scope="session")
def pack():
    """The pack's root module as ComfyUI's own loader leaves it in this process, under its mangled name.

    Its submodules are attributes (``pack.nodes``, ``pack.kiwi_core``); its nodes are in NODE_CLASS_MAPPINGS.
    """
    import folder_paths

    import nodes

    link = Path(folder_paths.base_path) / "custom_nodes" / comfyui.PACK
    link.parent.mkdir()
    link.symlink_to(comfyui.REPO, target_is_directory=True)
    assert asyncio.run(nodes.load_custom_node(str(link))), "ComfyUI could not load the pack: see the log"
    return sys.modules[str(link).replace(".", "_x_")]


@pytest.fixture(scope="session")
def server(comfyui_version, tmp_path_factory):
    """One running server with the pack, for the whole session; model files go under ``server.models_dir``.

    Its diffusers is broken: no node may need it, neither to load nor to run.
    """
    broken = tmp_path_factory.mktemp("broken")
    (broken / "diffusers.py").write_text("raise RuntimeError('diffusers is broken here')\n")
    env = {"PYTHONPATH": str(broken)}
    with comfyui.Server(comfyui_version, tmp_path_factory.mktemp("server"), cpu=True, env=env) as server:
        yield server
