"""Helpers of the surgery tests, as fixtures that are functions; those that need no fixture are in tests/helpers."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.errors import VerificationError
from compress.graph import channel_graph
from compress.surgery import CompactResult, compact
from compress.surgery.verify import certify
from small_networks import Net

EXACT = 1e-10  # relative, float64: rounding is 1e-16, a real mistake 1e-2
CONV_OR_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Linear)


def _randomise_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and BatchNorm statistics as training leaves them; evaluation mode, float64."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    for module in model.modules():
        if isinstance(module, CONV_OR_LINEAR):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.3, generator=generator)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
        elif isinstance(module, nn.PReLU):
            module.weight.data.uniform_(0.1, 0.4, generator=generator)
    return model


def _kill_(layer: nn.Module, channels: list[int], value: float | None = None) -> nn.Module:
    """Give output channels zero weights (a zero scale, for BatchNorm), and the bias ``value`` (0 by default)."""
    with torch.no_grad():
        layer.weight[channels] = 0
        if layer.bias is not None:
            layer.bias[channels] = value or 0.0
    return layer


def _kill_free_(
    model: nn.Module, x: Tensor, *, share: float = 0.5, shift: float = 0.0, seed: int = 0
) -> dict[str, Tensor]:
    """Zero a share of the free classes, with everything that each owns but its shifts, which become about ``shift``.

    Returns:
        State name of each layer's weight -> which of its output channels were killed, bool.
    """
    generator = torch.Generator().manual_seed(seed)
    graph = channel_graph(model, (x,))
    dead = graph.free() & (torch.rand(graph.classes.count, generator=generator) < share)
    killed = {}
    state = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for (name, dim), classes in graph.out_slices().items():
            if name not in state or dim != 0:
                continue
            chosen = dead[classes]
            if name.endswith("bias"):
                value = shift * (1 + torch.rand(int(chosen.sum()), generator=generator))
                state[name][chosen] = value.to(state[name])
            else:
                state[name][chosen] = 0
                if state[name].ndim > 1:
                    killed[name] = chosen
    return killed


def _compact_exactly(model: nn.Module, *inputs: Tensor, **options: Any) -> CompactResult:
    """``compact``, and our own comparison on inputs of our own; the model must come out as it went in."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    result = compact(model, inputs[:1], **options)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert result.report.form == "graph" or type(result.model) is type(model)
    model.eval(), result.model.eval()
    fixed = result.plan.fixed_size
    with torch.no_grad():
        for x in inputs[: 1 if fixed else None]:
            expected, got = model(x), result.model(x)
            assert (expected - got).abs().max() <= EXACT * expected.abs().max()
    return result


@pytest.fixture
def net() -> type[Net]:
    return Net


@pytest.fixture(scope="session")
def randomise_() -> Callable[..., nn.Module]:
    return _randomise_


@pytest.fixture
def kill_() -> Callable[..., nn.Module]:
    return _kill_


@pytest.fixture(scope="session")
def kill_free_() -> Callable[..., dict[str, Tensor]]:
    return _kill_free_


@pytest.fixture
def compact_exactly() -> Callable[..., CompactResult]:
    return _compact_exactly


@pytest.fixture
def no_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """``compact`` gives up folding where the first comparison fails; here that is a defect of ours."""

    def certify_or_fail(*args, **options):
        try:
            return certify(*args, **options)
        except VerificationError as error:
            raise AssertionError(str(error)) from error

    monkeypatch.setattr(importlib.import_module("compress.surgery.compact"), "certify", certify_or_fail)
