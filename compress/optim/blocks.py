"""Passes over all weights of the groups, in blocks that stay in the processor's cache.

What a proximal step computes from each weight is a dozen operations. On whole tensors each of them would fetch fresh
memory; on blocks with a few reused buffers the step costs little more than reading the weights.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.groups import Groups, GroupSlice, at_least_single
from compress.optim.metric import Step

BLOCK = 1 << 20
"""Weights of a block on the CPU: large enough that the calls cost nothing, small enough for a shared cache."""

BUFFERS = 2


@dataclass(frozen=True, eq=False)
class Block:
    """Some indices of a slice.

    Attributes:
        number: which of the groups' slices.
        part: the slice.
        rows: the indices along the slice's dimension: a range, or int64.
        memory: ``[BUFFERS, n]``, shared, for at least as many weights.
    """

    number: int
    part: GroupSlice
    rows: range | Tensor
    memory: Tensor

    def cut(self, tensor: Tensor, dim: int | None = None) -> Tensor:
        """The block of a tensor that has the parameter's size along the slice's dimension; a view of a range."""
        dim = self.part.dim if dim is None else dim
        if not isinstance(self.rows, range):
            return tensor.index_select(dim, self.rows)
        return tensor if len(self.rows) == tensor.shape[dim] else tensor.narrow(dim, self.rows.start, len(self.rows))

    def chosen(self, rows: Tensor) -> Block:
        """The block of some of its rows, int64 that counts them from 0."""
        rows = rows + self.rows.start if isinstance(self.rows, range) else self.rows[rows]
        return dataclasses.replace(self, rows=rows)

    @property
    def weights(self) -> Tensor:
        """The parameter's own entries; a view of a range."""
        return self.cut(self.part.parameter.detach())

    @property
    def precise(self) -> Tensor:
        """The same, to compute with: in float32 or better."""
        return at_least_single(self.weights)

    @functools.cached_property
    def groups(self) -> Tensor:
        """The group of each index: int64, of the shape of what ``GroupSlice.sums`` makes of the block."""
        return self.cut(self.part.index(), 0)

    @functools.cached_property
    def shape(self) -> torch.Size:
        """Of ``weights``."""
        shape = list(self.part.parameter.shape)
        shape[self.part.dim] = len(self.rows)
        return torch.Size(shape)

    @functools.cached_property
    def broadcast_shape(self) -> torch.Size:
        """Of one value for each index, to broadcast against ``weights``."""
        return torch.Size(size if d in self.part.dims else 1 for d, size in enumerate(self.shape))

    @functools.cached_property
    def buffers(self) -> tuple[Tensor, ...]:
        """Memory in the block's shape, to be written to; the same for each block."""
        return tuple(row[: self.shape.numel()].view(self.shape) for row in self.memory)


class Layout:
    """All weights of some groups, in blocks.

    What has one value for each index of each block, one after the other, is "by index".

    Args:
        groups: with slices.

    Attributes:
        groups: the groups.
        dtype: of what is computed: float32 or better.
        blocks: all weights of the groups, or those that ``over`` chose.
        index: the group of each index, ``groups.count`` for none: int64, by index.
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        first = groups.slices[0].parameter
        self.dtype = torch.promote_types(first.dtype, torch.float32)
        ranges = [(n, part, rows) for n, part in enumerate(groups.slices) for rows in _ranges(part)]
        sizes = [len(rows) * part.parameter.numel() // part.parameter.shape[part.dim] for _, part, rows in ranges]
        memory = torch.empty(BUFFERS, max(sizes), dtype=self.dtype, device=first.device)
        self._lay_out([Block(number, part, rows, memory) for number, part, rows in ranges])
        self.denominators: dict[Block, Tensor] = {}
        """Room for the denominators of all blocks, where they are so few that a step can keep them."""
        if sum(sizes) <= BLOCK:
            room = torch.empty(sum(sizes), dtype=self.dtype, device=first.device)
            self.denominators = {
                b: own.view(b.shape) for b, own in zip(self.blocks, torch.split(room, sizes), strict=True)
            }

    def _lay_out(self, laid: list[Block]) -> None:
        self.blocks = laid
        self.index = torch.cat([block.groups.flatten() for block in laid])
        self.sizes = [block.groups.numel() for block in laid]
        ends = [0, *itertools.accumulate(self.sizes)]
        self.places = {block: slice(*ends[i : i + 2]) for i, block in enumerate(laid)}

    def fits(self, groups: Groups) -> bool:
        """Whether it may be used again: the groups are those that were laid out, on their device and in their dtype."""
        now, then = groups.slices[0].parameter, self.index
        dtype = torch.promote_types(now.dtype, torch.float32)
        return groups is self.groups and (now.device, dtype) == (then.device, self.dtype)

    def over(self, chosen: Tensor) -> Layout:
        """The same over the indices alone that belong to some of the groups ``chosen``, bool ``[count]``."""
        wanted = torch.cat((chosen, chosen.new_zeros(1)))[self.index]
        kept = []
        some = copy.copy(self)
        some.denominators = dict(self.denominators)
        for block, own in zip(self.blocks, torch.split(wanted, self.sizes), strict=True):
            rows = own.view(len(block.rows), -1).any(1).nonzero().flatten()
            if len(rows) == len(block.rows):
                kept.append(block)
            elif len(rows):
                kept.append(block.chosen(rows))
                if block in self.denominators:
                    some.denominators[kept[-1]] = torch.empty(kept[-1].shape, dtype=self.dtype, device=rows.device)
        some._lay_out(kept)
        return some


class Passes:
    """Passes over a layout, with the steps of its parameters.

    Args:
        layout: the blocks.
        steps: of each slice's parameter, in the order of ``groups.slices``.

    Attributes:
        rates: ``Step.rate``, by index.
    """

    def __init__(self, layout: Layout, steps: list[Step]) -> None:
        self.layout = layout
        self._steps = steps
        rates = torch.tensor([self.step(block).rate for block in layout.blocks], dtype=layout.dtype)
        self.rates = rates.repeat_interleave(torch.tensor(layout.sizes)).to(layout.index.device)
        self._known: set[Block] = set()

    @property
    def groups(self) -> Groups:
        """The groups."""
        return self.layout.groups

    def step(self, block: Block) -> Step:
        """The step of a block's parameter."""
        return self._steps[block.number]

    def over(self, chosen: Tensor) -> Passes:
        """The same over the indices alone that belong to some of the groups ``chosen``, bool ``[count]``."""
        some = Passes(self.layout.over(chosen), self._steps)
        some._known = set(self._known)
        return some

    def denominator(self, block: Block) -> Tensor:
        """What the rate is divided by to give ``eta``: not to be written to; it may lie in buffer 0."""
        if block in self._known:
            return self.layout.denominators[block]
        if block in self.layout.denominators:
            self._known.add(block)
        return self.step(block).denominator(block.cut, self.layout.denominators.get(block, block.buffers[0]))

    def at(self, block: Block, by_index: Tensor) -> Tensor:
        """A block's part of what is there by index, to broadcast against its weights."""
        return by_index[self.layout.places[block]].view(block.broadcast_shape)

    def spread(self, by_group: Tensor, *, outside: float) -> Tensor:
        """Values ``[count]`` by group, laid out by index; ``outside`` for what is in no group."""
        return torch.cat((by_group, by_group.new_full((1,), outside)))[self.layout.index]

    def by_index(self, count: int, values: Callable[[Block], Iterator[Tensor]]) -> Tensor:
        """Sum ``count`` quantities over the weights of each index in one pass: ``[count, indices]``.

        Args:
            count: how many tensors ``values`` yields for a block.
            values: yields what is to be summed, in the block's shape and buffers; each is summed before the next is
                asked for, so that all may lie in one buffer.
        """
        layout = self.layout
        found = torch.empty(count, len(layout.index), dtype=layout.dtype, device=layout.index.device)
        for block, rows in zip(layout.blocks, torch.split(found, layout.sizes, 1), strict=True):
            own = rows.view(count, *block.groups.shape)
            for row, value in zip(own, values(block), strict=True):
                block.part.sums(value, layout.dtype, out=row)
        return found

    def by_group(self, by_index: Tensor) -> Tensor:
        """Sum ``[n, indices]`` over the indices of each group: ``[n, count]``."""
        total = by_index.new_zeros(len(by_index), self.groups.count + 1)
        return total.index_add_(1, self.layout.index, by_index)[:, :-1]

    def sums(self, count: int, values: Callable[[Block], Iterator[Tensor]]) -> Tensor:
        """Sum ``count`` quantities over each group in one pass: ``[count, groups]``; see ``by_index``."""
        return self.by_group(self.by_index(count, values))


def _ranges(part: GroupSlice) -> Iterator[range]:
    """The indices of one slice, a block's at a time."""
    size, weights = part.parameter.shape[part.dim], part.parameter.numel()
    whole = part.parameter.device.type != "cpu"
    length = size if whole else max(1, BLOCK * size // max(weights, 1))
    for start in range(0, size, length):
        yield range(start, min(start + length, size))
