"""Random networks, and random dead channels in them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardswish, nn.SiLU, nn.LeakyReLU, nn.Tanh, nn.ELU, nn.Identity)
GATES = (nn.Sigmoid, nn.Hardsigmoid)
CHANNELWISE = (
    nn.MaxPool2d(3, 1, 1),
    nn.AvgPool2d(3, 1, 1),
    nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    nn.MaxPool2d(2, 2, ceil_mode=True),
    nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.ZeroPad2d(1),
    nn.ReflectionPad2d(1),
)
"""Layers without weights that keep the number of channels."""


class RandomNetwork(nn.Module):
    """Random steps one after another, an average over space, and two linear layers.

    A step is a function ``(layers, x) -> x``: it names its layers by number, so that a copy uses its own.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        self.steps: list[Callable[[nn.ModuleList, Tensor], Tensor]] = []
        self.width = self._draw(2, 9)
        self._chain(self._block(3, self.width), self.width)
        kinds = [self._convolution, self._convolution, self._residual, self._concat, self._depthwise, self._gate]
        kinds += [self._shared, self._norm, self._channelwise, self._slice]
        kinds += [self._shuffle, self._split, self._in_place, self._grouped, self._transposed, self._preactivation]
        for _ in range(self._draw(3, 7)):
            kinds[self._draw(0, len(kinds))]()
        hidden = self._draw(2, 9)
        self.hidden, self.act, self.head = nn.Linear(self.width, hidden), self._activation(), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(self.layers, x)
        return self.head(self.act(self.hidden(x.mean((2, 3)))))

    def _draw(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=self.generator))

    def _layer(self, layer: nn.Module) -> int:
        self.layers.append(layer)
        return len(self.layers) - 1

    def _activation(self) -> nn.Module:
        return ACTIVATIONS[self._draw(0, len(ACTIVATIONS))]()

    def _chain(self, layer: int, width: int) -> None:
        self.steps.append(lambda layers, x: layers[layer](x))
        self.width = width

    def _conv(self, inputs: int, outputs: int, **options: int) -> nn.Conv2d:
        kernel = (1, 3)[self._draw(0, 2)]
        padding = ("same", kernel // 2, kernel // 2, kernel // 2)[self._draw(0, 4)]
        return nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=bool(self._draw(0, 2)), **options)

    def _block(self, inputs: int, outputs: int) -> int:
        """conv [bn] act, or bn act conv."""
        conv, order = self._conv(inputs, outputs), self._draw(0, 4)
        act = nn.PReLU(outputs) if self._draw(0, 6) == 0 else self._activation()
        if order == 0:
            return self._layer(nn.Sequential(conv, act))
        if order == 1 and inputs != 3:
            return self._layer(nn.Sequential(nn.BatchNorm2d(inputs), self._activation(), conv))
        return self._layer(nn.Sequential(conv, nn.BatchNorm2d(outputs), act))

    def _convolution(self) -> None:
        width = self._draw(2, 9)
        self._chain(self._block(self.width, width), width)

    def _residual(self) -> None:
        inner, swap = self._draw(2, 9), bool(self._draw(0, 2))
        first, second, act = (
            self._block(self.width, inner),
            self._block(inner, self.width),
            self._layer(self._activation()),
        )

        def step(layers: nn.ModuleList, x: Tensor) -> Tensor:
            y = layers[second](layers[first](x))
            return layers[act](y + x if swap else x + y)

        self.steps.append(step)

    def _concat(self) -> None:
        widths = [self._draw(2, 9) for _ in range(self._draw(1, 3))]
        branches, keep = [self._block(self.width, width) for width in widths], bool(self._draw(0, 2))

        def step(layers: nn.ModuleList, x: Tensor) -> Tensor:
            return torch.cat([*([x] if keep else []), *(layers[branch](x) for branch in branches)], 1)

        self.steps.append(step)
        self.width = sum(widths) + (self.width if keep else 0)

    def _depthwise(self) -> None:
        outputs = self.width * self._draw(1, 3)
        conv = self._conv(self.width, outputs, groups=self.width)
        self._chain(self._layer(nn.Sequential(conv, nn.BatchNorm2d(outputs), self._activation())), outputs)

    def _gate(self) -> None:
        inner, gate = self._draw(2, 9), GATES[self._draw(0, 2)]()
        squeeze = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(self.width, inner, 1), self._activation()]
        branch = self._layer(nn.Sequential(*squeeze, nn.Conv2d(inner, self.width, 1), gate))
        self.steps.append(lambda layers, x: x * layers[branch](x))

    def _shared(self) -> None:
        block = self._block(self.width, self.width)
        self.steps.append(lambda layers, x: layers[block](layers[block](x)))

    def _shuffle(self) -> None:
        first, second = self._block(self.width, 6), self._block(6, self._draw(2, 9))

        def step(layers: nn.ModuleList, x: Tensor) -> Tensor:
            y = layers[first](x)
            n, c, h, w = y.shape
            return layers[second](y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

        self.steps.append(step)
        self.width = layer_outputs(self.layers[second])

    def _split(self) -> None:
        first, second = self._block(self.width, 7), self._block(4, 5)

        def step(layers: nn.ModuleList, x: Tensor) -> Tensor:
            a, b = torch.split(layers[first](x), (3, 4), 1)
            return torch.cat((layers[second](b), a), 1)

        self.steps.append(step)
        self.width = 8

    def _in_place(self) -> None:
        """What is written to a view is seen in the tensor that it is a view of."""
        first = self._block(self.width, 6)

        def step(layers: nn.ModuleList, x: Tensor) -> Tensor:
            y = layers[first](x) + 0
            a, b = y.chunk(2, 1)
            a.relu_()
            b += a
            y[:, 1].mul_(2)
            return y

        self.steps.append(step)
        self.width = 6

    def _grouped(self) -> None:
        groups = self._draw(2, 4)
        inner, outputs = groups * self._draw(1, 4), groups * self._draw(1, 4)
        first = self._block(self.width, inner)
        conv = self._conv(inner, outputs, groups=groups)
        second = self._layer(nn.Sequential(conv, nn.BatchNorm2d(outputs), self._activation()))
        self.steps.append(lambda layers, x: layers[second](layers[first](x)))
        self.width = outputs

    def _transposed(self) -> None:
        outputs = self._draw(2, 9)
        conv = nn.ConvTranspose2d(self.width, outputs, self._draw(1, 4), stride=self._draw(1, 3))
        self._chain(self._layer(nn.Sequential(conv, self._activation())), outputs)

    def _preactivation(self) -> None:
        """Two readers of one stream, each with a BatchNorm of its own."""
        width = self.width
        first, second = (
            self._layer(nn.Sequential(nn.BatchNorm2d(inputs), self._activation(), self._conv(inputs, 4)))
            for inputs in (width, width + 4)
        )

        def step(layers: nn.ModuleList, x: Tensor) -> Tensor:
            x = torch.cat((x, layers[first](x)), 1)
            return torch.cat((x, layers[second](x)), 1)

        self.steps.append(step)
        self.width = width + 8

    def _norm(self) -> None:
        self._chain(self._layer(nn.BatchNorm2d(self.width)), self.width)

    def _channelwise(self) -> None:
        self._chain(self._layer(CHANNELWISE[self._draw(0, len(CHANNELWISE))]), self.width)

    def _slice(self) -> None:
        first, second = (self._block(self.width, 4) for _ in range(2))
        if self._draw(0, 2):
            self.steps.append(lambda layers, x: torch.cat([p.relu() for p in layers[first](x).chunk(2, 1)][::-1], 1))
            self.width = 4
        else:
            self.steps.append(lambda layers, x: layers[first](x).chunk(2, 1)[0] * layers[second](x)[:, 2:].sigmoid())
            self.width = 2


def layer_outputs(block: nn.Module) -> int:
    return next(m for m in reversed(list(block.modules())) if isinstance(m, nn.Conv2d)).out_channels


def kill_layer_by_layer_(model: nn.Module, seed: int) -> None:
    """Independent choices by layer: channels that are tied may be dead in one place and alive in the other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)) or module.weight.shape[0] == 3:
                continue
            rows = torch.rand(module.weight.shape[0], generator=generator) < 0.5
            if torch.rand((), generator=generator) < 0.15:
                rows[:] = True
            mode = int(torch.randint(0, 4, (), generator=generator))
            if mode == 0 or (mode == 1 and isinstance(module, nn.BatchNorm2d)):
                module.weight[rows] = 0
            if mode == 0 and module.bias is not None and torch.rand((), generator=generator) < 0.5:
                module.bias[rows] = 0
            if mode == 2 and module.weight.ndim > 1 and module.weight.shape[1] > 1:
                module.weight[:, torch.rand(module.weight.shape[1], generator=generator) < 0.4] = 0
