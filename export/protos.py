"""What onnx's messages tell, in a few lines each."""

import onnx

DEFAULT_DOMAINS = ("", "ai.onnx")


def default_opset(model: onnx.ModelProto) -> int:
    """The version of the default domain; 0 where the model names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), default=0)


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that have no value in the file: one that has is a weight."""
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in stored]


def groups_of(node: onnx.NodeProto) -> int:
    """In how many groups a convolution works, a transposed one likewise."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)
