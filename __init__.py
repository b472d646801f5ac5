"""Kiwi-Edit for ComfyUI: edit videos by instruction and by reference picture."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """What ComfyUI calls to learn of the nodes."""
    from .nodes import KiwiEditExtension

    return KiwiEditExtension()
