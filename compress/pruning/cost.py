"""What a network costs while channels leave it, exactly.

A layer's work and its number of weights are products of the channels that stay on its writing and on its reading side,
so that channels cannot be priced one by one: the ledger counts what is left along every dimension of every layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.graph import ChannelGraph


@dataclass(frozen=True)
class Term:
    """A part of the cost that is proportional to the channels left along each of its dimensions.

    Attributes:
        cost: with all channels.
        dims: for each dimension, int64 ``[channels]``, the class of each.
    """

    cost: float
    dims: tuple[Tensor, ...]


def macs(_model: nn.Module, graph: ChannelGraph) -> list[Term]:
    """Multiply-accumulates: of each layer that has channels, and of all else (products of activations) together."""
    terms = [term for name, work in graph.layer_macs.items() for term in _terms(graph, name, work)]
    return [*terms, Term(graph.macs - sum(graph.layer_macs.values()), ())]


def params(model: nn.Module, graph: ChannelGraph) -> list[Term]:
    """Parameters: each tensor once, whatever names it has."""
    names: dict[int, list[str]] = {}
    sizes: dict[int, int] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        sizes[id(parameter)] = parameter.numel()
    known = {key: next((n for n in some if n in graph.classes.parameters), some[0]) for key, some in names.items()}
    return [term for key, size in sizes.items() for term in _terms(graph, known[key], size)]


COSTS: dict[str, Callable[[nn.Module, ChannelGraph], list[Term]]] = {"macs": macs, "params": params}
"""Kind of target -> the terms of what it limits."""


def _terms(graph: ChannelGraph, name: str, cost: float) -> list[Term]:
    """One term; for a grouped convolution one a group, since each multiplies its own outputs by its own inputs."""
    dims = list(graph.classes.parameters.get(name, {}).values())
    groups = graph.groups.get(name, 1) if len(dims) > 1 else 1
    split = [classes.reshape(groups, -1) for classes in dims]
    return [Term(cost / groups, tuple(classes[group] for classes in split)) for group in range(groups)]


class Ledger:
    """Running account of a network that loses units.

    Args:
        terms: what is summed up.
        unit_of: int64 ``[classes]``, the unit of each class, -1 for classes in none.
        gone: bool ``[classes]``, classes that have left already.
        rows: int64 ``[channels]`` classes of each layer's outputs, of which ``floor`` must stay.
        floor: a number of channels; layers that have no more lose none.

    Attributes:
        total: the present cost.
    """

    def __init__(
        self, terms: Sequence[Term], unit_of: Tensor, gone: Tensor, rows: Sequence[Tensor] = (), floor: int = 0
    ) -> None:
        self._left: list[int] = []
        self._size: list[int] = []
        self._taken: dict[int, dict[int, int]] = {}  # unit -> dimension -> channels that it takes there
        self._unit_of = unit_of
        self._gone = gone
        self._costs = [term.cost for term in terms]
        self._dims = [tuple(map(self._dimension, term.dims)) for term in terms]
        self._terms: dict[int, list[int]] = {}
        for term, dims in enumerate(self._dims):
            for dim in dims:
                self._terms.setdefault(dim, []).append(term)
        self._floor = {(dim := self._dimension(classes)): min(floor, self._left[dim]) for classes in rows}
        self.total = math.fsum(map(self._cost, range(len(terms))))

    def _dimension(self, classes: Tensor) -> int:
        dim = len(self._left)
        self._left.append(int((~self._gone[classes]).sum()))
        self._size.append(len(classes))
        units = self._unit_of[classes]
        for unit, count in zip(*torch.unique(units[units >= 0], return_counts=True), strict=True):
            self._taken.setdefault(int(unit), {})[dim] = int(count)
        return dim

    def _cost(self, term: int) -> float:
        return self._costs[term] * math.prod(self._left[dim] / self._size[dim] for dim in self._dims[term])

    def allows(self, unit: int) -> bool:
        """Whether every layer keeps its floor without ``unit``."""
        taken = self._taken.get(unit, {})
        return all(self._left[dim] - count >= self._floor.get(dim, 0) for dim, count in taken.items())

    def without(self, unit: int) -> float:
        """The cost if ``unit`` left too."""
        before = self.total
        self.remove(unit)
        after = self.total
        self.restore(unit)
        self.total = before  # without the rounding of two additions
        return after

    def remove(self, unit: int) -> None:
        """Let ``unit`` leave."""
        self._move(unit, -1)

    def restore(self, unit: int) -> None:
        """Take ``unit`` back."""
        self._move(unit, +1)

    def _move(self, unit: int, sign: int) -> None:
        taken = self._taken.get(unit, {})
        touched = {term for dim in taken for term in self._terms.get(dim, ())}
        before = math.fsum(map(self._cost, touched))
        for dim, count in taken.items():
            self._left[dim] += sign * count
        self.total += math.fsum(map(self._cost, touched)) - before
