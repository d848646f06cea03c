"""What ONNX Runtime's tools take for granted: every node has a name of its own, and stands behind those it reads."""

import onnx
import onnx_ir
from onnx_ir.passes.common import NameFixPass, TopologicalSortPass


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name of its own, and every value a type as far as it can be inferred."""
    graph = onnx_ir.from_proto(model)
    NameFixPass()(graph)
    return onnx.shape_inference.infer_shapes(onnx_ir.to_proto(graph))


def in_order(model: onnx.ModelProto, ir_version: int) -> onnx.ModelProto:
    """A copy whose nodes stand behind those that they read, of the given IR version."""
    graph = onnx_ir.from_proto(model)
    TopologicalSortPass()(graph)
    made: onnx.ModelProto = onnx_ir.to_proto(graph)
    made.ir_version = ir_version
    return made
