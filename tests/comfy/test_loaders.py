"""Loaders read as ComfyUI reads, so that its settings and its memory management hold for folders too."""

import shutil

import comfy.utils
import folder_paths
import pytest
import random_model
import torch


@pytest.fixture(scope="module")
def folder(pack, tmp_path_factory):
    made = tmp_path_factory.mktemp("model")
    random_model.write(made)
    shutil.copytree(made / "released", f"{folder_paths.models_dir}/diffusers/loaded", dirs_exist_ok=True)
    return "loaded/"


def test_folders_are_read_by_comfyui(pack, folder, monkeypatch):
    """It knows whether to map files, and with dynamic VRAM where in a file a weight is."""
    read, original = [], comfy.utils.load_torch_file
    monkeypatch.setattr(comfy.utils, "load_torch_file", lambda path, **how: read.append(path) or original(path, **how))
    for node in ("KiwiEditLoadModel", "KiwiEditLoadMLLM", "KiwiEditLoadConnector", "KiwiEditLoadVAE"):
        given = (folder, "default") if node == "KiwiEditLoadModel" else (folder,)
        getattr(pack.nodes.loaders, node).execute(*given)
    parts = ("transformer", "source_embedder", "ref_embedder", "mllm_encoder", "vae")
    assert {part for path in read for part in parts if f"/{part}/" in path} == set(parts)


def test_a_vae_can_be_loaded_anew_for_another_device(pack, folder):
    vae = pack.nodes.loaders.KiwiEditLoadVAE.execute(folder)[0]
    build, given = vae.patcher.cached_patcher_init
    other = build(*given, disable_dynamic=True)
    assert other is not vae.patcher
    one, two = (dict(patcher.model.named_parameters()) for patcher in (vae.patcher, other))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
