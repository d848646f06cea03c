"""float16, and weights alone in int8: against the numbers that they stand for."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export import read_graph, to_float16, to_int8_weights
from export.errors import ExportError


def size(graph):
    return graph.model.ByteSize()


def test_float16_halves_the_weights_and_keeps_the_interface(known):
    half = to_float16(known.graph)
    assert half.precision == "float16"
    assert size(half) < 0.6 * size(known.graph)
    kinds = {value.type.tensor_type.elem_type for value in (*half.model.graph.input, *half.model.graph.output)}
    assert kinds == {onnx.TensorProto.FLOAT}
    stored = [tensor.data_type for tensor in half.model.graph.initializer if len(tensor.dims) > 1]
    assert set(stored) == {onnx.TensorProto.FLOAT16}
    assert 0 < half.steps[-1].real.max_relative_difference < 5e-3


@pytest.mark.filterwarnings("error")
def test_what_float16_cannot_hold_is_refused(known_as, known):
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return (self.conv(x) * 1e5).flatten(1)

    with pytest.raises(ExportError, match=r"the float16 graph on .*(not finite|disagree)|float16 ends at 65504"):
        to_float16(known_as(Large(), known.images).graph)


class Between(nn.Module):
    """Two layers, between which values are ``factor`` times as large."""

    def __init__(self, factor):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.factor = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), factor

    def forward(self, x):
        return self.second(torch.relu(self.first(x) * self.factor) / self.factor).flatten(1)


def test_what_overflows_between_layers_is_refused(known_as, known):
    """ONNX Runtime on x86 computes it in float32: the outputs agree, and would be infinite on other CPUs."""
    with pytest.raises(ExportError, match=r"the result of a \w+, comes to .*, and float16 ends at 65504"):
        to_float16(known_as(Between(6e4), known.images).graph)
    assert to_float16(known_as(Between(1e3), known.images).graph).precision == "float16"


def test_layers_that_stay_float32_are_cast_around(known_as, known):
    """ONNX Runtime's converter leaves Resize as it is."""

    class Larger(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.second(nn.functional.interpolate(self.first(x), scale_factor=2, mode="bilinear")).mean((2, 3))

    half = to_float16(known_as(Larger(), known.images).graph)
    assert "Resize" in {node.op_type for node in half.model.graph.node}
    assert 0 < half.steps[-1].real.max_relative_difference < 5e-3


def test_weights_become_the_nearest_of_255_steps(known, branches):
    made = to_int8_weights(known.graph)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.model.graph.initializer}
    nodes = [node for node in made.model.graph.node if node.op_type == "DequantizeLinear"]
    network = branches().eval()
    own = [layer.weight.detach().numpy() for layer in network.children()]
    expected = {weight.shape: weight for weight in (*own, own[-1].T)}
    assert len(nodes) == 3
    for node in nodes:
        integers, scale = (arrays[name] for name in node.input)
        assert integers.dtype == np.int8
        axis = node.attribute[0].i
        weight = expected[integers.shape]
        shape = [-1 if d == axis else 1 for d in range(integers.ndim)]
        others = tuple(d for d in range(integers.ndim) if d != axis)
        np.testing.assert_allclose(scale, np.abs(weight).max(others) / 127, rtol=1e-6)
        np.testing.assert_array_equal(integers, np.rint(weight / scale.reshape(shape)))
    assert size(made) < 0.4 * size(known.graph)
    assert made.precision == "int8 weights"
    assert 0 < made.steps[-1].real.max_relative_difference < 0.02
    assert made.steps[-1].real.argmax_agreement == 1.0


def test_a_channel_of_zeros_stays_one(known_as, known):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(576, 4))
    nn.init.zeros_(network[0].weight[3])
    made = to_int8_weights(known_as(network, known.images).graph)
    assert np.isfinite(made.steps[-1].random.max_abs_difference)


def test_names_that_are_taken_are_left_alone(make_graph, run_graph, tmp_path):
    nodes = [("Conv", ["x", "w"], ["w_int8"], {}), ("Relu", ["w_int8"], ["w_float"], {})]
    nodes += [("Abs", ["w_float"], ["w_scale"], {}), ("Neg", ["w_scale"], ["y"], {})]
    weight = np.random.default_rng(0).normal(size=(16, 3, 3, 3)).astype(np.float32)
    model = make_graph(nodes, {"w": weight}, x=(1, 3, 8, 8), y=(1, 16, 6, 6))
    onnx.save(model, tmp_path / "m.onnx")
    made = to_int8_weights(read_graph(tmp_path / "m.onnx", simplify=False)).model
    x = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run_graph(made, x), run_graph(model, x), atol=0.1)


def test_a_graph_without_such_weights_is_refused(known_as, known):
    with pytest.raises(ExportError, match="no layer with 256 weights or more"):
        to_int8_weights(known_as(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), known.images).graph)
