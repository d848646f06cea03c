"""Multiply-accumulates of the nodes of an ONNX graph: convolutions, matrix products and recurrent layers.

Additions of biases, normalisations, activations and pooling count nothing, as is the custom. An operator is either in
`RULES`, or in `CONTRACTIONS_WITHOUT_RULE` and named in the report, or it multiplies and adds nothing to speak of.
"""

from collections.abc import Callable, Sequence
from math import prod

from bench.onnx_graph import Node

Shape = tuple[int, ...]
Rule = Callable[[Node, Sequence[Shape], Shape], int]  # node, shapes of inputs, shape of the first output


def convolution(weight: int) -> Rule:
    """Each output value sums over the weights of its filter, of shape (outputs, inputs / groups, *kernel)."""
    return lambda _, inputs, output: prod(output) * prod(inputs[weight][1:])


def transposed_convolution(_: Node, inputs: Sequence[Shape], __: Shape) -> int:
    """Each input value is spread over the weights of its filter, of shape (inputs, outputs / groups, *kernel)."""
    return prod(inputs[0]) * prod(inputs[1][1:])


def matrix_product(node: Node, inputs: Sequence[Shape], output: Shape) -> int:
    """Each output value sums over the columns of the first factor, which may be transposed."""
    first = inputs[0]
    return prod(output) * (first[-2] if node.integers.get("transA") else first[-1])


def recurrent(_: Node, inputs: Sequence[Shape], __: Shape) -> int:
    """Each step of each sequence goes through both matrices: X (steps, batch, size), W and R."""
    steps, weights, recurrence = inputs[0], inputs[1], inputs[2]
    return prod(steps[:2]) * (prod(weights) + prod(recurrence))


RULES: dict[str, Rule] = {
    "Conv": convolution(weight=1),
    "ConvInteger": convolution(weight=1),
    "FusedConv": convolution(weight=1),
    "NhwcFusedConv": convolution(weight=1),
    "DeformConv": convolution(weight=1),
    "QLinearConv": convolution(weight=3),
    "ConvTranspose": transposed_convolution,
    "Gemm": matrix_product,
    "FusedGemm": matrix_product,
    "MatMul": matrix_product,
    "FusedMatMul": matrix_product,
    "MatMulInteger": matrix_product,
    "QLinearMatMul": matrix_product,
    "QGemm": matrix_product,
    "LSTM": recurrent,
    "GRU": recurrent,
    "RNN": recurrent,
}

CONTRACTIONS_WITHOUT_RULE = {
    *("Einsum", "Attention", "MultiHeadAttention", "QAttention", "GroupQueryAttention", "PackedAttention"),
    *("MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLSTM", "QLinearConvTranspose"),
}


def contracts(node: Node) -> bool:
    """Whether it multiplies and adds, as far as one can know."""
    return node.has_body or node.operator in RULES or node.operator in CONTRACTIONS_WITHOUT_RULE


def macs(node: Node, inputs: Sequence[Shape], output: Shape) -> int | None:
    """Of one node of `contracts`; None where there is no rule for it."""
    rule = None if node.has_body else RULES.get(node.operator)
    return None if rule is None else rule(node, inputs, output)
