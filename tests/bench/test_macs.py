"""Multiply-accumulates, counted one by one in loops over what is defined."""

import numpy as np
import onnx
import pytest

from bench.macs import CONTRACTIONS_WITHOUT_RULE, RULES, contracts, macs
from bench.onnx_graph import Node


def node(operator: str, **integers: int) -> Node:
    return Node(name="", operator=operator, domain="", inputs=(), outputs=(), integers=integers, has_body=False)


def convolution_by_hand(x: tuple[int, ...], w: tuple[int, ...], groups: int, pad: int) -> tuple[int, tuple[int, ...]]:
    """Multiplications of a padded 2-d convolution, padding included, and its output's shape."""
    batch, _, height, width = x
    filters, channels, rows, columns = w
    out = (batch, filters, height + 2 * pad - rows + 1, width + 2 * pad - columns + 1)
    count = 0
    for _ in np.ndindex(out):
        count += channels * rows * columns
    assert x[1] == channels * groups
    return count, out


@pytest.mark.parametrize(("groups", "pad"), [(1, 0), (1, 1), (2, 1), (4, 0)])
def test_convolutions(groups: int, pad: int) -> None:
    x, w = (2, 4, 6, 5), (8, 4 // groups, 3, 3)
    count, out = convolution_by_hand(x, w, groups, pad)
    assert macs(node("Conv"), (x, w), out) == count
    assert macs(node("QLinearConv"), (x, (), (), w), out) == count


def test_transposed_convolutions_spread_each_input() -> None:
    # Inputs 2 x 3 x 4 x 4; each of the 96 is multiplied by 5 filters of 2 x 2.
    assert macs(node("ConvTranspose"), ((2, 3, 4, 4), (3, 5, 2, 2)), (2, 5, 8, 8)) == 96 * 20


def test_matrix_products() -> None:
    assert macs(node("Gemm"), ((2, 7), (7, 3)), (2, 3)) == 2 * 7 * 3
    assert macs(node("Gemm", transA=1), ((7, 2), (7, 3)), (2, 3)) == 2 * 7 * 3
    assert macs(node("Gemm", transB=1), ((2, 7), (3, 7)), (2, 3)) == 2 * 7 * 3
    assert macs(node("MatMul"), ((5, 2, 7), (5, 7, 3)), (5, 2, 3)) == 5 * 2 * 7 * 3
    assert macs(node("MatMul"), ((7,), (7, 3)), (3,)) == 7 * 3


def test_recurrent_layers_go_through_both_matrices() -> None:
    # An LSTM's four gates of 6, in 5 steps of 2 sequences.
    assert macs(node("LSTM"), ((5, 2, 3), (1, 24, 3), (1, 24, 6)), (5, 1, 2, 6)) == 5 * 2 * 24 * (3 + 6)


def test_what_has_no_rule_is_unknown() -> None:
    assert macs(node("Einsum"), ((2, 3), (3, 4)), (2, 4)) is None
    assert contracts(node("Einsum"))
    assert not contracts(node("Relu"))
    assert not CONTRACTIONS_WITHOUT_RULE & set(RULES)


def test_every_standard_operator_that_contracts_is_known() -> None:
    """By hand, from the list of operators of ONNX: what multiplies and sums over a dimension of two inputs."""
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain in ("", "ai.onnx")}
    contractions = {
        *("Conv", "ConvInteger", "ConvTranspose", "DeformConv", "QLinearConv", "Gemm", "MatMul", "MatMulInteger"),
        *("QLinearMatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention"),
    }
    assert contractions - {"Attention"} <= standard
    assert contractions <= set(RULES) | CONTRACTIONS_WITHOUT_RULE
