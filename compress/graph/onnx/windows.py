"""ONNX operations that look through windows, in torch: convolutions whose weight is computed, and poolings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from compress.graph.onnx.node import Node, Unhandled, Value


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
