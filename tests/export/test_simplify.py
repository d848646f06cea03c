"""onnxsim as we call it: smaller, with the same interface; its failures are ours."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.simplify import simplify


def graph(nodes, initializers=()):
    shape = [1, 2, 4, 4]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(value, name) for name, value in initializers],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )


def test_batch_norm_and_identity_go_and_the_interface_stays():
    ones = np.ones(2, np.float32)
    model = graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["b"]),
            helper.make_node("Identity", ["b"], ["y"]),
        ],
        [("w", np.ones((2, 2, 1, 1), np.float32)), *((name, ones) for name in ("scale", "shift", "mean", "var"))],
    )
    before = model.SerializeToString()
    simplified = simplify(model)
    assert [node.op_type for node in simplified.graph.node] == ["Conv"]
    assert [value.name for value in (*simplified.graph.input, *simplified.graph.output)] == ["x", "y"]
    assert (simplified.ir_version, simplified.opset_import[0].version) == (8, 18)
    assert model.SerializeToString() == before
    onnx.checker.check_model(simplified, full_check=True)


def test_model_that_onnxsim_cannot_take_is_refused_with_its_reason():
    with pytest.raises(ExportError, match=r"onnxsim v?0\.8\.1 failed: .* topologically sorted, however input 'nope'"):
        simplify(graph([helper.make_node("Relu", ["nope"], ["y"])]))


def test_advice_is_not_printed(capfd):
    simplified = simplify(graph([helper.make_node("NoSuchOperator", ["x"], ["y"])]))  # onnxsim keeps and remarks on it
    assert [node.op_type for node in simplified.graph.node] == ["NoSuchOperator"]
    assert capfd.readouterr().out == ""
