"""Constants under products of two activations.

What is multiplied with zeros alone is 0. A product with a softmax is a mean whose weights sum to 1: of equal values it
is that value, as attention finds it where all tokens have the same value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from compress.graph.aten.ops import UNCHANGED, as_result, einsum_letters, summed_dims
from compress.graph.aten.trace import DROPOUT, base_name
from compress.graph.aten.walk import Value, shape_of
from compress.graph.constants import UNKNOWN, agreed, by_group, contract
from compress.graph.field import Field

if TYPE_CHECKING:
    from compress.graph.aten.constants import ConstantFlow

SAME_LAST = frozenset((*UNCHANGED.split(), *DROPOUT.split(), "view", "reshape", "_unsafe_view", "expand", "unsqueeze"))
"""Operations that a softmax may pass on its way to a product, where its last dimension stays the last."""


def matrix_product(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """``[..., n, k] @ [..., k, m]``: 0 where all that is summed is 0 in one of the two; means of equal values.

    With a matrix of parameters on the right all that follows from constants is known, as behind a linear layer.
    """
    a, b, shape = *args[:2], shape_of(node)
    if isinstance(a, Field) and isinstance(b, Tensor) and shape is not None and b.ndim == 2 and len(a.shape) > 1:
        last = agreed(a.data, tuple(range(len(a.shape) - 1))).reshape(-1).expand(a.shape[-1])
        return Field.along(contract(by_group(b, 1, transposed=True), None, last, bordered=False), len(shape) - 1, shape)
    if not (isinstance(a, Field) and isinstance(b, Field)) or shape is None or min(len(a.shape), len(b.shape)) < 2:
        return flow.unknown(node, args, kwargs)
    left, right = agreed(a.data, (len(a.shape) - 1,)), agreed(b.data, (len(b.shape) - 2,))
    return _known(left, right, shape, mean=_sums_to_one(node.args[0]))


def einsum(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Einstein sum (equation, (a, b)): the same for products of two activations over named dimensions."""
    letters, shape = einsum_letters(args[0]), shape_of(node)
    if letters is None or shape is None or len(args[1]) != 2 or not all(isinstance(x, Field) for x in args[1]):
        return flow.unknown(node, args, kwargs)
    *inner, out = letters
    factors = [
        as_result(agreed(x.data, summed_dims(own, out)), own, out) for own, x in zip(inner, args[1], strict=True)
    ]
    operands = node.args[1]
    assert isinstance(operands, (list, tuple))
    summed_letters = set(inner[0]) - set(out)
    mean = summed_letters == set(inner[0][-1:]) == set(inner[1]) - set(out) and _sums_to_one(operands[0])
    return _known(factors[0], factors[1], shape, mean=mean)


def attention(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """scaled_dot_product_attention (query, key, value, mask, dropout, ...): a mean of values for each query.

    A query of which a mask hides every key has 0 instead of a mean: with a mask, zeros alone are known.
    """
    query, value, shape = args[0], args[2], shape_of(node)
    masked = any(x is not None for x in (*args[3:4], kwargs.get("attn_mask")))
    dropped = bool((*args, 0.0, 0.0)[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))
    if not (isinstance(query, Field) and isinstance(value, Field)) or shape is None or kwargs.get("enable_gqa"):
        return flow.unknown(node, args, kwargs)
    weights = torch.full([1] * len(query.shape), UNKNOWN, dtype=torch.float64)
    return _known(weights, agreed(value.data, (len(value.shape) - 2,)), shape, mean=not (masked or dropped))


def _known(left: Tensor, right: Tensor, shape: tuple[int, ...], *, mean: bool) -> Field:
    """What is known of a product, from what is known of both sides: of size 1 along the dimension that is summed."""
    zero = torch.zeros((), dtype=torch.float64)
    known = right if mean else torch.where(right == 0, right, UNKNOWN)
    data = torch.where(left == 0, zero, known)
    return Field(data.reshape([1] * (len(shape) - data.ndim) + list(data.shape)), shape)


def _sums_to_one(node: object) -> bool:
    """Whether each row is a softmax: behind operations that keep rows of one length as they are."""
    size = None
    while isinstance(node, fx.Node) and node.op == "call_function":
        shape = shape_of(node)
        if shape is None or (size is not None and shape[-1] != size):
            return False
        size, name = shape[-1], base_name(node)
        if name in ("softmax", "_softmax"):
            return node.args[1] in (-1, len(shape) - 1)
        if name not in SAME_LAST or (name in DROPOUT.split() and node.args[2]):
            return False
        node = node.args[0]
    return False
