"""The channel graph: what training groups by and surgery cuts by.

It says, for every parameter and dimension, which class of channels each index belongs to; which classes must stay, and
why; and for every layer that mixes channels, which inputs are proved constant. It is the same for every front end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from compress.graph.constants import by_group
from compress.graph.labels import Classes


@dataclass(frozen=True)
class Consumer:
    """One use of a layer that mixes input channels.

    Attributes:
        where: the module's path, for messages.
        weight: state name of the weight, ``[out, in / groups, *kernel]``, or transposed
            ``[in, out / groups, *kernel]``.
        shift: what a constant can be added to behind the layer, (kind, state name): its own ``bias``; the running
            ``mean`` of the BatchNorm that alone reads it; the ``new bias`` that it could be given; or ``None``.
        constants: float64 ``[in]``, the proved constant of each input, NaN where it depends on the network's input.
        padded: whether outputs at the border see fewer inputs.
        groups: of the convolution; each reads its own share of the inputs.
        transposed: whether it is a transposed convolution.
    """

    where: str
    weight: str
    shift: tuple[str, str] | None
    constants: Tensor
    padded: bool
    groups: int = 1
    transposed: bool = False

    @property
    def in_dim(self) -> int:
        """The weight's dimension along which input channels are read; across all groups, if it is dimension 1."""
        return 0 if self.transposed else 1

    def by_group(self, weight: Tensor) -> Tensor:
        """The weight as ``[groups, out, in, taps]``, a view."""
        return by_group(weight, self.groups, transposed=self.transposed)


@dataclass(frozen=True)
class Selection:
    """A BatchNorm that may see fewer channels than there are: an index in front of it picks them.

    Attributes:
        mean: state name of its running mean.
        inputs: int64 ``[channels]``, the class of each channel that enters; ``outputs`` of each that leaves.
        entries: how many numbers each channel holds, for the example inputs as given.
    """

    mean: str
    inputs: Tensor
    outputs: Tensor
    entries: int


@dataclass(frozen=True, eq=False)
class Pick:
    """Channels that an operation takes by their numbers: a slice, a chunk, ``x[:, 1]``.

    Attributes:
        entering: int64 ``[channels]``, the class of each channel that there is; -1 where it belongs to none.
        taken: int64, the positions among them that each of its results holds, or that it writes.
    """

    entering: Tensor
    taken: tuple[Tensor, ...]

    def displaced(self, other: Pick, removed: Tensor) -> Tensor:
        """Classes of which ``other``, the same operation of a network without ``removed``, takes other channels.

        Args:
            other: of the compact network.
            removed: bool ``[classes]``.
        """
        stays = (self.entering < 0) | ~removed[self.entering.clamp_min(0)]
        left = stays.nonzero().flatten()
        if left.numel() != other.entering.numel() or len(self.taken) != len(other.taken):
            return self.entering[self.entering >= 0]
        wrong = torch.zeros_like(stays)
        for before, after in zip(self.taken, other.taken, strict=True):
            expected, got = before[stays[before]], left[after]
            if not torch.equal(expected, got):
                wrong[expected] = wrong[got] = True
        return self.entering[wrong & (self.entering >= 0)]


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of the network, for comparison with the same one of a compact network.

    Attributes:
        name: the op.
        where: the path of the module whose forward runs it.
        numbers: the numbers among its arguments, and the shape of its result.
        sizes: which of ``numbers`` may follow the number of channels.
        made: the tensors that it reads and that ``forward`` made itself.
        reads: positions of the operations whose results it reads.
        classes: int64, the classes of channels that its results hold.
        pick: which channels it takes, where it takes some by their numbers.
    """

    name: str
    where: str
    numbers: tuple[float, ...]
    sizes: frozenset[int]
    made: tuple[Tensor, ...]
    reads: tuple[int, ...]
    classes: Tensor
    pick: Pick | None

    def same(self, other: Operation) -> bool:
        """Whether ``other``, of a compact network, is this operation on fewer channels."""
        if (self.name, len(self.numbers), len(self.made)) != (other.name, len(other.numbers), len(other.made)):
            return False
        numbers = enumerate(zip(self.numbers, other.numbers, strict=True))
        made = zip(self.made, other.made, strict=True)
        return all(i in self.sizes or a == b or (a != a and b != b) for i, (a, b) in numbers) and all(
            a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
            for a, b in made
        )


@dataclass(frozen=True)
class ChannelGraph:
    """Classes of channels, and what is known about each.

    Attributes:
        classes: the solved labels.
        consumers: every use of a layer that mixes channels, in the order of the computation.
        elsewhere: the same at another input size, where constants that hold at one size alone show themselves.
        selections: BatchNorms in front of which channels may be selected.
        groups: state name of a grouped convolution's weight -> its number of groups.
        tensors: state name -> tensor, of everything the graph reads.
        uses: state name -> how many operations read it.
        sized: bool ``[classes]``, classes that pass an op whose arguments may hold a number of channels as a literal.
        operations: every operation, in the order of the computation.
        macs: multiply-accumulates of convolutions, linear layers and matrix products for the example inputs as given.
        layer_macs: state name of a layer's weight -> the layer's share of them, over all its uses.
        layer_constants: state name of a layer's weight -> float64 ``[out]``, the proved constant of each output at all
            its uses, NaN where it depends on the network's input.
        norms: running means (state names) of the BatchNorms that are used once.
        constant_output: whether the network returns the same for every input.
        lost: class -> where its constant was lost, and why.
    """

    classes: Classes
    consumers: tuple[Consumer, ...]
    selections: tuple[Selection, ...]
    groups: dict[str, int]
    tensors: dict[str, Tensor]
    uses: dict[str, int]
    sized: Tensor
    operations: tuple[Operation, ...]
    macs: int
    layer_macs: dict[str, int]
    layer_constants: dict[str, Tensor]
    norms: frozenset[str]
    constant_output: bool
    lost: dict[int, str] = field(default_factory=dict)
    elsewhere: tuple[Consumer, ...] = ()

    @cached_property
    def reads(self) -> dict[str, Tensor]:
        """State name of a consumer's weight -> bool ``[groups, out, in]``: whether an output reads an input at all."""
        with torch.no_grad():
            return {c.weight: (c.by_group(self.tensors[c.weight]) != 0).any(-1).cpu() for c in self.consumers}

    def out_slices(self) -> dict[tuple[str, int], Tensor]:
        """(parameter or buffer, dimension) -> class of each index, where the index *is* a channel of that class.

        These are a layer's output channels and what belongs to them: biases, BatchNorm scales, shifts and statistics,
        slopes. The dimension along which a layer reads its input channels is not among them.
        """
        read = {(consumer.weight, consumer.in_dim) for consumer in self.consumers}
        return {
            (name, dim): classes
            for name, dims in self.classes.parameters.items()
            for dim, classes in dims.items()
            if (name, dim) not in read
        }

    def layer_rows(self) -> list[Tensor]:
        """For each layer that multiplies and adds, int64 ``[channels]``: the class of each output."""
        return [classes for (name, _), classes in self.out_slices().items() if name in self.layer_macs]

    @property
    def partitions(self) -> tuple[Tensor, ...]:
        """Int64 ``[groups, channels per group]``, classes of each grouped convolution's inputs, and of its outputs.

        As many channels must leave each group, unless a group leaves whole. Depthwise convolutions have a channel a
        group and are not among them.
        """
        found: dict[tuple[str, int], Tensor] = {}
        for consumer in self.consumers:
            if consumer.groups > 1:
                for dim, classes in self.classes.parameters[consumer.weight].items():
                    found[consumer.weight, dim] = classes.reshape(consumer.groups, -1)
        return tuple(found.values())

    @property
    def channelwise(self) -> frozenset[str]:
        """Weights of depthwise convolutions and slopes of PReLUs: they hold channels that they do not mix."""
        mixing = {consumer.weight for consumer in self.consumers}
        return frozenset(name for name in self.classes.parameters if name not in mixing)

    def class_macs(self) -> Tensor:
        """Float64 ``[classes]``: the multiply-accumulates that the network saves when a class leaves by itself.

        A layer with ``n`` channels along a dimension loses one ``n``-th of its work with each, on the writing side and
        on the reading side alike.
        """
        macs = torch.zeros(self.classes.count, dtype=torch.float64)
        for name, work in self.layer_macs.items():
            for classes in self.classes.parameters.get(name, {}).values():
                share = torch.full(classes.shape, work / classes.numel(), dtype=torch.float64)
                macs.index_add_(0, classes, share)
        return macs

    def free(self) -> Tensor:
        """Bool ``[classes]``: which classes may leave the network."""
        free = torch.ones(self.classes.count, dtype=torch.bool)
        free[list(self.classes.reasons)] = False
        return free
