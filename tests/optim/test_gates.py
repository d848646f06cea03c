"""Hard-concrete gates against the definition of their distribution, and what is left when they are folded."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

import compress
from compress.errors import ConfigError
from compress.optim.gates import BETA, GAMMA, ZETA


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )


def gated(model: nn.Module, granularity: str = "coupled", strength: float = 1.0, **options) -> compress.HardConcrete:
    return compress.HardConcrete(model, granularity, strength, example_inputs=(torch.zeros(1, 3, 8, 8),), **options)


def spread_(gates: compress.HardConcrete) -> None:
    """Some gates closed, some between, some fully open."""
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-6, 6, gates.groups.count))


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 2.0])
def test_draws_follow_the_stretched_concrete_distribution(log_alpha: float) -> None:
    gates = gated(network())
    gates.log_alpha = nn.Parameter(torch.full((100_000,), log_alpha, dtype=torch.float64))
    torch.manual_seed(1)
    drawn = gates.draw().detach()
    assert drawn.min() >= 0
    assert drawn.max() <= 1

    def cumulative(z: float) -> float:
        s = (z - GAMMA) / (ZETA - GAMMA)  # of the concrete variable before it is stretched
        return 1 / (1 + math.exp(log_alpha - BETA * math.log(s / (1 - s))))

    for end, expected in ((0.0, cumulative(0.0)), (1.0, 1 - cumulative(1.0))):
        share = float((drawn == end).double().mean())
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / len(drawn)) + 1e-5)
    inside = drawn[(drawn > 0) & (drawn < 1)].numpy()
    low, high = cumulative(0.0), cumulative(1.0)
    assert kstest(inside, lambda z: np.array([(cumulative(v) - low) / (high - low) for v in z])).pvalue > 1e-4


def test_penalty_is_the_expected_number_of_open_gates() -> None:
    gates = gated(network(), strength=0.5)
    spread_(gates)
    torch.manual_seed(0)
    counted = sum((gates.draw().detach() > 0).double().sum() for _ in range(4000)) / 4000
    assert gates.penalty().item() == pytest.approx(0.5 * float(counted), abs=0.05)


def test_penalty_weighs_a_gate_by_what_its_group_costs() -> None:
    gates = gated(network(), group_weights="macs")
    macs = gates.groups.macs
    with torch.no_grad():
        gates.log_alpha.fill_(-40.0)
        gates.log_alpha[0] = 40.0
    assert gates.penalty().item() == pytest.approx(float(macs[0] / macs.mean()), rel=1e-6)


def test_gradient_of_a_draw_is_that_of_its_formula() -> None:
    gates = gated(network()).double()
    spread_(gates)

    def drawn(log_alpha: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        noise = torch.rand_like(log_alpha).clamp(1e-12, 1 - 1e-12).logit()
        return (((noise + log_alpha) / BETA).sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    weights = torch.arange(1.0, gates.groups.count + 1, dtype=torch.float64)
    torch.manual_seed(3)
    (weights * gates.draw()).sum().backward()
    step = 1e-6
    for group in range(gates.groups.count):
        ahead, behind = gates.log_alpha.detach().clone(), gates.log_alpha.detach().clone()
        ahead[group] += step
        behind[group] -= step
        slope = float((weights * (drawn(ahead) - drawn(behind))).sum()) / (2 * step)
        assert float(gates.log_alpha.grad[group]) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("granularity", ["coupled", "bn-scale"])
def test_folding_keeps_the_function_and_leaves_exact_zeros(granularity: str) -> None:
    model = network().double()
    gates = compress.HardConcrete(model, granularity, 1.0, example_inputs=(torch.zeros(1, 3, 8, 8).double(),))
    spread_(gates)
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    gates.train()(x)  # the running statistics move
    before = gates.eval()(x)
    closed = {layer: count.dead for layer, count in gates.sparsity().items()}
    folded = gates.fold_()
    assert folded is model
    assert sum(closed.values()) > 0
    assert torch.allclose(model(x), before, rtol=0, atol=1e-12)
    assert torch.allclose(gates(x), before, rtol=0, atol=1e-12)
    assert int(gates.groups.dead().sum()) == sum(closed.values())
    assert {layer: count.dead for layer, count in gates.sparsity().items()} == closed
    assert gates.penalty().item() == 0
    result = compress.compact(model, (x[:1],))
    assert result.report.params_after < result.report.params_before
    assert torch.allclose(result.model(x), before, rtol=0, atol=1e-10)


def test_running_statistics_are_those_without_gates_behind_a_normalised_filter() -> None:
    model, plain = (nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    gates = gated(model)
    x = torch.randn(4, 3, 8, 8)
    gates.train()(x)
    plain.train()(x)
    assert torch.equal(model[1].running_var, plain[1].running_var)
    assert torch.equal(model[1].running_mean, plain[1].running_mean)


class BesideTheNorm(nn.Module):
    """A layer whose output feeds a BatchNorm and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c(x)
        return self.head((y + self.b(y).relu()).mean((2, 3)))


def test_evaluation_is_what_the_folded_network_does_beside_a_norm_too() -> None:
    torch.manual_seed(0)
    model = BesideTheNorm()
    gates = gated(model)
    spread_(gates)
    x = torch.randn(4, 3, 8, 8)
    before = gates.eval()(x)
    assert torch.allclose(gates.fold_()(x), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("granularity", ["channel", "kernel"])
def test_gates_on_inputs_act_in_front_of_a_norm(granularity: str) -> None:
    gates = gated(network(), granularity)
    x = torch.randn(2, 3, 8, 8)
    gates.eval()(x).sum().backward()
    assert gates.log_alpha.grad is not None
    assert gates.log_alpha.grad.count_nonzero() > 0


def test_a_closed_gate_closes_a_normalised_filter_too() -> None:
    model = network()
    gates = gated(model)
    with torch.no_grad():
        gates.log_alpha.fill_(-20.0)
    gates.fold_()
    assert not model[2].weight.any()
    assert not model[3].weight.any()
    assert not model[3].bias.any()


def test_gates_close_on_what_the_data_does_not_need() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.randn(256, 4)
    y = x[:, :1].relu() - x[:, 1:2].relu()  # two hidden units are enough
    gates = compress.HardConcrete(model, "coupled", 0.02, example_inputs=(x[:1],))
    groups = [{"params": model.parameters(), "lr": 0.01}, {"params": [gates.log_alpha], "lr": 0.1}]
    optimizer = torch.optim.Adam(groups)
    for _ in range(600):
        optimizer.zero_grad()
        ((gates(x) - y).square().mean() + gates.penalty()).backward()
        optimizer.step()
    gates.eval().fold_()
    dead = int(gates.groups.dead().sum())
    assert 10 <= dead <= 14
    assert (model(x) - y).square().mean().item() < 0.02 * float(y.square().mean())


@pytest.mark.parametrize(
    ("granularity", "options", "told"),
    [
        ("weight", {}, "act on groups"),
        ("coupled", {"strength": -1.0}, "strength: got -1.0"),
        ("coupled", {"group_weights": "mac"}, "unknown group_weights 'mac'"),
        ("kernel", {"group_weights": "macs"}, "got granularity 'kernel'; use filter, channel"),
        ("coupled", {"open_at_start": 1.0}, "open_at_start: got 1.0"),
        ("filter", {}, "gates on 2.weight would do nothing"),
    ],
)
def test_what_cannot_work_is_refused(granularity: str, options: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        gated(network(), granularity, **options)
