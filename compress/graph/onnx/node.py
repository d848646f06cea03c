"""An operation of an ONNX file, and what the lines of the op table are made of.

An operation of which something has no counterpart raises ``Unhandled``, and is opaque then: its channels stay, under
its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from compress.graph.onnx.statics import Array

Value = Any
"""A tensor; an array, for what is known without the network's inputs; ``None`` for an input that is left out."""


class Unhandled(Exception):  # noqa: N818 - a message to the caller, who makes the operation opaque
    """Why this use of an operation has no counterpart in torch."""


@dataclass(frozen=True)
class Node:
    """An operation of the file.

    Attributes:
        op: its type; ``name`` its name in the file, or one made of its type and position.
        given: its attributes.
        opset: of the model.
        outputs: how many of its results are read.
        declared: how many results it has in the file, read or not.
    """

    op: str
    name: str
    given: Mapping[str, Any]
    opset: int
    outputs: int
    declared: int

    def get(self, name: str, default: Any) -> Any:
        """An attribute, or its default."""
        return self.given.get(name, default)


Run = Callable[..., Any]


@dataclass(frozen=True)
class Op:
    """One line of the table.

    Attributes:
        run: computes the results from the node and its inputs, those that are left out at the end as ``None``.
        static: positions of inputs that are numbers, and must be known without the network's inputs.
    """

    run: Run
    static: frozenset[int] = frozenset()


def numbers(*positions: int) -> frozenset[int]:
    """Positions of static inputs."""
    return frozenset(positions)


def known(value: Value) -> list[int]:
    """Whole numbers of a static input."""
    return [int(number) for number in np.asarray(value).reshape(-1)]


def tensors(*values: Value) -> tuple[Tensor, ...]:
    """Operands of which at least one is a tensor; numbers stand for arrays of one entry."""
    first = next((v for v in values if isinstance(v, Tensor)), None)
    return tuple(v if isinstance(v, Tensor) else made(v, first) for v in values)


def made(value: Array, like: Tensor | None = None) -> Tensor:
    """A tensor of an array that was computed from shapes: a number everywhere, or entry by entry."""
    if value.dtype == object or value.dtype.kind in "USV":
        raise Unhandled("text")
    target, device = torch.from_numpy(np.zeros(1, value.dtype)).dtype, None if like is None else like.device
    if like is not None and like.is_floating_point() and target.is_floating_point:
        target = like.dtype
    if value.size and bool((value == value.flat[0]).all()):
        return torch.full(tuple(value.shape), value.flat[0].item(), dtype=target, device=device)
    return torch.tensor(value.tolist(), dtype=target, device=device)


DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}


def torch_dtype(elem_type: int) -> torch.dtype:
    """Torch's type of ONNX's number for it."""
    found = DTYPES.get(elem_type)
    if found is None:
        raise Unhandled(f"the type {onnx.TensorProto.DataType.Name(elem_type)}")
    return found
