"""What every flow must know about ATen ops: which belong together, and how their arguments read."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from compress.graph.aten.trace import base_name
from compress.graph.aten.walk import Value
from compress.graph.field import Field

R = TypeVar("R")

MOVEMENT = (
    "view reshape _unsafe_view permute transpose t cat stack split split_with_sizes chunk unbind slice select narrow "
    "flatten unflatten unsqueeze squeeze expand repeat repeat_interleave roll flip pixel_shuffle pixel_unshuffle "
    "diagonal view_as reshape_as expand_as numpy_T movedim swapaxes unfold slice_scatter select_scatter copy"
)
"""Ops that only move entries: executed as they are on labels and on constants."""

MOVEMENT_OF_FLOATS = "upsample_nearest1d upsample_nearest2d upsample_nearest3d channel_shuffle"
"""The same, for ops that know no integers."""

UNCHANGED = "contiguous clone alias detach lift_fresh lift_fresh_copy"
BATCH_NORM = "batch_norm _native_batch_norm_legit_no_training"
CONVOLUTION = "conv1d conv2d conv3d"
CONVOLUTION_TRANSPOSED = "conv_transpose1d conv_transpose2d conv_transpose3d"
SLICES = frozenset(("slice", "select", "narrow"))
"""Ops that take a part along one dimension."""

REDUCTIONS = "mean sum amax amin var std var_mean std_mean logsumexp prod any all linalg_vector_norm max min"

WINDOWS = (
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "upsample_linear1d upsample_bilinear2d upsample_trilinear3d"
)
"""Poolings and interpolations of one channel at a time, of which that of a constant is the constant."""

AVERAGE_POOLING = "avg_pool1d avg_pool2d avg_pool3d"
"""The same, but that padding may be counted and the divisor may be another."""


def named(rule: R, ops: str) -> dict[str, R]:
    """One line of a table: every op in ``ops`` has this rule."""
    return dict.fromkeys(ops.split(), rule)


def reads_bits(args: tuple[Value, ...]) -> bool:
    """Whether this is the ``view`` that reads the same memory as another dtype, which moves nothing."""
    return any(isinstance(a, torch.dtype) for a in args)


def conv_arguments(args: tuple[Value, ...]) -> tuple[Any, ...]:
    """(input, weight, bias, stride, padding, dilation, groups) with ATen's defaults filled in."""
    defaults = (None, None, None, 1, 0, 1, 1)
    return (*args, *defaults[len(args) :])


def conv_transposed_arguments(args: tuple[Value, ...]) -> tuple[Any, ...]:
    """(input, weight, bias, stride, padding, output_padding, groups, dilation) with ATen's defaults filled in."""
    defaults = (None, None, None, 1, 0, 0, 1, 1)
    return (*args, *defaults[len(args) :])


def einsum_letters(equation: str) -> list[str] | None:
    """The letters of each operand and of the result; ``None`` for an equation that leaves some of them open.

    Without ``->`` or with ``...``, and where a letter occurs twice in one operand (a diagonal).
    """
    inner, arrow, out = equation.replace(" ", "").partition("->")
    letters = [*inner.split(","), out]
    plain = arrow and all(part.isalpha() or not part for part in letters)
    return letters if plain and all(len(set(part)) == len(part) for part in letters) else None


def summed_dims(own: str, out: str) -> tuple[int, ...]:
    """The dimensions of an operand of an Einstein sum, with the letters ``own``, that the result ``out`` lacks."""
    return tuple(d for d, letter in enumerate(own) if letter not in out)


def as_result(data: Tensor, own: str, out: str) -> Tensor:
    """An operand of size 1 along ``summed_dims``, with the dimensions of the result: of size 1 where it has none."""
    sizes = dict(zip(own, data.shape, strict=True))
    data = data.squeeze(summed_dims(own, out))
    left = [letter for letter in own if letter in out]
    data = data.permute([left.index(letter) for letter in out if letter in own])
    return data.reshape([sizes.get(letter, 1) for letter in out])


def pooling_arguments(args: tuple[Value, ...]) -> tuple[Any, ...]:
    """(input, kernel, stride, padding, count_include_pad, divisor_override) of an average pooling, with defaults."""
    defaults: tuple[Any, ...] = (None, None, None, 0, False, True, None)
    filled = [*args, *defaults[len(args) :]]
    return (*filled[:4], *filled[5:7])


def is_padded(padding: Any, kernel: tuple[int, ...]) -> bool:
    """Whether the convolution reads beyond the border."""
    if isinstance(padding, str):
        return padding != "valid" and any(k > 1 for k in kernel)
    return any(p > 0 for p in ([padding] if isinstance(padding, int) else padding))


def spatial_dims(node: fx.Node, x: Field) -> range:
    """The dimensions that a pooling or an interpolation works on; its name ends with their number: ``max_pool2d``."""
    spatial = int(re.findall(r"(\d)d", base_name(node))[-1])
    return range(len(x.shape) - spatial, len(x.shape))


def reduced_dims(node: fx.Node, x: Field, args: tuple[Value, ...], kwargs: dict[str, Value]) -> tuple[int, ...]:
    """The dimensions that a reduction works on, not negative; all of them where it names none."""
    position = 2 if base_name(node) == "linalg_vector_norm" else 1
    dims = args[position] if len(args) > position else kwargs.get("dim")
    if dims is None or isinstance(dims, bool):  # var(input, unbiased)
        dims = range(len(x.shape))
    dims = [dims] if isinstance(dims, int) else dims or range(len(x.shape))
    return tuple(d % max(len(x.shape), 1) for d in dims)
