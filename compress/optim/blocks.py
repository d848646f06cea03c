"""Passes over all weights of the groups, in blocks that stay in the processor's cache.

What a proximal step computes from each weight is a dozen operations. On whole tensors each of them would fetch fresh
memory; on blocks with a few reused buffers the step costs little more than reading the weights.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.groups import Groups, GroupSlice, without_underflow
from compress.optim.metric import Step

BLOCK = 1 << 20
"""Weights of a block on the CPU: large enough that the calls cost nothing, small enough for a shared cache."""

BUFFERS = 2


@dataclass(frozen=True, eq=False)
class Block:
    """Some indices of a slice, with the step of its parameter.

    Attributes:
        part: the slice.
        step: of its parameter.
        rows: the indices along the slice's dimension: a range, or int64.
    """

    part: GroupSlice
    step: Step
    rows: range | Tensor

    def indices(self) -> Tensor:
        """``rows`` as int64."""
        if not isinstance(self.rows, range):
            return self.rows
        return torch.arange(self.rows.start, self.rows.stop, device=self.part.parameter.device)

    def cut(self, tensor: Tensor, dim: int | None = None) -> Tensor:
        """The block of a tensor that has the parameter's size along the slice's dimension; a view of a range."""
        dim = self.part.dim if dim is None else dim
        if isinstance(self.rows, range):
            return tensor.narrow(dim, self.rows.start, len(self.rows))
        return tensor.index_select(dim, self.rows)

    @property
    def weights(self) -> Tensor:
        """The parameter's own entries; a view of a range."""
        return self.cut(self.part.parameter.detach())

    @property
    def precise(self) -> Tensor:
        """The same, to compute with: in float32 where squares would vanish."""
        return without_underflow(self.weights)

    @property
    def shape(self) -> torch.Size:
        """Of ``weights``."""
        shape = list(self.part.parameter.shape)
        shape[self.part.dim] = len(self.rows)
        return torch.Size(shape)

    @property
    def groups(self) -> Tensor:
        """The group of each index: int64, of the shape of what ``GroupSlice.sums`` makes of the block."""
        return self.cut(self.part.index(), 0)


class Passes:
    """The groups, the steps of their parameters, and buffers.

    Args:
        groups: with slices.
        steps: of each slice's parameter, in the order of ``groups.slices``.
    """

    def __init__(self, groups: Groups, steps: list[Step]) -> None:
        self.groups = groups
        first = groups.slices[0].parameter
        self.dtype = torch.promote_types(first.dtype, torch.float32)
        self.blocks = [b for part, step in zip(groups.slices, steps, strict=True) for b in blocks(part, step)]
        largest = max(block.shape.numel() for block in self.blocks)
        self._buffers = torch.empty(BUFFERS, largest, dtype=self.dtype, device=first.device)

    def over(self, chosen: Tensor) -> Passes:
        """The same over the indices alone that belong to some of the groups ``chosen``, bool ``[count]``."""
        chosen = torch.cat((chosen, chosen.new_zeros(1)))
        some = copy.copy(self)
        some.blocks = []
        for block in self.blocks:
            wanted = chosen[block.groups].reshape(len(block.rows), -1).any(1)
            if bool(wanted.all()):
                some.blocks.append(block)
            elif bool(wanted.any()):
                some.blocks.append(dataclasses.replace(block, rows=block.indices()[wanted]))
        return some

    def buffer(self, block: Block, number: int) -> Tensor:
        """Memory in the block's shape, to be written to; the same for each block."""
        shape = block.shape
        return self._buffers[number, : shape.numel()].view(shape)

    def denominator(self, block: Block, number: int) -> Tensor:
        """What the rate is divided by to give ``eta``, written to a buffer."""
        return block.step.denominator(block.cut, self.buffer(block, number))

    def rows(self, block: Block, values: Tensor) -> Tensor:
        """Sum values of the block's shape over each of its indices."""
        return block.part.sums(values, self.dtype)

    def sums(self, count: int, values: Callable[[Block], Iterator[Tensor]]) -> Tensor:
        """Sum ``count`` quantities by group in one pass: ``[count, groups]``.

        Args:
            count: how many tensors ``values`` yields for a block.
            values: yields ``rows`` of what is to be summed, in the block's buffers; each is taken before the next is
                asked for, so that all may lie in one buffer.
        """
        total = torch.zeros(count, self.groups.count + 1, dtype=self.dtype, device=self._buffers.device)
        for block in self.blocks:
            rows = torch.empty(count, *block.groups.shape, dtype=self.dtype, device=total.device)
            for row, value in zip(rows, values(block), strict=True):
                row.copy_(value)
            total.index_add_(1, block.groups.flatten(), rows.flatten(1))
        return total[:, :-1]


def blocks(part: GroupSlice, step: Step) -> Iterator[Block]:
    """The blocks of one slice."""
    size, weights = part.parameter.shape[part.dim], part.parameter.numel()
    whole = part.parameter.device.type != "cpu"
    length = size if whole else max(1, BLOCK * size // max(weights, 1))
    for start in range(0, size, length):
        yield Block(part, step, range(start, min(start + length, size)))
