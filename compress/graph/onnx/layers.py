"""Operations whose weights are initializers, as torch's own layers: surgery knows how to cut those."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.graph.onnx.node import Node
from compress.graph.onnx.windows import Window


class _Padded(nn.Module):
    """A convolution whose padding torch's own cannot express: it is put around the input first."""

    window: Window

    def forward(self, x: Tensor) -> Tensor:
        amounts = self.window.amounts([int(size) for size in x.shape[2:]])
        result: Tensor = super().forward(F.pad(x, amounts) if any(amounts) else x)
        return result


class PaddedConv1d(_Padded, nn.Conv1d):
    """With uneven padding."""


class PaddedConv2d(_Padded, nn.Conv2d):
    """With uneven padding."""


class PaddedConv3d(_Padded, nn.Conv3d):
    """With uneven padding."""


class BatchNorm(_BatchNorm):
    """BatchNormalization of any rank."""

    def _check_input_dim(self, _input: Tensor) -> None:
        """Every rank will do."""


CONVOLUTIONS: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
    3: (nn.Conv1d, PaddedConv1d),
    4: (nn.Conv2d, PaddedConv2d),
    5: (nn.Conv3d, PaddedConv3d),
}
"""Rank of the weight -> layers with even and with uneven padding."""

TRANSPOSED: dict[int, type[nn.Module]] = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}


def is_transposed(node: Node) -> bool:
    """Whether the file holds a linear layer's weight as ``[in, out]``."""
    return node.op == "MatMul" or (node.op == "Gemm" and not node.get("transB", 0))


def conv(node: Node, shapes: Mapping[int, tuple[int, ...]]) -> nn.Module | None:
    """Conv."""
    weight, groups = shapes[1], node.get("group", 1)
    if len(weight) not in CONVOLUTIONS:
        return None
    window = Window.of(node, weight[2:])
    even, uneven = CONVOLUTIONS[len(weight)]
    channels = weight[1] * groups, weight[0], weight[2:]
    layer = (even if window.symmetric is not None else uneven)(
        *channels, stride=window.strides, padding=window.symmetric or 0, dilation=window.dilations, groups=groups,
        bias=2 in shapes,
    )  # fmt: skip
    if window.symmetric is None:
        layer.window = window  # type: ignore[assignment]
    return layer


def conv_transpose(node: Node, shapes: Mapping[int, tuple[int, ...]]) -> nn.Module | None:
    """ConvTranspose, but for output sizes that are given and uneven padding."""
    weight, groups = shapes[1], node.get("group", 1)
    window = Window.of(node, weight[2:])
    if len(weight) not in TRANSPOSED or window.symmetric is None or "output_shape" in node.given:
        return None
    return TRANSPOSED[len(weight)](
        weight[0], weight[1] * groups, weight[2:], stride=window.strides, padding=window.symmetric,
        output_padding=node.get("output_padding", [0] * (len(weight) - 2)), groups=groups, bias=2 in shapes,
        dilation=window.dilations,
    )  # fmt: skip


def linear(node: Node, shapes: Mapping[int, tuple[int, ...]]) -> nn.Module | None:
    """Gemm and MatMul with a matrix of weights; a factor or a bias that is no vector makes it another product."""
    weight, bias = shapes[1], shapes.get(2)
    factors = (node.get("alpha", 1.0), node.get("beta", 1.0), node.get("transA", 0)) != (1.0, 1.0, 0)
    if len(weight) != 2 or factors:
        return None
    inputs, outputs = weight if is_transposed(node) else weight[::-1]
    return nn.Linear(inputs, outputs, bias=bias is not None) if bias in (None, (outputs,)) else None


def batch_norm(node: Node, shapes: Mapping[int, tuple[int, ...]]) -> nn.Module | None:
    """BatchNormalization in inference."""
    if node.get("training_mode", 0) or set(shapes) != {1, 2, 3, 4} or node.outputs > 1:
        return None
    return BatchNorm(shapes[1][0], eps=node.get("epsilon", 1e-5))


LAYERS: dict[str, tuple[Callable[[Node, Mapping[int, tuple[int, ...]]], nn.Module | None], dict[int, str]]] = {
    "Conv": (conv, {1: "weight", 2: "bias"}),
    "ConvTranspose": (conv_transpose, {1: "weight", 2: "bias"}),
    "Gemm": (linear, {1: "weight", 2: "bias"}),
    "MatMul": (linear, {1: "weight"}),
    "BatchNormalization": (batch_norm, {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"}),
}
"""Operation -> what makes its layer from the shapes of its initializers, and which input is which parameter."""


def layer_of(node: Node, tensors: Mapping[int, Tensor], inputs: int) -> nn.Module | None:
    """The layer of an operation with its parameters; ``None`` where it is none, or some of them are computed.

    Args:
        node: the operation.
        tensors: position -> initializer among its inputs.
        inputs: how many inputs it has.
    """
    if node.op not in LAYERS or set(tensors) != set(range(1, inputs)) or 1 not in tensors:
        return None
    make, names = LAYERS[node.op]
    shapes = {position: tuple(tensor.shape) for position, tensor in tensors.items()}
    with torch.device("meta"):
        layer = make(node, shapes)
    if layer is None:
        return None
    for name in [name for name, buffer in layer.named_buffers(recurse=False) if buffer is not None]:
        if name not in names.values():
            layer.register_buffer(name, None)
    return layer
