"""Layers as readers of channels: what each needs of its inputs, and which of them nobody sees any more.

A class of channels leaves when no reader can tell it from a constant; then the filters that made it read nothing, and
classes in front of those may leave too. This is followed by a worklist: a layer is looked at again only when outputs of
it left, so that the work grows with the number of layers.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.graph import ChannelGraph, Consumer


@dataclass(frozen=True)
class Reader:
    """A weight that mixes channels, with all its uses.

    Attributes:
        weight: its state name.
        uses: where it is used.
        inputs: int64 ``[in]``, the class of each input; ``outputs`` ``[out]`` of each output.
        reads: bool ``[groups, out, in]``, whether an output reads an input at all.
        constants: float64 ``[in]``, the constants that the inputs have at all uses; NaN where they differ.
        harmless: bool ``[in]``, inputs that can leave, as far as this layer is concerned, even though it reads them.
        padded: whether a constant needs a carrier, at any use.
    """

    weight: str
    uses: tuple[Consumer, ...]
    inputs: Tensor
    outputs: Tensor
    reads: Tensor
    constants: Tensor
    harmless: Tensor
    padded: bool

    @property
    def where(self) -> str:
        """The path of the layer, for messages."""
        return self.uses[0].where


def readers_of(graph: ChannelGraph, *, fold: bool) -> tuple[Reader, ...]:
    """Every weight that mixes channels, in the order of the computation.

    Args:
        graph: the network.
        fold: whether constants other than 0 may be folded.
    """
    uses: dict[str, list[Consumer]] = {}
    for consumer in graph.consumers:
        uses.setdefault(consumer.weight, []).append(consumer)
    elsewhere: dict[str, list[Consumer]] = {}
    for consumer in graph.elsewhere:
        elsewhere.setdefault(consumer.weight, []).append(consumer)
    return tuple(_reader(graph, own, elsewhere.get(weight, []), fold=fold) for weight, own in uses.items())


def _reader(graph: ChannelGraph, uses: Sequence[Consumer], elsewhere: Sequence[Consumer], *, fold: bool) -> Reader:
    everywhere = (*uses, *elsewhere)
    weight, in_dim = uses[0].weight, uses[0].in_dim
    dims = graph.classes.parameters[weight]
    constants, padded = _agreed(everywhere), any(use.padded for use in everywhere)
    foldable = fold and (padded or _owns_shift(graph, uses))  # the carrier's weights belong to the layer itself
    harmless = ~constants.isnan() if foldable else constants == 0
    return Reader(weight, tuple(uses), dims[in_dim], dims[1 - in_dim], graph.reads[weight], constants, harmless, padded)


def _agreed(uses: Sequence[Consumer]) -> Tensor:
    """The constants that a layer's inputs have at all its uses; unknown where they differ."""
    first, *others = (use.constants for use in uses)
    for other in others:
        first = torch.where(first == other, first, torch.nan) if len(first) == len(other) else first * torch.nan
    return first


def _owns_shift(graph: ChannelGraph, uses: Sequence[Consumer]) -> bool:
    """Whether a constant may move into what follows the layer: that must belong to this layer alone."""
    shift = uses[0].shift
    if shift is None or any(use.shift != shift for use in uses):
        return False
    kind, name = shift
    return len(uses) == (graph.uses[name] if kind == "bias" else 1)


def unread(reader: Reader, removed: Tensor) -> Tensor:
    """Bool ``[in]``: inputs whose weights to all outputs that remain are zero.

    Args:
        reader: the layer.
        removed: bool ``[classes]``, what has left.
    """
    alive = ~removed[reader.outputs].reshape(reader.reads.shape[0], -1, 1)
    read = reader.reads.view(torch.uint8) & alive.view(torch.uint8)
    return read.amax(1).flatten() == 0  # thirty times as fast as any(1)


class Occurrences:
    """Where classes occur in a list of (int64) tensors of classes."""

    def __init__(self, sides: Iterable[Tensor]):
        listed = list(sides)
        classes = torch.cat(listed) if listed else torch.empty(0, dtype=torch.int64)
        lengths = torch.tensor([len(side) for side in listed], dtype=torch.int64)
        order = classes.argsort(stable=True)
        self._positions = torch.arange(len(listed)).repeat_interleave(lengths)[order].tolist()
        self._ends = classes.bincount().cumsum(0).tolist()

    def of(self, cls: int) -> list[int]:
        """The positions of the tensors that hold a class, rising; of a tensor that holds it twice, twice."""
        if cls >= len(self._ends):
            return []
        return self._positions[self._ends[cls - 1] if cls else 0 : self._ends[cls]]


def unseen(graph: ChannelGraph, readers: Sequence[Reader], free: Tensor) -> Tensor:
    """Bool ``[classes]``: every free class that no reader can tell from a constant, given that all of them leave.

    A BatchNorm in front of which channels are selected sees those that it hands on.
    """
    sinks = [(r.inputs, r.outputs) for r in readers] + [(s.inputs, s.outputs) for s in graph.selections]
    visible = [torch.ones_like(inputs, dtype=torch.bool) for inputs, _ in sinks]
    seen = torch.zeros(graph.classes.count, dtype=torch.int64)  # by how many inputs of readers
    for inputs, _ in sinks:
        seen.index_add_(0, inputs, torch.ones_like(inputs))
    removed, writers = free & (seen == 0), Occurrences(outputs for _, outputs in sinks)
    rank = _ranks(graph, readers)
    waiting = [(rank[i], i) for i in range(len(sinks))]
    heapq.heapify(waiting)
    queued = set(range(len(sinks)))
    while waiting:
        _, i = heapq.heappop(waiting)
        queued.discard(i)
        inputs, outputs = sinks[i]
        sees = ~(readers[i].harmless | unread(readers[i], removed)) if i < len(readers) else ~removed[outputs]
        lost = inputs[visible[i] & ~sees]
        visible[i] = sees
        seen.index_add_(0, lost, -torch.ones_like(lost))
        gone = torch.unique(lost[free[lost] & ~removed[lost] & (seen[lost] == 0)])
        removed[gone] = True
        for writer in {w for cls in gone.tolist() for w in writers.of(cls)} - queued:
            heapq.heappush(waiting, (rank[writer], writer))
            queued.add(writer)
    return removed


def _ranks(graph: ChannelGraph, readers: Sequence[Reader]) -> list[float]:
    """The order to look at readers, and then at selections, in: from the last of the network, so that each is final."""
    first = torch.full((graph.classes.count,), len(readers), dtype=torch.int64)
    for position in range(len(readers) - 1, -1, -1):
        first[readers[position].inputs] = position
    own = [-float(position) for position in range(len(readers))]
    return own + [0.5 - float(first[s.outputs].min()) for s in graph.selections]
