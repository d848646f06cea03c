"""What several passes need of onnx_ir."""

from typing import Any

import numpy.typing as npt
import onnx_ir


def add_initializer(graph: onnx_ir.Graph, name: str, array: npt.NDArray[Any]) -> onnx_ir.Value:
    """A new constant of the graph, under `name` or one like it that is free."""
    free = free_name(graph, name)
    tensor = onnx_ir.tensor(array, name=free)
    value = onnx_ir.Value(name=free, const_value=tensor)
    value.type, value.shape = onnx_ir.TensorType(tensor.dtype), onnx_ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def free_name(graph: onnx_ir.Graph, name: str) -> str:
    """``name``, or one like it that no value of the graph has."""
    taken = {*graph.initializers, *(value.name for value in graph.inputs)}
    taken |= {value.name for node in graph for value in node.outputs}
    free, number = name, 0
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def constant(value: onnx_ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of an initializer or a Constant node; None of anything else."""
    tensor = None if value is None else onnx_ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
