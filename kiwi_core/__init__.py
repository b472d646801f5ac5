"""Kiwi-Edit without ComfyUI: instruction- and reference-guided video editing.

    from kiwi_core import KiwiEditPipeline

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pipeline import KiwiEditPipeline, KiwiEditPipelineOutput

__version__ = "0.1.0"
__all__ = ["KiwiEditPipeline", "KiwiEditPipelineOutput"]


def __getattr__(name: str):
    if name in __all__:
        from . import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
