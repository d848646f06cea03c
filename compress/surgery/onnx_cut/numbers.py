"""Numbers that a file computes from the shapes of its inputs: Reshapes and slices are told by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from compress.graph.onnx import OnnxNetwork
from compress.graph.onnx.statics import Array
from compress.surgery.bake import private_copy

Statics = Mapping[str, Mapping[int, Array]]


def numbers_at(
    network: OnnxNetwork, shapes: Sequence[tuple[int, ...]], like: Sequence[Tensor]
) -> tuple[Statics, Mapping[str, Array]]:
    """What ``File`` calls ``statics`` and ``computed``, for inputs of the given shapes; nothing else is computed.

    Raises:
        Exception: the file does not take inputs of these shapes.
    """
    empty = private_copy(network, parameter=_without_values).to("meta")
    with torch.no_grad():
        empty(*(torch.empty(shape, dtype=x.dtype, device="meta") for shape, x in zip(shapes, like, strict=True)))
    return network.file.statics, network.file.computed


def _without_values(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)


def moving_numbers(runs: Sequence[Statics]) -> dict[str, dict[int, Array]]:
    """Path -> position of an input -> bool, which of its numbers differ between runs at several sizes."""
    first, *others = runs
    found: dict[str, dict[int, Array]] = {}
    for path, inputs in first.items():
        for position, value in inputs.items():
            also = [run.get(path, {}).get(position) for run in others]
            moves = np.zeros(value.shape, dtype=bool)
            for other in also:
                moves |= np.array(True) if other is None or other.shape != value.shape else other != value
            found.setdefault(path, {})[position] = moves
    return found
