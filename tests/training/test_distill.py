"""Fewer steps: the student is nearer to the teacher's many steps than the teacher's own few."""

import pytest
import torch
import training_data

from kiwi_core import schedule
from training import adapters, base, checkpoint, distill, model, samples, sources, trainer, validation
from training.batches import collate
from training.cache_data import cache_data
from training.encode import Encoder

COMMON = {"kinds": ("video",), "batch_size": 8, "schedule": "cosine"}


def test_windows_end_where_the_few_step_schedule_steps():
    assert torch.equal(distill.windows(4, 5.0), schedule.flow_sigmas(4, 5.0))


def test_the_straight_line_leads_from_start_to_end_in_one_step():
    start, end = torch.randn(2, 2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    high, low = torch.tensor([1.0, 0.8]), torch.tensor([0.8, 0.1])
    velocity = distill.straight_line(start, end, high, low)
    step = (low - high).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(start + velocity * step, end)


@pytest.fixture(scope="module")
def distilled(tiny_model, tmp_path_factory):
    """A model that was trained until its flow has a shape, its distilled LoRA, and samples."""
    folder = tmp_path_factory.mktemp("distil")
    rows = [training_data.write_pair(folder / "data", f"v{number}", number) for number in range(8)]
    table = training_data.write_table(folder / "data", rows)

    def config(recipe, name, **changes):
        return training_data.config(
            recipe, tiny_model / "released", table, folder / name, cache=str(folder / "cache"), **COMMON | changes
        )

    teacher = config(
        "tiny_style_lora", "teacher", dit="full", train_source_embedder=True, steps=300, warmup_steps=20,
        save_every=300, exports=("training",),
    )  # fmt: skip
    cache_data(teacher)
    trainer.train(teacher)
    student = config(
        "tiny_distill", "student", start=teacher.output, steps=200, warmup_steps=5, lr=5e-4, teacher_steps=8,
        save_every=200,
    )  # fmt: skip
    cache_data(student)
    trainer.train(student)

    parts, start = base.read(student)
    built = model.from_parts(parts, student, start).eval()
    saved = checkpoint.newest(folder / "student" / "checkpoints").tensors("model")
    with torch.no_grad():
        for name, parameter in built.trained().items():
            parameter.copy_(saved[name])
    data, cache, rules = sources.read(student, parts, start)
    encoder = Encoder(built, "cpu")
    batches = [collate(encoder, [each]) for each in validation.samples(data.training, rules, cache, 2)]
    return built, batches, folder / "student" / "exports"


def test_four_steps_of_the_student_are_nearer_to_many_of_the_teacher_than_its_own_four(distilled):
    built, batches, _ = distilled
    few = many = 0.0
    for batch in batches:
        with adapters.switched_off(built):
            wanted, undistilled = (samples.sample(built, batch, steps) for steps in (40, 4))
        few += (samples.sample(built, batch, 4) - wanted).square().mean().item()
        many += (undistilled - wanted).square().mean().item()
    assert few < 0.8 * many


def test_the_student_is_exported_as_a_lora_of_the_video_model_alone(distilled):
    from safetensors import safe_open

    with safe_open(distilled[2] / "student.safetensors", "pt") as file:
        assert all(name.startswith("diffusion_model.blocks.") for name in file.keys())  # noqa: SIM118
