"""What moved where: found by executing operations on addresses instead of values."""

from __future__ import annotations

import torch
from torch import Tensor


def find_rows(source: Tensor, wanted: Tensor) -> tuple[int, Tensor] | None:
    """How ``wanted`` follows from ``source`` by picking positions along one dimension, and a reshape.

    Args:
        source: int64, every address once.
        wanted: int64, any shape.

    Returns:
        The dimension and the positions along it, so that ``source.index_select(dim, positions)`` holds ``wanted`` in
        row-major order; ``None`` where no dimension will do.
    """
    if not source.numel() or not wanted.numel():
        return None
    for dim, size in enumerate(source.shape):
        others = source.numel() // size
        if wanted.numel() % others:
            continue
        rows = wanted.reshape([wanted.numel() // others if d == dim else s for d, s in enumerate(source.shape)])
        positions = _positions(_first_line(source, dim), _first_line(rows, dim))
        if torch.equal(source.index_select(dim, positions), rows):
            return dim, positions
    return None


def as_slice(positions: Tensor) -> tuple[int, int, int] | None:
    """Start, stop and step of positions that rise evenly; ``None`` for others."""
    steps = positions.diff()
    step = int(steps[0]) if steps.numel() else 1
    if step < 1 or bool((steps != step).any()):
        return None
    return int(positions[0]), int(positions[-1]) + 1, step


def _first_line(tensor: Tensor, dim: int) -> Tensor:
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)[:, 0].contiguous()


def _positions(line: Tensor, wanted: Tensor) -> Tensor:
    """Where each wanted address stands in ``line``; anywhere for those that are not there."""
    ordered, order = line.sort()
    return order[torch.searchsorted(ordered, wanted).clamp_max(line.numel() - 1)]
