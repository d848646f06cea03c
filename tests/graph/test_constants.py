"""The absorbing rules, against their closed forms."""

import pytest
import torch

from compress.graph.constants import absorbing_product, by_group, contract, normalise
from small_networks import f64

NAN = float("nan")


def same(got, expected):
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-12, atol=1e-12)


def dense(weight):
    return by_group(weight, 1, transposed=False)


def test_a_linear_layer_is_known_where_every_weighed_input_is():
    weight = f64([1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 3.0])
    same(contract(dense(weight), f64(0.5, 0.25, 0.0), f64(2.0, -1.0, NAN), bordered=False), f64(0.5, 0.25, NAN))


def test_a_convolution_sums_its_taps():
    weight = torch.arange(18, dtype=torch.float64).reshape(1, 2, 3, 3)
    expected = weight[0, 0].sum() * 2 + weight[0, 1].sum() * 3
    same(contract(dense(weight), None, f64(2.0, 3.0), bordered=False), expected[None])


def test_padding_lets_only_zero_pass():
    weight = torch.ones(2, 2, 3, 3, dtype=torch.float64)
    weight[1, 1] = 0
    bias = f64(1.0, -1.0)
    same(contract(dense(weight), bias, f64(0.0, 2.0), bordered=True), f64(NAN, -1.0))
    same(contract(dense(weight), bias, f64(0.0, 0.0), bordered=True), bias)


@pytest.mark.parametrize("padded", [False, True])
def test_depthwise_with_a_multiplier(padded):
    weight = torch.ones(6, 1, 3, 3, dtype=torch.float64)
    weight[1] = 0
    bias = torch.arange(6, dtype=torch.float64)
    expected = f64(NAN, 1.0, 2.0, 3.0, *((NAN, NAN) if padded else (4.0 + 18, 5.0 + 18)))
    split = by_group(weight, 3, transposed=False)
    same(contract(split, bias, f64(NAN, 0.0, 2.0), bordered=padded), expected)


def test_groups_read_their_own_inputs_alone():
    weight = torch.arange(1, 13, dtype=torch.float64).reshape(4, 3)  # two groups of two outputs and three inputs
    inputs = f64(1.0, 2.0, 0.0, NAN, 0.0, 3.0)
    same(contract(by_group(weight, 2, transposed=False), None, inputs, bordered=False), f64(5.0, 14.0, NAN, NAN))


def test_a_transposed_weight_is_read_the_other_way_round():
    weight = torch.arange(1, 13, dtype=torch.float64).reshape(4, 3)  # two groups of two inputs and three outputs
    inputs = f64(1.0, 0.0, 2.0, NAN)
    expected = f64(1.0, 2.0, 3.0, NAN, NAN, NAN)
    same(contract(by_group(weight, 2, transposed=True), None, inputs, bordered=False), expected)


def test_batch_norm_is_affine_and_a_zero_scale_leaves_the_shift():
    x = f64(NAN, NAN, 2.0).reshape(1, 3, 1, 1)
    y = normalise(x, f64(0.0, 1.0, 2.0), f64(5.0, 6.0, 7.0), f64(1.0, 1.0, 1.0), f64(3.0, 3.0, 3.0), 1.0)
    same(y.flatten(), f64(5.0, NAN, 2 * (2 - 1) / 4**0.5 + 7))
    same(normalise(x, None, None, f64(0, 0, 0), f64(1, 1, 1), 0.0).flatten(), f64(NAN, NAN, 2.0))


def test_a_proved_zero_wins_over_an_unknown():
    same(absorbing_product(f64(0.0, NAN, NAN, 2.0), f64(NAN, 0.0, 3.0, 4.0)), f64(0.0, 0.0, NAN, 8.0))
