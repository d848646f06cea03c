"""Random networks with random dead channels: whatever is removed, the function stays."""

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import VerificationError
from compress.surgery.verify import certify

SEEDS = range(30)
MORE_SEEDS = range(30, 530)

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardswish, nn.SiLU, nn.LeakyReLU, nn.Tanh, nn.ELU, nn.Identity)
Step = Callable[[list[Tensor]], Tensor]


class RandomNetwork(nn.Module):
    """Steps that each read an earlier result (a stream) and append their own; then an average, and a head."""

    def __init__(self, seed: int):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        self.steps: list[Step] = []
        self.widths = [3]  # of each stream
        self._append(self._block(3, self._width()), 0)
        for _ in range(self._draw(3, 7)):
            kinds = [self._convolution, self._convolution, self._residual, self._concat, self._depthwise, self._gate]
            kinds += [self._shared, self._dense_norm, self._pool, self._slice]
            kinds[self._draw(0, len(kinds))]()
        self.hidden = self._layer(nn.Linear(self.widths[-1], self._width()))
        self.act = self._activation()
        self.head = self._layer(nn.Linear(self.hidden.out_features, 3))

    def forward(self, x: Tensor) -> Tensor:
        streams = [x]
        for step in self.steps:
            streams.append(step(streams))
        return self.head(self.act(self.hidden(streams[-1].mean((2, 3)))))

    def _draw(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=self.generator))

    def _width(self) -> int:
        return self._draw(2, 9)

    def _layer(self, layer: nn.Module) -> nn.Module:
        self.layers.append(layer)
        return layer

    def _activation(self) -> nn.Module:
        return ACTIVATIONS[self._draw(0, len(ACTIVATIONS))]()

    def _append(self, step: Callable[[Tensor], Tensor], source: int, width: int | None = None) -> None:
        self.steps.append(lambda streams: step(streams[source]))
        self.widths.append(width or self.widths_of_last)

    def _conv(self, inputs: int, outputs: int, **options: int) -> nn.Conv2d:
        kernel = (1, 3)[self._draw(0, 2)]
        bias = bool(self._draw(0, 2))
        padding = "same" if self._draw(0, 8) == 0 else kernel // 2
        conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=bias, **options)
        self.widths_of_last = outputs
        return self._layer(conv)

    def _block(self, inputs: int, outputs: int) -> nn.Sequential:
        """conv [bn] act, or bn act conv."""
        conv = self._conv(inputs, outputs)
        order = self._draw(0, 4)
        act = self._layer(nn.PReLU(outputs)) if self._draw(0, 6) == 0 else self._activation()
        if order == 0:
            return nn.Sequential(conv, act)
        if order == 1 and inputs != 3:
            return nn.Sequential(self._layer(nn.BatchNorm2d(inputs)), self._activation(), conv)
        return nn.Sequential(conv, self._layer(nn.BatchNorm2d(outputs)), act)

    def _convolution(self) -> None:
        self._append(self._block(self.widths[-1], self._width()), -1)

    def _residual(self) -> None:
        width = self.widths[-1]
        first = self._block(width, self._width())
        second = self._block(self.widths_of_last, width)
        gate = self._activation()
        swap = bool(self._draw(0, 2))

        def step(x: Tensor) -> Tensor:
            y = second(first(x))
            return gate(y + x if swap else x + y)

        self._append(step, -1, width)

    def _concat(self) -> None:
        branches = [self._block(self.widths[-1], self._width()) for _ in range(self._draw(1, 3))]
        widths = [next(m for m in b if isinstance(m, nn.Conv2d)).out_channels for b in branches]
        keep = bool(self._draw(0, 2))

        def step(x: Tensor) -> Tensor:
            return torch.cat([*([x] if keep else []), *(branch(x) for branch in branches)], 1)

        self._append(step, -1, sum(widths) + (self.widths[-1] if keep else 0))

    def _depthwise(self) -> None:
        width, multiplier = self.widths[-1], self._draw(1, 3)
        conv = self._conv(width, width * multiplier, groups=width)
        self._append(nn.Sequential(conv, self._layer(nn.BatchNorm2d(width * multiplier)), self._activation()), -1)

    def _gate(self) -> None:
        width = self.widths[-1]
        down = self._layer(nn.Conv2d(width, self._width(), 1))
        up = self._layer(nn.Conv2d(down.out_channels, width, 1))
        inner, outer = self._activation(), (nn.Sigmoid(), nn.Hardsigmoid())[self._draw(0, 2)]
        self._append(lambda x: x * outer(up(inner(down(F.adaptive_avg_pool2d(x, 1))))), -1, width)

    def _shared(self) -> None:
        width = self.widths[-1]
        block = self._block(width, width)
        self._append(lambda x: block(block(x)), -1, width)

    def _dense_norm(self) -> None:
        self._append(self._layer(nn.BatchNorm2d(self.widths[-1])), -1, self.widths[-1])

    def _pool(self) -> None:
        pools = (
            nn.MaxPool2d(3, 1, 1),
            nn.AvgPool2d(3, 1, 1),
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            nn.MaxPool2d(2, 2, ceil_mode=True),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.ZeroPad2d(1),
            nn.ReflectionPad2d(1),
        )
        self._append(pools[self._draw(0, len(pools))], -1, self.widths[-1])

    def _slice(self) -> None:
        first, second = (self._block(self.widths[-1], 4) for _ in range(2))
        if self._draw(0, 2):
            self._append(lambda x: torch.cat([part.relu() for part in first(x).chunk(2, 1)][::-1], 1), -1, 4)
        else:
            self._append(lambda x: first(x).chunk(2, 1)[0] * second(x).chunk(2, 1)[1].sigmoid(), -1, 2)


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


@pytest.fixture
def _no_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """``compact`` gives up folding where the first comparison fails; here that is a defect of ours."""

    def certify_or_fail(*args):
        try:
            return certify(*args)
        except VerificationError as error:
            raise AssertionError(str(error)) from error

    monkeypatch.setattr(importlib.import_module("compress.surgery.compact"), "certify", certify_or_fail)


def check(seed: int, randomise_, kill_free_, compact_exactly) -> None:
    model = randomise_(RandomNetwork(seed), seed)
    x = torch.randn(1, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = torch.randn(2, 3, 13, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if seed % 3 == 2:
        kill_layer_by_layer_(model, seed)
    else:
        kill_free_(model, x, shift=(0.0, 0.3)[seed % 3], seed=seed)
    result = compact_exactly(model, x, y)
    assert result.report.params_after <= result.report.params_before + len(result.plan.new_biases) * 16


@pytest.mark.usefixtures("_no_second_try")
@pytest.mark.parametrize("seed", SEEDS)
def test_the_function_stays(seed, randomise_, kill_free_, compact_exactly):
    check(seed, randomise_, kill_free_, compact_exactly)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_second_try")
@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_the_function_stays_in_many_more(seed, randomise_, kill_free_, compact_exactly):
    check(seed, randomise_, kill_free_, compact_exactly)
