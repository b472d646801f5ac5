"""Whole graphs in the real server: they agree with the library, and bad input is told in a sentence."""

import shutil

import numpy as np
import pytest
import random_model
import sample_graph
import torch
from comfy_api.latest import InputImpl
from differences import record
from PIL import Image
from safetensors.torch import load_file, save_file

from kiwi_core import KiwiEditPipeline, media
from kiwi_core.checkpoints import vae_keys

FRAMES, STEPS, SEED = 6, 3, 11
PROMPT = "Turn the scene into a watercolor painting."


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    random_model.write(folder)
    return folder


@pytest.fixture(scope="module")
def graph(server, models, tmp_path_factory):
    """Runs a shipped workflow with the random model, a small clip and a picture, after a change to its nodes."""
    shutil.copytree(models / "comfyui", server.models_dir, dirs_exist_ok=True)
    shutil.copytree(models / "released", server.models_dir / "diffusers" / "random", dirs_exist_ok=True)
    folder = tmp_path_factory.mktemp("input")
    media.save_video(folder / "clip.mp4", sample_graph.draw_clip()[:FRAMES, ::2, ::2], 12)
    Image.fromarray(sample_graph.draw_clip()[20, ::3, ::3]).save(folder / "reference.png")
    inputs = {path.name: server.put_input(path) for path in folder.iterdir()}

    class Graph:
        clip, picture = folder / "clip.mp4", folder / "reference.png"

        def prompt(self, name):
            prompt = sample_graph.workflow(name, {"steps": STEPS, "seed": SEED, "prompt": PROMPT})
            for node in prompt.values():
                if node["class_type"] == "LoadVideo":
                    node["inputs"]["file"] = inputs["clip.mp4"]
                if node["class_type"] == "LoadImage":
                    node["inputs"]["image"] = inputs["reference.png"]
            return prompt

        def files(self, prompt):
            return server.output_files(server.run(prompt))

        def latents(self, prompt, node="9"):
            """Latents of a sampler, normalised as the library's are."""
            kept = upstream(prompt, node)
            kept["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": [node, 0], "filename_prefix": "l"}}
            (path,) = self.files(kept)
            raw = load_file(path)["latent_tensor"].float()
            shape = (1, -1, 1, 1, 1)
            mean, std = (torch.tensor(table[16]).view(shape) for table in (vae_keys.LATENTS_MEAN, vae_keys.LATENTS_STD))
            return (raw - mean) / std

    return Graph()


def upstream(prompt, node):
    """The nodes that ``node`` needs, itself included."""
    kept, queue = {}, [node]
    while queue:
        name = queue.pop()
        kept[name] = prompt[name]
        queue += [value[0] for value in prompt[name]["inputs"].values() if isinstance(value, list)]
    return kept


@pytest.fixture(scope="module")
def pipeline(models):
    pipeline = KiwiEditPipeline.from_pretrained(models / "released", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to("cpu")
    return pipeline


def edit(pipeline, video, reference=None, height=64, width=96):
    return pipeline(
        PROMPT, video, reference, height, width, num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(SEED), output_type="latent",
    ).latents  # fmt: skip


@pytest.mark.parametrize("name", ["instruct_video_edit", "reference_video_edit", "image_edit"])
def test_shipped_workflows_run_to_their_files(graph, name):
    (path,) = graph.files(graph.prompt(name))
    if name == "image_edit":
        assert np.asarray(Image.open(path)).shape == (32, 64, 3)
    else:
        clip = media.load_video(path)
        assert clip.frames.shape == (FRAMES, 64, 96, 3)
        assert clip.frame_rate == 12


@pytest.mark.parametrize("name", ["instruct_video_edit", "reference_video_edit", "image_edit"])
def test_graph_gives_the_latents_of_the_library(graph, pipeline, name):
    # ComfyUI's own decoder, as it converts colours a little differently from ours.
    images = InputImpl.VideoFromFile(str(graph.clip)).get_components().images
    video = (images * 255).round().to(torch.uint8).numpy()
    if name == "image_edit":
        wanted = edit(pipeline, graph.picture, height=32, width=64)
    else:
        wanted = edit(pipeline, video, graph.picture if name == "reference_video_edit" else None)
    found = graph.latents(graph.prompt(name))
    assert found.shape == wanted.shape
    record(f"comfy graph, {name}", (found - wanted).abs().max().item(), 4e-5)


def test_released_folder_gives_the_latents_of_the_single_files(graph):
    prompt = graph.prompt("reference_video_edit")
    wanted = graph.latents(prompt)
    prompt["3"]["inputs"]["model_name"] = prompt["4"]["inputs"]["vae_name"] = "random/"
    prompt["5"]["inputs"]["mllm_name"] = prompt["6"]["inputs"]["connector_name"] = "random/"
    assert torch.equal(graph.latents(prompt), wanted)


def custom_sampler(prompt, sigmas):
    """Put SamplerCustomAdvanced in the place of our sampler."""
    own = prompt["9"]["inputs"]
    return prompt | {
        "guider": {
            "class_type": "BasicGuider",
            "inputs": {"model": own["model"], "conditioning": own["conditioning"]},
        },
        "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": SEED}},
        "sampler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "sigmas": {"class_type": "KiwiEditScheduler", "inputs": sigmas},
        "9": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                "noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["sampler", 0], "sigmas": ["sigmas", 0],
                "latent_image": own["latent"],
            },
        },
    }  # fmt: skip


def scheduler(**changed):
    return {"steps": STEPS, "shift": 5.0, "denoise": 1.0, "sigma_min": 0.003 / 1.002} | changed


@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_own_sampler_is_the_stock_sampler_with_our_sigmas(graph, denoise):
    prompt = graph.prompt("instruct_video_edit")
    prompt["9"]["inputs"]["denoise"] = denoise
    stock = custom_sampler(prompt, scheduler(denoise=denoise))
    assert torch.equal(graph.latents(prompt), graph.latents(stock))


def test_stock_ksampler_runs_the_same_model(graph):
    prompt = graph.prompt("instruct_video_edit")
    steps = 4  # "simple" picks from a table of 1000 levels: only divisors are met exactly
    ours = graph.latents(custom_sampler(prompt, scheduler(sigma_min=0.0, steps=steps)))
    stock_loaders(prompt)
    own = prompt["9"]["inputs"]
    prompt["9"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": own["model"], "positive": own["conditioning"], "negative": own["conditioning"],
            "latent_image": own["latent"], "seed": SEED, "steps": steps, "cfg": 1.0, "sampler_name": "euler",
            "scheduler": "simple", "denoise": 1.0,
        },
    }  # fmt: skip
    assert (graph.latents(prompt) - ours).abs().max() < 1e-4


def stock_loaders(prompt):
    """Load the single files with ComfyUI's own nodes."""
    model, vae = prompt["3"]["inputs"]["model_name"], prompt["4"]["inputs"]["vae_name"]
    prompt["3"] = {"class_type": "UNETLoader", "inputs": {"unet_name": model, "weight_dtype": "default"}}
    prompt["4"] = {"class_type": "VAELoader", "inputs": {"vae_name": vae}}


def corrupt(server, kind, name, write):
    path = server.models_dir / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    return name


def plain_wan(models):
    tensors = load_file(models / "comfyui" / random_model.FILES["model"])
    return {name: tensor for name, tensor in tensors.items() if "vae_condition" not in name and name != "ref_pad_first"}


def narrow_connector(models):
    tensors = load_file(models / "comfyui" / random_model.FILES["connector"])
    return {
        name: tensor[..., :128].contiguous() if name.endswith(("queries", ".0.weight")) else tensor
        for name, tensor in tensors.items()
    }


def break_plain_wan_in_our_loader(graph, server, models):
    name = corrupt(server, "diffusion_models", "plain.safetensors", lambda path: save_file(plain_wan(models), path))
    prompt = graph.prompt("instruct_video_edit")
    prompt["3"]["inputs"]["model_name"] = name
    return prompt, "source embedder"


def break_plain_wan_in_the_stock_loader(graph, server, models):
    name = corrupt(server, "diffusion_models", "plain.safetensors", lambda path: save_file(plain_wan(models), path))
    prompt = graph.prompt("instruct_video_edit")
    prompt["3"]["inputs"]["model_name"] = name
    stock_loaders(prompt)
    return prompt, "source embedder"


def break_instruction(graph, server, models):
    prompt = graph.prompt("instruct_video_edit")
    prompt["7"]["inputs"]["prompt"] = "  "
    return prompt, "instruction is empty"


def break_frame_count(graph, server, models):
    prompt = graph.prompt("instruct_video_edit")
    prompt["8"]["inputs"]["frames"] = ["2", 1]
    return prompt, r"4k\+1"


def break_frame_size(graph, server, models):
    prompt = graph.prompt("image_edit")
    prompt["8"]["inputs"]["frames"] = ["1", 0]
    return prompt, "multiples of 16"


def break_latent_length(graph, server, models):
    prompt = graph.prompt("instruct_video_edit")
    prompt["empty"] = {
        "class_type": "EmptyHunyuanLatentVideo", "inputs": {"width": 96, "height": 64, "length": 5, "batch_size": 1}
    }  # fmt: skip
    prompt["9"]["inputs"]["latent"] = ["empty", 0]
    return prompt, "source is 3 frames"


def break_vae(graph, server, models):
    def write(path):
        from comfy.taesd.taehv import TAEHV

        torch.manual_seed(0)
        save_file({key: value.contiguous() for key, value in TAEHV(latent_channels=48).state_dict().items()}, path)

    name = corrupt(server, "vae", "taehv48.safetensors", write)
    prompt = graph.prompt("instruct_video_edit")
    prompt["2"]["inputs"]["max_pixels"] = 128 * 128
    prompt["4"]["inputs"]["vae_name"] = name
    return prompt, "channels"


def break_connector(graph, server, models):
    tensors = narrow_connector(models)
    name = corrupt(server, "text_encoders", "narrow.safetensors", lambda path: save_file(tensors, path))
    prompt = graph.prompt("instruct_video_edit")
    prompt["6"]["inputs"]["connector_name"] = name
    return prompt, "128 wide"


def break_mllm(graph, server, models):
    prompt = graph.prompt("instruct_video_edit")
    prompt["5"]["inputs"]["mllm_name"] = prompt["6"]["inputs"]["connector_name"]
    return prompt, "not the language model"


def break_by_truncation(graph, server, models):
    def write(path):
        path.write_bytes((models / "comfyui" / random_model.FILES["mllm"]).read_bytes()[:100_000])

    prompt = graph.prompt("instruct_video_edit")
    prompt["5"]["inputs"]["mllm_name"] = corrupt(server, "text_encoders", "short.safetensors", write)
    return prompt, "damaged or incomplete"


def break_by_pickle(graph, server, models):
    prompt = graph.prompt("instruct_video_edit")
    name = corrupt(server, "text_encoders", "pickle.pt", lambda path: torch.save({"a": torch.zeros(1)}, path))
    prompt["5"]["inputs"]["mllm_name"] = name
    return prompt, "pickle"


def break_video(graph, server, models):
    (server.base_dir / "input" / "text.mp4").write_text("no video")
    prompt = graph.prompt("instruct_video_edit")
    prompt["1"]["inputs"]["file"] = "text.mp4"
    return prompt, "cannot be read"


def break_folder(graph, server, models):
    folder = server.models_dir / "diffusers" / "incomplete"
    shutil.copytree(models / "released", folder, dirs_exist_ok=True)
    (folder / "source_embedder" / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    prompt = graph.prompt("instruct_video_edit")
    prompt["3"]["inputs"]["model_name"] = "incomplete/"
    return prompt, "download the model folder again"


def break_narrow_picture(graph, server, models):
    Image.new("RGB", (10_000, 1)).save(server.base_dir / "input" / "narrow.png")
    prompt = graph.prompt("image_edit")
    prompt["1"]["inputs"]["image"] = "narrow.png"
    return prompt, "too small"


@pytest.mark.parametrize(
    "broken",
    [value for name, value in list(globals().items()) if name.startswith("break_")],
    ids=lambda value: value.__name__,
)
def test_bad_input_is_told_in_a_sentence(graph, server, models, broken):
    before = set((server.base_dir / "output").rglob("*.*"))
    prompt, sentence = broken(graph, server, models)
    with pytest.raises(RuntimeError, match=sentence):
        server.run(prompt)
    assert set((server.base_dir / "output").rglob("*.*")) == before


def test_a_clip_longer_than_the_cap_ends_on_its_own_frames(graph):
    prompt = graph.prompt("instruct_video_edit")
    prompt["2"]["inputs"]["max_frames"] = 4
    (path,) = graph.files(prompt)
    assert len(media.load_video(path).frames) == 5  # of 6; the next 4k+1 above 4


def test_a_missing_reference_is_refused_before_the_run(graph, server):
    prompt = graph.prompt("reference_video_edit")
    prompt["13"]["inputs"]["image"] = "nowhere.png"
    with pytest.raises(RuntimeError, match=r"nowhere\.png"):
        server.queue(prompt)


def test_an_empty_instruction_is_refused_before_the_run(graph, server):
    prompt = graph.prompt("instruct_video_edit")
    prompt["7"]["inputs"]["prompt"] = " \n"
    with pytest.raises(RuntimeError, match="instruction is empty"):
        server.queue(prompt)


def test_transparent_pictures_are_composited_on_white(graph, server):
    picture = np.asarray(Image.open(graph.picture).convert("RGBA")).copy()
    picture[:, ::2, 3] = 0
    Image.fromarray(picture).save(server.base_dir / "input" / "transparent.png")
    white = picture[..., :3].copy()
    white[:, ::2] = 255
    Image.fromarray(white).save(server.base_dir / "input" / "white.png")
    transparent, wanted = graph.prompt("image_edit"), graph.prompt("image_edit")
    wanted["1"]["inputs"]["image"] = "white.png"
    join = {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["1", 0], "alpha": ["1", 1]}}
    transparent["1"]["inputs"]["image"] = "transparent.png"
    transparent["join"] = join
    transparent["2"]["inputs"]["video"] = ["join", 0]
    assert torch.equal(graph.latents(transparent), graph.latents(wanted))
