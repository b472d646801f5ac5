"""Measure training in one run, as ratios; on a CUDA machine also real 5B shapes against the hardware's floor.

make bench-training
"""

import argparse
import dataclasses
import gc
import statistics
import tempfile
import time
from pathlib import Path

import random_model
import torch
import training_data
from peak import PeakBytes
from torch.utils.flop_counter import FlopCounterMode

from kiwi_core import mllm
from kiwi_core.checkpoints.parts import Parts
from training import architectures, describe, flow_match, metrics, model, optimizers, recipes, trainer
from training.cache_data import cache_data
from training.config import Config
from training.model import Batch, KiwiModel

GIB = 2**30
# bfloat16 matrix products, as measured on such cards.
TFLOPS = {"H200": 790, "H100": 790}


def row(name: str, value: str, note: str = "") -> None:
    print(f"  {name:<52} {value:>14}  {note}", flush=True)


def updates(config: Config, skip: int = 2) -> float:
    """Samples a second of a run, without its first updates."""
    trainer.train(config)
    lines = metrics.read(Path(config.output))[skip:]
    kinds = len(config.kinds) or 1
    return config.batch_size * (config.accumulation or kinds) / statistics.median(line["seconds"] for line in lines)


def throughput(folder: Path) -> None:
    """Cached against uncached, and batches of four against single samples."""
    random_model.write(folder / "model")
    rows = [training_data.write_pair(folder / "data", f"v{number}", number) for number in range(8)]
    table = training_data.write_table(folder / "data", rows)
    given = {"kinds": ("video",), "steps": 8, "save_every": 8, "accumulation": 1, "recipe": "tiny_stage2"}

    def run(name: str, **changes) -> Config:
        changes = given | changes
        return training_data.config(
            changes.pop("recipe"), folder / "model" / "released", table, folder / name, **changes
        )

    cache_data(run("cache", cache=str(folder / "cache")))
    cached = updates(run("cached", cache=str(folder / "cache")))
    uncached = updates(run("uncached"))
    row("samples/s, cached / uncached", f"{cached / uncached:.2f}", f"{cached:.2f} / {uncached:.2f}, batch 4")
    single = updates(run("single", cache=str(folder / "cache"), batch_size=1))
    row("samples/s, batch 4 / batch 1", f"{cached / single:.2f}", f"{cached:.2f} / {single:.2f}, cached")


def checkpointing() -> None:
    """Peak of one forward and backward pass with checkpointing over that without, of a DiT of 12 layers."""
    from kiwi_core.transformer import KiwiTransformer3DModel

    torch.manual_seed(0)
    dit = KiwiTransformer3DModel(
        num_attention_heads=4, in_channels=16, out_channels=16, freq_dim=256, text_dim=64, ffn_dim=2048, num_layers=12
    ).train()
    inputs = torch.randn(1, 16, 5, 16, 24), torch.tensor([500.0]), torch.randn(1, 64, 512)
    peaks = []
    for enabled in (True, False):
        (dit.enable_gradient_checkpointing if enabled else dit.disable_gradient_checkpointing)()
        dit.zero_grad()
        with PeakBytes() as memory:
            dit(*inputs, return_dict=False)[0].square().mean().backward()
        peaks.append(memory.peak)
    gradients = sum(parameter.numel() * 4 for parameter in dit.parameters())
    row(
        "peak with checkpointing / without", f"{peaks[0] / peaks[1]:.2f}",
        f"{peaks[0] / 2**20:.0f} / {peaks[1] / 2**20:.0f} MiB; without the gradients "
        f"{(peaks[0] - gradients) / (peaks[1] - gradients):.2f}",
    )  # fmt: skip


def random_parts(architecture: str, device: str) -> Parts:
    """A model of published shapes with random bfloat16 weights, made where they are used."""
    generator = torch.Generator(device).manual_seed(0)

    def fill(tensors) -> dict[str, torch.Tensor]:
        made = {}
        for name, form in tensors.items():
            tensor = torch.empty(form.shape, dtype=torch.bfloat16, device=device)
            if "norm" in name or "gamma" in name or "ln_q" in name:
                made[name] = tensor.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                fan_in = max(1, form.shape[1:].numel()) if form.ndim > 1 else 2500
                made[name] = tensor.normal_(0, fan_in**-0.5, generator=generator)
        return made

    parts = architectures.meta_parts(architecture)
    names = ("transformer", "source_embedder", "ref_embedder", "vae", "mllm", "connector")
    return dataclasses.replace(
        parts, tokenizer=random_model.byte_tokenizer().to_str(), **{name: fill(getattr(parts, name)) for name in names}
    )


def batch_of(config: Config, built: KiwiModel, kind: str, device: str, height: int, width: int, frames: int) -> Batch:
    """A batch of the largest sample of a recipe, with random contents."""
    factor, channels = built.pipe.vae.config.scale_factor_spatial, built.dit.config.in_channels
    shape = (1, channels, (frames - 1) // 4 + 1, height // factor, width // factor)
    torch.manual_seed(1)

    def noise(*sizes) -> torch.Tensor:
        return torch.randn(sizes, device=device, dtype=torch.bfloat16)

    source = torch.zeros((min(frames, 16), *mllm.smart_size(height, width, 28, 4 * 784, 262144), 3), dtype=torch.uint8)
    shown = [mllm.patchify_source(source.numpy(), kind, built.mllm.limits)[1]]
    if kind == "ref":
        picture = torch.zeros((672, 672, 3), dtype=torch.uint8).numpy()
        shown.append(mllm.patchify_reference(picture, built.mllm.limits)[1])
    count = built.mllm.connector.num_queries[kind]
    inputs = mllm.assemble(built.mllm.tokenizer, "Make it snow." * 4, kind, count, shown, 2)
    width_ = built.mllm.model.config.text_config.hidden_size
    vision = tuple(
        mllm.Vision(None, part.grid_thw, part.token_mask, noise(int(part.token_mask.sum()), width_))
        for part in inputs.vision
    )
    inputs = dataclasses.replace(inputs, vision=vision)
    dim = built.vae_condition.patch_embedding.weight.shape[0]
    return Batch(
        kind, noise(*shape), noise(*shape), noise(1, channels, 1, *shape[3:]) if kind == "ref" else None,
        noise(*shape), torch.tensor([400]), None if not config.trains_mllm else [inputs],
        noise(1, count, dim) if not config.trains_mllm else None, ("bench",),
    )  # fmt: skip


def real_shapes(config: Config, kinds: tuple[str, ...], size: tuple[int, int], repeats: int = 3) -> None:
    """Step time and peak memory of a recipe at the published sizes on a GPU, with random weights."""
    device, name = "cuda", torch.cuda.get_device_name()
    tflops = next((value for card, value in TFLOPS.items() if card in name), 790)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    parts = random_parts(config.architecture, device)
    built = model.from_parts(parts, config)
    built.pipe.vae.to("cpu")
    built.mllm.model.visual.to("cpu")
    if not config.trains_mllm:
        built.mllm.to("cpu")
    del parts
    gc.collect()
    torch.cuda.empty_cache()
    built.train()
    used = [built.dit, built.vae_condition, built.ref_vae_condition]
    if config.trains_mllm:
        used += [built.mllm.connector, built.mllm.model.language_model]
    for part in used:  # buffers were made on the CPU
        part.to(device)
    trained = [*built.trained().values()]
    optimizer = optimizers.build(config, trained, torch.device(device))
    frames = {kind: 1 if kind == "image" else config.max_frames for kind in kinds}
    batches = [batch_of(config, built, kind, device, *size, count) for kind, count in frames.items()]

    def update() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for batch in batches:
            (built(batch).mean() / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        return time.perf_counter() - started

    update()
    torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(update() for _ in range(repeats))
    peak = torch.cuda.max_memory_allocated() / GIB
    about = f"{size[1]}x{size[0]}, {config.max_frames} frames, {'+'.join(kinds)}"
    row(f"{config.recipe}, update", f"{seconds:.2f} s", about)
    estimate = describe.memory(config.replace(cache="-"), describe.build(config)).total / GIB
    row(f"{config.recipe}, peak memory", f"{peak:.1f} GiB", f"estimated {estimate:.1f} GiB")
    work = work_of(config, kinds, size)
    row(
        f"{config.recipe}, of the floor", f"{work / tflops / seconds:.0%}",
        f"{work:.0f} TFLOP an update, recomputation included: {work / tflops:.2f} s at {tflops} TFLOP/s ({name})",
    )  # fmt: skip


def work_of(config: Config, kinds: tuple[str, ...], size: tuple[int, int]) -> float:
    """TFLOP of an update, what checkpointing computes twice included; counted without weights."""
    built = describe.build(config).train().to(torch.bfloat16)
    built.mllm.tokenizer = random_model.byte_tokenizer()
    layers = sum(p.numel() for p in built.mllm.model.language_model.layers.parameters())
    total = 0
    for kind in kinds:
        batch = batch_of(config, built, kind, "meta", *size, 1 if kind == "image" else config.max_frames)
        if batch.inputs:
            # Forward, forward again, and the gradients of the states: the weights are frozen, the adapters small.
            total += 6 * layers * batch.inputs[0].input_ids.shape[1]
            length = built.mllm.connector.num_queries[kind] + sum(
                int(part.token_mask.sum()) for part in batch.inputs[0].vision[1:]
            )
            dim = built.vae_condition.patch_embedding.weight.shape[0]
            context = torch.empty(1, length, dim, dtype=torch.bfloat16, device="meta", requires_grad=True)
            batch = dataclasses.replace(batch, context=context, inputs=None)
        modules = (built.dit, built.vae_condition, built.ref_vae_condition)
        with FlopCounterMode(display=False) as counter:
            flow_match.predict(
                *(*modules, batch.latents, torch.tensor([400.0]), torch.tensor([0.4]), batch.context),
                *(batch.source_latents, batch.reference_latents),
            ).sum().backward()
        total += counter.get_total_flops()
    return total / 1e12


def cuda() -> None:
    """The recipes that the README speaks of, at their largest samples."""
    for name, kinds, size in (
        ("stage3_mix", ("image", "video", "ref"), (704, 1280)),
        ("style_lora", ("ref",), (480, 832)),
        ("style_lora_16gb", ("ref",), (480, 832)),
        ("style_lora_12gb", ("ref",), (480, 640)),
    ):
        real_shapes(recipes.get(name), kinds, size)
        gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["throughput", "checkpointing", "cuda"], help="run one part")
    only = parser.parse_args().only
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CUDA: {torch.cuda.is_available()}")
    if only in (None, "throughput"):
        with tempfile.TemporaryDirectory() as folder:
            throughput(Path(folder))
    if only in (None, "checkpointing"):
        checkpointing()
    if torch.cuda.is_available() and only in (None, "cuda"):
        cuda()


if __name__ == "__main__":
    main()
