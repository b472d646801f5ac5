"""Memory estimates, and the error that says what to change."""

import logging

import numpy as np
import pytest
import torch

from kiwi_core import memory

PHASES = {"encode", "mllm", "sample", "decode"}


def estimate(pipe, height=256, width=256, num_frames=9, references=0):
    return memory.estimate(pipe, height, width, num_frames, references)


def test_every_phase_holds_at_least_its_weights(random_pipe):
    phases = estimate(random_pipe)
    assert phases.keys() == PHASES
    for phase, part in (("encode", "vae"), ("mllm", "mllm_encoder"), ("sample", "transformer"), ("decode", "vae")):
        module = getattr(random_pipe, part)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
        assert weights > 0
        assert phases[phase] >= weights


@pytest.mark.parametrize(
    "changes, phases",
    [
        ({"height": 512}, PHASES - {"mllm"}),
        ({"width": 320}, PHASES - {"mllm"}),
        ({"num_frames": 81}, {"sample"}),
        ({"references": 1}, {"sample"}),
    ],
)
def test_more_to_do_takes_more(random_pipe, changes, phases):
    less, more = estimate(random_pipe), estimate(random_pipe, **changes)
    assert {phase for phase in PHASES if more[phase] > less[phase]} == phases
    assert all(more[phase] >= less[phase] for phase in PHASES)


def test_tiling_bounds_what_the_vae_takes(random_pipe, monkeypatch):
    monkeypatch.setattr(random_pipe, "_tile", None)
    whole = estimate(random_pipe, 1280, 1280)
    random_pipe.enable_vae_tiling()
    tiled = estimate(random_pipe, 1280, 1280)
    assert tiled["decode"] < whole["decode"]
    assert tiled["sample"] == whole["sample"]


def test_half_the_precision_takes_less(random_model, random_pipe):
    from kiwi_core import KiwiEditPipeline

    half = KiwiEditPipeline.from_pretrained(random_model / "released")
    assert all(estimate(half)[phase] < estimate(random_pipe)[phase] for phase in PHASES)


def test_the_estimate_is_logged_before_the_run(random_pipe, caplog, monkeypatch):
    def stop(*_):
        raise RuntimeError("the run began")

    monkeypatch.setattr(random_pipe, "encode_prompt", stop)
    with caplog.at_level(logging.INFO, logger="kiwi_core"), pytest.raises(RuntimeError, match="the run began"):
        random_pipe("Go.", np.zeros((7, 40, 64, 3), dtype=np.uint8))
    assert "64x32, 9 frames: about" in caplog.text
    assert "GiB" in caplog.text


@pytest.mark.parametrize(
    "part, message",
    [
        ("mllm_encoder", "Out of memory in the language model: call enable_model_cpu_offload"),
        ("source_embedder", "Out of memory in sampling: call enable_group_offload"),
        ("transformer", "Out of memory in sampling: .* lower num_frames, height and width"),
        ("vae.encoder", "Out of memory in encoding the video: call enable_vae_tiling"),
        ("vae.decoder", "Out of memory in decoding the video: call enable_vae_tiling"),
    ],
)
def test_running_out_of_memory_names_the_setting_to_change(random_pipe, monkeypatch, part, message):
    module = random_pipe
    for name in part.split("."):
        module = getattr(module, name)

    def fail(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(module, "forward", fail)
    with pytest.raises(MemoryError, match=message):
        random_pipe("Go.", np.zeros((1, 32, 32, 3), dtype=np.uint8), num_inference_steps=1)


def test_other_errors_stay_what_they_are():
    with pytest.raises(ValueError, match="other"), memory.explain("sampling"):
        raise ValueError("other")
