"""Every line of the op table against ONNX Runtime, on random inputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.graph.onnx import OnnxNetwork, fold_constants
from compress.graph.onnx.layers import LAYERS
from compress.graph.onnx.ops import OPS
from onnx_runs import ints

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


IMAGE = floats(2, 8, 6, 5)
ROW = floats(2, 7)

UNARY = (
    "Relu Sigmoid Tanh Erf Exp Abs Neg Sin Cos Tan Floor Ceil Round Sign Softplus Softsign Mish HardSwish Identity "
    "LeakyRelu Elu Celu Selu HardSigmoid"
)
# op, attributes, activation, further inputs (initializers), opset
CASES: list[tuple[str, dict[str, Any], np.ndarray, list[np.ndarray | None], int]] = [
    *((name, {}, IMAGE, [], 18) for name in UNARY.split()),
    ("Gelu", {}, IMAGE, [], 20),
    ("Gelu", {"approximate": "tanh"}, IMAGE, [], 20),
    *((name, {}, np.abs(IMAGE) + 0.1, [], 18) for name in ("Log", "Sqrt", "Reciprocal")),
    ("LeakyRelu", {"alpha": 0.3}, IMAGE, [], 18),
    ("Elu", {"alpha": 0.3}, IMAGE, [], 18),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.1}, IMAGE, [], 18),
    ("Clip", {}, IMAGE, [np.float32(-0.5), np.float32(0.5)], 18),
    ("Clip", {}, IMAGE, [None, np.float32(0.5)], 18),
    ("PRelu", {}, IMAGE, [floats(8, 1, 1)], 18),
    ("Cast", {"to": TensorProto.DOUBLE}, IMAGE, [], 18),
    *((name, {}, IMAGE, [floats(1, 8, 1, 1)], 18) for name in ("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean")),
    ("Div", {}, IMAGE, [np.abs(floats(8, 1, 1)) + 1], 18),
    ("Pow", {}, np.abs(IMAGE), [np.float32(1.5)], 18),
    *((name, {}, IMAGE, [floats(8, 1, 1)], 18) for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    ("Conv", {}, IMAGE, [floats(4, 8, 3, 3), floats(4)], 18),
    ("Conv", {"pads": [1, 2, 1, 2], "strides": [2, 1], "dilations": [1, 2]}, IMAGE, [floats(4, 8, 3, 3)], 18),
    ("Conv", {"pads": [0, 1, 2, 0]}, IMAGE, [floats(4, 8, 3, 3), floats(4)], 18),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, IMAGE, [floats(4, 8, 3, 3)], 18),
    ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, IMAGE, [floats(4, 8, 2, 2)], 18),
    ("Conv", {"group": 8, "pads": [1, 1, 1, 1]}, IMAGE, [floats(16, 1, 3, 3)], 18),
    ("Conv", {"group": 2}, floats(2, 8, 9), [floats(4, 4, 3)], 18),
    ("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1]}, IMAGE, [floats(8, 4, 3, 3), floats(4)], 18),
    ("ConvTranspose", {"strides": [2, 2], "output_padding": [1, 0], "group": 2}, IMAGE, [floats(8, 2, 3, 3)], 18),
    ("Gemm", {"transB": 1}, ROW, [floats(4, 7), floats(4)], 18),
    ("Gemm", {}, ROW, [floats(7, 4)], 18),
    ("Gemm", {"alpha": 0.5, "beta": 2.0}, ROW, [floats(7, 4), floats(1, 4)], 18),
    ("MatMul", {}, floats(2, 3, 7), [floats(7, 4)], 18),
    ("MatMul", {}, floats(2, 3, 7), [floats(2, 7, 4)], 18),
    ("Einsum", {"equation": "bij,jk->bik"}, floats(2, 3, 7), [floats(7, 4)], 18),
    ("BatchNormalization", {"epsilon": 1e-3}, IMAGE, [floats(8), floats(8), floats(8), np.abs(floats(8))], 18),
    ("InstanceNormalization", {}, IMAGE, [floats(8), floats(8)], 18),
    ("LayerNormalization", {"axis": -1}, IMAGE, [floats(5), floats(5)], 18),
    ("LayerNormalization", {"axis": 1}, IMAGE, [floats(8, 6, 5)], 18),
    ("GroupNormalization", {"num_groups": 4}, IMAGE, [floats(4), floats(4)], 18),
    ("GroupNormalization", {"num_groups": 4}, IMAGE, [floats(8), floats(8)], 21),
    ("Softmax", {"axis": 1}, IMAGE, [], 18),
    ("LogSoftmax", {}, IMAGE, [], 18),
    ("CumSum", {}, IMAGE, [ints(1).reshape(())], 18),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, IMAGE, [], 18),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}, IMAGE, [], 18),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, IMAGE, [], 18),
    *(
        (pool, {"kernel_shape": [k, k], "strides": [s, s], "auto_pad": auto}, IMAGE, [], 18)
        for pool, k, s, auto in (
            ("MaxPool", 3, 2, "SAME_UPPER"),
            ("MaxPool", 2, 2, "SAME_UPPER"),
            ("MaxPool", 3, 2, "SAME_LOWER"),
            ("MaxPool", 3, 1, "SAME_UPPER"),
            ("AveragePool", 3, 2, "SAME_UPPER"),
            ("AveragePool", 2, 2, "SAME_UPPER"),
            ("AveragePool", 3, 1, "SAME_LOWER"),
        )
    ),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 0, 2]}, IMAGE, [], 18),
    ("MaxPool", {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2], "dilations": [2, 2]}, IMAGE, [], 18),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, IMAGE, [], 18),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, IMAGE, [], 18),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "count_include_pad": 1}, IMAGE, [], 18),
    ("GlobalAveragePool", {}, IMAGE, [], 18),
    ("GlobalMaxPool", {}, IMAGE, [], 18),
    *(
        (f"Reduce{name}", {}, IMAGE, [ints(2, 3)], 18)
        for name in ("Mean", "Sum", "Max", "Min", "L1", "L2", "SumSquare")
    ),
    ("ReduceLogSumExp", {"keepdims": 0}, IMAGE, [ints(-1)], 18),
    ("ReduceMean", {"axes": [2, 3], "keepdims": 0}, IMAGE, [], 13),
    ("ReduceMax", {}, IMAGE, [], 18),
    ("Reshape", {}, IMAGE, [ints(0, 2, 4, -1)], 18),
    ("Flatten", {"axis": 2}, IMAGE, [], 18),
    ("Transpose", {"perm": [0, 2, 3, 1]}, IMAGE, [], 18),
    ("Transpose", {}, IMAGE, [], 18),
    ("Squeeze", {}, floats(2, 1, 3, 1), [ints(1)], 18),
    ("Squeeze", {}, floats(2, 1, 3, 1), [], 18),
    ("Unsqueeze", {}, ROW, [ints(0, -1)], 18),
    ("Concat", {"axis": 1}, IMAGE, [floats(2, 3, 6, 5)], 18),
    ("Split", {"axis": 1}, IMAGE, [ints(3, 5)], 18),
    ("Split", {"axis": 1, "num_outputs": 3}, IMAGE, [], 18),
    ("Slice", {}, IMAGE, [ints(1, -3), ints(100, -1), ints(1, 2), ints(2, 1)], 18),
    ("Slice", {}, IMAGE, [ints(-1), ints(-100), ints(1), ints(-1)], 18),
    ("Gather", {"axis": 1}, IMAGE, [ints(3, -1, 0)], 18),
    ("Gather", {"axis": 1}, IMAGE, [ints(3, 1, 0, 2).reshape(2, 2)], 18),
    ("Gather", {"axis": -1}, IMAGE, [ints(-2).reshape(())], 18),
    ("GatherND", {}, IMAGE, [ints(1, 0, 0, -1, 1, 7).reshape(3, 2)], 18),
    ("Expand", {}, floats(2, 1, 5), [ints(3, 1, 4, 1)], 18),
    ("Tile", {}, ROW, [ints(2, 3)], 18),
    ("Pad", {}, IMAGE, [ints(0, 1, 0, 2, 0, 0, 3, 0), np.float32(0.5)], 18),
    ("Pad", {}, IMAGE, [ints(2, 1), None, ints(1)], 18),
    ("Pad", {"mode": "reflect"}, IMAGE, [ints(0, 0, 1, 2, 0, 0, 1, 0)], 18),
    ("Pad", {"mode": "edge"}, IMAGE, [ints(0, 0, 1, 2, 0, 0, 1, 0)], 18),
    ("DepthToSpace", {"blocksize": 2}, IMAGE, [], 18),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, IMAGE, [], 18),
    ("SpaceToDepth", {"blocksize": 2}, floats(2, 3, 6, 4), [], 18),
    (
        "Resize",
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        IMAGE,
        [None, np.array([1, 1, 2, 2], dtype=np.float32)],
        18,
    ),
    ("Resize", {"mode": "nearest"}, IMAGE, [None, np.array([1, 1, 2, 3], dtype=np.float32)], 18),
    ("Resize", {"mode": "linear"}, IMAGE, [None, None, ints(2, 8, 9, 7)], 18),
    (
        "Resize",
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        IMAGE,
        [None, None, ints(2, 8, 9, 7)],
        18,
    ),
    ("Resize", {"mode": "cubic"}, IMAGE, [None, None, ints(2, 8, 9, 7)], 18),
    ("Dropout", {}, IMAGE, [], 18),
]

IN_PAIRS = {"And", "Or", "Not", "Where", "Equal", "CastLike", "Swish"}
"""Tested below, or beyond the opsets that ONNX Runtime runs."""


def model_of(
    op: str, attributes: dict[str, Any], x: np.ndarray, others: Sequence[np.ndarray | None], opset: int
) -> Any:
    count = (len(others[0]) if others else attributes["num_outputs"]) if op == "Split" else 1
    names = ["x", *("" if value is None else f"w{i}" for i, value in enumerate(others))]
    outputs = [f"y{i}" for i in range(count)]
    stored = [numpy_helper.from_array(np.asarray(v), f"w{i}") for i, v in enumerate(others) if v is not None]
    given = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    node = helper.make_node(op, names, outputs, name="node", **attributes)
    graph = helper.make_graph([node], "one", [given], results, stored)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


@pytest.mark.parametrize(
    "op, attributes, x, others, opset", CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
def test_an_operation_computes_what_onnx_runtime_computes(
    op: str, attributes: dict[str, Any], x: np.ndarray, others: list[np.ndarray | None], opset: int
) -> None:
    model = model_of(op, attributes, x, others, opset)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    network = OnnxNetwork(fold_constants(model)).eval()
    got = network(torch.from_numpy(x))
    assert len(got) == len(expected)
    for wanted, found in zip(expected, got, strict=True):
        assert tuple(found.shape) == wanted.shape
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("op", ["And", "Or"])
def test_logic(op: str) -> None:
    x, other = RNG.random((2, 3)) < 0.5, RNG.random((2, 3)) < 0.5
    network = OnnxNetwork(model_of(op, {}, x, [other], 18))
    wanted = {"And": x & other, "Or": x | other}[op]
    np.testing.assert_array_equal(network(torch.from_numpy(x))[0].numpy(), wanted)


def test_where_equal_and_not() -> None:
    x = floats(2, 3)
    nodes = [
        helper.make_node("Equal", ["x", "x"], ["same"]),
        helper.make_node("Not", ["same"], ["other"]),
        helper.make_node("Where", ["other", "x", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(floats(3), "w")],
    )
    network = OnnxNetwork(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    stored = numpy_helper.to_array(graph.initializer[0])
    np.testing.assert_array_equal(network(torch.from_numpy(x))[0].numpy(), np.broadcast_to(stored, (2, 3)))


def test_every_line_of_the_table_is_tested() -> None:
    assert {case[0] for case in CASES} | IN_PAIRS >= set(OPS) | set(LAYERS)
