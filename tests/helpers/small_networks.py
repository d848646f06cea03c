"""What the small networks of many tests are made of, and how wide surgery leaves a layer of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compress.surgery import CompactResult


class Net(nn.Module):
    """A network from a function ``(net, *inputs) -> y`` and its layers; any other attribute may be added afterwards."""

    def __init__(self, run: Callable[..., Tensor], **layers: nn.Module):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


def pooled(m: nn.Module, y: Tensor) -> Tensor:
    """What the linear layer ``m.head`` makes of the mean over height and width."""
    return m.head(y.mean((2, 3)))


def width(result: CompactResult, layer: str) -> int:
    """How many channels of a layer are left."""
    return result.report.layers[layer].after


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
