"""Loaders read as ComfyUI reads, so that its settings and its memory management hold for folders too."""

import shutil
from pathlib import Path

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


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_weights_have_the_dtype_that_is_chosen(pack, folder, tmp_path, dtype):
    loaders, name = pack.nodes.loaders, random_model.FILES["model"]
    random_model.write(tmp_path)
    shutil.copytree(tmp_path / "comfyui", folder_paths.models_dir, dirs_exist_ok=True)
    for model in (
        loaders.KiwiEditLoadModel.execute(folder, dtype)[0],
        loaders.KiwiEditLoadModel.execute(Path(name).name, dtype)[0],
        pack.nodes.edit.KiwiEditLoadAll.execute(folder, dtype)[0],
    ):
        weight = model.model.diffusion_model.blocks[0].ffn[0].weight
        assert weight.dtype == getattr(torch, dtype.replace("fp8", "float8"))


def test_a_vae_can_be_loaded_anew_for_another_device(pack, folder):
    vae = pack.nodes.loaders.KiwiEditLoadVAE.execute(folder)[0]
    build, given = vae.patcher.cached_patcher_init
    other = build(*given, disable_dynamic=True)
    assert other is not vae.patcher
    one, two = (dict(patcher.model.named_parameters()) for patcher in (vae.patcher, other))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
