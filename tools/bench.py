"""Time the model's parts against their yardsticks, in one run and as ratios.

    make bench

On a CUDA machine it also runs the published 5B shape and prints TFLOP/s and the share of the hardware's floor.
"""

import argparse
import gc
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import comfyui
import numpy as np
import random_model
import torch
from diffusers import WanTransformer3DModel
from peak import PeakBytes
from safetensors.torch import load_file

from kiwi_core import KiwiEditPipeline, schedule, vae, windows
from kiwi_core.conditioning import PatchEmbedder
from kiwi_core.transformer import KiwiTransformer3DModel

# One DiT forward of the 5B model at 704x1280, 81 frames: TFLOP without and with a reference.
FLOOR_TFLOP = {0: 290.5, 1: 316.9}
H200_TFLOPS = 790


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Median of several runs after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        sync()
        started = time.perf_counter()
        run()
        sync()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def alternating(left: Callable[[], object], right: Callable[[], object], rounds: int = 9) -> tuple[float, float, float]:
    """Median seconds of two runs in turn, and the median of their ratios: fair on a busy machine."""
    left(), right()
    pairs = []
    for _ in range(rounds):
        pair = []
        for run in (left, right):
            sync()
            started = time.perf_counter()
            run()
            sync()
            pair.append(time.perf_counter() - started)
        pairs.append(pair)
    return *map(statistics.median, zip(*pairs)), statistics.median(a / b for a, b in pairs)


def row(name: str, value: str, note: str = "") -> None:
    print(f"  {name:<46} {value:>14}  {note}")


def dit_step() -> float:
    """One step against diffusers' own Wan transformer at the same shape and weights; returns the ratio."""
    config = {
        "num_attention_heads": 4, "attention_head_dim": 128, "in_channels": 48, "out_channels": 48, "text_dim": 512,
        "freq_dim": 256, "ffn_dim": 2048, "num_layers": 4,
    }  # fmt: skip
    torch.manual_seed(0)
    ours = KiwiTransformer3DModel(**config).eval()
    plain = WanTransformer3DModel(**config).eval()
    plain.load_state_dict(ours.state_dict())
    latents, text = torch.randn(1, 48, 5, 16, 24), torch.randn(1, 64, 512)
    context, source = torch.randn(1, 64, 512), PatchEmbedder(48, 512)(torch.randn(1, 48, 5, 16, 24))
    time_, sigma = torch.tensor([500.0]), torch.tensor(0.5)
    with torch.inference_mode():
        mine, theirs, ratio = alternating(
            lambda: ours(latents, time_, context, source=source, source_sigma=sigma),
            lambda: plain(latents, time_, text),
        )
    note = f"{mine * 1e3:.0f} / {theirs * 1e3:.0f} ms, at most 1.05"
    row("DiT step / diffusers' Wan, same shape", f"{ratio:.3f}", note)
    return ratio


def loading(folder: Path) -> None:
    """from_pretrained against reading the same bytes as safetensors."""
    files = list(folder.rglob("*.safetensors"))

    def raw():
        for path in files:
            for tensor in load_file(path).values():
                tensor.sum()

    read, load, ratio = alternating(lambda: KiwiEditPipeline.from_pretrained(folder, dtype=torch.float32), raw, 5)
    size = sum(path.stat().st_size for path in files) / 2**20
    row("from_pretrained / raw safetensors read", f"{ratio:.2f}", f"{read:.2f} / {load:.2f} s, {size:.0f} MiB")


def encoding(pipeline: KiwiEditPipeline) -> None:
    """Prompt encoding against the language model's pass alone, the VAE against diffusers' own walk over the clip."""
    video = np.random.default_rng(0).integers(0, 255, (17, 128, 192, 3), dtype=np.uint8)
    pixels = vae.pixels(video[None])
    inputs = pipeline.mllm_encoder.prepare("Make it snow.", video)
    autoencoder = pipeline.vae
    with torch.inference_mode():
        latents = vae.encode(autoencoder, pixels)
        raw = vae.denormalize(autoencoder, latents)
        parts = {
            "encode_prompt / the model's pass alone": (
                lambda: pipeline.encode_prompt("Make it snow.", video),
                lambda: pipeline.mllm_encoder(inputs),
            ),
            "VAE encode / diffusers' own": (
                lambda: vae.encode(autoencoder, pixels),
                lambda: autoencoder.encode(pixels).latent_dist.mode(),
            ),
            "VAE decode / diffusers' own": (
                lambda: vae.decode(autoencoder, latents),
                lambda: autoencoder.decode(raw).sample,
            ),
        }
        for name, (ours, theirs) in parts.items():
            mine, other, ratio = alternating(ours, theirs, 5)
            row(name, f"{ratio:.3f}", f"{mine * 1e3:.0f} / {other * 1e3:.0f} ms, 17 frames of 192x128")


def long_video(pipeline: KiwiEditPipeline) -> None:
    """Peak of sampling a longer clip over that of 81 frames, with windows and without; latents a 16th of the width."""
    transformer = KiwiTransformer3DModel(
        num_attention_heads=8, in_channels=16, out_channels=16, freq_dim=256, text_dim=64, ffn_dim=4096, num_layers=1
    ).eval()
    parts = pipeline.components | {"transformer": transformer, "source_embedder": PatchEmbedder(16, 1024)}
    small = KiwiEditPipeline(**parts | {"ref_embedder": PatchEmbedder(16, 1024)})
    small.set_progress_bar_config(disable=True)
    sigmas, context = schedule.flow_sigmas(1), torch.randn(1, 64, 1024)

    def peak(frames: int, split: bool) -> int:
        source, reference = torch.randn(1, 16, (frames + 3) // 4, 8, 12), torch.randn(1, 16, 1, 8, 12)
        total = source.shape[2]
        spans = windows.split(total, *windows.latent_sizes(81, 16)) if split else [range(total)]
        with torch.inference_mode(), PeakBytes() as memory:
            small._sample(
                [[context]] * len(spans), source, reference, sigmas, None, "shipped", None, 1.0, spans, None
            )  # fmt: skip
        return memory.peak

    base = peak(81, split=True)
    for frames in (161, 401):
        inside, whole = peak(frames, True), peak(frames, False)
        row(
            f"sampling {frames} frames / 81, peak in windows", f"{inside / base:.2f}",
            f"without windows {whole / base:.2f}; {base / 2**20:.0f} MiB at 81 frames",
        )  # fmt: skip


def pack_import(folder: Path) -> None:
    """The pack's part of ComfyUI's start, by the server's own log."""
    with comfyui.Server(comfyui.DEFAULT_VERSION, folder) as server:
        spent, start = server.pack_import_seconds, server.start_seconds
    row("pack import / ComfyUI start", f"{spent / start:.3f}", f"{spent:.1f} / {start:.1f} s, under 0.3 s")


def memory_plan(folder: Path, card: int = 8) -> None:
    """What each phase of an edit takes by ComfyUI's estimates, on an NVIDIA card of so many GiB."""
    import published_sizes

    pack, gib, size = published_sizes.load_pack(folder), published_sizes.GIB, (1280, 704, 81, 1)
    memory = importlib.import_module(f"{pack.__name__}.nodes.memory")
    print(f"Planned peaks in ComfyUI, 1280x704, 81 frames, 1 reference, {card} GiB: all weights there / streamed")
    with published_sizes.as_on_cuda():
        for dtype in published_sizes.DTYPES:
            parts = published_sizes.published_5b(pack, dtype)
            for phase in memory.phases(parts.model, parts.vae, parts.mllm, parts.connector, *size, card * gib):
                peaks = f"{phase.peak / gib:.1f} / {phase.least / gib:.1f} GiB"
                row(f"{phase.name}, {dtype}", peaks, memory.advice(phase, card * gib, size[0] * size[1])[1])


def cuda_floor() -> None:
    """The published 5B DiT at 704x1280, 81 frames, bfloat16."""
    with torch.device("cuda"):
        model = KiwiTransformer3DModel(
            num_attention_heads=24, in_channels=48, out_channels=48, ffn_dim=14336, num_layers=30
        ).to(torch.bfloat16).eval()  # fmt: skip
        latents = torch.randn(1, 48, 21, 44, 80, dtype=torch.bfloat16)
        context = torch.randn(1, 1536, 3072, dtype=torch.bfloat16)
        source = torch.randn(1, 3072, 21, 22, 40, dtype=torch.bfloat16)
        time_, sigma = torch.tensor([500.0]), torch.tensor(0.5)
        with torch.inference_mode():
            for references, work in FLOOR_TFLOP.items():
                reference = source[:, :, :references] if references else None
                took = seconds(
                    lambda reference=reference: model(
                        latents, time_, context, source=source, source_sigma=sigma, reference=reference
                    )
                )
                rate = work / took
                row(
                    f"5B step, 704x1280x81, {references} references",
                    f"{rate:.0f} TFLOP/s",
                    f"{took:.2f} s, {rate / H200_TFLOPS:.0%} of {H200_TFLOPS} TFLOP/s; 50 steps {50 * took:.0f} s",
                )
    row("peak memory of a step", f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["dit", "load", "encode", "long", "import", "memory", "cuda"]
    parser.add_argument("--only", choices=parts, help="run one part")
    only = parser.parse_args().only
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CUDA: {torch.cuda.is_available()}")
    with tempfile.TemporaryDirectory() as folder:
        random_model.write(folder)
        if only in (None, "dit"):
            dit_step()
        if only in (None, "load"):
            loading(Path(folder) / "released")
        if only in (None, "encode", "long"):
            pipeline = KiwiEditPipeline.from_pretrained(Path(folder) / "released", dtype=torch.float32)
            if only != "long":
                encoding(pipeline)
            if only != "encode":
                long_video(pipeline)
            del pipeline
            gc.collect()
        if only in (None, "import"):
            pack_import(Path(folder) / "comfyui-base")
        if only in (None, "memory"):
            memory_plan(Path(folder) / "comfyui-memory")
        if torch.cuda.is_available() and only in (None, "cuda"):
            cuda_floor()


if __name__ == "__main__":
    main()
