"""Weights alone in int8: a quarter of the bytes, computed in float32.

Each weight becomes int8, symmetric, with one scale for each output channel, ``scale = max |w| / 127``, and a
DequantizeLinear gives the layer its floats back. Nothing has to be calibrated. It is no faster: every inference turns
the integers into floats first.
"""

import math

import numpy as np
import onnx
import onnx_ir

from export.errors import ExportError
from export.passes.initializers import add_initializer, constant, free_name
from export.proof import INT8_WEIGHTS, Graph
from export.quantise.int8 import FIRST_OPSET

LARGEST = 127
"""Of int8, and its negative: symmetric."""

WORTH_IT = 256
"""Values from which a weight is stored so: below, scales and node take as much as is saved."""


def to_int8_weights(graph: Graph) -> Graph:
    """The graph with the weights of convolutions and linear layers in int8.

    Raises:
        ExportError: The opset is too old, or there is no such weight.
    """
    if not graph.lossless:
        raise ExportError(f"int8 weights start from float32, this graph is {graph.precision}")
    if graph.opset < FIRST_OPSET:
        raise ExportError(
            f"int8 weights need opset {FIRST_OPSET} or later, this graph has {graph.opset}; convert it with --opset 18"
        )
    model = onnx_ir.from_proto(graph.model)
    axes = _weights(model.graph)
    if not axes:
        raise ExportError(f"int8 weights: the graph has no layer with {WORTH_IT} weights or more")
    for weight, axis in axes.items():
        _store(model.graph, weight, axis)
    made: onnx.ModelProto = onnx_ir.to_proto(model)
    return graph.then(INT8_WEIGHTS, made, tolerance=math.inf, precision=INT8_WEIGHTS)


def _weights(graph: onnx_ir.Graph) -> dict[onnx_ir.Value, int]:
    """Each float32 weight of a layer, and its dimension of output channels."""
    found: dict[onnx_ir.Value, int] = {}
    for node in graph:
        if node.op_type not in AXES or node.domain != "":
            continue
        weight = node.inputs[1]
        if weight is None or not weight.is_initializer() or weight.is_graph_input():
            continue
        array = constant(weight)
        if array is not None and array.dtype == np.float32 and array.ndim > 1 and array.size >= WORTH_IT:
            found[weight] = 0 if node.attributes.get_int("transB", 0) else AXES[node.op_type] % array.ndim
    return found


AXES = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}
"""Op -> the dimension of its weight that counts output channels."""


def _store(graph: onnx_ir.Graph, weight: onnx_ir.Value, axis: int) -> None:
    array = constant(weight)
    assert array is not None
    others = tuple(d for d in range(array.ndim) if d != axis)
    largest = np.abs(array).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    integers = np.clip(np.rint(array / scale), -LARGEST, LARGEST).astype(np.int8)
    inputs = [
        add_initializer(graph, f"{weight.name}_int8", integers),
        add_initializer(graph, f"{weight.name}_scale", scale.ravel()),
    ]
    node = onnx_ir.node("DequantizeLinear", inputs, attributes={"axis": axis})
    node.outputs[0].name = free_name(graph, f"{weight.name}_float")
    graph.insert_before(graph[0], node)
    onnx_ir.convenience.replace_all_uses_with(weight, node.outputs[0])
    del graph.initializers[str(weight.name)]
