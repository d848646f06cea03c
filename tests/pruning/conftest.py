"""Small networks with random weights, as fixtures that are functions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """Two convolutions with BatchNorm and a linear layer, whose closed forms fit on a page."""

    def __init__(self, first: int = 4, second: int = 6):
        super().__init__()
        self.a = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(first)
        self.b = nn.Conv2d(first, second, 3, padding=1)
        self.head = nn.Linear(second, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.norm(self.a(x)).relu()).relu()
        return self.head(y.mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between plain ones, with a residual around it."""

    def __init__(self, width: int = 24, groups: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.split = nn.Conv2d(width, 2 * width, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.join(self.norm(self.split(x)).relu())
        return self.head(x.mean((2, 3)))


def _randomise_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and BatchNorm statistics as training leaves them; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.1, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
    return model


@pytest.fixture
def randomise_() -> Callable[..., nn.Module]:
    return _randomise_


@pytest.fixture
def plain() -> Callable[..., nn.Module]:
    return lambda *widths: _randomise_(Plain(*widths))


@pytest.fixture
def grouped() -> Callable[..., nn.Module]:
    return lambda *sizes: _randomise_(Grouped(*sizes))
