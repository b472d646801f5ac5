"""Learning rates, optimisers, averages, and frozen layers in float8."""

import importlib.util
import math
import sys

import pytest
import torch
from torch import nn

from training import adapters, base, optimizers, quantised, recipes
from training.config import OPTIMIZERS
from training.ema import EMA
from training.parallel import Parallel

CPU = torch.device("cpu")
LR = 0.03


def rates(count, **changes):
    config = recipes.get("tiny_stage3").replace(lr=LR, **changes)
    return [optimizers.learning_rate(config, step) for step in range(count)]


def test_the_official_rate_is_a_third_for_five_steps():
    assert rates(8, schedule="official", steps=8) == pytest.approx([0.01] * 5 + [0.03] * 3)
    assert rates(8, schedule="official", steps=8, warmup_steps=4) == pytest.approx([0.01] * 5 + [0.03] * 3)


def test_the_official_rate_is_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    expected = []
    for _ in range(9):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates(9, schedule="official") == pytest.approx(expected)


def test_a_constant_rate_after_a_warm_up():
    assert rates(4, schedule="constant") == [LR] * 4
    assert rates(6, schedule="constant", warmup_steps=3) == pytest.approx([0.01, 0.02, 0.03, 0.03, 0.03, 0.03])


def test_a_cosine_rate_after_a_warm_up():
    half = math.sqrt(0.5)
    whole = [0.03, 0.015 * (1 + half), 0.015, 0.015 * (1 - half), 0.0]
    assert rates(5, schedule="cosine", steps=4) == pytest.approx(whole)
    assert rates(7, schedule="cosine", steps=6, warmup_steps=2) == pytest.approx([0.015, 0.03, *whole])
    assert rates(9, schedule="cosine", steps=4)[5:] == pytest.approx([0.0] * 4)  # never up again


class Quadratic(nn.Module):
    """A bowl with its lowest point, 0, at a matrix of ones and a bias of minus ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.matrix, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))

    def forward(self):
        return ((self.matrix - 1) ** 2).sum() + ((self.bias + 1) ** 2).sum()

    def trained(self):
        return dict(self.named_parameters())


def build(name, of, **changes):
    config = recipes.get("tiny_stage3").replace(
        optimizer=name, lr={"prodigy": 1.0, "muon": 0.2}.get(name, 0.05), weight_decay=0.0, **changes
    )
    return optimizers.build(config, of.parameters(), CPU)


def descend(of, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        of().backward()
        optimizer.step()


PACKAGES = {
    "adamw": "torch",
    "muon": "torch",
    "adafactor": "torch",
    "adamw8bit": ("bitsandbytes", "torchao"),
    "prodigy": "prodigyopt",
}


@pytest.fixture(params=OPTIMIZERS)
def name(request):
    """Every optimiser that can be had here."""
    packages = PACKAGES[request.param]
    packages = (packages,) if isinstance(packages, str) else packages
    if not any(importlib.util.find_spec(package) for package in packages):
        pytest.skip(f"needs {' or '.join(packages)}")
    return request.param


def test_an_optimizer_goes_downhill(name):
    of = Quadratic()
    before = of().item()
    descend(of, build(name, of), 120 if name == "prodigy" else 60)  # which begins with finding its rate
    assert of().item() < before / 4


def test_adafactor_moves_what_starts_at_nothing():
    """As a LoRA's second half does, at a style's own rate."""
    torch.manual_seed(0)
    down, wanted = torch.randn(4, 16), torch.randn(16, 4) * 0.1
    up = nn.Parameter(torch.zeros(16, 4))
    optimizer = optimizers.build(recipes.get("style_lora").replace(optimizer="adafactor"), [up], CPU)
    errors = []
    for _ in range(600):
        inputs = torch.randn(8, 16)
        loss = (inputs @ down.T @ (up - wanted).T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert sum(errors[-50:]) < 0.6 * sum(errors[:50])


def test_prodigy_wants_a_rate_of_one():
    with pytest.raises(ValueError, match="use --lr 1"):
        recipes.get("style_lora").replace(optimizer="prodigy")


def test_an_optimizer_goes_on_from_its_saved_state(name):
    parallel = Parallel(recipes.get("tiny_stage3").replace(device="cpu"))
    whole = Quadratic()
    descend(whole, build(name, whole), 12)
    of = Quadratic()
    first = build(name, of)
    descend(of, first, 7)
    saved = parallel.full_optimizer(of, first)
    second = build(name, of)
    parallel.load_optimizer(of, second, saved)
    descend(of, second, 5)
    for one, two in zip(whole.parameters(), of.parameters()):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_adamw_is_the_published_one():
    of = Quadratic()
    group = optimizers.build(recipes.get("stage3_mix"), of.parameters(), CPU).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (5e-6, 0.01, (0.9, 0.999), 1e-8)


@pytest.mark.parametrize(
    ("name", "missing", "said"),
    [
        ("prodigy", ["prodigyopt"], "pip install prodigyopt"),
        ("adamw8bit", ["bitsandbytes.optim", "torchao.optim"], "pip install bitsandbytes"),
    ],
)
def test_a_missing_package_is_one_sentence(monkeypatch, name, missing, said):
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=said) as caught:
        build(name, Quadratic())
    assert "--optimizer adamw." in str(caught.value)
    assert "\n" not in str(caught.value)


def test_muon_turns_matrices_and_leaves_the_rest_to_adamw():
    of = Quadratic()
    before, bias = of.matrix.detach().clone(), of.bias.detach().clone()
    descend(of, build("muon", of), 1)
    step = before - of.matrix.detach()
    torch.testing.assert_close(bias - of.bias.detach(), 0.2 * torch.sign(bias + 1))  # AdamW's first
    strengths = torch.linalg.svdvals(step)
    assert strengths.min() > 0.5 * strengths.max()  # every direction moves about as far, whatever its gradient
    gradient = torch.linalg.svdvals(2 * (before - 1))
    assert gradient.min() < 0.5 * gradient.max()


def test_muon_in_an_old_torch_is_one_sentence(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"Muon needs torch 2\.9 or newer; .*--optimizer adamw\."):
        build("muon", Quadratic())


# Averages


def averaged(decay, values):
    """The average after updates that leave the parameter at ``values``."""
    parameter = nn.Parameter(torch.tensor([5.0]))
    average = EMA({"a": parameter}, decay)
    for step, value in enumerate(values, start=1):
        parameter.data.fill_(value)
        average.update(step)
    return average.average["a"].item()


def test_an_average_is_the_closed_form():
    decays = [1 / 10, 2 / 11, 0.25]  # 3 / 12 is as much as the decay
    expected = 5.0
    for decay, value in zip(decays, (1.0, 2.0, 4.0)):
        expected = decay * expected + (1 - decay) * value
    assert averaged(0.25, [1.0, 2.0, 4.0]) == pytest.approx(expected)
    assert averaged(0.0, [1.0, 2.0, 4.0]) == 4.0


def test_an_average_of_what_stays_is_what_stays():
    assert averaged(0.9, [7.0] * 400) == pytest.approx(7.0)


def test_a_late_average_forgets_by_its_decay():
    parameter = nn.Parameter(torch.zeros(1))
    average = EMA({"a": parameter}, 0.5)
    average.average["a"].fill_(8.0)
    for step in range(1000, 1003):
        average.update(step)
    assert average.average["a"].item() == pytest.approx(1.0)


def test_averages_take_the_place_of_weights_for_a_while():
    parameter = nn.Parameter(torch.tensor([5.0]))
    average = EMA({"a": parameter}, 0.9)
    parameter.data.fill_(2.0)
    with pytest.raises(KeyError), average.applied():
        assert parameter.item() == 5.0
        raise KeyError
    assert parameter.item() == 2.0
    assert average.average["a"].item() == 5.0


# Float8


def layer(dtype=torch.float32, bias=True):
    torch.manual_seed(1)
    return nn.Linear(48, 32, bias=bias, dtype=dtype).requires_grad_(False)


def test_a_float8_layer_is_near_the_original():
    plain = layer()
    original = plain.weight.clone()
    weight = quantised.Float8Linear(plain).weight
    assert weight.dtype == torch.float32
    step = original.abs().max() / 448 * 2**-9  # the finest step of e4m3
    assert ((weight - original).abs() <= original.abs() / 16 + step).all()
    assert not torch.equal(weight, original)
    assert weight.abs().max() == pytest.approx(original.abs().max().item())


def test_a_layer_of_zeros_stays_zero():
    plain = layer()
    plain.weight.zero_()
    assert not quantised.Float8Linear(plain).weight.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float8_layer_computes_in_the_type_of_the_model(dtype):
    frozen = quantised.Float8Linear(layer(dtype))
    assert frozen.weight8.dtype == torch.float8_e4m3fn
    assert (frozen.in_features, frozen.out_features) == (48, 32)
    x = torch.randn(5, 48, dtype=dtype)
    expected = x @ frozen.weight.T + frozen.bias
    found = frozen(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-3)


def test_a_float8_layer_computes_in_bfloat16_under_autocast():
    frozen = quantised.Float8Linear(layer(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen(torch.randn(5, 48)).dtype == torch.bfloat16


def test_the_gradient_is_that_of_the_stored_weight():
    frozen = quantised.Float8Linear(layer())
    x = torch.randn(5, 48, requires_grad=True)
    upstream = torch.randn(5, 32)
    (gradient,) = torch.autograd.grad((frozen(x) * upstream).sum(), x)
    torch.testing.assert_close(gradient, upstream @ frozen.weight)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_moves_and_casts_keep_float8():
    frozen = quantised.Float8Linear(layer())
    before = frozen.weight8.view(torch.uint8).clone(), frozen.scale.clone(), frozen.weight.clone()
    holder = nn.Sequential(frozen)
    for change in (holder.bfloat16, holder.float, holder.half, holder.float, holder.cpu):
        change()
        assert frozen.weight8.dtype == torch.float8_e4m3fn
        assert frozen.scale.dtype == torch.float32
        assert torch.equal(frozen.weight8.view(torch.uint8), before[0])
        assert torch.equal(frozen.scale, before[1])
    torch.testing.assert_close(frozen.weight, before[2], rtol=0, atol=0)
    holder.to("meta")
    assert frozen.weight8.device.type == frozen.scale.device.type == frozen.bias.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_model_computes_in_its_new_type(dtype):
    frozen = quantised.Float8Linear(layer())
    found = frozen.to(dtype)(torch.randn(5, 48, dtype=dtype))
    assert found.dtype == dtype


def test_all_frozen_linear_layers_are_quantised():
    module = nn.ModuleDict({
        "block": nn.Sequential(layer(), nn.LayerNorm(32), nn.Sequential(layer(bias=False))),
        "trained": nn.Linear(4, 4),
        "table": nn.Embedding(4, 4),
    })  # fmt: skip
    assert quantised.quantise(module) == 2
    kept = {name for name, part in module.named_modules() if isinstance(part, quantised.Float8Linear)}
    assert kept == {"block.0", "block.2.0"}
    assert type(module["trained"]) is nn.Linear
    assert quantised.quantise(module) == 0
    assert sum(buffer.numel() * buffer.itemsize for buffer in module.buffers()) == 2 * (48 * 32 + 4)


@pytest.fixture(scope="module")
def float8_model(tiny_model):
    """What peft makes of float8 layers, by the kind of adapter."""
    from training import model

    def float8_model(adapter):
        config = recipes.get("tiny_style_lora").replace(
            model=str(tiny_model / "released"), base_dtype="fp8", adapter=adapter, mllm_rank=0, precision="bf16"
        )
        parts, start = base.read(config)
        return model.from_parts(parts, config, start)

    return float8_model


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_adapters_go_onto_float8_layers(float8_model, adapter):
    built = float8_model(adapter)
    target = built.dit.blocks[0].attn1.to_q
    frozen = target.base_layer
    assert isinstance(frozen, quantised.Float8Linear)
    trained = {name.partition("attn1.to_q.")[2] for name in built.trained() if "blocks.0.attn1.to_q." in name}
    expected = {"lora_A.default.weight", "lora_B.default.weight"}
    assert trained == expected | ({"lora_magnitude_vector.default.weight"} if adapter == "dora" else set())
    x = torch.randn(3, 256, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        plain, found = frozen(x), target(x)
        torch.testing.assert_close(found, plain, rtol=2e-2, atol=2e-2)  # an adapter changes nothing at first
        found.float().square().sum().backward()
    assert target.lora_B["default"].weight.grad.abs().sum() > 0
    assert x.grad.abs().sum() > 0
    if adapter == "dora":
        norms = frozen.weight.float().norm(dim=1)
        torch.testing.assert_close(target.lora_magnitude_vector["default"].weight.detach(), norms, rtol=1e-2, atol=1e-4)


def test_switched_off_adapters_leave_the_base(float8_model):
    built = float8_model("lora")
    target = built.dit.blocks[0].attn1.to_q
    nn.init.normal_(target.lora_B["default"].weight)
    x = torch.randn(3, 256, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        changed = target(x)
        with adapters.switched_off(built):
            assert torch.equal(target(x), target.base_layer(x))
        assert torch.equal(target(x), changed)
    assert not torch.allclose(changed, target.base_layer(x), atol=0.1)
