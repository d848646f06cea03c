"""Which entries of a tensor stay: what a cut graph holds in place of each activation.

Almost always these are a product set: some indices of each dimension. A shuffle of unevenly cut channels passes through
tensors of which they are not, ``[N, 2, C/2, H, W]`` with other channels in each half, say. There adjacent dimensions
are taken as one: ``[N, kept, H, W]``, in the order of the original.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

ABSENT = -2
"""The address of an entry that was removed."""

KEPT, FREE, REMOVED = 1, 0, -1
"""What a label says of an entry; neutral ones are free: they go where the channels around them go."""


@dataclass(frozen=True, eq=False)
class Group:
    """Dimensions ``start`` to ``stop`` (exclusive) as one.

    Attributes:
        start: the first dimension; ``stop`` the one behind the last.
        kept: int64, the positions that stay, rising; ``None`` for all.
    """

    start: int
    stop: int
    kept: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Layout:
    """The entries of a tensor of ``shape`` that stay: all that every group keeps."""

    shape: tuple[int, ...]
    groups: tuple[Group, ...]

    @classmethod
    def along(cls, shape: Sequence[int], kept: Mapping[int, Tensor | None]) -> Layout:
        """A product set: the positions that stay of each dimension, all of those that are not named."""
        rows = {d: None if k is None or k.numel() == shape[d] else k for d, k in kept.items()}
        return cls(tuple(shape), tuple(Group(d, d + 1, rows.get(d)) for d in range(len(shape))))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Layout:
        """Everything stays."""
        return cls.along(shape, {})

    @classmethod
    def of(cls, state: Tensor, shape: Sequence[int]) -> Layout | None:
        """The finest layout that keeps what must stay and nothing that must go.

        Args:
            state: ``KEPT``, ``FREE`` or ``REMOVED`` for each entry; of size 1 along dimensions without differences.
            shape: the full shape.

        Returns:
            The layout; ``None`` where nothing stays.
        """
        if not bool((state == REMOVED).any()):
            return cls.whole(shape)
        if bool((state == REMOVED).all()):
            return None
        for partition in _partitions(state):
            groups = [_solve(state, shape, *span) for span in partition]
            inside = torch.ones([1] * len(shape), dtype=torch.bool)
            for group in groups:
                if group.kept is not None:
                    inside = inside & _mask(group, shape)
            if not bool((inside & (state == REMOVED)).any()):
                return (
                    None
                    if any(g.kept is not None and not g.kept.numel() for g in groups)
                    else cls(tuple(shape), tuple(groups))
                )
        raise AssertionError("as one group, any set of entries is a product set")

    @property
    def is_plain(self) -> bool:
        """Whether each dimension stands for itself."""
        return len(self.groups) == len(self.shape)

    @property
    def is_whole(self) -> bool:
        """Whether every entry stays."""
        return all(group.kept is None for group in self.groups)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of what stays."""
        return tuple(math.prod(self.shape[g.start : g.stop]) if g.kept is None else g.kept.numel() for g in self.groups)

    def kept(self, dim: int) -> Tensor | None:
        """The positions that stay along a dimension of a plain layout; ``None`` for all."""
        assert self.is_plain
        return self.groups[dim].kept

    def pick(self, full: Tensor) -> Tensor:
        """What stays of a tensor of the full shape."""
        for position, group in enumerate(self.groups):
            full = full.flatten(position, position + group.stop - group.start - 1) if full.ndim else full
            if group.kept is not None:
                full = full.index_select(position, group.kept)
        return full

    def addresses(self, start: int = 0) -> Tensor:
        """An own address for every entry that stays, int64 of the shape ``sizes``."""
        return torch.arange(start, start + math.prod(self.sizes)).reshape(self.sizes)

    def spread(self, addresses: Tensor) -> Tensor:
        """The addresses at their places in the full shape; ``ABSENT`` elsewhere."""
        for position, group in reversed(list(enumerate(self.groups))):
            span = self.shape[group.start : group.stop]
            if group.kept is not None:
                sizes = [*addresses.shape]
                sizes[position] = math.prod(span)
                addresses = torch.full(sizes, ABSENT).index_copy_(position, group.kept, addresses)
            addresses = addresses.reshape([*addresses.shape[:position], *span, *addresses.shape[position + 1 :]])
        return addresses

    def thinned(self, dims: frozenset[int]) -> Layout:
        """The layout of one position along each of ``dims``, of a plain layout that keeps all of them."""
        shape = [1 if d in dims else size for d, size in enumerate(self.shape)]
        return Layout(tuple(shape), self.groups)

    def equals(self, other: Layout) -> bool:
        """Whether both keep the same entries in the same form."""
        return (
            self.shape == other.shape
            and len(self.groups) == len(other.groups)
            and all(
                (a.start, a.stop) == (b.start, b.stop) and same(a.kept, b.kept)
                for a, b in zip(self.groups, other.groups, strict=True)
            )
        )


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two lists of positions, or two absences of a list, are equal."""
    return a is b if a is None or b is None else torch.equal(a, b)


def told(layouts: Layout | tuple[Layout | None, ...] | None) -> str:
    """For the report: 22 of 58 and 33 of 58 channels stay."""
    parts = []
    for layout in layouts if isinstance(layouts, tuple) else (layouts,):
        counts = [
            f"{group.kept.numel()} of {math.prod(layout.shape[group.start : group.stop])}"
            for group in (layout.groups if layout else ())
            if layout and group.kept is not None
        ]
        parts.append(" x ".join(counts) if counts else "all" if layout else "none")
    return f"{' and '.join(parts)} channels stay"


def kept_where(keep: Tensor) -> Tensor | None:
    """The positions where ``keep`` holds; ``None`` for all."""
    return None if bool(keep.all()) else keep.nonzero().flatten()


def kept_mask(kept: Tensor | None, size: int) -> Tensor:
    """Bool ``[size]``: true at the positions that stay."""
    mask = torch.full((size,), kept is None)
    if kept is not None:
        mask[kept] = True
    return mask


def _partitions(state: Tensor) -> Iterator[list[tuple[int, int]]]:
    """Every way to join adjacent dimensions between the first and the last that vary; the finest first."""
    varying = [d for d, size in enumerate(state.shape) if size > 1]
    borders = range(varying[0] + 1, varying[-1] + 1)
    for joined in sorted(product((False, True), repeat=len(borders)), key=sum):
        inner = [border for border, join in zip(borders, joined, strict=True) if join]
        starts = [d for d in range(state.ndim) if d not in inner]
        yield list(zip(starts, [*starts[1:], state.ndim], strict=True))


def _solve(state: Tensor, shape: Sequence[int], start: int, stop: int) -> Group:
    """What stays along one group: positions with something that must stay, or with nothing that must go."""
    if all(state.shape[d] == 1 for d in range(start, stop)):
        return Group(start, stop)
    if stop - start > 1:
        state = state.expand([size if start <= d < stop else state.shape[d] for d, size in enumerate(shape)])
    lines = state.movedim(list(range(start, stop)), list(range(stop - start))).flatten(0, stop - start - 1)
    lines = lines.reshape(lines.shape[0], -1)
    return Group(start, stop, kept_where((lines == KEPT).any(1) | ~(lines == REMOVED).any(1)))


def _mask(group: Group, shape: Sequence[int]) -> Tensor:
    """Bool, true where the group keeps the entry; of size 1 along all other dimensions."""
    mask = kept_mask(group.kept, math.prod(shape[group.start : group.stop]))
    return mask.reshape([size if group.start <= d < group.stop else 1 for d, size in enumerate(shape)])
