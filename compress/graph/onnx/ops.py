"""The op table of ONNX: each operation in torch, as the label flow and the constant flow know it.

What moves data is in `movement.py`, what looks through windows in `windows.py`. Semantics: the ONNX operator
documentation, opsets 13 to 23.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compress.graph.onnx import movement, windows
from compress.graph.onnx.node import Node, Op, Unhandled, Value, known, numbers, tensors, torch_dtype

# --- elementwise -----------------------------------------------------------------------------------------------------


def unary(function: Callable[[Tensor], Tensor]) -> Op:
    """An elementwise operation without attributes."""
    return Op(lambda _node, x: function(x))


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    """An elementwise operation on two tensors."""
    return Op(lambda _node, a, b: function(*tensors(a, b)))


def variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    """An elementwise operation on any number of tensors, one after another."""

    def run(_node: Node, *inputs: Value) -> Tensor:
        first, *others = tensors(*inputs)
        for other in others:
            first = function(first, other)
        return first

    return Op(run)


def mean(node: Node, *inputs: Value) -> Tensor:
    """Elementwise mean of several tensors."""
    total: Tensor = variadic(torch.add).run(node, *inputs)
    return total / len(inputs)


def clip(_node: Node, x: Tensor, low: Value = None, high: Value = None) -> Tensor:
    """Clip (x, min, max)."""
    bounds = [None if bound is None else float(np.asarray(bound).reshape(())) for bound in (low, high)]
    return x if bounds == [None, None] else torch.clamp(x, *bounds)


def prelu(_node: Node, x: Tensor, slope: Value) -> Tensor:
    """PRelu: the slope is broadcast to the input."""
    positive, negative = torch.relu(x), torch.relu(-x)
    return positive - negative * tensors(slope)[0]


def gelu(node: Node, x: Tensor) -> Tensor:
    """Gelu, exact or by tanh."""
    return F.gelu(x, approximate=node.get("approximate", "none"))


def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    """HardSigmoid: max(0, min(1, alpha x + beta))."""
    return torch.clamp(x * node.get("alpha", 0.2) + node.get("beta", 0.5), 0, 1)


def selu(node: Node, x: Tensor) -> Tensor:
    """Selu with its usual constants."""
    if {"alpha", "gamma"} & node.given.keys():
        alpha, gamma = node.get("alpha", 1.6732632), node.get("gamma", 1.0507010)
        if abs(alpha - 1.6732632) > 1e-6 or abs(gamma - 1.0507010) > 1e-6:
            raise Unhandled("constants of its own")
    return F.selu(x)


def cast(node: Node, x: Value, like: Value = None) -> Tensor:
    """Cast to a named type, CastLike to that of another tensor."""
    (x,) = tensors(x)
    dtype = cast_type(node, like)
    result: Tensor = x if x.dtype == dtype else x.to(dtype)
    return result


def cast_type(node: Node, like: Value = None) -> torch.dtype:
    """What Cast or CastLike casts to."""
    return torch_dtype(node.get("to", 0)) if like is None else tensors(like)[0].dtype


def dropout(node: Node, x: Tensor, _ratio: Value = None, training: Value = None) -> Tensor:
    """Dropout in inference."""
    if node.outputs > 1 or (training is not None and bool(np.asarray(training).any())):
        raise Unhandled("its mask, or training mode")
    return x


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Div: of whole numbers, towards zero."""
    return torch.div(a, b) if a.is_floating_point() or b.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


# --- products --------------------------------------------------------------------------------------------------------


def gemm(node: Node, a: Value, b: Value, c: Value = None) -> Tensor:
    """Gemm: alpha A B + beta C."""
    a, b = tensors(a, b)
    a, b = (a.t() if node.get("transA", 0) else a), (b.t() if node.get("transB", 0) else b)
    product = torch.matmul(a, b)
    if node.get("alpha", 1.0) != 1:
        product = product * node.get("alpha", 1.0)
    if c is None:
        return product
    return torch.add(product, tensors(c)[0] * node.get("beta", 1.0) if node.get("beta", 1.0) != 1 else tensors(c)[0])


def einsum(node: Node, *operands: Value) -> Tensor:
    """Einsum."""
    return torch.einsum(node.get("equation", ""), *tensors(*operands))


# --- normalisations --------------------------------------------------------------------------------------------------


def batch_norm(node: Node, x: Tensor, scale: Value, shift: Value, mean: Value, variance: Value) -> Tensor:
    """BatchNormalization in inference, with parameters that are computed."""
    if node.get("training_mode", 0):
        raise Unhandled("training mode")
    scale, shift, mean, variance = tensors(scale, shift, mean, variance)
    return F.batch_norm(x, mean, variance, scale, shift, eps=node.get("epsilon", 1e-5))


def instance_norm(node: Node, x: Tensor, scale: Value, shift: Value) -> Tensor:
    """InstanceNormalization."""
    scale, shift = tensors(scale, shift)
    return F.instance_norm(x, weight=scale, bias=shift, eps=node.get("epsilon", 1e-5))


def layer_norm(node: Node, x: Tensor, scale: Value, shift: Value = None) -> Tensor:
    """LayerNormalization over the dimensions from ``axis`` on."""
    shape = x.shape[node.get("axis", -1) % x.ndim :]
    (scale,) = tensors(scale)
    if tuple(scale.shape) != tuple(shape) or node.get("stash_type", 1) != 1:
        raise Unhandled("a scale that is broadcast")
    return F.layer_norm(x, shape, scale, None if shift is None else tensors(shift)[0], node.get("epsilon", 1e-5))


def group_norm(node: Node, x: Tensor, scale: Value, shift: Value) -> Tensor:
    """GroupNormalization; up to opset 20 with a scale for each group."""
    groups = node.get("num_groups", 1)
    scale, shift = tensors(scale, shift)
    if node.opset < 21:
        scale, shift = (p.repeat_interleave(x.shape[1] // groups) for p in (scale, shift))
    return F.group_norm(x, groups, scale, shift, node.get("epsilon", 1e-5))


def softmax(node: Node, x: Tensor) -> Tensor:
    """Softmax along one dimension."""
    return torch.softmax(x, node.get("axis", -1))


def log_softmax(node: Node, x: Tensor) -> Tensor:
    """LogSoftmax along one dimension."""
    return torch.log_softmax(x, node.get("axis", -1))


def cumsum(node: Node, x: Tensor, axis: Value) -> Tensor:
    """CumSum from the front."""
    if node.get("exclusive", 0) or node.get("reverse", 0):
        raise Unhandled("exclusive or reverse")
    return torch.cumsum(x, known(axis)[0])


# --- reductions ------------------------------------------------------------------------------------------------------


def reduction(function: Callable[..., Tensor]) -> Op:
    """A reduction: dimensions in an attribute or, later, in an input."""

    def run(node: Node, x: Tensor, axes: Value = None) -> Tensor:
        dims = known(axes) if axes is not None else list(node.get("axes", []))
        if not dims and node.get("noop_with_empty_axes", 0):
            raise Unhandled("no dimension")
        dims = [d % x.ndim for d in dims] or list(range(x.ndim))
        return function(x, dims, keepdim=bool(node.get("keepdims", 1)))

    return Op(run, frozenset((1,)))


# --- the table -------------------------------------------------------------------------------------------------------


OPS: dict[str, Op] = {
    **{
        name: unary(getattr(torch, name.lower()))
        for name in ["Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg"]
    },
    **{
        name: unary(getattr(torch, name.lower()))
        for name in ["Reciprocal", "Sin", "Cos", "Tan", "Floor", "Ceil", "Round", "Sign"]
    },
    "Softplus": unary(F.softplus),
    "Softsign": unary(lambda x: x / (1 + x.abs())),
    "Mish": unary(F.mish),
    "HardSwish": unary(F.hardswish),
    "Not": unary(torch.logical_not),
    "Identity": unary(lambda x: x),
    "LeakyRelu": Op(lambda node, x: F.leaky_relu(x, node.get("alpha", 0.01))),
    "Elu": Op(lambda node, x: F.elu(x, node.get("alpha", 1.0))),
    "Celu": Op(lambda node, x: F.celu(x, node.get("alpha", 1.0))),
    "Selu": Op(selu),
    "Gelu": Op(gelu),
    "HardSigmoid": Op(hard_sigmoid),
    "Swish": Op(lambda node, x: x * torch.sigmoid(x * node.get("alpha", 1.0))),
    "Clip": Op(clip, numbers(1, 2)),
    "PRelu": Op(prelu),
    "Cast": Op(cast),
    "CastLike": Op(cast),
    "Dropout": Op(dropout, numbers(1, 2)),
    "Add": binary(torch.add),
    "Sub": binary(torch.sub),
    "Mul": binary(torch.mul),
    "Div": binary(divide),
    "Pow": binary(torch.pow),
    "Equal": binary(torch.eq),
    "Greater": binary(torch.gt),
    "GreaterOrEqual": binary(torch.ge),
    "Less": binary(torch.lt),
    "LessOrEqual": binary(torch.le),
    "And": binary(torch.logical_and),
    "Or": binary(torch.logical_or),
    "Where": Op(lambda _node, condition, a, b: torch.where(*tensors(condition, a, b))),
    "Max": variadic(torch.maximum),
    "Min": variadic(torch.minimum),
    "Sum": variadic(torch.add),
    "Mean": Op(mean),
    "Conv": Op(windows.conv),
    "Gemm": Op(gemm),
    "MatMul": binary(torch.matmul),
    "Einsum": Op(einsum),
    "BatchNormalization": Op(batch_norm),
    "InstanceNormalization": Op(instance_norm),
    "LayerNormalization": Op(layer_norm),
    "GroupNormalization": Op(group_norm),
    "Softmax": Op(softmax),
    "LogSoftmax": Op(log_softmax),
    "CumSum": Op(cumsum, numbers(1)),
    "MaxPool": Op(windows.max_pool),
    "AveragePool": Op(windows.average_pool),
    "GlobalAveragePool": Op(windows.global_average),
    "GlobalMaxPool": Op(windows.global_max),
    "ReduceMean": reduction(torch.mean),
    "ReduceSum": reduction(torch.sum),
    "ReduceMax": reduction(torch.amax),
    "ReduceMin": reduction(torch.amin),
    "ReduceL1": reduction(lambda x, dims, keepdim: torch.sum(x.abs(), dims, keepdim=keepdim)),
    "ReduceL2": reduction(lambda x, dims, keepdim: torch.linalg.vector_norm(x, 2, dims, keepdim=keepdim)),
    "ReduceSumSquare": reduction(lambda x, dims, keepdim: torch.sum(x.square(), dims, keepdim=keepdim)),
    "ReduceLogSumExp": reduction(torch.logsumexp),
    "Reshape": Op(movement.reshape, numbers(1)),
    "Flatten": Op(movement.flatten),
    "Transpose": Op(movement.transpose),
    "Squeeze": Op(movement.squeeze, numbers(1)),
    "Unsqueeze": Op(movement.unsqueeze, numbers(1)),
    "Concat": Op(movement.concat),
    "Split": Op(movement.split, numbers(1)),
    "Slice": Op(movement.slice_, numbers(1, 2, 3, 4)),
    "Gather": Op(movement.gather),
    "GatherND": Op(movement.gather_nd),
    "Expand": Op(movement.expand, numbers(1)),
    "Tile": Op(movement.tile, numbers(1)),
    "Pad": Op(movement.pad, numbers(1, 2, 3)),
    "DepthToSpace": Op(movement.depth_to_space),
    "SpaceToDepth": Op(movement.space_to_depth),
    "Resize": Op(movement.resize, numbers(1, 2, 3)),
}
"""Operation of the default domain -> how torch computes it. What is not here is opaque: its channels stay."""
