"""The names of what is measured, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass

VERSION = 1
"""Raised whenever a number changes."""
MORE, LESS = "more", "less"


@dataclass(frozen=True)
class Metric:
    """How a number is to be read."""

    title: str
    unit: str
    """"" for a plain number."""
    better: str
    """"more" or "less"; "" where neither is better."""
    meaning: str


METRICS = {
    "preservation_psnr": Metric(
        "Preservation, PSNR", "dB", MORE, "How near edit and source are outside the edit's region; 100 for the same."
    ),
    "preservation_ssim": Metric(
        "Preservation, SSIM", "", MORE, "How alike their structure is outside the edit's region; 1 for the same."
    ),
    "preservation_lpips": Metric(
        "Preservation, LPIPS", "", LESS, "How different they look to AlexNet outside the edit's region; 0 for the same."
    ),
    "region_area": Metric("Area of the region", "", "", "Share of the clip's pixels that is the edit's region."),
    "region_known": Metric(
        "Region known", "", "", "1 if the benchmark gave the region, 0 if it was found by what differs."
    ),
    "consistency": Metric(
        "Consistency", "", MORE, "Mean cosine of neighbouring frames' embeddings; 1 for a clip that stands still."
    ),
    "consistency_gain": Metric(
        "Consistency over the source's", "", MORE, "The same, less the source's own; 0 for as steady as the source."
    ),
    "warp_error": Metric(
        "Warp error", "levels", LESS, "What neighbouring frames differ by once moved along the edit's own optical flow."
    ),
    "warp_error_gain": Metric(
        "Warp error over the source's", "levels", LESS, "The same, less the source's own with its own flow."
    ),
    "text_alignment": Metric("Text alignment", "", MORE, "Mean cosine of the prompt and the edit's frames."),
    "text_gain": Metric("Text alignment gained", "", MORE, "The same, less that of the source's frames."),
    "reference_similarity": Metric(
        "Reference similarity", "", MORE, "Mean cosine of the reference and what the edit shows in its place."
    ),
    "copy_paste": Metric(
        "Copy of the reference", "", LESS,
        "How much of what the edit shows is the reference's very pixels; what has no structure always looks copied.",
    ),
    "reference_fidelity": Metric(
        "Reference fidelity", "", MORE, "Reference similarity, less up to three tenths of it for a pasted reference."
    ),
    "colour_shift": Metric(
        "Colour shift", "Delta E", LESS, "How far each frame's mean colour outside the region is from the source's."
    ),
    "colour_drift": Metric(
        "Colour drift", "Delta E", LESS,
        "How far the mean colour outside the region goes from the first quarter to the last, beyond the source's.",
    ),
    "frozen": Metric(
        "Frozen", "", LESS, "Share of neighbouring frames that are the same though the source moves between them."
    ),
    "duplicated": Metric(
        "Duplicated", "", LESS, "Share of frames that show an earlier moment again though the source does not."
    ),
    "flicker": Metric(
        "Flicker", "", LESS, "How much more the edit flickers than its source; 1 for black and white by turns."
    ),
}  # fmt: skip
