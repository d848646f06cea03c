"""Inputs and outputs are called what the caller asked for, whatever the exporter and the passes make of them."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import export
from export.errors import ExportError


class Twice(nn.Module):
    """Returns one tensor under two names, and its input."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        return y, y, x


@pytest.mark.parametrize("simplify", [False, True])
def test_a_tensor_that_is_returned_twice_has_both_names(tmp_path, simplify):
    names = ["a", "b", "c"]
    x = torch.randn(1, 3, 8, 8)
    export.to_onnx(Twice(), (x,), tmp_path / "m.onnx", output_names=names, simplify=simplify)
    assert [value.name for value in onnx.load(tmp_path / "m.onnx").graph.output] == names
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    found = dict(zip(names, session.run(names, {"input": x.numpy()}), strict=True))
    np.testing.assert_array_equal(found["a"], found["b"])
    np.testing.assert_array_equal(found["c"], x.numpy())


def test_a_step_that_renames_an_output_is_refused(make_graph, tmp_path):
    onnx.save(make_graph([("Relu", ["x"], ["y"], {})], x=(1, 3), y=(1, 3)), tmp_path / "m.onnx")
    graph = export.read_graph(tmp_path / "m.onnx")
    renamed = make_graph([("Relu", ["x"], ["z"], {}), ("Identity", ["z"], ["y"], {})], x=(1, 3), y=(1, 3))
    renamed.graph.output[0].name = "z"
    with pytest.raises(ExportError, match=r"the next graph has other outputs: \['y'\] became \['z'\]"):
        graph.then("next", renamed)
