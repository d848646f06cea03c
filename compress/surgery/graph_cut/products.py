"""Products of two activations, and attention: what they sum is whole, what they keep apart may leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from compress.graph.aten.ops import einsum_letters
from compress.graph.aten.trace import base_name, functional
from compress.surgery.graph_cut.cutter import Cutter, Result, Value
from compress.surgery.graph_cut.layers import is_matrix, matrix
from compress.surgery.graph_cut.layout import Layout

QUERY, KEY, VALUE, MASK = range(4)


def matrix_product(cutter: Cutter, node: fx.Node) -> Result:
    """``[..., n, k] @ [..., k, m]``: ``k`` stays; rows, columns and batches go with the result.

    Of a matrix of parameters on the right its rows go with what it reads, and its columns with the result.
    """
    if is_matrix(cutter, node.args[1]):
        return matrix(cutter, node)
    return _cut(cutter, node, lambda position: (-2,) if position == 0 else (-1,))


def einsum(cutter: Cutter, node: fx.Node) -> Result:
    """Einstein sum (equation, (a, b)): each operand keeps what the result keeps along the dimensions that both name."""
    layout, (equation, operands) = cutter.layout(node), cutter.batch.arguments(node)[0][:2]
    letters = einsum_letters(equation)
    if letters is None or not layout.is_plain:
        raise cutter.block(node, "einsum of channels that were cut unevenly")
    *inner, out = letters
    fitted = []
    for own, operand in zip(inner, operands, strict=True):
        kept = {d: layout.kept(out.index(letter)) for d, letter in enumerate(own) if letter in out}
        fitted.append(cutter.narrow(node, cutter.present(node, operand), kept).node)
    return cutter.held(node, cutter.call(node, functional(node), equation, fitted))


def attention(cutter: Cutter, node: fx.Node) -> Result:
    """scaled_dot_product_attention (query, key, value, mask, ...): whole heads leave."""
    return _cut(cutter, node, lambda position: {QUERY: (-2,), KEY: (), VALUE: (-1,), MASK: (-2,)}[position])


def _cut(cutter: Cutter, node: fx.Node, free: Callable[[int], tuple[int, ...]]) -> Result:
    """The same product, of operands that keep what the result keeps along their batches and the dimensions ``free``."""
    layout, (args, kwargs) = cutter.layout(node), cutter.batch.arguments(node)
    if not layout.is_plain:
        raise cutter.block(node, f"{base_name(node)} of channels that were cut unevenly")

    def fitted(argument: Any, position: int) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        value = cutter.present(node, argument)
        return cutter.narrow(node, value, _kept(value, layout, free(position))).node

    positional = [fitted(argument, position) for position, argument in enumerate(args)]
    named = {name: fitted(argument, MASK) for name, argument in kwargs.items()}
    return cutter.held(node, cutter.call(node, functional(node), *positional, **named))


def _kept(value: Value, result: Layout, free: tuple[int, ...]) -> dict[int, Any]:
    shape, kept = value.layout.shape, {}
    for dim in range(-len(shape), 0):
        batch = dim < -2 and shape[dim] > 1
        if batch or (dim in free and shape[dim] > 1):
            kept[dim + len(shape)] = result.kept(dim + len(result.shape))
    return kept
