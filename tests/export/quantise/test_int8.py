"""Static int8: what the file holds, and which layers stay in float."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export import Calibration, Judge, fusion_of, read_metadata, to_float16, to_int8
from export.errors import ExportError


def quantised(known, *, max_drop=1.0, method="min-max", **options):
    judge = Judge(known.accuracy, known.images[:32], max_drop=max_drop)
    return to_int8(known.graph, Calibration(known.images[:64], method), judge, **options)


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def weights_of(model, op):
    """Integers and scale of each layer's weight, and the dimension of its channels."""
    arrays, sources = constants(model), {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type == op:
            dequantise = sources[node.input[1]]
            axis = next(attribute.i for attribute in dequantise.attribute if attribute.name == "axis")
            yield *(arrays[name] for name in dequantise.input), axis


@pytest.mark.parametrize("bits, largest", [(7, 64), (8, 127)])
def test_weights_are_symmetric_with_a_scale_for_each_channel(known, branches, bits, largest):
    made = quantised(known, weight_bits=bits)
    network = branches().eval()
    found = list(weights_of(made.graph.model, "Conv"))
    for (integers, scale, zero, axis), layer in zip(found, (network.first, network.second), strict=True):
        weight = layer.weight.detach().numpy()
        assert axis == 0
        assert scale.shape == (16,)
        assert not zero.any()
        assert integers.dtype == np.int8
        assert np.abs(integers.astype(int)).max() <= largest
        half_a_step = scale[:, None, None, None] * 0.5001
        assert (np.abs(integers * scale[:, None, None, None] - weight) <= half_a_step).all()
        np.testing.assert_allclose(np.abs(weight).max((1, 2, 3)) / scale, largest, rtol=0.02)


def test_activations_are_unsigned_and_the_graph_computes_nearly_the_same(known):
    made = quantised(known)
    arrays = constants(made.graph.model)
    zeros = [arrays[node.input[2]] for node in made.graph.model.graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert {zero.dtype for zero in zeros} == {np.dtype(np.uint8)}
    step = made.graph.steps[-1]
    assert (step.name, made.graph.precision) == ("int8", "int8")
    assert 0 < step.real.max_relative_difference < 0.1
    assert step.real.mean_abs_difference < step.real.max_abs_difference
    assert len(made.layers) == 4
    assert made.float_layers == ()
    assert made.accuracy_before == 1.0
    assert made.accuracy_after > 0.9
    assert made.sensitivity == {}


def test_seven_bits_compute_what_the_graph_says_on_every_cpu(known):
    assert quantised(known).fused.max_relative_difference < 0.02


def test_the_runtime_computes_all_layers_in_integers(known):
    fusion = fusion_of(quantised(known).graph.model)
    assert (fusion.integer, fusion.floating) == (3, 0)
    assert fusion_of(known.graph.model).integer == 0
    assert fusion_of(known.graph.model).floating == 3


class Harsh(nn.Module):
    """Two convolutions; the first hands on one channel of thousands beside others of about one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.calm, self.harsh, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8 * 36, 10)
        with torch.no_grad():
            self.harsh.weight[0] *= 2000
            self.last.weight[:, :36] /= 2000

    def forward(self, x):
        return self.last(self.harsh(torch.relu(self.calm(x))).flatten(1))


@pytest.fixture(scope="module")
def harsh(known_as, known):
    return known_as(Harsh(), known.images)


def test_the_layer_that_hurts_most_is_left_in_float(harsh):
    all_of_it = quantised(harsh)
    assert all_of_it.accuracy_after < 0.9
    made = quantised(harsh, max_drop=0.05)
    assert made.accuracy_before - made.accuracy_after <= 0.05
    assert set(made.layers) | set(made.float_layers) == set(made.sensitivity) == set(all_of_it.layers)
    worst = max(made.sensitivity, key=made.sensitivity.get)
    assert made.float_layers[0] == worst
    moved = [made.sensitivity[name] for name in made.float_layers]
    assert moved == sorted(moved, reverse=True)
    assert made.layers
    ops = [node.op_type for node in made.graph.model.graph.node]
    assert ops.count("QuantizeLinear") < [n.op_type for n in all_of_it.graph.model.graph.node].count("QuantizeLinear")


def test_what_cannot_be_met_is_refused_with_the_figures(known):
    worse = iter([1.0] + [0.5] * 20)
    judge = Judge(lambda model: next(worse), known.images[:4], max_drop=0.1)
    with pytest.raises(ExportError, match=r"from 100\.00% to 50\.00% with 3 of 4 layers in float.* 10\.00% allow"):
        to_int8(known.graph, Calibration(known.images[:8]), judge)


def test_transposed_convolutions_in_groups_with_a_bias_stay_in_float(known_as, known):
    """The quantiser fails on them; the rest of the network is quantised all the same."""

    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.up = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
            self.last = nn.Conv2d(4, 4, 3, groups=4)

        def forward(self, x):
            return self.last(self.up(torch.relu(self.first(x)))).mean((2, 3))

    made = quantised(known_as(Up(), known.images))
    ops = {node.op_type: node for node in made.graph.model.graph.node}
    stored = {tensor.name: tensor.data_type for tensor in made.graph.model.graph.initializer}
    assert len(made.layers) == 2
    assert stored[ops["ConvTranspose"].input[1]] == onnx.TensorProto.FLOAT
    assert {integers.shape for integers, *_ in weights_of(made.graph.model, "Conv")} == {(8, 3, 3, 3), (4, 1, 3, 3)}


def test_what_prepares_the_input_stays_in_float(known_as, known):
    class Prepared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x * torch.tensor([2.0, 3.0, 4.0])[:, None, None] + 1).flatten(1)

    made = quantised(known_as(Prepared(), known.images))
    model = made.graph.model
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    assert first.input[0] not in {value.name for value in model.graph.input}
    assert len(made.layers) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weight_bits": 4}, "weight_bits is 4, expected 7 or 8"),
        ({"max_drop": -0.1}, "max_drop is -0.1"),
        ({"max_drop": 1.5}, "max_drop is 1.5"),
    ],
)
def test_options_are_checked(known, options, message):
    with pytest.raises(ExportError, match=message):
        quantised(known, **options)


def test_the_judge_takes_arrays_too(known):
    judge = Judge(known.accuracy, torch.from_numpy(known.images[:4]))
    with pytest.raises(ExportError, match="the images of the judge must be a NumPy array, got Tensor"):
        to_int8(known.graph, Calibration(known.images[:4]), judge)


def test_the_documents_example_runs_as_it_stands(tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parents[3] / "docs" / "export.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "to_int8" in block)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(block, "docs/export.md", "exec"), {})
    stored = read_metadata(tmp_path / "model-int8.onnx")
    assert (stored["precision"], stored["author"], stored["compared_on"]) == ("int8", "me", "real images")


def test_numbers_are_made_smaller_once(known, known_as):
    judge = Judge(known.accuracy, known.images[:4])
    with pytest.raises(ExportError, match="int8 starts from float32, this graph is float16"):
        to_int8(to_float16(known.graph), Calibration(known.images[:4]), judge)


def test_a_graph_without_layers_is_refused(known_as, known):
    class Bare(nn.Module):
        def forward(self, x):
            return torch.relu(x).flatten(1)

    with pytest.raises(ExportError, match="none of the ops that are quantised"):
        quantised(known_as(Bare(), known.images))


def test_the_checker_takes_it(known):
    onnx.checker.check_model(quantised(known, method="percentile").graph.model, full_check=True)
