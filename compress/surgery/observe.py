"""What layers read at other input sizes: seen in runs of the network, where constants might hold at one size alone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.errors import ModelError
from compress.graph import Consumer
from compress.surgery.bake import private_copy
from compress.surgery.verify import in_double, other_sizes, outputs, random_inputs, runs_the_same

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}
"""By how much an input may be off the constant that it is said to be, relative to the larger of that and 1: rounding.
A border or a cropped table is off by as much as there is."""


def consumers_elsewhere(
    plain: nn.Module, consumers: Sequence[Consumer], example_inputs: tuple[Tensor, ...]
) -> tuple[Consumer, ...]:
    """What layers read at other input sizes, where ``forward`` does something else there.

    Where it runs the same operations on the same numbers, or where the network takes only one size, constants hold as
    they are. Else they are compared at several sizes, larger and smaller: a limit that follows the size may cut off
    nothing at one of them. A layer that is not seen to read anything there is taken to read no constants.
    """
    network: nn.Module | None = None
    found: list[Consumer] = []
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for shapes in other_sizes(example_inputs):
        size = tuple(shape[2:] for shape in shapes)  # with another number of samples, if that is taken
        if size in seen:
            continue
        inputs = random_inputs(example_inputs, shapes, seed=0)
        try:
            if not seen and runs_the_same(private_copy(plain), example_inputs, inputs):
                return ()
        except ModelError:
            continue
        if network is None:
            network, inputs_of = _for_comparison(plain, example_inputs)
        with _without_fast_path(), _Readings(network, consumers) as readings:
            try:
                outputs(network, inputs_of(inputs))
            except Exception:  # noqa: S112 - whatever a forward raises is its way of saying no
                continue
        found += readings.consumers()
        seen.add(size)
    return tuple(found)


def _for_comparison(plain: nn.Module, example_inputs: tuple[Tensor, ...]) -> tuple[nn.Module, Any]:
    """A copy that may be run, in float64 where the network allows that; and what makes its inputs."""
    double = private_copy(plain).double()
    try:
        outputs(double, in_double(example_inputs))
    except Exception:
        return private_copy(plain), lambda inputs: inputs
    return double, in_double


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    """Attention as its own layers, not as one operation that hides what they read."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _Readings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes at every convolution and linear layer whether its inputs are the constants that they are said to be."""

    def __init__(self, network: nn.Module, consumers: Sequence[Consumer]):
        super().__init__()  # type: ignore[no-untyped-call]
        state = dict(network.state_dict(keep_vars=True))
        self.claimed = {consumer.weight: consumer for consumer in consumers}
        self.weights = {state[name].data_ptr(): (name, state[name]) for name in self.claimed}
        self.read: dict[str, tuple[Tensor, bool]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name == "aten::convolution":
            x, weight, transposed = args[0], args[1], args[6]
            padded = transposed or any(p > 0 for p in args[4])
            self.note(x.transpose(0, 1).flatten(1), weight, tuple(weight.shape), padded=padded)
        elif name in _PRODUCTS:
            x, weight = args[_PRODUCTS[name]], args[_PRODUCTS[name] + 1]
            self.note(x.flatten(0, -2).T, weight, tuple(weight.shape[::-1]), padded=False)
        elif name == "aten::linear":
            self.note(args[0].flatten(0, -2).T, args[1], tuple(args[1].shape), padded=False)
        return func(*args, **(kwargs or {}))

    def note(self, x: Tensor, weight: Tensor, shape: tuple[int, ...], *, padded: bool) -> None:
        """Inputs ``[in, entries]`` of the layer with this weight, if it is one of ours."""
        name, own = self.weights.get(weight.data_ptr(), ("", None))
        if own is None or tuple(own.shape) != shape:
            return
        known = torch.ones(len(x), dtype=torch.bool)
        before, was_padded = self.read.get(name, (known, False))
        claimed = self.claimed[name].constants
        if len(claimed) != len(x) or not x.is_floating_point():
            self.read[name] = (~known, True)
            return
        holds, bordered = _holds(x, claimed.to(x.device))
        self.read[name] = (before & holds.cpu(), was_padded or padded or bordered)

    def consumers(self) -> list[Consumer]:
        """The layers with the constants that were seen."""
        found = []
        for name, consumer in self.claimed.items():
            holds, padded = self.read.get(name, (torch.zeros(len(consumer.constants), dtype=torch.bool), True))
            constants = torch.where(holds, consumer.constants, torch.nan)
            found.append(dataclasses.replace(consumer, constants=constants, padded=padded))
        return found


def _holds(x: Tensor, claimed: Tensor) -> tuple[Tensor, bool]:
    """Which of the inputs ``x [in, entries]`` are the constants ``claimed [in]``, and whether only up to a border.

    Padding in front of a layer, and an average over it, makes less of every constant at the border, and of all of them
    equally: then each is its constant times one and the same image.
    """
    claims = ~claimed.isnan()
    tolerance = TOLERANCES.get(x.dtype, TOLERANCES[torch.float32]) * claimed.abs().clamp_min(1)
    constants = claimed.nan_to_num()
    if not bool(claims.any()) or not x.numel():
        return claims, False
    x = torch.where(claims[:, None], x.double(), 0.0)
    holds = claims & ((x - constants[:, None]).abs().amax(1) <= tolerance)
    largest = int(constants.abs().argmax())
    if torch.equal(holds, claims) or constants[largest] == 0:
        return holds, False
    image = x[largest] / constants[largest]
    return claims & ((x - constants[:, None] * image).abs().amax(1) <= tolerance), True


_PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0}
"""Ops that a linear layer becomes, which reads the transposed weight -> which argument is its input."""
