"""A network from its layers and a function; tests have no package to import from, so it comes as a fixture."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A network from a function ``(net, *inputs) -> y`` and its layers."""

    def __init__(self, run: Callable[..., Tensor], **layers: nn.Module):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


@pytest.fixture
def net() -> type[Net]:
    torch.manual_seed(0)
    return Net
