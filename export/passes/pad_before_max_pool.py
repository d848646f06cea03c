"""Zero padding in front of a MaxPool, written so that ONNX Runtime leaves it there.

ONNX Runtime (seen in 1.31.1) moves a constant Pad into the MaxPool behind it, whatever the padding's value is. But a
MaxPool ignores its own padding: a window of negative numbers no longer has the maximum 0. A Pad that names its axes is
the same operation, and is left alone.
"""

import numpy as np
import onnx
from onnx import numpy_helper


def name_padded_axes(model: onnx.ModelProto) -> int:
    """Give each constant Pad that a MaxPool reads its list of axes, in place; how many there were."""
    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    values |= {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    changed = 0
    for node in graph.node:
        if node.op_type != "Pad" or node.output[0] not in pooled or not _is_constant(node) or len(node.input) > 3:
            continue
        amounts = values.get(node.input[1])
        if amounts is None:
            continue
        before, after = numpy_helper.to_array(amounts).reshape(2, -1)
        axes = np.flatnonzero((before != 0) | (after != 0)).astype(np.int64)
        names = [f"{node.output[0]}_{what}" for what in ("amounts", "axes")]
        graph.initializer.append(numpy_helper.from_array(np.concatenate((before[axes], after[axes])), names[0]))
        graph.initializer.append(numpy_helper.from_array(axes, names[1]))
        value = node.input[2] if len(node.input) == 3 else ""
        del node.input[1:]
        node.input.extend((names[0], value, names[1]))
        changed += 1
    return changed


def _is_constant(node: onnx.NodeProto) -> bool:
    return all(attribute.s == b"constant" for attribute in node.attribute if attribute.name == "mode")
