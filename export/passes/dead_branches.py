"""Branches that give the same for every input: all-zero weights, and gates that are zero.

A value that is constant over batch, height and width is kept as the small array that broadcasts to it: [1, C, 1, 1] of
a convolution whose weights are zero, which is its bias at every place, at the borders too. That array goes through what
works element by element, and stands in for the branch where an Add, Sub, Mul or Div joins it to what does depend on
the input. A branch whose constant is 0 and is added leaves nothing behind. What reads a constant in another way (a
padded convolution, say) keeps its branch. Zero weights times what is not finite are no longer NaN: inputs are taken to
be finite.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

from export.passes.initializers import add_initializer, constant

Array = npt.NDArray[Any]
Known = dict[onnx_ir.Value, Array]

JOINS = ("Add", "Sub", "Mul", "Div")

ELEMENTWISE = frozenset(
    (
        *JOINS,
        *("Abs", "Cast", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish"),
        *("Identity", "LeakyRelu", "Max", "Min", "Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Tanh"),
    )
)
"""What gives at each place a function of what is there."""

WHOLE_IMAGE: dict[str, Callable[..., Array]] = {"GlobalAveragePool": np.mean, "GlobalMaxPool": np.max}
"""The mean and the largest over height and width, which are those of the small array."""


class RemoveDeadBranches(onnx_ir.passes.InPlacePass):
    """Put constants in the place of branches that are constant."""

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        """See the class."""
        known: Known = {}
        modified = False
        for node in list(model.graph):
            found = _constant_output(node, known)
            if found is not None:
                known[node.outputs[0]] = found
            elif node.op_type in JOINS and node.domain == "":
                modified |= _replace_branch(model.graph, node, known)
        if modified:
            RemoveUnusedNodesPass()(model)
        return onnx_ir.passes.PassResult(model, modified)


def _constant_output(node: onnx_ir.Node, known: Known) -> Array | None:
    """What the node gives for any input, in a shape that broadcasts to its output's; None where it depends on it."""
    if node.domain != "" or len(node.outputs) != 1:
        return None
    inputs = [known[value] if value in known else constant(value) for value in node.inputs if value is not None]
    if node.op_type in RULES:
        found = RULES[node.op_type](node, inputs)
        if found is not None:
            return found
    if not any(value in known for value in node.inputs) or any(array is None for array in inputs):
        return None
    if node.op_type in WHOLE_IMAGE:
        return _over_image(node, inputs[0])
    if node.op_type in ELEMENTWISE and len(inputs) == len(node.inputs):
        return _evaluated(node, [array for array in inputs if array is not None])
    return None


def _over_image(node: onnx_ir.Node, array: Array | None) -> Array | None:
    return None if array is None else WHOLE_IMAGE[node.op_type](array, axis=tuple(range(2, array.ndim)), keepdims=True)


def _evaluated(node: onnx_ir.Node, inputs: list[Array]) -> Array:
    (result,) = ReferenceEvaluator(onnx_ir.to_proto(node)).run(
        None, {value.name: array for value, array in zip(node.inputs, inputs, strict=True) if value is not None}
    )
    kind = node.outputs[0].dtype
    return np.asarray(result, inputs[0].dtype if kind is None else kind.numpy())


def _zero_convolution(node: onnx_ir.Node, inputs: list[Array | None]) -> Array | None:
    weight = inputs[1]
    if weight is None or weight.any():
        return None
    group = node.attributes.get_int("group", 1)
    channels = weight.shape[0] if node.op_type == "Conv" else weight.shape[1] * group
    bias = inputs[2] if len(inputs) > 2 else np.zeros(channels, weight.dtype)
    return None if bias is None else bias.reshape(1, channels, *(1 for _ in weight.shape[2:]))


def _zero_gemm(node: onnx_ir.Node, inputs: list[Array | None]) -> Array | None:
    weight = inputs[1]
    if weight is None or weight.any():
        return None
    columns = weight.shape[0 if node.attributes.get_int("transB", 0) else 1]
    bias = inputs[2] if len(inputs) > 2 else np.zeros(columns, weight.dtype)
    if bias is None or (bias.ndim > 1 and bias.shape[0] != 1):
        return None
    return np.broadcast_to(bias * np.asarray(node.attributes.get_float("beta", 1.0), bias.dtype), (1, columns))


def _zero_product(node: onnx_ir.Node, inputs: list[Array | None]) -> Array | None:
    shape = node.outputs[0].shape
    zero = next((array for array in inputs if array is not None and not array.any()), None)
    return None if zero is None or shape is None else np.zeros((1,) * len(shape), zero.dtype)


RULES: dict[str, Callable[[onnx_ir.Node, list[Array | None]], Array | None]] = {
    "Conv": _zero_convolution,
    "ConvTranspose": _zero_convolution,
    "Gemm": _zero_gemm,
    "MatMul": _zero_product,
    "Mul": _zero_product,
}
"""Op -> what it gives for any input, for layers that do not look at theirs."""


def _replace_branch(graph: onnx_ir.Graph, node: onnx_ir.Node, known: Known) -> bool:
    """Let a join read the small array in the place of a branch; an Add or Sub of zeros becomes an Identity."""
    dead = [place for place, value in enumerate(node.inputs) if value in known]
    if len(dead) != 1:
        return False
    (place,) = dead
    branch, other, output = node.inputs[place], node.inputs[1 - place], node.outputs[0]
    if branch is None or other is None or not _same_shape(other, output):
        return False  # the branch gives the output its shape
    array = known[branch]
    if not array.any() and (node.op_type == "Add" or (node.op_type == "Sub" and place == 1)):
        identity = onnx_ir.node("Identity", [other])
        onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], [identity], [output], identity.outputs)
    else:
        node.replace_input_with(place, add_initializer(graph, f"{branch.name}_constant", np.ascontiguousarray(array)))
    return True


def _same_shape(one: onnx_ir.Value, other: onnx_ir.Value) -> bool:
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    pairs = zip(one.shape, other.shape, strict=True)
    return all(a == b and (isinstance(a, int) or a.value is not None) for a, b in pairs)
