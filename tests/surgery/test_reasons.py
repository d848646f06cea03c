"""What a report says of channels that are zero and stay, where several things could be said."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.errors import ModelError
from compress.surgery import compact

X = torch.randn(2, 3, 10, 12, dtype=torch.float64)


def test_a_constant_in_front_of_a_padded_depthwise_convolution_names_that(net, randomise_, compact_exactly):
    """Filters of the depthwise layer live, so its channels are not dead as a whole: but that is not why they stay."""
    model = net(
        lambda m, x: m.head(F.relu(m.c(F.relu(m.depthwise(F.relu6(m.norm(m.a(x))))))).mean((2, 3))),
        a=nn.Conv2d(3, 8, 1, bias=False), norm=nn.BatchNorm2d(8), depthwise=nn.Conv2d(8, 8, 3, padding=1, groups=8),
        c=nn.Conv2d(8, 5, 1), head=nn.Linear(5, 2),
    )  # fmt: skip
    randomise_(model)
    model.a.weight.data[[1, 4, 5]] = 0
    model.norm.weight.data[[1, 4, 5]] = 0
    model.norm.bias.data[[1, 4, 5]] = torch.tensor([0.5, -1.0, 0.7], dtype=torch.float64)
    kept = compact_exactly(model, X).report.layers["a"].kept
    assert kept == {"its constant is another one at the border of this padded depthwise convolution (at depthwise)": 2}


def test_channels_that_carry_into_one_grouped_layer_are_told_together(net, randomise_, kill_, compact_exactly):
    model = net(
        lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 3, padding=1, groups=4), head=nn.Linear(8, 2),
    )  # fmt: skip
    randomise_(model)
    kill_(model.a, [0, 2, 4, 6])
    model.a.bias.data[[0, 2, 4, 6]] = torch.tensor([0.5, 2.0, 1.25, 0.75], dtype=torch.float64)
    report = compact_exactly(model, X).report
    assert report.layers["a"].kept == {"constants 0.5 to 2, carried for the padded b": 4}
    assert report.kept["a"] == "4 channels: constants 0.5 to 2, carried for the padded b"


@pytest.mark.parametrize("inputs", [X, [X], X.numpy(), (X.numpy(),)], ids=["tensor", "list", "array", "arrays"])
def test_example_inputs_that_are_no_tuple_of_tensors_are_refused_in_words(inputs):
    with pytest.raises(ModelError, match=r"example_inputs.*expected a tuple of tensors, \(x,\), got"):
        compact(nn.Sequential(nn.Conv2d(3, 4, 1)).double(), inputs)
