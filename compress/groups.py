"""Groups: one view of the parameters, shared by training and cutting.

A group is a set of slices ``(parameter, dimension, index)``. What the proximal step makes zero here is what surgery
removes later. A granularity is a function that finds the groups of a model, and a line in ``GRANULARITIES``:

========== ==============================================================================================
weight     every single weight of a convolution or linear layer is a group of its own
filter     the weights of one output channel of one layer
coupled    everything that one channel owns: its filters in every layer that residual adds, depthwise
           convolutions and concatenations tie together, with their biases, BatchNorm scales *and shifts*
========== ==============================================================================================

Computations are batched: one segment reduction a parameter, no loop over channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.errors import ConfigError
from compress.graph import ChannelGraph, channel_graph

_LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


class GroupSlice:
    """The part that groups have in one parameter.

    Attributes:
        name: the parameter's state-dict name.
        parameter: the parameter.
        dim: the dimension along which each index belongs to one group.
        groups: int64 ``[parameter.shape[dim]]``; ``count`` (one past the last group) stands for "in no group".
        layer: whether this is a layer's own weight, so that it counts in reports by layer.
    """

    def __init__(self, name: str, parameter: nn.Parameter, dim: int, groups: Tensor, *, layer: bool):
        self.name, self.parameter, self.dim, self.groups, self.layer = name, parameter, dim, groups, layer
        self._others = [d for d in range(parameter.ndim) if d != dim]

    def index(self) -> Tensor:
        """``groups`` on the parameter's device."""
        if self.groups.device != self.parameter.device:
            self.groups = self.groups.to(self.parameter.device)
        return self.groups

    def sums(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum a tensor of the parameter's shape over all but ``dim``: ``[shape[dim]]`` of ``dtype``."""
        return values.sum(self._others, dtype=dtype) if self._others else values.to(dtype)

    def spread(self, by_group: Tensor) -> Tensor:
        """Values ``[count + 1]`` by group, shaped to broadcast against the parameter."""
        shape = [1] * self.parameter.ndim
        shape[self.dim] = -1
        return by_group[self.index()].reshape(shape)


@dataclass(frozen=True)
class Groups:
    """All groups of a model; or, where ``slices`` is empty, its single weights.

    Attributes:
        count: number of groups; for single weights, number of weights.
        slices: the groups' parts, one for each parameter they touch.
        weights: the parameters whose single weights are the groups, by name; empty unless granularity is ``weight``.
        macs: float ``[count]``, the multiply-accumulates that leave with each group; for single weights ``None``.
    """

    count: int
    slices: tuple[GroupSlice, ...] = ()
    weights: tuple[tuple[str, nn.Parameter], ...] = ()
    macs: Tensor | None = None

    @property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Every parameter that some group touches."""
        return [*self.weights, *((part.name, part.parameter) for part in self.slices)]

    def gather(self, values: Callable[[GroupSlice], Tensor]) -> Tensor:
        """Sum ``values(slice)`` (the parameter's shape each) by group, in float32 or better: ``[count]``."""
        first = self.slices[0].parameter
        dtype = torch.promote_types(first.dtype, torch.float32)
        total = torch.zeros(self.count + 1, dtype=dtype, device=first.device)
        for part in self.slices:
            total.index_add_(0, part.index(), part.sums(values(part), dtype))
        return total[:-1]

    def squared_norms(self) -> Tensor:
        """``||w_g||_2^2`` of every group, ``[count]``."""
        return self.gather(lambda part: part.parameter.detach().square())

    def sizes(self) -> Tensor:
        """Number of weights in every group, float ``[count]``."""
        return self.gather(lambda part: torch.ones_like(part.parameter.detach()))

    def dead(self) -> Tensor:
        """Bool ``[count]``, groups whose every weight is exactly 0; the squares in a norm of 0 may have underflown."""
        return self.gather(lambda part: part.parameter.detach() != 0) == 0

    def scale_(self, factors: Tensor) -> None:
        """Multiply every group by its factor, ``[count]``."""
        factors = torch.cat((factors, factors.new_ones(1)))
        for part in self.slices:
            part.parameter.detach().mul_(part.spread(factors).to(part.parameter.dtype))


def _weights(model: nn.Module, graph: ChannelGraph | None) -> Groups:
    del graph
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight") if isinstance(module, _LAYERS) else None
        if weight is not None:  # a weight that a parametrization computes is none of the optimiser's
            found.setdefault(id(weight), (f"{path}.weight" if path else "weight", weight))
    return Groups(sum(parameter.numel() for _, parameter in found.values()), weights=tuple(found.values()))


def _filters(model: nn.Module, graph: ChannelGraph | None) -> Groups:
    assert graph is not None
    layers = {id(module.weight) for module in model.modules() if isinstance(module, _LAYERS)}
    free, count = graph.free(), 0
    slices: list[tuple[str, nn.Parameter, int, Tensor]] = []
    macs: list[Tensor] = []
    for name, parameter, dim, classes in _out_parameters(model, graph):
        if id(parameter) in layers:
            inside = free[classes]
            members = int(inside.sum())
            ids = torch.full_like(classes, -1)
            ids[inside] = torch.arange(count, count + members)
            count += members
            slices.append((name, parameter, dim, ids))
            macs.append(torch.full((members,), graph.layer_macs.get(name, 0) / len(classes), dtype=torch.float64))
    return _assemble(slices, torch.cat(macs) if macs else torch.empty(0), model)


def _coupled(model: nn.Module, graph: ChannelGraph | None) -> Groups:
    assert graph is not None
    free = graph.free()
    slices = list(_out_parameters(model, graph))
    touched = torch.zeros(graph.classes.count, dtype=torch.bool)
    for _, _, _, classes in slices:
        touched[classes] = True
    members = free & touched
    number = torch.where(members, members.cumsum(0) - 1, -1)
    return _assemble([(name, p, dim, number[c]) for name, p, dim, c in slices], graph.class_macs()[members], model)


def _out_parameters(model: nn.Module, graph: ChannelGraph) -> Iterable[tuple[str, nn.Parameter, int, Tensor]]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for (name, dim), classes in graph.out_slices().items():
        # running statistics are no parameters; in a grouped transposed convolution an index holds several channels
        if name in parameters and classes.numel() == parameters[name].shape[dim]:
            yield name, parameters[name], dim, classes


def _assemble(slices: list[tuple[str, nn.Parameter, int, Tensor]], macs: Tensor, model: nn.Module) -> Groups:
    count = macs.numel()
    layers = {id(module.weight) for module in model.modules() if isinstance(module, _LAYERS)}
    return Groups(
        count,
        tuple(
            GroupSlice(name, parameter, dim, torch.where(ids < 0, count, ids), layer=id(parameter) in layers)
            for name, parameter, dim, ids in slices
            if bool((ids >= 0).any())
        ),
        macs=macs,
    )


GRANULARITIES: dict[str, Callable[[nn.Module, ChannelGraph | None], Groups]] = {
    "weight": _weights,
    "filter": _filters,
    "coupled": _coupled,
}
"""Granularity -> what finds its groups. Only ``weight`` does without the channel graph."""


def find_groups(model: nn.Module, granularity: str, example_inputs: tuple[Tensor, ...] | None = None) -> Groups:
    """The groups of ``model`` at ``granularity``.

    Args:
        model: the network; it is not changed.
        granularity: a name in ``GRANULARITIES``.
        example_inputs: what ``forward`` takes; needed for everything but single weights. Channels that cannot leave the
            network (the classifier's outputs, the input image's channels, see ``ChannelGraph``) are in no group.

    Raises:
        ConfigError: an unknown granularity, missing example inputs, or a model without any group.
        ModelError: the model can't be traced.
    """
    if granularity not in GRANULARITIES:
        raise ConfigError(f"unknown granularity {granularity!r}; known: {', '.join(GRANULARITIES)}.")
    if granularity != "weight" and example_inputs is None:
        raise ConfigError(f"granularity {granularity!r} follows channels through the network: pass example_inputs=(x,)")
    graph = None if example_inputs is None or granularity == "weight" else channel_graph(model, example_inputs)
    groups = GRANULARITIES[granularity](model, graph)
    if not groups.count:
        raise ConfigError(f"{type(model).__name__} has no {granularity} group that a penalty could act on.")
    return groups
