"""Figures and refusals of the comparison, on graphs made by hand."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.errors import ExportError
from export.verify import Case, random_batches, reference_cases, verify


def affine(factor, shift, *, inputs=("x",)):
    """An ONNX model y = factor * x + shift for any vector x."""
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("Mul", ["x", "a"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
            "g",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in inputs],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
            [
                numpy_helper.from_array(np.array([value], np.float32), name)
                for name, value in (("a", factor), ("b", shift))
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )


def case(x, expected):
    return Case((np.array(x, np.float32),), (np.array(expected, np.float32),))


def test_difference_is_relative_to_the_largest_output_of_all_batches():
    cases = [case([1, -8], [2, -16]), case([0.5], [0.5])]  # the second is off by 0.5, the largest output is 16
    parity = verify(affine(2, 0), cases, tolerance=0.1, what="it")
    assert parity.batches == 2
    assert parity.max_abs_difference == 0.5
    assert parity.max_relative_difference == 0.5 / 16


def test_mismatch_is_refused_with_the_figures():
    with pytest.raises(ExportError, match=r"the graph and .* 5\.00e-01 absolute, 1\.25e-01 relative, .* 1e-04"):
        verify(affine(2, 0.5), [case([2], [4])], tolerance=1e-4, what="the graph")


def test_zero_outputs_must_be_met_exactly():
    assert verify(affine(0, 0), [case([2], [0])], tolerance=1e-4, what="it").max_relative_difference == 0
    with pytest.raises(ExportError, match="inf relative"):
        verify(affine(0, 1e-9), [case([2], [0])], tolerance=1e-4, what="it")


@pytest.mark.parametrize(
    "model, x, expected, message",
    [
        (affine(1e38, 0), [1e3], [1], "output 0 holds 1 values that are not finite, of 1"),
        (affine(1, 0), [1, 2], [1], r"outputs of shape \[\(2,\)\], the torch model gives \[\(1,\)\]"),
        (affine(1, 0), [[1]], [[1]], r"ONNX Runtime fails on inputs of shape \[\(1, 1\)\]"),
        (affine(1, 0, inputs=("x", "z")), [1], [1], r"the graph has the inputs \['x', 'z'\], the torch model takes 1"),
        (affine(1, 0, inputs=("q",)), [1], [1], "ONNX Runtime .* cannot load it"),
    ],
)
def test_graph_that_cannot_be_compared_is_refused(model, x, expected, message):
    with pytest.raises(ExportError, match=message):
        verify(model, [case(x, expected)], tolerance=1.0, what="it")


def test_random_batches_differ_in_seed_scale_and_size():
    batches = random_batches((torch.zeros(1, 3, 32, 32), torch.tensor([[2, 5]])), (1, 2, 5))
    assert [x.shape[0] for x, _ in batches] == [1] * 4 + [2] * 4 + [5] * 4
    scales = [float(x.std()) for x, _ in batches[4:8]]
    np.testing.assert_allclose(scales, [0.25, 1.0, 1.0, 4.0], rtol=0.05)
    assert not torch.equal(batches[5][0], batches[6][0])
    indices = torch.cat([indices.flatten() for _, indices in batches])
    assert (int(indices.min()), int(indices.max())) == (2, 5)
    again = random_batches((torch.zeros(1, 3, 32, 32), torch.tensor([[2, 5]])), (1, 2, 5))
    assert all(
        torch.equal(a, b) for one, two in zip(batches, again, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_random_batches_leave_torch_s_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    random_batches((torch.zeros(2, 2),))
    assert torch.equal(torch.get_rng_state(), before)


def test_model_must_return_tensors():
    class Text(nn.Module):
        def forward(self, x):
            return x, "label"

    with pytest.raises(ExportError, match=r"Text returns \['Tensor', 'str'\]"):
        reference_cases(Text(), [(torch.zeros(1),)], tolerance=1e-4)
