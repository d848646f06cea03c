"""Zero padding in front of a MaxPool, written so that ONNX Runtime leaves it there.

ONNX Runtime (seen in 1.31.1) moves a constant Pad into the MaxPool behind it, whatever the padding's value is. But a
MaxPool ignores its own padding: a window of negative numbers no longer has the maximum 0. A Pad that names its axes is
the same operation, and is left alone.
"""

import numpy as np
import onnx_ir

from export.passes.initializers import add_initializer, constant

FIRST_OPSET = 18
"""The first in which a Pad can name its axes."""


class NamePaddedAxes(onnx_ir.passes.InPlacePass):
    """Give each constant Pad that a MaxPool reads its list of axes."""

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        """See the class."""
        graph = model.graph
        if graph.opset_imports.get("", 0) < FIRST_OPSET:
            return onnx_ir.passes.PassResult(model, modified=False)
        changed = [_name_axes(graph, node) for node in graph if node.op_type == "Pad"]
        return onnx_ir.passes.PassResult(model, modified=any(changed))


def _name_axes(graph: onnx_ir.Graph, pad: onnx_ir.Node) -> bool:
    pooled = any(user.op_type == "MaxPool" for user, _ in pad.outputs[0].uses())
    mode = pad.attributes.get("mode")
    zeros = mode is None or mode.as_string() == "constant"
    amounts = constant(pad.inputs[1])
    if not pooled or not zeros or amounts is None or len(pad.inputs) > 3:
        return False
    before, after = amounts.reshape(2, -1)
    axes = np.flatnonzero((before != 0) | (after != 0)).astype(np.int64)
    value = pad.inputs[2] if len(pad.inputs) == 3 else None
    pad.resize_inputs(4)
    for place, array, name in ((1, np.concatenate((before[axes], after[axes])), "amounts"), (3, axes, "axes")):
        pad.replace_input_with(place, add_initializer(graph, f"{pad.outputs[0].name}_{name}", array))
    pad.replace_input_with(2, value)
    return True
