"""Which classes of channels can leave without a trace, and what must be done for it.

A class is dead if everything that reads it sees a constant, or multiplies it by zero:

* constant 0, or only zero weights behind it: it is cut;
* a constant c, read without padding: ``c W`` goes into the reader's bias, or the mean of the BatchNorm behind it;
* a constant c, read by a zero-padded convolution: at the border the reader sees less of it, so that no bias can stand
  in. One dead channel k with a constant other than 0 stays as *carrier*, and the others' weights are added to its own,
  ``W[:, k] += (c_j / c_k) W[:, j]``: exact everywhere, at the price of one channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compress.graph import ChannelGraph, Consumer


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
    search = _Search(graph, pinned, fold=fold)
    search.remove_what_nobody_sees()
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


class _Search:
    """The state of one decision."""

    def __init__(self, graph: ChannelGraph, pinned: Tensor | None, *, fold: bool):
        self.graph = graph
        self.free = graph.free() if pinned is None else graph.free() & ~pinned
        self.uses: dict[str, list[Consumer]] = {}
        for consumer in graph.consumers:
            self.uses.setdefault(consumer.weight, []).append(consumer)
        self.everywhere = {weight: list(uses) for weight, uses in self.uses.items()}
        for consumer in graph.elsewhere:
            self.everywhere.setdefault(consumer.weight, []).append(consumer)
        self.inputs = {w: graph.classes.parameters[w][uses[0].in_dim] for w, uses in self.uses.items()}
        self.outputs = {w: graph.classes.parameters[w][1 - uses[0].in_dim] for w, uses in self.uses.items()}
        self.reads = graph.reads
        self.constants = {weight: self._agreed(weight) for weight in self.inputs}
        self.padded = {weight: any(c.padded for c in self.everywhere[weight]) for weight in self.inputs}
        self.foldable = {w: fold and self._can_fold(w) for w in self.inputs}
        self.removed = torch.zeros_like(self.free)
        self.kept: dict[int, str] = {}
        self.carriers: dict[str, dict[int, int]] = {weight: {} for weight in self.inputs}

    def _agreed(self, weight: str) -> Tensor:
        """The constants that a layer's inputs have at all its uses; unknown where they differ."""
        first, *others = (c.constants for c in self.everywhere[weight])
        for other in others:
            first = torch.where(first == other, first, torch.nan) if len(first) == len(other) else first * torch.nan
        return first

    def _can_fold(self, weight: str) -> bool:
        """Whether a constant may move into what follows the layer: that must belong to this layer alone."""
        uses = self.uses[weight]
        if self.padded[weight]:
            return True  # the carrier's weights belong to the layer itself
        if uses[0].shift is None or any(c.shift != uses[0].shift for c in uses):
            return False
        kind, name = uses[0].shift
        return len(uses) == (self.graph.uses[name] if kind == "bias" else 1)

    def unread(self, weight: str) -> Tensor:
        """Bool ``[in]``: inputs whose weights to all remaining outputs are zero."""
        reads = self.reads[weight]
        alive = ~self.removed[self.outputs[weight]].reshape(reads.shape[0], -1, 1)
        return ~(reads & alive).any(1).flatten()

    def _harmless(self, weight: str) -> Tensor:
        """Bool ``[in]``: inputs that can leave, as far as this layer is concerned, even though it reads them."""
        constants = self.constants[weight]
        return ~constants.isnan() if self.foldable[weight] else constants == 0

    def remove_what_nobody_sees(self) -> None:
        """Mark every free class that no reader can tell from a constant; repeat, since removed outputs read nothing."""
        classes = self.graph.classes.count
        while True:
            seen = torch.zeros(classes, dtype=torch.bool)
            for weight, inputs in self.inputs.items():
                visible = ~(self._harmless(weight) | self.unread(weight))
                seen[inputs[visible]] = True
            for selection in self.graph.selections:
                seen[selection.inputs[~self.removed[selection.outputs]]] = True
            removed = self.free & ~seen
            if torch.equal(removed, self.removed):
                return
            self.removed = removed

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
        before = int(self.removed.sum())
        for weight, inputs in self.inputs.items():
            constant = torch.stack([~c.constants.isnan() for c in self.uses[weight]]).any(0)
            lost = self.removed[inputs] & constant & ~self._harmless(weight) & ~self.unread(weight)
            for cls in inputs[lost].tolist():
                self.keep(cls, f"a constant that cannot be folded into {self.uses[weight][0].where}")
        return int(self.removed.sum()) < before

    def keep_what_is_selected(self) -> bool:
        """Take back channels that a BatchNorm in front of which channels are selected still picks.

        Returns:
            Whether a channel was taken back.
        """
        before = int(self.removed.sum())
        for selection in self.graph.selections:
            lost = self.removed[selection.inputs] & ~self.removed[selection.outputs]
            for cls in selection.inputs[lost].tolist():
                self.keep(cls, f"read by {selection.mean.rpartition('.')[0]}")
        return int(self.removed.sum()) < before

    def keep_carriers(self) -> bool:
        """For each padded reader of removed constants other than 0, find or keep one channel a group to carry them.

        Returns:
            Whether a channel was taken back.
        """
        before = int(self.removed.sum())
        for weight, inputs in self.inputs.items():
            if not self.padded[weight]:
                continue
            fold, constants, width = self._to_fold(weight), self.constants[weight], self.reads[weight].shape[2]
            for group in torch.unique(fold.nonzero().flatten() // width).tolist():
                if group in self.carriers[weight]:
                    continue
                own = torch.arange(len(inputs)) // width == group
                present = own & ~self.removed[inputs] & ~constants.isnan() & (constants != 0)
                some = present if bool(present.any()) else own & fold
                carrier = int(torch.where(some, constants.abs(), 0.0).argmax())
                self.carriers[weight][group] = carrier
                if some is not present:
                    where, value = self.uses[weight][0].where, float(constants[carrier])
                    self.keep(int(inputs[carrier]), f"constant {value:.3g}, carried for the padded {where}")
        return int(self.removed.sum()) < before

    def keep_groups_equal(self) -> bool:
        """Take back channels of grouped convolutions until each group that stays loses equally many.

        Returns:
            Whether a channel was taken back.
        """
        before = int(self.removed.sum())
        for weight, reads in self.reads.items():
            groups = reads.shape[0]
            if groups == 1:
                continue
            where = self.uses[weight][0].where
            sides = [classes.reshape(groups, -1) for classes in (self.inputs[weight], self.outputs[weight])]
            staying = ~torch.stack([self.removed[side].all(1) for side in sides]).all(0)
            if not bool(staying.any()):
                staying[0] = True
            for side in sides:
                gone = self.removed[side[staying]]
                least = min(int(gone.sum(1).min()), side.shape[1] - 1)
                surplus = side[staying][gone & (gone.cumsum(1) > least)]
                for cls in surplus[self.removed[surplus]].tolist():
                    self.keep(cls, f"the groups of {where} must keep equally many channels")
        return int(self.removed.sum()) < before

    def keep(self, cls: int, reason: str) -> None:
        """Take one class back."""
        self.removed[cls] = False
        self.kept[cls] = reason

    def _to_fold(self, weight: str) -> Tensor:
        """Bool ``[in]``: removed inputs whose constant some remaining output reads."""
        constants = self.constants[weight]
        inputs = self.inputs[weight]
        gone = self.removed[inputs]
        return gone & ~constants.isnan() & (constants != 0) & ~self.unread(weight)

    def decision(self) -> Decision:
        """The folds that follow from what is removed now."""
        folds = []
        for weight, (consumer, *_) in self.uses.items():
            indices, constants = self._to_fold(weight).nonzero().flatten(), self.constants[weight]
            outputs = self.outputs[weight].numel()
            if not indices.numel():
                continue
            if not self.padded[weight]:
                folds.append(Fold(consumer, indices, constants[indices], outputs))
                continue
            group_of = indices // self.reads[weight].shape[2]
            for group, carrier in self.carriers[weight].items():
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
    search = _Search(graph, None, fold=True)
    search.remove_what_nobody_sees()
    found = {}
    for name, known in graph.layer_constants.items():
        outputs = graph.classes.parameters[name].get(0)
        unseen = torch.zeros_like(known, dtype=torch.bool) if outputs is None else search.removed[outputs]
        if bool((unseen | ~known.isnan()).all()):
            found[name] = known.nan_to_num()
    return found


def unread_inputs(graph: ChannelGraph, decision: Decision) -> Iterator[tuple[Tensor, Tensor]]:
    """For each layer that mixes channels: the class of each input, and whether all its weights are zero, bool."""
    search = _Search(graph, None, fold=True)
    search.removed = decision.removed
    for weight, inputs in search.inputs.items():
        yield inputs, search.unread(weight)
