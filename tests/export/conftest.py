"""Graphs made by hand, and what ONNX Runtime computes of them."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture(scope="session")
def make_graph() -> Callable[..., onnx.ModelProto]:
    """``make_graph(nodes, weights, x=shape, y=shape, opset=18)``: one input x, one output y, float32 if not told."""

    def make(nodes, weights=None, *, x, y, opset=18, kind=TensorProto.FLOAT):
        graph = helper.make_graph(
            [helper.make_node(op, inputs, outputs, **attributes) for op, inputs, outputs, attributes in nodes],
            "g",
            [helper.make_tensor_value_info("x", kind, x)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    return make


@pytest.fixture(scope="session")
def run_graph() -> Callable[..., np.ndarray]:
    """``run_graph(model, x)``: its first output, computed node by node."""

    def run(model, x, *, optimise=False):
        options = onnxruntime.SessionOptions()
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: x})[0]

    return run


@pytest.fixture(scope="session")
def apply_pass() -> Callable[..., tuple[onnx.ModelProto, bool]]:
    """``apply_pass(make, model)``: the changed graph, which the checker accepts, and whether the pass says it did."""

    def apply(make, model):
        graph = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(model))
        modified = make()(graph).modified
        changed = onnx_ir.to_proto(graph)
        onnx.checker.check_model(changed, full_check=True)
        return changed, modified

    return apply


@pytest.fixture(scope="session")
def ops() -> Callable[[onnx.ModelProto], list[str]]:
    """The ops of a graph, in order."""
    return lambda model: [node.op_type for node in model.graph.node]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
