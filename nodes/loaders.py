"""Loaders for single files and for released folders (``models/diffusers/NAME/``)."""

from pathlib import Path

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..kiwi_core.checkpoints import files, released, single_files
from . import dit, mllm

KiwiMLLM = io.Custom("KIWI_MLLM")
KiwiConnector = io.Custom("KIWI_CONNECTOR")

CATEGORY = "model/loaders/kiwi-edit"
# The toy model that comes with the pack stands beside the artist's own.
folder_paths.add_model_folder_path("diffusers", str(Path(__file__).resolve().parent.parent / "models" / "diffusers"))

DTYPES = {"default": None, "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def folders() -> dict[str, Path]:
    """Released folders by the name that the loaders show, with a slash at its end."""
    found = {}
    for root in folder_paths.get_folder_paths("diffusers"):
        if Path(root).is_dir():
            for folder in sorted(Path(root).iterdir()):
                if released.is_released(folder):
                    found.setdefault(f"{folder.name}/", folder)
    return found


def _folder(name: str) -> Path | None:
    """The released folder of that name, whole; None if it is the name of a file."""
    return released.check(folders()[name]) if name in folders() else None


def check_name(name: str | None, kind: str | None = None):
    """True, or a sentence, for a choice among folders and the files of a ``kind``; None is a link."""
    choices = [*(folder_paths.get_filename_list(kind) if kind else ()), *folders()]
    if name is None or name in choices:
        return True
    if not name.endswith("/") and kind:
        return f"{name} is not in models/{kind}; put it there and press R, or choose another."
    model = name.rstrip("/") if name.startswith("kiwi-edit-") else "kiwi-edit-5b-instruct-reference-diffusers"
    here = f"choose one that is ({', '.join(folders())}), or " if folders() else ""
    return (
        f"{name} is not in models/diffusers; {here}download huggingface.co/linyq/{model} into a folder of that name "
        "there (`kiwi-edit download` does) and press R."
    )


def _choice(name: str, kind: str, tooltip: str):
    return io.Combo.Input(name, options=[*folder_paths.get_filename_list(kind), *folders()], tooltip=tooltip)


def open_tensors(path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file as ComfyUI reads it: mapped or not, and known to its dynamic VRAM."""
    return comfy.utils.load_torch_file(str(files.check_file(path)))


def _read_file(kind: str, name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """A model file's tensors and metadata, after the checks that give a clear sentence."""
    path = files.check_file(folder_paths.get_full_path_or_raise(kind, name))
    return comfy.utils.load_torch_file(str(path), return_metadata=True)


def _load_folder(folder: str, model_options: dict, **kwargs):
    """A MODEL from a released folder; ComfyUI calls this again for copies on further devices."""
    tensors = released.comfyui_dit(folder, open_tensors)
    model = comfy.sd.load_diffusion_model_state_dict(tensors, model_options=model_options, **kwargs)
    model.cached_patcher_init = (_load_folder, (folder, model_options))
    return model


def _load_vae(name: str) -> comfy.sd.VAE:
    folder = _folder(name)
    tensors, metadata = (released.read_vae(folder, open_tensors)[0], None) if folder else _read_file("vae", name)
    vae = comfy.sd.VAE(sd=tensors, metadata=metadata)
    vae.throw_exception_if_invalid()
    vae.patcher.cached_patcher_init = (_vae_patcher, (name,))
    return vae


def _vae_patcher(name: str, disable_dynamic: bool = False):
    """Of a VAE that is loaded anew, for another device; ComfyUI calls this."""
    return _load_vae(name).patcher


class KiwiEditLoadModel(io.ComfyNode):
    """The video DiT. The stock Load Diffusion Model node loads the same single files."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditLoadModel",
            display_name="Load Model (Kiwi-Edit)",
            category=CATEGORY,
            description="Loads Kiwi-Edit's video model from a file in models/diffusion_models or from a downloaded "
            "folder in models/diffusers. Load Diffusion Model works too.",
            search_aliases=["kiwi", "kiwi edit", "video edit model", "load diffusion model"],
            inputs=[
                _choice("model_name", "diffusion_models", "A single file, or a downloaded folder (ends in /)."),
                io.Combo.Input(
                    "weight_dtype", options=list(DTYPES), default="default", advanced=True,
                    tooltip="fp8 halves the memory of the weights for a little quality.",
                ),
            ],
            outputs=[io.Model.Output()],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, model_name=None):
        return check_name(model_name, "diffusion_models")

    @classmethod
    def execute(cls, model_name, weight_dtype) -> io.NodeOutput:
        options = {"dtype": DTYPES[weight_dtype]} if DTYPES[weight_dtype] else {}
        folder = _folder(model_name)
        if folder:
            model = _load_folder(str(folder), options)
        else:
            path = files.check_file(folder_paths.get_full_path_or_raise("diffusion_models", model_name))
            model = comfy.sd.load_diffusion_model(str(path), model_options=options)
        dit.check_kiwi(model)
        return io.NodeOutput(model)


class KiwiEditLoadVAE(io.ComfyNode):
    """The Wan VAE, also from a released folder. The stock Load VAE node loads the same single files."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditLoadVAE",
            display_name="Load VAE (Kiwi-Edit)",
            category=CATEGORY,
            description="Loads the Wan VAE from a file in models/vae or from a downloaded folder in models/diffusers. "
            "Load VAE works too.",
            search_aliases=["kiwi vae", "wan vae"],
            inputs=[_choice("vae_name", "vae", "wan2.2_vae for the 5B model, wan_2.1_vae for the 14B model.")],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def validate_inputs(cls, vae_name=None):
        return check_name(vae_name, "vae")

    @classmethod
    def execute(cls, vae_name) -> io.NodeOutput:
        return io.NodeOutput(_load_vae(vae_name))


class KiwiEditLoadMLLM(io.ComfyNode):
    """The language model that reads the instruction and looks at the pictures."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditLoadMLLM",
            display_name="Load MLLM (Kiwi-Edit)",
            category=CATEGORY,
            description="Loads the Qwen2.5-VL that reads the instruction and looks at the clip, from a file in "
            "models/text_encoders or from a downloaded folder in models/diffusers.",
            search_aliases=["kiwi text encoder", "qwen2.5-vl", "load clip", "vlm"],
            inputs=[_choice("mllm_name", "text_encoders", "Kiwi-Edit's own: its language model was fine-tuned.")],
            outputs=[KiwiMLLM.Output(display_name="mllm")],
        )

    @classmethod
    def validate_inputs(cls, mllm_name=None):
        return check_name(mllm_name, "text_encoders")

    @classmethod
    def execute(cls, mllm_name) -> io.NodeOutput:
        folder = _folder(mllm_name)
        if folder:
            return io.NodeOutput(mllm.load_mllm(single_files.mllm_file(*released.read_mllm(folder, open_tensors))))
        return io.NodeOutput(mllm.load_mllm(*_read_file("text_encoders", mllm_name)))


class KiwiEditLoadConnector(io.ComfyNode):
    """Queries and connectors: the bridge between the language model and the video model."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditLoadConnector",
            display_name="Load Connector (Kiwi-Edit)",
            category=CATEGORY,
            description="Loads the learnable queries and connectors between language model and video model, from a "
            "file in models/text_encoders or from a downloaded folder in models/diffusers.",
            search_aliases=["kiwi queries", "connector"],
            inputs=[_choice("connector_name", "text_encoders", "The connector of the same checkpoint as the model.")],
            outputs=[KiwiConnector.Output(display_name="connector")],
        )

    @classmethod
    def validate_inputs(cls, connector_name=None):
        return check_name(connector_name, "text_encoders")

    @classmethod
    def execute(cls, connector_name) -> io.NodeOutput:
        folder = _folder(connector_name)
        if folder:
            tensors = single_files.connector_file(*released.read_connector(folder, open_tensors))
        else:
            tensors, _ = _read_file("text_encoders", connector_name)
        return io.NodeOutput(mllm.load_connector(tensors))


NODES = [KiwiEditLoadModel, KiwiEditLoadVAE, KiwiEditLoadMLLM, KiwiEditLoadConnector]
