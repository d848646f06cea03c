"""The graph of a file, beside what the onnx package reads."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.errors import BenchError
from bench.onnx_graph import ELEMENT_BITS, parse_graph, read_graph


def test_nodes_and_weights_are_those_of_the_file(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["z"])],
        "body",
        [],
        [helper.make_empty_tensor_value_info("z")],
        [numpy_helper.from_array(np.zeros(5, np.int64), "inner")],
    )
    nodes = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones((2, 3), np.float16))),
        helper.make_node("Gemm", ["x", "w", ""], ["h"], name="product", transB=1, alpha=0.5),
        helper.make_node("Custom", ["h"], ["m"], domain="com.example"),
        helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
    ]
    weights = [numpy_helper.from_array(np.zeros((4, 7), np.float32), "w"), helper.make_tensor("n", 22, [3], [1, 2, 3])]
    inputs = [helper.make_empty_tensor_value_info(name) for name in ("x", "c", "w")]
    graph = helper.make_graph(nodes, "test", inputs, [helper.make_empty_tensor_value_info("y")], weights)
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph), path)
    read = read_graph(path)
    assert [(node.name, node.operator, node.domain, node.has_body) for node in read.nodes] == [
        ("product", "Gemm", "", False),
        ("", "Custom", "com.example", False),
        ("", "If", "", True),
    ]
    assert read.nodes[0].inputs == ("x", "w", "")
    assert read.nodes[0].integers == {"transB": 1}
    assert (read.inputs, read.outputs) == (("x", "c"), ("y",))
    assert {name: (weight.shape, weight.tensor_bytes) for name, weight in read.weights.items()} == {
        "w": ((4, 7), 112),
        "n": ((3,), 2),  # three of 4 bits
        "k": ((2, 3), 12),
    }
    assert read.weight_bytes == 112 + 2 + 12 + 2 * 40


def test_sizes_of_elements_are_those_of_onnx() -> None:
    for kind in range(1, len(ELEMENT_BITS)):
        if kind in TensorProto.DataType.values() and kind not in (TensorProto.STRING, *range(17, 30)):
            dtype = helper.tensor_dtype_to_np_dtype(kind)
            assert ELEMENT_BITS[kind] == 8 * dtype.itemsize, TensorProto.DataType.Name(kind)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"\x00" * 40, b"\x3a\xff\x01", b"no protobuf at all"):
        (tmp_path / "a.onnx").write_bytes(content)
        with pytest.raises(BenchError, match=r"a.onnx is no ONNX file"):
            read_graph(tmp_path / "a.onnx")
    with pytest.raises(BenchError, match="cannot be read"):
        read_graph(tmp_path)


def test_packed_and_unpacked_numbers_are_read_alike() -> None:
    # TensorProto.dims (1) as two single numbers, and as one packed field; then data_type (2) FLOAT and name (8) "w".
    single, packed = b"\x08\x02\x08\x03", b"\x0a\x02\x02\x03"
    for dims in (single, packed):
        tensor = dims + b"\x10\x01" + b"\x42\x01w"
        graph = b"\x2a" + bytes([len(tensor)]) + tensor
        assert parse_graph(b"\x3a" + bytes([len(graph)]) + graph).weights["w"].shape == (2, 3)
