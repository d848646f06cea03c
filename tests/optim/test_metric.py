"""The step at each coordinate, against the weights that torch's optimisers really produce."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.errors import ConfigError
from compress.optim.metric import METRICS, Step, steps

LR, BETA1, BETA2, MOMENTUM = 0.01, 0.9, 0.99, 0.8

QUOTIENT_TOLERANCE = 1e-6
"""Relative error of ``(w_before - w_after) / direction`` in float64, where the difference cancels digits."""


def run(optimizer_class: type[torch.optim.Optimizer], n: int, **options: Any) -> tuple[Tensor, list[Tensor], Step]:
    """Take ``n`` steps with random gradients: the last step's change, all gradients, and what ``steps`` says."""
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    optimizer = optimizer_class([weight], lr=LR, **options)
    gradients = [torch.randn(4, 3, dtype=torch.float64) * 10.0 ** (-i % 4) for i in range(n)]
    for gradient in gradients:
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        optimizer.step()
    (step,) = steps(optimizer, [("w", weight)])
    return before - weight.detach(), gradients, step


def eta(step: Step) -> Tensor:
    """The step of all coordinates."""
    whole = torch.empty(4, 3, dtype=torch.float64) if step.square is None else torch.empty_like(step.square)
    return torch.as_tensor(step.eta(lambda tensor: tensor, whole), dtype=whole.dtype)


def averaged(gradients: list[Tensor], beta: float) -> Tensor:
    """The bias-corrected moving average, from its definition."""
    n = len(gradients)
    total = sum((1 - beta) * beta ** (n - 1 - i) * g for i, g in enumerate(gradients))
    return torch.as_tensor(total / (1 - beta**n))


def heavy_ball(gradients: list[Tensor]) -> Tensor:
    n = len(gradients)
    return torch.as_tensor(sum(MOMENTUM ** (n - 1 - i) * g for i, g in enumerate(gradients)))


DIRECTIONS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any], Callable[[list[Tensor]], Tensor]]] = {
    "sgd": (torch.optim.SGD, {}, lambda g: g[-1]),
    "sgd-momentum": (torch.optim.SGD, {"momentum": MOMENTUM}, heavy_ball),
    "sgd-nesterov": (
        torch.optim.SGD,
        {"momentum": MOMENTUM, "nesterov": True},
        lambda g: g[-1] + MOMENTUM * heavy_ball(g),
    ),
    "rmsprop": (torch.optim.RMSprop, {"eps": 1e-3}, lambda g: g[-1]),
    "rmsprop-centered": (torch.optim.RMSprop, {"centered": True}, lambda g: g[-1]),
    "adam": (torch.optim.Adam, {"betas": (BETA1, BETA2), "eps": 1e-3}, lambda g: averaged(g, BETA1)),
    "adam-amsgrad": (
        torch.optim.Adam,
        {"betas": (BETA1, BETA2), "amsgrad": True},
        lambda g: averaged(g, BETA1),
    ),
    "adamw": (torch.optim.AdamW, {"betas": (BETA1, BETA2), "weight_decay": 0.0}, lambda g: averaged(g, BETA1)),
    "adamw-amsgrad": (
        torch.optim.AdamW,
        {"betas": (BETA1, BETA2), "weight_decay": 0.0, "amsgrad": True},
        lambda g: averaged(g, BETA1),
    ),
}


def test_every_optimiser_in_the_table_is_tested() -> None:
    assert {case[0] for case in DIRECTIONS.values()} == set(METRICS)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("case", DIRECTIONS.values(), ids=DIRECTIONS.keys())
def test_step_is_the_change_over_the_direction(
    case: tuple[type[torch.optim.Optimizer], dict[str, Any], Callable[[list[Tensor]], Tensor]], n: int
) -> None:
    optimizer_class, options, direction = case
    change, gradients, step = run(optimizer_class, n, **options)
    expected = change / direction(gradients)
    torch.testing.assert_close(eta(step).expand(4, 3), expected, rtol=QUOTIENT_TOLERANCE, atol=0)
    rows = torch.empty(2, 3, dtype=torch.float64)
    some = torch.as_tensor(step.eta(lambda tensor: tensor[1:3], rows), dtype=torch.float64)
    torch.testing.assert_close(some.expand(2, 3), expected[1:3], rtol=QUOTIENT_TOLERANCE, atol=0)


def test_decoupled_weight_decay_is_no_part_of_the_step() -> None:
    *_, plain = run(torch.optim.AdamW, 3, weight_decay=0.0)
    *_, decayed = run(torch.optim.AdamW, 3, weight_decay=0.1)
    assert torch.equal(eta(plain), eta(decayed))


def test_a_variance_that_rounds_below_zero_gives_a_finite_step() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.RMSprop([weight], lr=LR, centered=True, eps=1e-4)
    optimizer.state[weight] = {"square_avg": torch.ones(1), "grad_avg": torch.tensor([1.0 + 1e-6])}
    (step,) = steps(optimizer, [("w", weight)])
    assert eta(step).tolist() == pytest.approx([LR / 1e-4])


@pytest.mark.parametrize("optimizer_class", [torch.optim.RMSprop, torch.optim.Adam, torch.optim.AdamW])
def test_before_the_first_step_the_step_is_zero(optimizer_class: type[torch.optim.Optimizer]) -> None:
    weight = nn.Parameter(torch.ones(2))
    assert steps(optimizer_class([weight], lr=LR), [("w", weight)]) == [Step(0.0)]  # type: ignore[call-arg]


@pytest.mark.parametrize("optimizer_class", METRICS)
def test_what_is_frozen_out_of_training_has_no_step(optimizer_class: type[torch.optim.Optimizer]) -> None:
    """Neither from the start on nor later, when there is a state."""
    frozen, later = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    optimizer = optimizer_class([frozen, later], lr=LR)  # type: ignore[call-arg]
    later.grad = torch.ones(2)
    optimizer.step()
    later.requires_grad_(False)
    assert steps(optimizer, [("frozen", frozen), ("later", later)]) == [Step(0.0), Step(0.0)]


def test_each_parameter_has_the_rate_of_its_group_and_follows_the_schedule() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.5}, {"params": [b]}], lr=0.25)
    assert steps(optimizer, [("b", b), ("a", a)]) == [Step(0.25), Step(0.5)]
    optimizer.param_groups[1]["lr"] = 0.125
    assert steps(optimizer, [("b", b), ("a", a)]) == [Step(0.125), Step(0.5)]


def test_a_wrapper_with_an_optimizer_attribute_is_looked_through() -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer):
            self.optimizer = optimizer

    weight = nn.Parameter(torch.ones(2))
    assert steps(Wrapper(torch.optim.SGD([weight], lr=0.5)), [("w", weight)]) == [Step(0.5)]


def test_an_unknown_optimiser_is_refused_and_the_known_are_named() -> None:
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(ConfigError, match="optimiser Adagrad; known: SGD, RMSprop, Adam, AdamW"):
        steps(torch.optim.Adagrad([weight], lr=0.1), [("w", weight)])


def test_a_parameter_that_is_not_trained_is_refused_by_name() -> None:
    trained, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with pytest.raises(ConfigError, match=r"acts on conv\.weight, which the optimiser does not train"):
        steps(torch.optim.SGD([trained], lr=0.1), [("ok", trained), ("conv.weight", other)])
