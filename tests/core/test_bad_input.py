"""Bad input gets one sentence that says what to do, before heavy work; nothing is run and nothing half-written."""

import itertools
import json
import os
import pickle
import re
import shutil

import golden
import numpy as np
import pytest
import random_model as random_models
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kiwi_core import KiwiEditPipeline
from kiwi_core.checkpoints import files, released, single_files, training


class refusal:
    """Within it, ``kind`` is raised with one sentence that matches ``says``."""

    def __init__(self, kind, says):
        self.raises = pytest.raises(kind, match=says)

    def __enter__(self):
        self.info = self.raises.__enter__()

    def __exit__(self, *error):
        raised = self.raises.__exit__(*error)
        text = str(self.info.value)
        assert "\n" not in text
        assert text.endswith(".")
        assert not re.search(r"\. [A-Z]", text), f"more than one sentence: {text}"
        assert re.search(";|[Gg]ive", text), f"does not say what to do: {text}"
        return raised


def frames(*shape):
    return np.zeros((*shape, 3), dtype=np.uint8)


# What is given to a pipeline


@pytest.fixture
def idle_pipe(random_pipe, monkeypatch):
    """A pipeline whose networks must not run."""
    encoder = random_pipe.mllm_encoder
    for module in (
        *(encoder.model.visual, encoder.model.language_model, encoder.connector),
        *(random_pipe.vae.encoder, random_pipe.vae.decoder),
        *(random_pipe.transformer, random_pipe.source_embedder, random_pipe.ref_embedder),
    ):
        monkeypatch.setattr(module, "forward", lambda *_, **__: pytest.fail("a network was run"))
    return random_pipe


@pytest.fixture
def bad_files(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "garbage.mp4").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "text.mp4").write_text("This is no video.")
    Image.new("RGB", (64, 48), "red").save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    return tmp_path


@pytest.mark.parametrize(
    "name, kind, says",
    [
        ("missing.mp4", FileNotFoundError, "does not exist; check the path"),
        (".", ValueError, "is not a file; give the path of one video or image"),
        ("empty.mp4", ValueError, "is empty .* copy or export it again"),
        ("garbage.mp4", ValueError, "cannot be read as an? (video or )?image; (export|save) it"),
        ("text.mp4", ValueError, "cannot be read as an? (video or )?image; (export|save) it"),
        ("half.png", ValueError, "cannot be read as an image; save it again"),
    ],
)
def test_unreadable_files_are_refused(idle_pipe, bad_files, name, kind, says):
    with refusal(kind, says):
        idle_pipe("Make it red.", bad_files / name)
    with refusal(kind, says):
        idle_pipe("Make it red.", frames(5, 32, 48), bad_files / name)


@pytest.mark.parametrize(
    "video, says",
    [
        (frames(0, 32, 48), "has no frames; give at least one"),
        ([], "has no frames; give at least one"),
        (frames(5, 1, 1), "1x1 pixels are too small; give at least 16"),
        (frames(5, 1, 640), "640x1 pixels are too small; give at least 16"),
        (frames(1, 16, 160_000), "160000x16 pixels are longer than 200:1; crop them"),
        (frames(1, 160_000, 16), "16x160000 pixels are longer than 200:1; crop them"),
        (np.zeros((5, 32, 48, 3), dtype=np.float32), "must be uint8 .* not float32; scale and round"),
        (np.zeros((5, 3, 32, 48), dtype=np.uint8), "must be .T, H, W, 3.* put the channels last"),
        (np.zeros((32, 48), dtype=np.uint8), "must be .T, H, W, 3.* put the channels last"),
        ([Image.new("RGB", (32, 48)), Image.new("RGB", (48, 32))], "differ in size from number 2 on; resize them"),
        ([1, 2], "Give the video as a path, a uint8 array .* or a list of PIL images"),
        (None, "Give the video as a path, a uint8 array .* or a list of PIL images"),
    ],
)
def test_impossible_clips_are_refused(idle_pipe, video, says):
    with refusal(ValueError, says):
        idle_pipe("Make it red.", video)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"prompt": ""}, "instruction is empty; say in a sentence what to change"),
        ({"prompt": " \n"}, "instruction is empty; say in a sentence what to change"),
        ({"prompt": "Add <|image_pad|>."}, "reserved token .* write it in plain words"),
        ({"reference": frames(1, 3000)}, "too long and narrow; crop it to at most 200:1"),
        ({"reference": np.zeros((32, 48, 3), dtype=np.float32)}, "must be uint8"),
        ({"reference": 7}, "must be a path or a PIL image, not int; convert it"),
        ({"height": 64}, "give both in pixels, or neither"),
        ({"width": 64}, "give both in pixels, or neither"),
        ({"height": 0, "width": 64}, "give both in pixels, or neither"),
        ({"num_frames": 0}, "num_frames is 0; use at least 1"),
        ({"num_frames": -4}, "num_frames is -4; use at least 1"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0; use "),
        ({"shift": -1.0}, "shift is -1.0; use a value above 0"),
        ({"sigma_min": 1.0}, "sigma_min is 1.0; use a value from 0 to below 1"),
        ({"denoising_strength": 0.0}, "denoising_strength is 0.0; use a value above 0 and up to 1"),
        ({"rounding": "bfloat16"}, 'rounding is .bfloat16.; use "shipped" or "none"'),
        ({"output_type": "pt"}, 'output_type is .pt.; use "np", "pil" or "latent"'),
    ],
)
def test_impossible_settings_are_refused(idle_pipe, changes, says):
    with refusal(ValueError, says):
        idle_pipe(**{"prompt": "Make it red.", "video": frames(5, 32, 48)} | changes)


def test_a_reference_for_a_model_without_references_is_refused(monkeypatch):
    pipe = KiwiEditPipeline.from_parts(random_models.random_parts(reference=False), torch.float32)
    monkeypatch.setattr(pipe.mllm_encoder.model.visual, "forward", lambda *_, **__: pytest.fail("it was run"))
    with refusal(ValueError, "trained without reference pictures; use a reference model"):
        pipe("Make it red.", frames(5, 32, 48), frames(32, 48))
    with refusal(ValueError, "not trained for reference pictures; use one that was"):
        pipe.encode_prompt("Make it red.", frames(5, 32, 48), frames(32, 48))


# Released folders


@pytest.fixture
def folder(random_model, tmp_path):
    """A released folder to break, which must be refused before a module is built."""
    shutil.copytree(random_model / "released", tmp_path / "released")
    return tmp_path / "released"


@pytest.fixture
def no_module(monkeypatch):
    monkeypatch.setattr(KiwiEditPipeline, "from_parts", lambda *_, **__: pytest.fail("modules were built"))


WEIGHTS = (
    *(f"{part}/{released.WEIGHTS}.safetensors" for part in ("transformer", "vae", "source_embedder", "ref_embedder")),
    *(f"mllm_encoder/{name}.safetensors" for name in (released.WEIGHTS, "model")),
)
SETTINGS = (
    *(f"{part}/config.json" for part in ("transformer", "vae", "mllm_encoder", "ref_embedder")),
    "processor/qwen_config.json",
)


def test_a_folder_that_does_not_exist_is_refused(tmp_path, no_module):
    with refusal(FileNotFoundError, "is not a folder; name the downloaded model folder"):
        KiwiEditPipeline.from_pretrained(tmp_path / "nothing")


def test_a_name_that_cannot_be_downloaded_is_refused(no_module, monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError("no\nconnection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with refusal(ConnectionError, "^someone/nothing is no folder here. .* cannot be reached .* check the connection"):
        KiwiEditPipeline.from_pretrained("someone/nothing")


@pytest.mark.parametrize("part", ["transformer", "vae", "mllm_encoder", "processor", "source_embedder"])
def test_a_folder_with_a_part_missing_is_refused(folder, no_module, part):
    shutil.rmtree(folder / part)
    with refusal(FileNotFoundError, f"lacks {part}/; download the model folder again"):
        KiwiEditPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", [*WEIGHTS, *SETTINGS, "processor/tokenizer.json"])
def test_a_folder_with_a_file_missing_is_refused(folder, no_module, name):
    (folder / name).unlink()
    with refusal(FileNotFoundError, "; download the model folder again"):
        KiwiEditPipeline.from_pretrained(folder)


@pytest.mark.parametrize("length", [0, 4, 200, -1])
@pytest.mark.parametrize("name", WEIGHTS)
def test_truncated_weights_are_refused(folder, no_module, name, length):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:length])
    with refusal(ValueError, f"{name} is damaged or incomplete .* download or copy it again"):
        KiwiEditPipeline.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": NaN'])
@pytest.mark.parametrize("name", SETTINGS)
def test_invalid_settings_are_refused(folder, no_module, name, text):
    (folder / name).write_text(text)
    with refusal(ValueError, f"{name} (is not valid JSON|holds no settings).*; download it again"):
        KiwiEditPipeline.from_pretrained(folder)


def test_a_damaged_tokenizer_is_refused(folder):
    path = folder / "processor" / "tokenizer.json"
    path.write_text(path.read_text()[:100])
    with refusal(ValueError, "tokenizer.json is damaged .* download it again"):
        KiwiEditPipeline.from_pretrained(folder)


@pytest.mark.parametrize("part", ["transformer", "source_embedder", "mllm_encoder", "vae"])
@pytest.mark.parametrize("change", ["absent", "extra", "reshaped"])
def test_weights_that_are_not_the_models_are_refused(folder, part, change):
    path = folder / part / f"{released.WEIGHTS}.safetensors"
    tensors = load_file(path)
    name = "connector.2.bias" if part == "mllm_encoder" else sorted(tensors)[-1]
    if change == "absent":
        del tensors[name]
    elif change == "extra":
        tensors["something.else"] = torch.ones(1)
    else:
        tensors[name] = torch.ones(3)
    save_file(tensors, path)
    with refusal(ValueError, "; (download|fetch|check|choose|use)"):
        KiwiEditPipeline.from_pretrained(folder)


def test_a_language_model_with_a_tensor_missing_is_refused(folder):
    path = folder / "mllm_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path)
    with refusal(ValueError, "language model's .*layers.1.mlp.up_proj.weight .* is absent; download its files again"):
        KiwiEditPipeline.from_pretrained(folder)


def test_the_vae_of_another_variant_is_refused(folder, no_module):
    shutil.rmtree(folder / "vae")
    shutil.copytree(golden.RELEASE / "vae", folder / "vae")
    with refusal(ValueError, "VAE has 48 latent channels and the model 16; use the Wan2.1 VAE"):
        KiwiEditPipeline.from_pretrained(folder)


@pytest.mark.parametrize("part", ["source_embedder", "ref_embedder"])
def test_an_embedder_of_another_model_is_refused(folder, no_module, part):
    shutil.rmtree(folder / part)
    shutil.copytree(golden.RELEASE / part, folder / part)
    with refusal(ValueError, "embedder is not this model's .* use the files of one checkpoint together"):
        KiwiEditPipeline.from_pretrained(folder)


# Single files


@pytest.fixture
def paths(random_model):
    return {name: random_model / "comfyui" / path for name, path in random_models.FILES.items()}


def test_the_vae_file_of_another_variant_is_refused(paths, no_module):
    paths["vae"] = golden.RELEASE / "vae" / f"{released.WEIGHTS}.safetensors"
    with refusal(ValueError, "VAE has 48 latent channels and the model 16; use the Wan2.1 VAE"):
        KiwiEditPipeline.from_single_files(**paths)


def test_a_plain_wan_file_is_refused(paths, no_module, tmp_path):
    tensors = {name: tensor for name, tensor in load_file(paths["model"]).items() if "vae_condition" not in name}
    paths["model"] = tmp_path / "wan.safetensors"
    save_file(tensors, paths["model"])
    with refusal(ValueError, "wan.safetensors is a plain Wan model .* choose a Kiwi-Edit file"):
        KiwiEditPipeline.from_single_files(**paths)


@pytest.mark.parametrize("wanted, given", itertools.permutations(random_models.FILES, 2))
def test_a_file_of_another_part_is_refused(paths, no_module, wanted, given):
    with refusal(ValueError, "; (choose|use|fetch|give)"):
        KiwiEditPipeline.from_single_files(**{**paths, wanted: paths[given]})


def test_a_connector_of_another_width_is_refused(paths, no_module, tmp_path):
    paths["connector"] = golden.RELEASE / "mllm_encoder" / f"{released.WEIGHTS}.safetensors"
    with refusal(ValueError, "connector is for a model of width 48, not 256; use the files of one checkpoint"):
        KiwiEditPipeline.from_single_files(**paths)


def test_a_connector_for_another_language_model_is_refused(paths, no_module, tmp_path):
    tensors = load_file(paths["connector"])
    for name in ("connector.0.weight", "ref_connector.0.weight"):
        tensors[name] = torch.ones(256, 64)
    paths["connector"] = tmp_path / "connector.safetensors"
    save_file(tensors, paths["connector"])
    with refusal(ValueError, "needs a language model of width 64 .* is 256 wide; use"):
        KiwiEditPipeline.from_single_files(**paths)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["model.pth", "model.ckpt", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("protocol", ["zip", 2, 4, 5])
@pytest.mark.parametrize("part", random_models.FILES)
def test_a_pickle_is_refused_and_never_run(paths, no_module, tmp_path, part, protocol, name):
    trap = Trap(tmp_path / "was_run")
    if protocol == "zip":
        torch.save({"a": trap}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps({"a": trap}, protocol=protocol))
    with refusal(ValueError, f"{name} is a pickle, which can run code; use this model as .safetensors"):
        KiwiEditPipeline.from_single_files(**{**paths, part: tmp_path / name})
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("part", random_models.FILES)
def test_missing_and_truncated_files_are_refused(paths, no_module, tmp_path, part):
    whole = paths[part].read_bytes()
    paths[part] = tmp_path / "file.safetensors"
    with refusal(FileNotFoundError, "does not exist; check the path or download the file again"):
        KiwiEditPipeline.from_single_files(**paths)
    for length in (0, 5, 100, len(whole) - 1):
        paths[part].write_bytes(whole[:length])
        with refusal(ValueError, "is damaged or incomplete .* download or copy it again"):
            KiwiEditPipeline.from_single_files(**paths)
    paths[part] = tmp_path
    with refusal(ValueError, "is a folder; name the safetensors file in it"):
        KiwiEditPipeline.from_single_files(**paths)


def test_damaged_settings_in_a_language_model_file_are_refused(paths, no_module, tmp_path):
    tensors = load_file(paths["mllm"])
    tensors[single_files.CONFIG] = files.text_tensor("{")
    paths["mllm"] = tmp_path / "mllm.safetensors"
    save_file(tensors, paths["mllm"])
    with refusal(ValueError, "carries damaged settings .* download it again"):
        KiwiEditPipeline.from_single_files(**paths)


# Training checkpoints


@pytest.mark.parametrize(
    "change, kind, says",
    [
        ({"checkpoint": "vae.safetensors"}, ValueError, "is no Kiwi-Edit training checkpoint .* choose"),
        ({"checkpoint": "nothing.safetensors"}, FileNotFoundError, "does not exist; check the path"),
        ({"mllm": "nothing"}, FileNotFoundError, "; "),
        ({"vae": "checkpoint.safetensors"}, ValueError, "not .* Wan VAE.*; "),
        ({"model": "vae.safetensors"}, ValueError, "; "),
    ],
)
def test_wrong_files_beside_a_training_checkpoint_are_refused(random_model, no_module, change, kind, says):
    folder = random_model / "training"
    given = {"checkpoint": "checkpoint.safetensors", "mllm": "qwen", "vae": "vae.safetensors"} | change
    with refusal(kind, says):
        KiwiEditPipeline.from_training_checkpoint(**{name: folder / value for name, value in given.items()})


def test_a_qwen_folder_without_its_settings_is_refused(random_model, no_module, tmp_path):
    shutil.copytree(random_model / "training" / "qwen", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with refusal(ValueError, "holds another language model; use Qwen2.5-VL-3B-Instruct"):
        training.read_qwen(tmp_path)
    (tmp_path / "config.json").unlink()
    with refusal(FileNotFoundError, "config.json is missing; download the model folder again"):
        training.read_qwen(tmp_path)
