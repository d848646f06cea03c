"""The op table of ONNX: each operation in torch, as the label flow and the constant flow know it.

An operation of which something has no counterpart raises ``Unhandled``, and is opaque then: its channels stay, under
its name. Semantics: the ONNX operator documentation, opsets 13 to 23.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from compress.graph.onnx.statics import Array

Value = Any
"""A tensor; an array, for what is known without the network's inputs; ``None`` for an input that is left out."""


class Unhandled(Exception):  # noqa: N818 - a message to the caller, who makes the operation opaque
    """Why this use of an operation has no counterpart in torch."""


@dataclass(frozen=True)
class Node:
    """An operation of the file.

    Attributes:
        op: its type; ``name`` its name in the file, or one made of its type and position.
        given: its attributes.
        opset: of the model.
        outputs: how many of its results are read.
        declared: how many results it has in the file, read or not.
    """

    op: str
    name: str
    given: Mapping[str, Any]
    opset: int
    outputs: int
    declared: int

    def get(self, name: str, default: Any) -> Any:
        """An attribute, or its default."""
        return self.given.get(name, default)


Run = Callable[..., Any]


@dataclass(frozen=True)
class Op:
    """One line of the table.

    Attributes:
        run: computes the results from the node and its inputs, those that are left out at the end as ``None``.
        static: positions of inputs that are numbers, and must be known without the network's inputs.
    """

    run: Run
    static: frozenset[int] = frozenset()


def known(value: Value) -> list[int]:
    """Whole numbers of a static input."""
    return [int(number) for number in np.asarray(value).reshape(-1)]


# --- elementwise -----------------------------------------------------------------------------------------------------


def unary(function: Callable[[Tensor], Tensor]) -> Op:
    """An elementwise operation without attributes."""
    return Op(lambda _node, x: function(x))


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    """An elementwise operation on two tensors."""
    return Op(lambda _node, a, b: function(*tensors(a, b)))


def tensors(*values: Value) -> tuple[Tensor, ...]:
    """Operands of which at least one is a tensor; numbers stand for arrays of one entry."""
    first = next((v for v in values if isinstance(v, Tensor)), None)
    return tuple(v if isinstance(v, Tensor) else made(v, first) for v in values)


def made(value: Array, like: Tensor | None = None) -> Tensor:
    """A tensor of an array that was computed from shapes: a number everywhere, or entry by entry."""
    if value.dtype == object or value.dtype.kind in "USV":
        raise Unhandled("text")
    target, device = torch.from_numpy(np.zeros(1, value.dtype)).dtype, None if like is None else like.device
    if like is not None and like.is_floating_point() and target.is_floating_point:
        target = like.dtype
    if value.size and bool((value == value.flat[0]).all()):
        return torch.full(tuple(value.shape), value.flat[0].item(), dtype=target, device=device)
    return torch.tensor(value.tolist(), dtype=target, device=device)


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


def torch_dtype(elem_type: int) -> torch.dtype:
    """Torch's type of ONNX's number for it."""
    found = DTYPES.get(elem_type)
    if found is None:
        raise Unhandled(f"the type {onnx.TensorProto.DataType.Name(elem_type)}")
    return found


DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Div: of whole numbers, towards zero."""
    return torch.div(a, b) if a.is_floating_point() or b.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


# --- layers whose weights are no initializers, and products ----------------------------------------------------------


def conv(node: Node, x: Tensor, weight: Value, bias: Value = None) -> Tensor:
    """Conv with a weight that is computed."""
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}.get(weight.ndim - 2)
    if function is None or not isinstance(weight, Tensor):
        raise Unhandled("a convolution of this rank")
    spatial = weight.ndim - 2
    window = Window.of(node, tuple(weight.shape[2:]))
    return function(
        window.padded(x, 0.0), weight, bias, window.strides, window.symmetric or [0] * spatial, window.dilations,
        node.get("group", 1),
    )  # fmt: skip


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


# --- poolings and reductions -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pooling.

    Attributes:
        kernel: its size; ``strides`` and ``dilations`` likewise.
        pads: in front of and behind each dimension, from the first on: ONNX's order.
        auto: ``NOTSET``, or how amounts follow from the input's size.
    """

    kernel: tuple[int, ...]
    strides: list[int]
    dilations: list[int]
    pads: list[int]
    auto: str

    @classmethod
    def of(cls, node: Node, kernel: tuple[int, ...] | None = None) -> Window:
        """That of a node; ``kernel`` where the weight tells it."""
        kernel = tuple(node.get("kernel_shape", kernel or ()))
        ones = [1] * len(kernel)
        pads = list(node.get("pads", [0] * 2 * len(kernel)))
        auto = node.get("auto_pad", "NOTSET")
        if auto == "VALID":
            pads, auto = [0] * 2 * len(kernel), "NOTSET"
        return cls(kernel, list(node.get("strides", ones)), list(node.get("dilations", ones)), pads, auto)

    @property
    def symmetric(self) -> list[int] | None:
        """The padding in front of each dimension, where there is as much behind; else ``None``."""
        front, behind = self.pads[: len(self.kernel)], self.pads[len(self.kernel) :]
        return front if self.auto == "NOTSET" and front == behind else None

    def sides(self, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        """The padding in front of and behind each dimension, for an input with these heights and widths."""
        n = len(self.kernel)
        if self.auto == "NOTSET":
            return self.pads[:n], self.pads[n:]
        missing = [
            max((math.ceil(size / s) - 1) * s + span - size, 0)
            for size, span, s in zip(sizes, self.spans, self.strides, strict=True)
        ]
        less, more = [m // 2 for m in missing], [m - m // 2 for m in missing]
        return (less, more) if self.auto == "SAME_UPPER" else (more, less)

    @property
    def spans(self) -> list[int]:
        """How many places a window covers in each dimension, those between its entries included."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def amounts(self, sizes: Sequence[int]) -> list[int]:
        """``F.pad``'s amounts for an input with these heights and widths: the last dimension first."""
        front, behind = self.sides(sizes)
        return [amount for d in reversed(range(len(self.kernel))) for amount in (front[d], behind[d])]

    def ignored(self, sizes: Sequence[int], *, ceil: bool) -> tuple[list[int], bool] | None:
        """Torch's padding and ``ceil_mode`` for a pooling that ignores padding; ``None`` where torch has none such.

        Windows start where the padding in front says; the padding behind tells no more than how many there are.
        """
        front, behind = self.sides(sizes)
        if any(2 * p > k for p, k in zip(front, self.kernel, strict=True)):
            return None
        if front == behind:
            return front, ceil
        parts = list(zip(sizes, front, self.spans, self.strides, strict=True))
        reached = [size + p - span for size, p, span, _ in parts]
        wanted = [(r + p) // s + 1 for r, p, s in zip(reached, behind, self.strides, strict=True)]
        floors = [(r + p) // s + 1 for r, p, s in zip(reached, front, self.strides, strict=True)]
        ceilings = [math.ceil((r + p) / s) + 1 for r, p, s in zip(reached, front, self.strides, strict=True)]
        inside = all((count - 1) * s < size + p for count, (size, p, _, s) in zip(ceilings, parts, strict=True))
        if ceil or wanted not in (floors, ceilings if inside else floors):
            return None
        return front, wanted != floors

    def padded(self, x: Tensor, value: float) -> Tensor:
        """``x`` with what is not the same on both sides; symmetric padding is the operation's own."""
        if self.symmetric is not None:
            return x
        amounts = self.amounts([int(size) for size in x.shape[2:]])
        return F.pad(x, amounts, value=value) if any(amounts) else x


def max_pool(node: Node, x: Tensor) -> Tensor:
    """MaxPool without indices."""
    function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}.get(len(node.get("kernel_shape", ())))
    if function is None or node.outputs > 1:
        raise Unhandled("the positions of the largest")
    window, sizes, ceil = Window.of(node), [int(size) for size in x.shape[2:]], bool(node.get("ceil_mode", 0))
    found = window.ignored(sizes, ceil=ceil)
    if found is None:
        x, found = F.pad(x, window.amounts(sizes), value=-math.inf), ([0] * len(sizes), ceil)
    padding, ceil = found
    result: Tensor = function(x, window.kernel, window.strides, padding, window.dilations, ceil_mode=ceil)
    return result


def average_pool(node: Node, x: Tensor) -> Tensor:
    """AveragePool; windows that count other padding than torch's have no counterpart."""
    functions: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
    function = functions.get(len(node.get("kernel_shape", ())))
    window, counted, ceil = Window.of(node), bool(node.get("count_include_pad", 0)), bool(node.get("ceil_mode", 0))
    if function is None or any(d != 1 for d in window.dilations):
        raise Unhandled("dilations")
    sizes = [int(size) for size in x.shape[2:]]
    front, behind = window.sides(sizes)
    found = window.ignored(sizes, ceil=ceil) if front == behind or not counted else None
    if found is None:
        if not counted:
            raise Unhandled("padding that is uneven or wide, and not counted")
        x, found = F.pad(x, window.amounts(sizes)), ([0] * len(sizes), ceil)
    padding, ceil = found
    result: Tensor = function(x, window.kernel, window.strides, padding, ceil_mode=ceil, count_include_pad=counted)
    return result


def global_average(_node: Node, x: Tensor) -> Tensor:
    """GlobalAveragePool."""
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def global_max(_node: Node, x: Tensor) -> Tensor:
    """GlobalMaxPool."""
    return x.amax(list(range(2, x.ndim)), keepdim=True)


def reduction(function: Callable[..., Tensor]) -> Op:
    """A reduction: dimensions in an attribute or, later, in an input."""

    def run(node: Node, x: Tensor, axes: Value = None) -> Tensor:
        dims = known(axes) if axes is not None else list(node.get("axes", []))
        if not dims and node.get("noop_with_empty_axes", 0):
            raise Unhandled("no dimension")
        dims = [d % x.ndim for d in dims] or list(range(x.ndim))
        return function(x, dims, keepdim=bool(node.get("keepdims", 1)))

    return Op(run, frozenset((1,)))


# --- movement --------------------------------------------------------------------------------------------------------


def reshape(node: Node, x: Tensor, shape: Value) -> Tensor:
    """Reshape: 0 copies a size, -1 takes what is left."""
    wanted = known(shape)
    if not node.get("allowzero", 0):
        wanted = [int(x.shape[i]) if size == 0 else size for i, size in enumerate(wanted)]
    if -1 in wanted:
        rest = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = x.numel() // rest if rest else 0
    return x.reshape(wanted)


def flatten(node: Node, x: Tensor) -> Tensor:
    """Flatten to a matrix."""
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(node: Node, x: Tensor) -> Tensor:
    """Transpose."""
    return x.permute(list(node.get("perm", reversed(range(x.ndim)))))


def squeeze(_node: Node, x: Tensor, axes: Value = None) -> Tensor:
    """Squeeze the named dimensions, or all of size 1."""
    dims = [d for d in range(x.ndim) if x.shape[d] == 1] if axes is None else known(axes)
    return x.squeeze([d % x.ndim for d in dims]) if dims else x


def unsqueeze(_node: Node, x: Tensor, axes: Value) -> Tensor:
    """Unsqueeze at the named dimensions of the result."""
    ndim = x.ndim + len(known(axes))
    for dim in sorted(d % ndim for d in known(axes)):
        x = x.unsqueeze(dim)
    return x


def concat(node: Node, *inputs: Value) -> Tensor:
    """Concat along one dimension."""
    return torch.cat(tensors(*inputs), node.get("axis", 0))


def split(node: Node, x: Tensor, sizes: Value = None) -> tuple[Tensor, ...]:
    """Split by sizes, or evenly: the last part may be smaller."""
    axis = node.get("axis", 0)
    if sizes is None:
        total, parts = int(x.shape[axis]), node.get("num_outputs", node.declared)
        each = math.ceil(total / parts)
        sizes = [each] * (total // each) + ([total % each] if total % each else [])
        sizes += [0] * (parts - len(sizes))
    return tuple(torch.split(x, [int(size) for size in sizes], axis))


def slice_(_node: Node, x: Tensor, starts: Value, ends: Value, axes: Value = None, steps: Value = None) -> Tensor:
    """Slice, dimension by dimension; backwards it is a flip."""
    begins, stops = known(starts), known(ends)
    dims = list(range(len(begins))) if axes is None else [axis % x.ndim for axis in known(axes)]
    strides = [1] * len(begins) if steps is None else known(steps)
    for dim, start, end, step in zip(dims, begins, stops, strides, strict=True):
        size = int(x.shape[dim])
        first, last, stride = slice(start, end, step).indices(size)
        if step < 0:
            if (first, last, stride) != (size - 1, -1, -1):
                raise Unhandled("a part, backwards")
            x = x.flip([dim])
        elif (first, last, stride) != (0, size, 1) or (dim > 1 and not (start == 0 and stop_is_open(end))):
            x = torch.ops.aten.slice.Tensor(x, dim, first, max(first, last), stride)
    return x


def stop_is_open(end: int) -> bool:
    """Whether the end of a Slice is that of any image: exporters write the largest number of 32 or 64 bits."""
    return end >= np.iinfo(np.int32).max


def gather(node: Node, x: Value, indices: Value) -> Tensor:
    """Gather along one dimension: one position, or those of a table that is looked up by others."""
    axis = node.get("axis", 0)
    (x,) = tensors(x)
    assert isinstance(x, Tensor)
    if isinstance(indices, Tensor):
        if axis == 0 and x.ndim == 2:
            return F.embedding(indices, x)
        raise Unhandled("positions that depend on the input")
    positions, size = np.asarray(indices), int(x.shape[axis])
    if positions.ndim == 0:
        return x.select(axis, int(positions) % size)
    return picked(node, x, torch.tensor(positions.tolist(), device=x.device))


def gather_nd(node: Node, x: Value, indices: Value) -> Tensor:
    """GatherND of positions that are known numbers."""
    (x,) = tensors(x)
    assert isinstance(x, Tensor)
    if isinstance(indices, Tensor):
        raise Unhandled("positions that depend on the input")
    return picked(node, x, torch.tensor(np.asarray(indices).tolist(), device=x.device))


def picked(node: Node, x: Value, positions: Tensor) -> Tensor:
    """Gather and GatherND of positions, int64, that are part of the network."""
    (x,) = tensors(x)
    if node.op == "GatherND":
        if node.get("batch_dims", 0):
            raise Unhandled("positions for each image")
        several: Tensor = x[positions.unbind(-1)]
        return several
    index: list[Any] = [slice(None)] * (node.get("axis", 0) % x.ndim)
    result: Tensor = x[(*index, positions)]
    return result


def expand(_node: Node, x: Tensor, shape: Value) -> Tensor:
    """Expand: both sides are broadcast."""
    wanted = torch.broadcast_shapes(tuple(x.shape), tuple(known(shape)))  # type: ignore[no-untyped-call]
    return x.expand(wanted)


def tile(_node: Node, x: Tensor, repeats: Value) -> Tensor:
    """Tile."""
    return x.repeat(known(repeats))


def pad(node: Node, x: Tensor, pads: Value, value: Value = None, axes: Value = None) -> Tensor:
    """Pad: a constant around all dimensions, or reflected and repeated borders of height and width."""
    given, mode = known(pads), node.get("mode", "constant")
    dims = [d % x.ndim for d in (range(x.ndim) if axes is None else known(axes))]
    amounts = [0] * 2 * x.ndim
    for i, dim in enumerate(dims):
        behind = 2 * (x.ndim - 1 - dim)
        amounts[behind], amounts[behind + 1] = given[i], given[i + len(dims)]
    while amounts and amounts[-2:] == [0, 0]:
        amounts = amounts[:-2]
    if not amounts:
        return x
    if mode == "constant":
        return F.pad(x, amounts, value=0.0 if value is None else float(np.asarray(value).reshape(())))
    if mode not in ("reflect", "edge") or min(amounts) < 0:
        raise Unhandled(f"the mode {mode}")
    amounts += [0] * (2 * (x.ndim - 2) - len(amounts))
    if len(amounts) > 2 * (x.ndim - 2) or x.ndim not in (3, 4, 5):
        raise Unhandled("borders of channels")
    return F.pad(x, amounts, mode="reflect" if mode == "reflect" else "replicate")


def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """DepthToSpace: torch's pixel shuffle in mode CRD, the other order else."""
    block = node.get("blocksize", 1)
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = (int(size) for size in x.shape)
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(node: Node, x: Tensor) -> Tensor:
    """SpaceToDepth."""
    block = node.get("blocksize", 1)
    n, c, h, w = (int(size) for size in x.shape)
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def resize(node: Node, x: Tensor, _roi: Value = None, scales: Value = None, sizes: Value = None) -> Tensor:
    """Resize of height and width, in the modes that torch has."""
    if node.get("axes", None) is not None or x.ndim != 4 or node.get("antialias", 0):
        raise Unhandled("its axes or antialiasing")
    mode, place = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch" or node.get("exclude_outside", 0):
        raise Unhandled("its aspect ratio, or what lies outside")
    if sizes is not None and np.asarray(sizes).size:
        wanted, factors = known(sizes), None
    else:
        factors = [float(s) for s in np.asarray(scales).reshape(-1)]
        wanted = [math.floor(size * s) for size, s in zip(x.shape, factors, strict=True)]
    if wanted[:2] != [int(size) for size in x.shape[:2]]:
        raise Unhandled("another number of channels")
    size = wanted[2:]
    exact = factors is None or all(f * n == w for f, n, w in zip(factors, x.shape, wanted, strict=True))
    if mode == "nearest" and exact and _copies_pixels(node, place, x, size):
        return F.interpolate(x, size=size, mode="nearest")
    smooth = {"linear": "bilinear", "cubic": "bicubic"}.get(mode)
    usual = smooth != "bicubic" or abs(node.get("cubic_coeff_a", -0.75) + 0.75) < 1e-9
    centred = place == "half_pixel" or (place == "pytorch_half_pixel" and 1 not in size)
    if smooth is None or not exact or not usual or not (centred or place == "align_corners"):
        raise Unhandled(f"the mode {mode} at {place}")
    return F.interpolate(x, size=size, mode=smooth, align_corners=place == "align_corners")


def _copies_pixels(node: Node, place: str, x: Tensor, size: Sequence[int]) -> bool:
    """Whether nearest neighbours are those of torch; of whole factors, the centre of a copy lies in its own pixel."""
    if place == "asymmetric":
        return bool(node.get("nearest_mode", "round_prefer_floor") == "floor")
    return "half_pixel" in place and all(w % int(n) == 0 for w, n in zip(size, x.shape[2:], strict=True))


def dropout(node: Node, x: Tensor, _ratio: Value = None, training: Value = None) -> Tensor:
    """Dropout in inference."""
    if node.outputs > 1 or (training is not None and bool(np.asarray(training).any())):
        raise Unhandled("its mask, or training mode")
    return x


def numbers(*positions: int) -> frozenset[int]:
    """Positions of static inputs."""
    return frozenset(positions)


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
    "Conv": Op(conv),
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
    "MaxPool": Op(max_pool),
    "AveragePool": Op(average_pool),
    "GlobalAveragePool": Op(global_average),
    "GlobalMaxPool": Op(global_max),
    "ReduceMean": reduction(torch.mean),
    "ReduceSum": reduction(torch.sum),
    "ReduceMax": reduction(torch.amax),
    "ReduceMin": reduction(torch.amin),
    "ReduceL1": reduction(lambda x, dims, keepdim: torch.sum(x.abs(), dims, keepdim=keepdim)),
    "ReduceL2": reduction(lambda x, dims, keepdim: torch.linalg.vector_norm(x, 2, dims, keepdim=keepdim)),
    "ReduceSumSquare": reduction(lambda x, dims, keepdim: torch.sum(x.square(), dims, keepdim=keepdim)),
    "ReduceLogSumExp": reduction(torch.logsumexp),
    "Reshape": Op(reshape, numbers(1)),
    "Flatten": Op(flatten),
    "Transpose": Op(transpose),
    "Squeeze": Op(squeeze, numbers(1)),
    "Unsqueeze": Op(unsqueeze, numbers(1)),
    "Concat": Op(concat),
    "Split": Op(split, numbers(1)),
    "Slice": Op(slice_, numbers(1, 2, 3, 4)),
    "Gather": Op(gather),
    "GatherND": Op(gather_nd),
    "Expand": Op(expand, numbers(1)),
    "Tile": Op(tile, numbers(1)),
    "Pad": Op(pad, numbers(1, 2, 3)),
    "DepthToSpace": Op(depth_to_space),
    "SpaceToDepth": Op(space_to_depth),
    "Resize": Op(resize, numbers(1, 2, 3)),
}
"""Operation of the default domain -> how torch computes it. What is not here is opaque: its channels stay."""
