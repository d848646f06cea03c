"""Tiny ONNX models of known cost, built when the tests run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MakeModel = Callable[..., Path]


def save(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], weights: list[onnx.TensorProto]
) -> Path:
    output = helper.make_empty_tensor_value_info(nodes[-1].output[0])
    graph = helper.make_graph(nodes, "test", inputs, [output], weights)
    # The oldest versions that have what is used, so that any ONNX Runtime we support loads them.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="session")
def make_convs(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """``make_convs(name, width=..., depth=..., size=..., batch=...)``: 3x3 convolutions on images of one channel."""

    def make(name: str, *, width: int = 4, depth: int = 1, size: int = 8, batch: int | str = "n") -> Path:
        rng = np.random.default_rng(0)
        nodes, weights, last, channels = [], [], "image", 1
        for layer in range(depth):
            kernel = rng.standard_normal((width, channels, 3, 3)).astype(np.float32)
            weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
            nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"y{layer}"], pads=[1, 1, 1, 1]))
            last, channels = f"y{layer}", width
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, size, size])
        return save(tmp_path_factory.mktemp("convs") / name, nodes, [image], weights)

    return make


@pytest.fixture
def make_identity(tmp_path: Path) -> MakeModel:
    """``make_identity(name, element_type, shape)``: one Identity node on an input ``x`` of any type."""

    def make(name: str, element_type: int, shape: list[int | str]) -> Path:
        value = helper.make_tensor_value_info("x", element_type, shape)
        return save(tmp_path / name, [helper.make_node("Identity", ["x"], ["y"])], [value], [])

    return make
