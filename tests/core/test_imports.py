"""What may be imported where: ComfyUI has no diffusers, and starts no slower for this pack."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kiwi_core

ROOT = Path(__file__).parents[2]
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "node_helpers", "server"}
# Named in the requirements.txt of every ComfyUI that is supported, or needed by what is named there.
BROUGHT = {"torch", "numpy", "PIL", "av", "einops", "safetensors", "tokenizers", "transformers", "huggingface_hub"}
BLOCK = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def python(code, blocked=()):
    code = BLOCK.format(blocked=tuple(blocked)) + code
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_importing_the_package_is_light():
    heavy = ("torch", "numpy", "diffusers", "transformers", "tokenizers", "safetensors", "PIL", "av", "accelerate")
    done = python(f"import kiwi_core; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


def test_the_pipeline_is_reached_from_the_package():
    assert kiwi_core.KiwiEditPipeline.__module__ == "kiwi_core.pipeline"
    assert kiwi_core.KiwiEditPipelineOutput.__module__ == "kiwi_core.pipeline"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        kiwi_core.nothing  # noqa: B018


def imported(path):
    """Roots of all absolute imports of a file, those within functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("room, strangers", [("kiwi_core", {"nodes", "training"}), ("training", {"nodes"})])
def test_the_library_needs_no_comfyui(room, strangers):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        assert not strangers & set(imported(path)), path
        assert not [name for name in imported(path) if name.startswith(("comfy", "folder_paths"))], path


def neighbours(path, inner):
    """Files of ours that a file imports; ``inner``: those within functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if inner else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            room = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            rooms = [room, *(room / alias.name for alias in node.names)]
            files = [file for room in rooms for file in (room.with_suffix(".py"), room / "__init__.py")]
            yield from filter(Path.is_file, files)


def test_the_nodes_import_nothing_that_comfyui_does_not_bring():
    queue, seen = sorted((ROOT / "nodes").glob("*.py")), set()
    while queue:
        path = queue.pop()
        if path not in seen:
            seen.add(path)
            # What the library imports within functions, such as its pipeline, no node comes to.
            queue += neighbours(path, inner=path.parent.name == "nodes")
            assert set(imported(path)) <= sys.stdlib_module_names | COMFYUI | BROUGHT, path
    assert ROOT / "kiwi_core" / "checkpoints" / "files.py" in seen


def test_the_parts_that_nodes_use_need_no_diffusers():
    rooms = ["mllm", "conditioning", "connector", "schedule", "geometry", "variant"]
    rooms += [f"checkpoints.{name}" for name in ("dit_keys", "vae_keys", "files", "parts")]
    rooms += [f"checkpoints.{name}" for name in ("released", "single_files", "training")]
    code = "".join(f"import kiwi_core.{room}\n" for room in rooms)
    done = python(code + "print('all')\nimport kiwi_core.vae", ("diffusers", "accelerate", "transformers", "av"))
    assert done.stdout == "all\n", done.stderr
    assert "ModuleNotFoundError: No module named 'diffusers'" in done.stderr
