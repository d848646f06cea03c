"""What stays of one parameter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """What stays of one parameter.

    Attributes:
        shape: its shape before.
        indices: the kept indices of each dimension that was cut. In a grouped convolution dimension 1 holds the
            channels of one group; its indices count through all groups.
        groups: of the convolution, else 1.
    """

    shape: tuple[int, ...]
    indices: dict[int, list[int]]
    groups: int = 1

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"{self.groups} groups")
        for dim, indices in self.indices.items():
            size = self._size(dim) if 0 <= dim < len(self.shape) else 0
            if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= size:
                raise ValueError(
                    f"kept indices of dimension {dim} of shape {self.shape} must rise within that dimension"
                )
        counts = [[len(own) for own in self._by_group(dim)] for dim in self.indices if self.groups > 1]
        if any(len({*count} - {0}) != 1 for count in counts) or len({tuple(map(bool, c)) for c in counts}) > 1:
            raise ValueError(f"{self.groups} groups of shape {self.shape} must keep equally many channels: {counts}")

    @property
    def groups_left(self) -> int:
        """How many groups stay."""
        return sum(map(bool, self._by_group(0))) if self.groups > 1 else 1

    def cut(self, tensor: Tensor) -> Tensor:
        """The part of ``tensor`` that stays."""
        if self.groups > 1:
            pairs = zip(self._by_group(0), self._by_group(1), strict=True)
            return torch.cat([tensor[own][:, read] for own, read in pairs if own])
        for dim, indices in self.indices.items():
            tensor = tensor.index_select(dim, torch.tensor(indices, dtype=torch.int64, device=tensor.device))
        return tensor.contiguous()

    def _size(self, dim: int) -> int:
        """Entries along ``dim``, through all groups."""
        return self.shape[dim] * (self.groups if dim == 1 else 1)

    def _by_group(self, dim: int) -> list[list[int]]:
        """The kept indices along ``dim`` of each group, counted within the tensor."""
        width = self._size(dim) // self.groups
        own: list[list[int]] = [[] for _ in range(self.groups)]
        for index in self.indices.get(dim, range(self._size(dim))):
            own[index // width].append(index % width if dim == 1 else index)
        return own
