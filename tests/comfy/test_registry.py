"""What the registry's package holds loads and runs; its metadata is what ComfyUI reads."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import comfyui
import props
import pytest

ICON = comfyui.REPO / "icon.svg"


def git(*arguments, **kwargs):
    return subprocess.run(["git", *arguments], cwd=comfyui.REPO, capture_output=True, text=True, **kwargs).stdout


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The files that .comfyignore leaves, in a folder of their own."""
    files = git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    if not files:
        pytest.skip("not a git checkout")
    ignored = git(
        "-c", "core.excludesFile=.comfyignore", "check-ignore", "--no-index", "--stdin", input="\n".join(files)
    ).splitlines()  # fmt: skip
    folder = tmp_path_factory.mktemp("packed")
    for name in sorted({*files} - {*ignored}):
        if (comfyui.REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(comfyui.REPO / name, folder / name)
    return folder


def test_the_package_holds_what_comfyui_shows_and_no_more(packed):
    assert {path.name for path in packed.iterdir() if path.is_dir()} == {
        "kiwi_core", "nodes", "training", "web", "locales", "subgraphs", "workflows", "models"
    }  # fmt: skip
    project = (packed / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^packages = \[(.*?)\]$", project, re.M | re.S)[1]
    for package in re.findall(r'"([\w.]+)"', listed):  # so that pip can install it, too
        assert (packed / package.replace(".", "/") / "__init__.py").is_file()
    assert (packed / "workflows" / "quick_edit.jpg").is_file()
    assert sum(path.stat().st_size for path in packed.rglob("*") if path.is_file()) < 21e6


def test_the_package_loads_and_runs(packed, tmp_path):
    props.place(tmp_path)
    with comfyui.Server(comfyui.DEFAULT_VERSION, tmp_path, packed, cpu=True) as server:
        prompt = json.loads((comfyui.REPO / "workflows" / "api" / "quick_edit.json").read_text(encoding="utf-8"))
        assert server.output_files(server.run(prompt))


def test_comfyui_reads_the_metadata(comfyui_path):
    read = (
        "import sys; from comfy_config import config_parser; "
        "found = config_parser.extract_node_configuration(sys.argv[1]); "
        "print(found.project.name, found.tool_comfy.publisher_id, found.tool_comfy.display_name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", read, str(comfyui.REPO)], cwd=comfyui_path, capture_output=True, text=True
    )
    assert done.stdout.split() == ["kiwi-edit", "kiwi-edit", "Kiwi-Edit"], done.stderr


def test_the_oldest_supported_comfyui_is_the_oldest_tested():
    text = (comfyui.REPO / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-comfyui = ">={comfyui.VERSIONS[0]}"' in text


def test_the_icon_fits_the_registry():
    text = Path(ICON).read_text(encoding="utf-8")
    assert 'viewBox="0 0 400 400"' in text
    assert "<image" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
