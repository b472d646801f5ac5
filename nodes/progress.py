"""Work that goes frame by frame: shown on its node, and ended by a cancel."""

from collections.abc import Callable

import comfy.model_management
import comfy.utils


def per_frame(total: int) -> Callable[[], None]:
    """To be called once a frame; raises ComfyUI's own exception when the run is cancelled."""
    bar = comfy.utils.ProgressBar(total)

    def frame_done() -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(1)

    return frame_done
