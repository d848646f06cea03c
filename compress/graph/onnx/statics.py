"""What an ONNX graph computes without its inputs: constants, and arithmetic on shapes.

Reshapes and slices are told by tensors, which exporters compute from shapes node by node. Once the sizes of the inputs
are given these are numbers; they are computed by onnx's own reference, so that no rule is written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compress.errors import ModelError
from compress.graph.onnx.files import DEFAULT_DOMAINS, opset_of

Array = NDArray[Any]

SHAPES = frozenset(("Shape", "Size"))
"""Operations that read nothing of a tensor but its shape."""


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Name -> value: numbers, lists, bytes as text, tensors as arrays."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def has_subgraph(node: onnx.NodeProto) -> bool:
    """Whether it is an If, a Loop or a Scan."""
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)


class Evaluator:
    """Runs single nodes on arrays.

    Args:
        opset: of the default domain.
    """

    def __init__(self, opset: int):
        self.opset = opset
        self._known: dict[bytes, ReferenceEvaluator] = {}

    def run(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> list[Array]:
        """The results of a node.

        Raises:
            ModelError: onnx has no reference for it.
        """
        key = node.SerializeToString()
        try:
            if key not in self._known:
                self._known[key] = ReferenceEvaluator(self._model(node))
            values = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
            return [np.asarray(value) for value in self._known[key].run(None, values)]
        except Exception as error:  # a missing kernel, or inputs that do not fit
            raise ModelError(f"{node.op_type} {node.name}: can't be computed: {error}") from error

    def _model(self, node: onnx.NodeProto) -> onnx.ModelProto:
        names = [name for name in dict.fromkeys(node.input) if name]
        return onnx.ModelProto(
            ir_version=onnx.IR_VERSION,
            opset_import=[helper.make_opsetid("", self.opset)],
            graph=onnx.GraphProto(
                name="node",
                node=[node],
                input=[onnx.ValueInfoProto(name=name) for name in names],
                output=[onnx.ValueInfoProto(name=name) for name in node.output if name],
            ),
        )


def shape_value(node: onnx.NodeProto, shape: Sequence[int]) -> Array:
    """The result of ``Shape`` or ``Size``."""
    if node.op_type == "Size":
        return np.array(int(np.prod(shape, dtype=np.int64)), dtype=np.int64)
    given = attributes(node)
    return np.array(list(shape)[given.get("start", 0) : given.get("end")], dtype=np.int64)


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which ``Constant`` nodes are initializers, and so is what is computed from initializers alone.

    Transposed and reshaped weights are weights then. What would become larger, and weights that are stored as
    small integers, stay as they are.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    evaluator = Evaluator(opset_of(model))
    left = []
    for node in graph.node:
        made = _folded(node, known, evaluator)
        if made is None:
            left.append(node)
        for name, value in zip(node.output, made or (), strict=False):
            if name:
                known[name] = numpy_helper.from_array(value, name)
                graph.initializer.append(known[name])
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in left]
    del graph.node[:]
    graph.node.extend(kept)
    return folded


STORED_SMALL = frozenset(("DequantizeLinear", "QuantizeLinear"))
RANDOM = frozenset(
    ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
)


def _folded(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto], evaluator: Evaluator) -> list[Array] | None:
    if node.domain not in DEFAULT_DOMAINS or has_subgraph(node) or node.op_type in STORED_SMALL | RANDOM:
        return None
    if not all(name in known or not name for name in node.input):
        return None
    if node.op_type == "Constant" and any(
        a.name in ("value_string", "value_strings", "sparse_value") for a in node.attribute
    ):
        return None
    inputs = [numpy_helper.to_array(known[name]) if name else None for name in node.input]
    try:
        made = evaluator.run(node, inputs)
    except ModelError:
        return None
    size = sum(array.nbytes for array in made)
    read = sum(array.nbytes for array in inputs if array is not None)
    return made if node.op_type == "Constant" or size <= max(read, 1024) else None
