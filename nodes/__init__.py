"""Kiwi-Edit inside ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from . import (
    batch,
    colour,
    edit,
    encode,
    loaders,
    lora,
    mask,
    memory,
    preview,
    prompt,
    reference,
    sampling,
    speed,
    vae,
    video,
)


class KiwiEditExtension(ComfyExtension):
    """The pack's nodes. Importing ``dit`` also lets ComfyUI's own loaders read Kiwi-Edit files."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            *loaders.NODES,
            *lora.NODES,
            *prompt.NODES,
            *encode.NODES,
            *reference.NODES,
            *mask.NODES,
            *sampling.NODES,
            *speed.NODES,
            *colour.NODES,
            *vae.NODES,
            *video.NODES,
            *edit.NODES,
            *batch.NODES,
            *memory.NODES,
            *preview.NODES,
        ]
