"""Passes over all weights of the groups, in blocks that stay in the processor's cache.

What a proximal step computes from each weight is a dozen operations. On whole tensors each of them would fetch fresh
memory; on blocks with a few reused buffers the step costs little more than reading the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.groups import Groups, GroupSlice, without_underflow
from compress.optim.metric import Step

BLOCK = 1 << 20
"""Weights of a block on the CPU: large enough that the calls cost nothing, small enough for a shared cache."""

BUFFERS = 3


@dataclass(frozen=True)
class Block:
    """Some indices of a slice, with the step of its parameter.

    Attributes:
        part: the slice.
        step: of its parameter.
        start: the first index along the slice's dimension; ``length`` of them.
    """

    part: GroupSlice
    step: Step
    start: int
    length: int

    def cut(self, tensor: Tensor) -> Tensor:
        """The block of a tensor that has the parameter's size along the slice's dimension; a view."""
        return tensor.narrow(self.part.dim, self.start, self.length)

    @property
    def weights(self) -> Tensor:
        """The parameter's own entries; a view."""
        return self.cut(self.part.parameter.detach())

    @property
    def precise(self) -> Tensor:
        """The same, to compute with: in float32 where squares would vanish."""
        return without_underflow(self.weights)


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
        self._by_part = [(part, list(blocks(part, step))) for part, step in zip(groups.slices, steps, strict=True)]
        largest = max(block.weights.numel() for _, some in self._by_part for block in some)
        self._buffers = torch.empty(BUFFERS, largest, dtype=self.dtype, device=first.device)

    def buffer(self, block: Block, number: int) -> Tensor:
        """Memory in the block's shape, to be written to; the same for each block."""
        shape = block.weights.shape
        return self._buffers[number, : shape.numel()].view(shape)

    def denominator(self, block: Block, number: int) -> Tensor:
        """What the rate is divided by to give ``eta``, written to a buffer."""
        return block.step.denominator(block.cut, self.buffer(block, number))

    def sums(self, count: int, values: Callable[[Block], Iterator[Tensor]]) -> Tensor:
        """Sum ``count`` quantities by group in one pass: ``[count, groups]``.

        Args:
            count: how many tensors ``values`` yields for a block.
            values: yields tensors of the block's shape; each is summed before the next is asked for, so that all may
                lie in one buffer.
        """
        total = torch.zeros(count, self.groups.count + 1, dtype=self.dtype, device=self._buffers.device)
        for part, some in self._by_part:
            rows = torch.empty(count, *part.groups.shape, dtype=self.dtype, device=total.device)
            for block in some:
                for row, value in zip(rows, values(block), strict=True):
                    row.narrow(0, block.start, block.length).copy_(part.sums(value, self.dtype))
            total.index_add_(1, part.index().flatten(), rows.flatten(1))
        return total[:, :-1]

    def each(self) -> Iterator[Block]:
        """Every block."""
        for _, some in self._by_part:
            yield from some


def blocks(part: GroupSlice, step: Step) -> Iterator[Block]:
    """The blocks of one slice."""
    size, weights = part.parameter.shape[part.dim], part.parameter.numel()
    whole = part.parameter.device.type != "cpu"
    length = size if whole else max(1, BLOCK * size // max(weights, 1))
    for start in range(0, size, length):
        yield Block(part, step, start, min(length, size - start))
