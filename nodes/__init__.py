"""Kiwi-Edit inside ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from . import encode, loaders, sampling, video


class KiwiEditExtension(ComfyExtension):
    """The pack's nodes. Importing ``dit`` also lets ComfyUI's own loaders read Kiwi-Edit files."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            *loaders.NODES,
            *encode.NODES,
            *sampling.NODES,
            *video.NODES,
        ]
