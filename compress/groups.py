"""Groups: one view of the parameters, shared by training and cutting.

A group is a set of slices ``(parameter, dimension, index)``. What the proximal step makes zero here is what surgery
removes later. A granularity is a function that finds the groups of a model, and a line in ``GRANULARITIES``:

========== ==============================================================================================
weight     every single weight of a convolution or linear layer is a group of its own
kernel     the weights between one input and one output channel of a convolution
filter     the weights of one output channel of one layer
channel    the weights with which one layer reads one input channel
bn-scale   the BatchNorm scale of one channel: a group of one number
coupled    everything that one channel owns: its filters in every layer that residual adds, depthwise
           convolutions and concatenations tie together, with their biases, BatchNorm scales *and shifts*
========== ==============================================================================================

A filter, scale or coupled group that is zero is a channel that surgery removes; so is an input channel that nothing
reads any more. Zeros in single weights and kernels make no layer smaller by themselves.

Computations are batched: one segment reduction a parameter, no loop over channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.errors import ConfigError
from compress.graph import ChannelGraph, channel_graph

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_LAYERS = (*_CONVOLUTIONS, nn.Linear)


def at_least_single(weights: Tensor) -> Tensor:
    """In float32 where they have less: squares vanish in float16 below 2e-4, and steps overflow above 7e4."""
    return weights.to(torch.promote_types(weights.dtype, torch.float32))


class GroupSlice:
    """The part that groups have in one parameter.

    Attributes:
        name: the parameter's state-dict name.
        parameter: the parameter.
        dim: the dimension along which each index belongs to one group; the first of them where ``groups`` has several.
        groups: int64 ``[parameter.shape[dim]]``, or of the shape of as many dimensions from ``dim`` on as it has;
            ``count`` (one past the last group) stands for "in no group".
        dims: the dimensions of the parameter that ``groups`` lies along.
        layer: whether this is the tensor that counts in reports by layer: a layer's own weight, or a BatchNorm's scale
            where scales are the groups.
    """

    def __init__(self, name: str, parameter: nn.Parameter, dim: int, groups: Tensor, *, layer: bool):
        self.name, self.parameter, self.dim, self.groups, self.layer = name, parameter, dim, groups, layer
        self.dims = range(dim, dim + groups.ndim)
        self._others = [d for d in range(parameter.ndim) if d not in self.dims]

    def index(self) -> Tensor:
        """``groups`` on the parameter's device."""
        if self.groups.device != self.parameter.device:
            self.groups = self.groups.to(self.parameter.device)
        return self.groups

    def sums(self, values: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """Sum a tensor of the parameter's shape over all but ``dims``: of the shape of ``groups``, and ``dtype``."""
        if self._others:
            return torch.sum(values, self._others, dtype=dtype, out=out)
        return values.to(dtype) if out is None else out.copy_(values)

    def spread(self, by_group: Tensor) -> Tensor:
        """Values ``[count + 1]`` by group, shaped to broadcast against the parameter."""
        return self.broadcast(by_group[self.index()])

    def broadcast(self, by_index: Tensor) -> Tensor:
        """Values of the shape of ``groups``, shaped to broadcast against the parameter."""
        shape = [size if d in self.dims else 1 for d, size in enumerate(self.parameter.shape)]
        return by_index.reshape(shape)


@dataclass(frozen=True)
class Groups:
    """All groups of a model; or, where ``slices`` is empty, its single weights.

    Attributes:
        count: number of groups; for single weights, number of weights.
        slices: the groups' parts, one for each parameter they touch.
        weights: the parameters whose single weights are the groups, by name; empty unless granularity is ``weight``.
        macs: float ``[count]``, the multiply-accumulates that leave with each group; ``None`` for single weights and
            kernels, with which none leave.
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
            total.index_add_(0, part.index().flatten(), part.sums(values(part), dtype).flatten())
        return total[:-1]

    def layers(self) -> list[Tensor]:
        """For every layer, int64: the groups that belong to it, in their order.

        A group that several layers hold belongs to the first of them.
        """
        if not self.slices:
            sizes = [parameter.numel() for _, parameter in self.weights]
            return list(torch.split(torch.arange(self.count), sizes))
        of_group = torch.full((self.count + 1,), len(self.slices), device=self.slices[0].parameter.device)
        for rank, part in reversed(list(enumerate(sorted(self.slices, key=lambda part: not part.layer)))):
            of_group[part.index().flatten()] = rank
        order = of_group[:-1].argsort(stable=True)
        ends = of_group[:-1].bincount().cumsum(0)
        return [layer for layer in order.tensor_split(ends[:-1].tolist()) if layer.numel()]

    def squared_norms(self) -> Tensor:
        """``||w_g||_2^2`` of every group, ``[count]``."""
        return self.gather(lambda part: at_least_single(part.parameter.detach()).square())

    def sizes(self) -> Tensor:
        """Number of weights in every group, float ``[count]``."""
        return self.gather(lambda part: torch.ones_like(part.parameter.detach()))

    def dead(self) -> Tensor:
        """Bool ``[count]``, groups whose every weight is exactly 0; the squares in a norm of 0 may have underflown."""
        if not self.slices:
            return torch.cat([parameter.detach().flatten() == 0 for _, parameter in self.weights])
        return self.gather(lambda part: part.parameter.detach() != 0) == 0

    def zero_(self, chosen: Tensor) -> None:
        """Make groups, bool ``[count]``, exactly zero."""
        for (_, parameter), own in zip(self.parameters, self.masks(chosen), strict=True):
            parameter.detach().masked_fill_(own, 0)

    def masks(self, chosen: Tensor) -> list[Tensor]:
        """For every parameter, which of its entries are in the groups ``chosen`` (bool ``[count]``), to broadcast."""
        if self.slices:
            extended = torch.cat((chosen, chosen.new_zeros(1)))
            return [part.spread(extended) for part in self.slices]
        parts = torch.split(chosen, [parameter.numel() for _, parameter in self.weights])
        return [own.reshape(parameter.shape) for own, (_, parameter) in zip(parts, self.weights, strict=True)]

    def scale_(self, factors: Tensor) -> None:
        """Multiply every group by its factor, ``[count]``."""
        factors = torch.cat((factors, factors.new_ones(1)))
        for part in self.slices:
            part.parameter.detach().mul_(part.spread(factors).to(part.parameter.dtype))


Part = tuple[str, nn.Parameter, int, Tensor]
"""Name, parameter, dimension, and int64 along it: the group of each index, -1 for none."""


def _weights(model: nn.Module, graph: ChannelGraph | None) -> Groups:
    del graph
    found = tuple(_own_weights(model, _LAYERS))
    return Groups(sum(parameter.numel() for _, parameter in found), weights=found)


def _kernels(model: nn.Module, graph: ChannelGraph | None) -> Groups:
    del graph
    count = 0
    slices: list[Part] = []
    for name, weight in _own_weights(model, _CONVOLUTIONS):
        pairs = weight.shape[:2]
        slices.append((name, weight, 0, torch.arange(count, count + pairs.numel()).reshape(pairs)))
        count += pairs.numel()
    return _assemble(slices, count, None, _ids(model, _CONVOLUTIONS))


def _filters(model: nn.Module, graph: ChannelGraph | None) -> Groups:
    assert graph is not None
    layers = _ids(model, _LAYERS)
    free, count = graph.free(), 0
    slices: list[Part] = []
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
    return _assemble(slices, count, macs, layers)


def _channels(model: nn.Module, graph: ChannelGraph | None) -> Groups:
    """Inputs that hold the same channel (its pixels, behind a flatten) are one group of the layer that reads them."""
    assert graph is not None
    layers, parameters = _ids(model, _LAYERS), dict(model.named_parameters(remove_duplicate=False))
    free, count = graph.free(), 0
    slices: list[Part] = []
    macs: list[Tensor] = []
    for consumer in {consumer.weight: consumer for consumer in graph.consumers}.values():
        parameter, classes = parameters.get(consumer.weight), graph.classes.parameters[consumer.weight]
        if parameter is None or id(parameter) not in layers or consumer.in_dim not in classes:
            continue
        read = classes[consumer.in_dim]
        inside = free[read]
        members, number, sizes = torch.unique(read[inside], return_inverse=True, return_counts=True)
        ids = torch.full_like(read, -1)
        ids[inside] = count + number
        count += members.numel()
        macs.append(sizes * (graph.layer_macs.get(consumer.weight, 0) / len(read)))
        dim = consumer.in_dim
        if consumer.groups > 1 and not consumer.transposed:  # an index stands for a channel of each group's own
            ids = ids.reshape(consumer.groups, -1).repeat_interleave(parameter.shape[0] // consumer.groups, dim=0)
            dim = 0
        slices.append((consumer.weight, parameter, dim, ids))
    return _assemble(slices, count, macs, layers)


def _bn_scales(model: nn.Module, graph: ChannelGraph | None) -> Groups:
    """A channel that passes several BatchNorms leaves with the last of their scales: they share what it saves."""
    assert graph is not None
    scales = _ids(model, (_BatchNorm,))
    free, count = graph.free(), 0
    slices: list[Part] = []
    found: list[Tensor] = []
    for name, parameter, dim, classes in _out_parameters(model, graph):
        if id(parameter) in scales:
            inside = free[classes]
            ids = torch.where(inside, count + inside.cumsum(0) - 1, -1)
            count += int(inside.sum())
            slices.append((name, parameter, dim, ids))
            found.append(classes[inside])
    members = torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
    share = graph.class_macs() / members.bincount(minlength=graph.classes.count).clamp_min(1)
    return _assemble(slices, count, [share[members]], scales)


def _coupled(model: nn.Module, graph: ChannelGraph | None) -> Groups:
    assert graph is not None
    free = graph.free()
    slices = list(_out_parameters(model, graph))
    touched = torch.zeros(graph.classes.count, dtype=torch.bool)
    for _, _, _, classes in slices:
        touched[classes] = True
    members = free & touched
    number = torch.where(members, members.cumsum(0) - 1, -1)
    parts = [(name, p, dim, number[c]) for name, p, dim, c in slices]
    return _assemble(parts, int(members.sum()), [graph.class_macs()[members]], _ids(model, _LAYERS))


def _own_weights(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterable[tuple[str, nn.Parameter]]:
    """The weights of modules of some kinds, each once."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight") if isinstance(module, kinds) else None
        if weight is not None:  # a weight that a parametrization computes is none of the optimiser's
            found.setdefault(id(weight), (f"{path}.weight" if path else "weight", weight))
    return found.values()


def _ids(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> set[int]:
    return {id(module.weight) for module in model.modules() if isinstance(module, kinds)}


def _out_parameters(model: nn.Module, graph: ChannelGraph) -> Iterable[Part]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for (name, dim), classes in graph.out_slices().items():
        # running statistics are no parameters; in a grouped transposed convolution an index holds several channels
        if name in parameters and classes.numel() == parameters[name].shape[dim]:
            yield name, parameters[name], dim, classes


def _assemble(slices: list[Part], count: int, macs: list[Tensor] | None, reported: set[int]) -> Groups:
    return Groups(
        count,
        tuple(
            GroupSlice(name, parameter, dim, torch.where(ids < 0, count, ids), layer=id(parameter) in reported)
            for name, parameter, dim, ids in slices
            if bool((ids >= 0).any())
        ),
        macs=None if macs is None else torch.cat([*macs, torch.empty(0, dtype=torch.float64)]),
    )


GRANULARITIES: dict[str, Callable[[nn.Module, ChannelGraph | None], Groups]] = {
    "weight": _weights,
    "kernel": _kernels,
    "filter": _filters,
    "channel": _channels,
    "bn-scale": _bn_scales,
    "coupled": _coupled,
}
"""Granularity -> what finds its groups."""

WITHOUT_GRAPH = frozenset({"weight", "kernel"})
"""Granularities that do not need to know where channels go."""


def find_groups(model: nn.Module, granularity: str, example_inputs: tuple[Tensor, ...] | None = None) -> Groups:
    """The groups of ``model`` at ``granularity``.

    Args:
        model: the network; it is not changed.
        granularity: a name in ``GRANULARITIES``.
        example_inputs: what ``forward`` takes; needed for all granularities but those ``WITHOUT_GRAPH``. Channels that
            cannot leave the network (the classifier's outputs, the input image's channels, see ``ChannelGraph``) are in
            no group.

    Raises:
        ConfigError: an unknown granularity, missing example inputs, or a model without any group.
        ModelError: the model can't be traced.
    """
    if granularity not in GRANULARITIES:
        raise ConfigError(f"unknown granularity {granularity!r}; known: {', '.join(GRANULARITIES)}.")
    graph = None
    if granularity not in WITHOUT_GRAPH:
        if example_inputs is None:
            raise ConfigError(
                f"granularity {granularity!r} follows channels through the network: pass example_inputs=(x,)"
            )
        graph = channel_graph(model, example_inputs)
    groups = GRANULARITIES[granularity](model, graph)
    if not groups.count:
        raise ConfigError(f"{type(model).__name__} has no {granularity} group that a penalty could act on.")
    return groups
