"""A small edit for tests of single nodes: in this process, or as a graph for the real server."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import random_model
from PIL import Image
from safetensors.torch import load_file

from kiwi_core import media

NAMES = {part: Path(path).name for part, path in random_model.FILES.items()}
PROMPT = "Make the sky red."
FRAMES, STEPS, SEED = 9, 3, 11
SIZES = ((40, 72), (64, 48), (30, 30))


def clip(frames=FRAMES, height=64, width=96) -> np.ndarray:
    """Uint8 ``[T, H, W, 3]``: a square that moves over noise."""
    pixels = np.random.default_rng(0).integers(0, 60, (frames, height, width, 3), dtype=np.uint8)
    for index, frame in enumerate(pixels):
        frame[20:40, 4 * index : 4 * index + 20] = (40 + 20 * index) % 200, 200, 90
    return pixels


def pictures() -> list[np.ndarray]:
    """Three reference pictures of different sizes."""
    generator = np.random.default_rng(1)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def load(pack, folder: Path) -> SimpleNamespace:
    """The random model through the pack's loaders, in this process."""
    import folder_paths

    random_model.write(folder)
    shutil.copytree(folder / "comfyui", folder_paths.models_dir, dirs_exist_ok=True)
    loaders = pack.nodes.loaders
    return SimpleNamespace(
        model=loaders.KiwiEditLoadModel.execute(NAMES["model"], "default")[0],
        vae=loaders.KiwiEditLoadVAE.execute(NAMES["vae"])[0],
        mllm=loaders.KiwiEditLoadMLLM.execute(NAMES["mllm"])[0],
        connector=loaders.KiwiEditLoadConnector.execute(NAMES["connector"])[0],
    )


class EditGraph:
    """An edit in a running server, node by node: ``prompt()`` is for changing before ``latents`` or ``files``."""

    def __init__(self, server, folder: Path):
        self.server = server
        random_model.write(folder / "models")
        shutil.copytree(folder / "models" / "comfyui", server.models_dir, dirs_exist_ok=True)
        server.put_input(media.save_video(folder / "clip.mkv", clip(), 12, crf=0), "small_clip.mkv")
        for index, picture in enumerate(pictures()):
            Image.fromarray(picture).save(server.base_dir / "input" / f"picture{index}.png")

    def prompt(self) -> dict:
        prompt = {
            "model": node("KiwiEditLoadModel", model_name=NAMES["model"], weight_dtype="default"),
            "vae": node("KiwiEditLoadVAE", vae_name=NAMES["vae"]),
            "mllm": node("KiwiEditLoadMLLM", mllm_name=NAMES["mllm"]),
            "connector": node("KiwiEditLoadConnector", connector_name=NAMES["connector"]),
            "video": node("LoadVideo", file="small_clip.mkv"),
            "prepared": node("KiwiEditPrepareVideo", video=["video", 0], max_pixels=921600, max_frames=81, multiple=16),
            "encoded": node(
                "KiwiEditEncodeInstruction", mllm=["mllm", 0], connector=["connector", 0], prompt=PROMPT,
                source=["prepared", 1],
            ),
            "source": node(
                "KiwiEditSourceVideo", conditioning=["encoded", 0], vae=["vae", 0], frames=["prepared", 0]
            ),
            "sampled": node(
                "KiwiEditSampler", model=["model", 0], conditioning=["source", 0], latent=["source", 1], seed=SEED,
                steps=STEPS, shift=5.0, denoise=1.0,
            ),
        }  # fmt: skip
        return prompt | {
            f"picture{index}": node("LoadImage", image=f"picture{index}.png") for index in range(len(SIZES))
        }

    def run(self, prompt: dict, *ends: str, on_event=None) -> dict:
        """History entry of a run of what the nodes ``ends`` need."""
        return self.server.run(upstream(prompt, ends), on_event)

    def latents(self, prompt: dict, end: str = "sampled"):
        prompt = prompt | {"saved": node("SaveLatent", samples=[end, 0], filename_prefix="steering")}
        (path,) = self.server.output_files(self.run(prompt, "saved"))
        return load_file(path)["latent_tensor"].float()


def load_share(patcher, share):
    """Put about this share of the weights on the device, as little memory makes ComfyUI do."""
    budget, size = 1, patcher.model_size()
    patcher.load(patcher.load_device, lowvram_model_memory=budget)
    while patcher.loaded_size() < share * size:
        budget += size // 50
        patcher.load(patcher.load_device, lowvram_model_memory=budget)
    assert patcher.loaded_size() >= share * size
    assert patcher.loaded_size() < size or share == 1


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def upstream(prompt: dict, ends) -> dict:
    """The nodes that ``ends`` need, themselves included."""
    kept, queue = {}, list(ends)
    while queue:
        name = queue.pop()
        kept[name] = prompt[name]
        queue += [value[0] for value in prompt[name]["inputs"].values() if isinstance(value, list)]
    return kept
