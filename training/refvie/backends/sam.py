"""Segmenter by SAM 2 or SAM 3, which follow what is in a box through a clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...asking.loading import Portions, device_of, loading
from ..pairs.pair import REFERENCES, SCENE
from . import Track

_FAMILIES = {
    "sam2_video": "Sam2Video", "sam3_tracker_video": "Sam3TrackerVideo", "sam3_video": "Sam3TrackerVideo",
}  # fmt: skip
"""By the type in a model's configuration, how transformers' classes begin. Of SAM 3 its tracker, which takes boxes."""


class Segmenter:
    """Masks from the largest of the region's boxes, followed from there to both ends of the clip.

    Args:
        model: name on the Hugging Face hub, or folder, such as "facebook/sam2.1-hiera-large". revision: of the hub's.
            device: without one, the first GPU where there is one. dtype: such as "bfloat16", "auto" for the weights'
            own.
    """

    version, prompts, unkeyed = 1, (), ("device",)

    def __init__(self, model: str, revision: str | None = None, device: str | None = None, dtype: str = "auto"):
        with loading(model):
            import transformers

            kind = transformers.AutoConfig.from_pretrained(model, revision=revision).model_type
            family = _FAMILIES.get(kind, "")
            if not hasattr(transformers, f"{family}Model"):
                raise ValueError(f"transformers {transformers.__version__} has no way to follow a box with {kind}")
            self.processor = getattr(transformers, f"{family}Processor").from_pretrained(model, revision=revision)
            self.model = getattr(transformers, f"{family}Model").from_pretrained(
                model, revision=revision, dtype=dtype, device_map=device_of(device), use_safetensors=True
            ).eval()  # fmt: skip
        self.portions = Portions(model, most=1)

    def track(self, tracks: Sequence[Track]) -> list[np.ndarray]:
        return self.portions(lambda some: [self._masks(track) for track in some], tracks)

    def _masks(self, track: Track) -> np.ndarray:
        import torch

        frames, boxes = track.target, track.region.boxes
        masks = np.zeros(frames.shape[:3], bool)
        if not any(boxes):
            if REFERENCES.get(track.region.category) == SCENE:
                return masks  # nothing stands before it
            raise ValueError("There is no box in any frame, so there is nothing to follow.")
        height, width = frames.shape[1:3]
        start = int(np.argmax([_area(box) for box in boxes]))
        box = [share * side for share, side in zip(boxes[start], (width, height) * 2)]
        session = self.processor.init_video_session(
            video=list(frames), inference_device=self.model.device, dtype=self.model.dtype
        )
        self.processor.add_inputs_to_inference_session(session, frame_idx=start, obj_ids=1, input_boxes=[[box]])
        order = [(place, False) for place in range(start, len(frames))] + [
            (place, True) for place in reversed(range(start))
        ]
        with torch.inference_mode():
            for place, reverse in order:
                found = self.model(session, frame_idx=place, reverse=reverse)
                (whole,) = self.processor.post_process_masks([found.pred_masks], [[height, width]])
                masks[place] = whole[0, 0].cpu().numpy()
        return masks


def _area(box: tuple[float, float, float, float] | None) -> float:
    return 0.0 if box is None else (box[2] - box[0]) * (box[3] - box[1])
