"""Constants across branches: sums and softmax over a dimension of channels, as in split attention.

Along such a dimension every position is a channel of its own, so that their number does not follow the size of the
input: a sum of constants is one, and so is each share of a softmax of constants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from compress.graph.aten.ops import reduced_dims
from compress.graph.aten.walk import Value, shape_of
from compress.graph.aten.zeros import accumulate
from compress.graph.field import Field

if TYPE_CHECKING:
    from compress.graph.aten.constants import ConstantFlow


def total(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """The sum of known branches; over height and width, where their number follows the input, of zeros alone."""
    x, shape = args[0], shape_of(node)
    if not isinstance(x, Field) or shape is None:
        return flow.unknown(node, args, kwargs)
    dims = reduced_dims(node, x, args, kwargs)
    if not _all_channels(flow, node, dims):
        return accumulate(flow, node, args, kwargs)
    data = _spread(x, dims).sum(dims, keepdim=True)
    return Field(data.squeeze(dims) if len(shape) < len(x.shape) else data, shape)


def softmax(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Softmax (input, dim, dtype) over known branches; one that is unknown makes all of them so."""
    x, dim, dtype = (*args, None)[:3]
    if not isinstance(x, Field) or dtype is not None or kwargs or not _all_channels(flow, node, (dim % len(x.shape),)):
        return flow.unknown(node, args, kwargs)
    return Field(_spread(x, (dim % len(x.shape),)).softmax(dim), x.shape)


def _spread(x: Field, dims: tuple[int, ...]) -> Tensor:
    return x.data.expand([x.shape[d] if d in dims else size for d, size in enumerate(x.data.shape)])


def _all_channels(flow: ConstantFlow, node: fx.Node, dims: tuple[int, ...]) -> bool:
    """Whether along each of ``dims`` every entry of the first argument is a channel of its own."""
    source = node.args[0]
    labels = flow.labels.get(source) if isinstance(source, fx.Node) else None
    if not isinstance(labels, Field) or bool((labels.data < 0).any()):
        return False
    return all(
        labels.varies(dim) and not bool((torch.sort(labels.data, dim).values.diff(dim=dim) == 0).any()) for dim in dims
    )
