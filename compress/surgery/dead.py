"""Which classes of channels can leave without a trace, and what must be done for it.

A class is dead if everything that reads it sees a constant, or multiplies it by zero:

* constant 0, or only zero weights behind it: it is cut;
* a constant c, read without padding: ``c W`` goes into the reader's bias, or the mean of the BatchNorm behind it;
* a constant c, read by a zero-padded convolution: at the border the reader sees less of it, so that no bias can stand
  in. One dead channel k with a constant other than 0 stays as *carrier*, and the others' weights are added to its own,
  ``W[:, k] += (c_j / c_k) W[:, j]``: exact everywhere, at the price of one channel.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compress.graph import ChannelGraph, Consumer
from compress.surgery.readers import Occurrences, Reader, readers_of, unread, unseen


@dataclass(frozen=True)
class Fold:
    """Constants of removed channels that live on in the layer which read them.

    Attributes:
        consumer: the layer.
        indices: int64, the removed inputs with a constant other than 0; ``constants``: float64, their values.
        outputs: how many outputs the layer has.
        carrier: the input that carries them (padded convolutions), else ``None``: they go into the bias.
        carried: the carrier's own constant.
    """

    consumer: Consumer
    indices: Tensor
    constants: Tensor
    outputs: int
    carrier: int | None = None
    carried: float = 0.0

    @property
    def target(self) -> tuple[str, str]:
        """Where it goes: (carrier | bias | mean | new bias, state name)."""
        if self.carrier is not None:
            return "carrier", self.consumer.weight
        assert self.consumer.shift is not None  # only such layers are folded into
        return self.consumer.shift


@dataclass(frozen=True)
class Decision:
    """What leaves, what is folded, and why some dead or prunable channels stay.

    Attributes:
        removed: bool ``[classes]``.
        folds: what must be added to the readers before cutting.
        kept: for each dead class that stays, why.
    """

    removed: Tensor
    folds: tuple[Fold, ...]
    kept: dict[int, str] = field(default_factory=dict)


def find_dead(graph: ChannelGraph, *, pinned: Tensor | None = None, fold: bool = True) -> Decision:
    """Decide what leaves.

    Args:
        graph: the channel graph of the network, with its weights.
        pinned: bool ``[classes]``, classes that must stay for a further reason (a failed type check).
        fold: whether constants other than 0 may be folded; without, their channels stay.
    """
    free = graph.free() if pinned is None else graph.free() & ~pinned
    readers = readers_of(graph, fold=fold)
    search = _Search(graph, readers, unseen(graph, readers, free))
    search.keep_one_in_every_layer()
    steps = (
        search.keep_what_cannot_be_folded,
        search.keep_what_is_selected,
        search.keep_carriers,
        search.keep_groups_equal,
    )
    while any(step() for step in steps):
        pass  # a channel that stays may read constants that nobody read before
    return search.decision()


class _Agenda:
    """Positions that one step has to look at: in rounds of rising order, those alone for which something changed.

    What a round changes further on is looked at in the same round, and anything else in the next one: just as if every
    round looked at all positions.
    """

    def __init__(self, count: int):
        self.now = list(range(count))
        self.later: list[int] = []
        self.queued = set(self.now)
        self.at = -1

    def add(self, position: int) -> None:
        if position not in self.queued:
            self.queued.add(position)
            if position > self.at:
                heapq.heappush(self.now, position)
            else:
                self.later.append(position)

    def round(self) -> Iterator[int]:
        while self.now:
            self.at = heapq.heappop(self.now)
            self.queued.discard(self.at)
            yield self.at
        self.now, self.later, self.at = sorted(self.later), [], -1


class _Search:
    """The state of one decision: what is removed, and what the steps that take channels back must look at again."""

    def __init__(self, graph: ChannelGraph, readers: Sequence[Reader], removed: Tensor):
        self.graph, self.readers, self.removed = graph, readers, removed
        self.kept: dict[int, str] = {}
        self.carriers: dict[str, dict[int, int]] = {reader.weight: {} for reader in readers}
        self.writers = Occurrences(reader.outputs for reader in readers)
        self.users = Occurrences(torch.cat((reader.inputs, reader.outputs)) for reader in readers)
        self.selecting = Occurrences(torch.cat((s.inputs, s.outputs)) for s in graph.selections)
        self.unread: dict[int, Tensor] = {}
        self.agendas = {step: _Agenda(len(readers)) for step in ("fold", "carry", "groups")}
        self.selections = _Agenda(len(graph.selections))

    def keep(self, cls: int, reason: str) -> None:
        """Take one class back."""
        self.removed[cls] = False
        self.kept[cls] = reason
        for position in self.writers.of(cls):
            self.unread.pop(position, None)
        for position in self.users.of(cls):
            for agenda in self.agendas.values():
                agenda.add(position)
        for position in self.selecting.of(cls):
            self.selections.add(position)

    def unread_by(self, position: int) -> Tensor:
        """Bool ``[in]``: inputs whose weights to all remaining outputs are zero; computed anew where those changed."""
        if position not in self.unread:
            self.unread[position] = unread(self.readers[position], self.removed)
        return self.unread[position]

    def keep_one_in_every_layer(self) -> None:
        """A layer must keep a channel: where all of one dimension would leave, its first class stays."""
        for name, dims in self.graph.classes.parameters.items():
            for classes in dims.values():
                if bool(self.removed[classes].all()):
                    self.keep(int(classes[0]), f"the last channel of {name.rpartition('.')[0] or name}")

    def keep_what_cannot_be_folded(self) -> bool:
        """Take back constants that left only because nobody read them, where a channel that stays does after all.

        An input that depends on the network's input at every use needs no care: the channel that stays is dead, so it
        does not depend on it (a BatchNorm scale of 0, say), or is itself read by nobody.

        Returns:
            Whether a channel was taken back.
        """
        kept = len(self.kept)
        for position in self.agendas["fold"].round():
            reader = self.readers[position]
            constant = torch.stack([~use.constants.isnan() for use in reader.uses]).any(0)
            lost = self.removed[reader.inputs] & constant & ~reader.harmless & ~self.unread_by(position)
            for cls in reader.inputs[lost].tolist():
                self.keep(cls, f"a constant that cannot be folded into {reader.where}")
        return len(self.kept) > kept

    def keep_what_is_selected(self) -> bool:
        """Take back channels that a BatchNorm in front of which channels are selected still picks.

        Returns:
            Whether a channel was taken back.
        """
        kept = len(self.kept)
        for position in self.selections.round():
            selection = self.graph.selections[position]
            lost = self.removed[selection.inputs] & ~self.removed[selection.outputs]
            for cls in selection.inputs[lost].tolist():
                self.keep(cls, f"read by {selection.mean.rpartition('.')[0]}")
        return len(self.kept) > kept

    def keep_carriers(self) -> bool:
        """For each padded reader of removed constants other than 0, find or keep one channel a group to carry them.

        Returns:
            Whether a channel was taken back.
        """
        kept = len(self.kept)
        for position in self.agendas["carry"].round():
            reader = self.readers[position]
            if not reader.padded:
                continue
            inputs, constants, width = reader.inputs, reader.constants, reader.reads.shape[2]
            fold, carriers = self._to_fold(position), self.carriers[reader.weight]
            for group in torch.unique(fold.nonzero().flatten() // width).tolist():
                if group in carriers:
                    continue
                own = torch.arange(len(inputs)) // width == group
                present = own & ~self.removed[inputs] & ~constants.isnan() & (constants != 0)
                some = present if bool(present.any()) else own & fold
                carrier = int(torch.where(some, constants.abs(), 0.0).argmax())
                carriers[group] = carrier
                if some is not present:
                    value = float(constants[carrier])
                    reason = f"constant {value:.3g}, carried for the padded {reader.where}"
                    self.keep(int(inputs[carrier]), reason)
        return len(self.kept) > kept

    def keep_groups_equal(self) -> bool:
        """Take back channels of grouped convolutions until each group that stays loses equally many.

        Returns:
            Whether a channel was taken back.
        """
        kept = len(self.kept)
        for position in self.agendas["groups"].round():
            reader, groups = self.readers[position], self.readers[position].reads.shape[0]
            if groups == 1:
                continue
            sides = [classes.reshape(groups, -1) for classes in (reader.inputs, reader.outputs)]
            staying = ~torch.stack([self.removed[side].all(1) for side in sides]).all(0)
            if not bool(staying.any()):
                staying[0] = True
            for side in sides:
                gone = self.removed[side[staying]]
                least = min(int(gone.sum(1).min()), side.shape[1] - 1)
                surplus = side[staying][gone & (gone.cumsum(1) > least)]
                for cls in surplus[self.removed[surplus]].tolist():
                    self.keep(cls, f"the groups of {reader.where} must keep equally many channels")
        return len(self.kept) > kept

    def _to_fold(self, position: int) -> Tensor:
        """Bool ``[in]``: removed inputs whose constant some remaining output reads."""
        reader = self.readers[position]
        folded = self.removed[reader.inputs] & ~reader.constants.isnan() & (reader.constants != 0)
        return folded & ~self.unread_by(position)

    def decision(self) -> Decision:
        """The folds that follow from what is removed now."""
        folds = []
        for position, reader in enumerate(self.readers):
            consumer, constants, outputs = reader.uses[0], reader.constants, reader.outputs.numel()
            indices = self._to_fold(position).nonzero().flatten()
            if not indices.numel():
                continue
            if not reader.padded:
                folds.append(Fold(consumer, indices, constants[indices], outputs))
                continue
            group_of = indices // reader.reads.shape[2]
            for group, carrier in self.carriers[reader.weight].items():
                own = indices[(group_of == group) & (indices != carrier)]
                if own.numel():
                    folds.append(Fold(consumer, own, constants[own], outputs, carrier, float(constants[carrier])))
        return Decision(self.removed, tuple(folds), self.kept)


def dead_by_weight(graph: ChannelGraph) -> Tensor:
    """Bool ``[classes]``: classes whose filters are all zero, whatever may still hold them in the network."""
    touched, alive = (torch.zeros(graph.classes.count, dtype=torch.bool) for _ in range(2))
    for (name, dim), classes in graph.out_slices().items():
        tensor = graph.tensors[name]
        if name in graph.layer_macs:  # filters; a class token, say, is none
            touched[classes] = True
            nonzero = (tensor != 0).cpu()
            if classes.numel() != tensor.shape[dim]:  # a grouped transposed convolution: outputs of each group
                nonzero = nonzero.reshape(graph.groups[name], -1, *tensor.shape[1:]).transpose(1, 2).flatten(0, 1)
            else:
                nonzero = nonzero.transpose(0, dim)
            alive[classes[nonzero.flatten(1).any(1)]] = True
    return touched & ~alive


def constant_layers(graph: ChannelGraph) -> dict[str, Tensor]:
    """Layers of which every output is constant, or seen by nobody: state name of the weight -> float64 ``[out]``.

    What nobody sees is given the constant 0.
    """
    hidden = unseen(graph, readers_of(graph, fold=True), graph.free())
    found = {}
    for name, known in graph.layer_constants.items():
        outputs = graph.classes.parameters[name].get(0)
        unseen_outputs = torch.zeros_like(known, dtype=torch.bool) if outputs is None else hidden[outputs]
        if bool((unseen_outputs | ~known.isnan()).all()):
            found[name] = known.nan_to_num()
    return found


def unread_inputs(graph: ChannelGraph, decision: Decision) -> Iterator[tuple[Tensor, Tensor]]:
    """For each layer that mixes channels: the class of each input, and whether all its weights are zero, bool."""
    for reader in readers_of(graph, fold=True):
        yield reader.inputs, unread(reader, decision.removed)
