import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stylegen.config import OPTIMIZERS, OptimizerConfig, TrainingConfig
from stylegen.training import ema, optim

GOLDEN = Path(__file__).parent / "golden"
EXACT = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "sg1_misc.npz") as file:
        return dict(file)


def test_official_adam(golden: dict[str, np.ndarray]) -> None:
    """Lessons of the trace: TensorFlow's epsilon, a reset before step 4, and step 6 skipped for its one NaN."""
    x = nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 3e-5]))
    optimizer = optim.build([x], OptimizerConfig(), lr=1.0)
    gradients = np.where(golden["adam/grads"] == -999, np.nan, golden["adam/grads"])
    for i, (gradient, lr) in enumerate(zip(gradients, golden["adam/lr"], strict=True)):
        if i == 4:
            optim.reset(optimizer)
        optim.set_lr(optimizer, float(lr))
        x.grad = torch.from_numpy(gradient.astype(np.float32))
        assert (optim.step(optimizer) is not None) == (i != 6)
        np.testing.assert_allclose(x.detach(), golden["adam/values_after_each_step"][i], rtol=1e-4, atol=1e-8)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Linear(9, 9))  # the last one is not used


def train(net: nn.Sequential, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for i in steps:
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        net[:3](x).square().sum().backward()
        assert optim.step(optimizer) is not None


def parameters(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_bit_for_bit(name: str) -> None:
    cfg = OptimizerConfig(name, beta1=0.5)
    net = model()
    optimizer = optim.build(net.parameters(), cfg, lr=0.01)
    train(net, optimizer, range(5))
    saved = {key: value.clone() for key, value in optim.state_tensors(optimizer, net.named_parameters()).items()}
    assert saved
    other = copy.deepcopy(net)
    train(net, optimizer, range(5, 9))

    restored = optim.build(other.parameters(), cfg, lr=0.01)
    optim.load_state_tensors(restored, other.named_parameters(), saved)
    before = {key: value.clone() for key, value in saved.items()}
    train(other, restored, range(5, 9))
    for ours, theirs in zip(parameters(other), parameters(net), strict=True):
        assert torch.equal(ours, theirs)
    assert all(torch.equal(saved[key], before[key]) for key in saved)  # not shared with the optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reset_makes_it_new(name: str) -> None:
    cfg = OptimizerConfig(name, beta1=0.5)
    net = model()
    optimizer = optim.build(net.parameters(), cfg, lr=0.01)
    train(net, optimizer, range(5))
    other = copy.deepcopy(net)
    optim.reset(optimizer)
    assert not optim.state_tensors(optimizer, net.named_parameters())
    train(net, optimizer, range(3))
    train(other, optim.build(other.parameters(), cfg, lr=0.01), range(3))
    for ours, theirs in zip(parameters(net), parameters(other), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_gradient_skips_the_whole_update(name: str, value: float) -> None:
    net = model()
    optimizer = optim.build(net.parameters(), OptimizerConfig(name, beta1=0.5), lr=0.01)
    train(net, optimizer, range(2))
    before = parameters(net)
    moments = copy.deepcopy(optim.state_tensors(optimizer, net.named_parameters()))
    assert net[0].weight.grad is not None
    net[0].weight.grad[3, 2] = value
    assert optim.step(optimizer) is None
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(net), strict=True))
    after = optim.state_tensors(optimizer, net.named_parameters())
    assert all(torch.equal(moments[key], after[key]) for key in moments)


def test_huge_finite_gradients_are_not_skipped() -> None:
    x = nn.Parameter(torch.zeros(2))
    optimizer = optim.build([x], OptimizerConfig("sgd"), lr=1e-38)
    x.grad = torch.full((2,), 3e38)  # their sum overflows
    norm = optim.step(optimizer)
    assert norm is not None and norm == pytest.approx(2**0.5 * 3e38, rel=1e-6)
    np.testing.assert_allclose(x.detach(), [-3, -3], rtol=1e-5)


def test_rmsprop_and_sgd_by_hand() -> None:
    x = nn.Parameter(torch.tensor([1.0]))
    x.grad = torch.tensor([2.0])
    optim.step(optim.build([x], OptimizerConfig("rmsprop", beta2=0.99), lr=0.1))
    assert x.item() == pytest.approx(1 - 0.1 * 2 / (0.01 * 4) ** 0.5, abs=1e-6)
    y = nn.Parameter(torch.tensor([1.0]))
    sgd = optim.build([y], OptimizerConfig("sgd", beta1=0.5), lr=0.1)
    for _ in range(2):
        y.grad = torch.tensor([2.0])
        optim.step(sgd)
    assert y.item() == pytest.approx(1 - 0.1 * 2 - 0.1 * (2 + 0.5 * 2))


def test_official_ema(golden: dict[str, np.ndarray]) -> None:
    beta = ema.beta(TrainingConfig(ema_half_life_kimg=10.0), 64, 0)
    assert beta == pytest.approx(golden["ema/beta"].item())

    def module(prefix: str) -> nn.Module:
        module = nn.Module()
        for name, value in golden.items():
            if name.startswith(prefix):
                name = name.removeprefix(prefix).replace("/", "_")
                if name.endswith("lod") or "noise" in name or name == "dlatent_avg":
                    module.register_buffer(name, torch.tensor(value))
                else:
                    module.register_parameter(name, nn.Parameter(torch.tensor(value)))
        return module

    average = module("ema/Gs_before/")
    ema.update(average, module("ema/G/"), beta)
    expected = module("ema/Gs_after/").state_dict()
    assert len(expected) > 30
    for name, value in average.state_dict().items():
        np.testing.assert_allclose(value, expected[name], err_msg=name, **EXACT)


def test_half_life_of_the_average() -> None:
    assert ema.beta(TrainingConfig(ema_half_life_kimg=0.0, ema_beta=0.999), 64, 0) == 0.999
    assert ema.beta(TrainingConfig(ema_half_life_kimg=0.5), 500, 0) == 0.5
    young = TrainingConfig(ema_half_life_kimg=10.0, ema_rampup=0.05)
    assert ema.beta(young, 64, 0) == 0
    assert ema.beta(young, 500, 10_000) == 0.5
    assert ema.beta(young, 10_000, 10**6) == 0.5
