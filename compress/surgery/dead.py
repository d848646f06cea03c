"""Which classes of channels can leave without a trace, and what must be done for it.

A class is dead if everything that reads it sees a constant, or multiplies it by zero:

* constant 0, or only zero weights behind it: it is cut;
* a constant c, read without padding: ``c W`` goes into the reader's bias, or the mean of the BatchNorm behind it;
* a constant c, read by a zero-padded convolution: at the border the reader sees less of it, so that no bias can stand
  in. One dead channel k with a constant other than 0 stays as *carrier*, and the others' weights are added to its own,
  ``W[:, k] += (c_j / c_k) W[:, j]``: exact everywhere, at the price of one channel.
"""

from __future__ import annotations

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
        carrier: the input that carries them (padded convolutions), else ``None``: they go into the bias.
        carried: the carrier's own constant.
    """

    consumer: Consumer
    indices: Tensor
    constants: Tensor
    carrier: int | None = None
    carried: float = 0.0


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
    while search.keep_what_cannot_be_folded() or search.keep_carriers():
        pass  # a channel that stays may read constants that nobody read before
    return search.decision()


class _Search:
    """The state of one decision."""

    def __init__(self, graph: ChannelGraph, pinned: Tensor | None, *, fold: bool):
        self.graph = graph
        self.free = graph.free() if pinned is None else graph.free() & ~pinned
        self.inputs = {c.weight: graph.classes.parameters[c.weight][1] for c in graph.consumers}
        self.outputs = {c.weight: graph.classes.parameters[c.weight][0] for c in graph.consumers}
        self.constants = {weight: self._agreed(weight) for weight in self.inputs}
        self.padded = {w: any(c.padded for c in graph.consumers if c.weight == w) for w in self.inputs}
        self.foldable = {w: fold and self._can_fold(w) for w in self.inputs}
        self.removed = torch.zeros_like(self.free)
        self.kept: dict[int, str] = {}
        self.carriers: dict[str, int] = {}

    def _uses(self, weight: str) -> list[Consumer]:
        return [c for c in self.graph.consumers if c.weight == weight]

    def _agreed(self, weight: str) -> Tensor:
        """The constants that a layer's inputs have at all its uses; unknown where they differ."""
        first, *others = (c.constants for c in self._uses(weight))
        for other in others:
            first = torch.where(first == other, first, torch.nan)
        return first

    def _can_fold(self, weight: str) -> bool:
        """Whether a constant may move into what follows the layer: that must belong to this layer alone."""
        uses = self._uses(weight)
        if any(c.padded for c in uses):
            return True  # the carrier's weights belong to the layer itself
        if uses[0].shift is None or any(c.shift != uses[0].shift for c in uses):
            return False
        kind, name = uses[0].shift
        return len(uses) == (self.graph.uses[name] if kind == "bias" else 1)

    def _unread(self, weight: str) -> Tensor:
        """Bool ``[in]``: inputs whose weights to all remaining outputs are zero."""
        tensor = self.graph.tensors[weight]
        alive = tensor[~self.removed[self.outputs[weight]].to(tensor.device)]
        return ~(alive != 0).transpose(0, 1).flatten(1).any(1).cpu()

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
                visible = ~(self._harmless(weight) | self._unread(weight))
                seen[inputs[visible]] = True
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
            constant = torch.stack([~c.constants.isnan() for c in self._uses(weight)]).any(0)
            lost = self.removed[inputs] & constant & ~self._harmless(weight) & ~self._unread(weight)
            for cls in inputs[lost].tolist():
                self.keep(cls, f"a constant that cannot be folded into {self._uses(weight)[0].where}")
        return int(self.removed.sum()) < before

    def keep_carriers(self) -> bool:
        """For each padded reader of removed constants other than 0, find or keep one channel to carry them.

        Returns:
            Whether a channel was taken back.
        """
        before = int(self.removed.sum())
        for weight, inputs in self.inputs.items():
            fold = self._to_fold(weight)
            if not self.padded[weight] or weight in self.carriers or not bool(fold.any()):
                continue
            constants = self.constants[weight]
            present = ~self.removed[inputs] & ~constants.isnan() & (constants != 0)
            if bool(present.any()):
                self.carriers[weight] = int(torch.where(present, constants.abs(), 0.0).argmax())
                continue
            carrier = int(torch.where(fold, constants.abs(), 0.0).argmax())
            self.carriers[weight] = carrier
            where = self._uses(weight)[0].where
            self.keep(int(inputs[carrier]), f"constant {float(constants[carrier]):.3g}, carried for the padded {where}")
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
        return gone & ~constants.isnan() & (constants != 0) & ~self._unread(weight)

    def decision(self) -> Decision:
        """The folds that follow from what is removed now."""
        folds, done = [], set()
        for consumer in self.graph.consumers:
            indices = self._to_fold(consumer.weight).nonzero().flatten()
            if consumer.weight in done or not indices.numel():
                continue
            done.add(consumer.weight)
            constants, carrier = self.constants[consumer.weight], self.carriers.get(consumer.weight)
            if carrier is None:
                folds.append(Fold(consumer, indices, constants[indices]))
            else:
                folds.append(Fold(consumer, indices, constants[indices], carrier, float(constants[carrier])))
        return Decision(self.removed, tuple(folds), self.kept)


def dead_by_weight(graph: ChannelGraph) -> Tensor:
    """Bool ``[classes]``: classes whose filters are all zero, whatever may still hold them in the network."""
    touched, alive = (torch.zeros(graph.classes.count, dtype=torch.bool) for _ in range(2))
    for (name, dim), classes in graph.out_slices().items():
        tensor = graph.tensors[name]
        if tensor.ndim > 1:
            touched[classes] = True
            alive[classes[(tensor != 0).transpose(0, dim).flatten(1).any(1).cpu()]] = True
    return touched & ~alive
