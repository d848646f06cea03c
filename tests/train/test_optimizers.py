import pytest
import torch
from torch import nn

from compress.train.config import OptimizerSection
from compress.train.optimizers import OPTIMIZERS, build_optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_a_step_with_its_options(name: str):
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(model, OptimizerSection(name=name, lr=0.5, weight_decay=0.25))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    [group] = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize(
    ("name", "momentum", "expected"), [("sgd", None, 0.9), ("sgd", 0.3, 0.3), ("rmsprop", None, 0.0)]
)
def test_momentum_has_a_default_of_its_own(name: str, momentum: float | None, expected: float):
    optimizer = build_optimizer(nn.Linear(1, 1), OptimizerSection(name=name, momentum=momentum))
    assert optimizer.param_groups[0]["momentum"] == expected
