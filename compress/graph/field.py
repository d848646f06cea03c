"""A tensor that stores only what varies.

Labels and constants of an activation are the same along its batch and its height and width almost everywhere. A
``Field`` keeps one entry along every such dimension beside the full shape, so that the labels of a whole ResNet-152
take megabytes, not gigabytes. Arithmetic runs on the stored form; ops that move data run on the full one, which is
a view with stride 0, and what still varies is detected afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Field:
    """``data`` with size 1 along every uniform dimension of ``shape``.

    Attributes:
        data: int64 labels or float64 values, as many dimensions as ``shape``, each of size 1 or of the full size.
        shape: the shape of the activation it describes.
    """

    data: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, full: Tensor) -> Field:
        """Store a full tensor, keeping one entry along each dimension in which nothing varies."""
        shape, data = tuple(full.shape), full
        for dim, size in enumerate(shape):
            if size > 1:
                first = data.narrow(dim, 0, 1)
                if data.stride(dim) == 0 or (
                    _same(first, data.narrow(dim, 1, 1)) and _same(first.expand_as(data), data)
                ):
                    data = first
        return cls(data.contiguous(), shape)

    @classmethod
    def uniform(cls, value: float | int, shape: Sequence[int], dtype: torch.dtype) -> Field:
        """The same entry everywhere."""
        return cls(torch.full([1] * len(shape), value, dtype=dtype), tuple(shape))

    @classmethod
    def along(cls, vector: Tensor, dim: int, shape: Sequence[int]) -> Field:
        """``vector`` along dimension ``dim`` of ``shape``, uniform along the others."""
        sizes = [1] * len(shape)
        sizes[dim] = shape[dim]
        return cls(vector.reshape(sizes), tuple(shape))

    def full(self) -> Tensor:
        """The full tensor, as a view that takes no memory along uniform dimensions."""
        return self.data.expand(self.shape)

    def varies(self, dim: int) -> bool:
        """Whether entries differ along ``dim``."""
        return self.data.shape[dim] > 1

    def vector(self, dim: int) -> Tensor:
        """The entries along ``dim`` (the first ones along every other dimension), shape ``[shape[dim]]``."""
        data = self.data
        dim %= len(self.shape)
        for d in range(len(self.shape)):
            if d != dim:
                data = data.narrow(d, 0, 1)
        return data.reshape(-1).expand(self.shape[dim])


def _same(a: Tensor, b: Tensor) -> bool:
    """By bit patterns, so that NaN equals NaN."""
    return torch.equal(a.view(torch.int64), b.view(torch.int64))
