"""Constants: which channels have the same value for every input of the network.

Values flow through the graph in float64, with NaN for "depends on the input". Torch's own arithmetic propagates it;
the few places where a known parameter absorbs an unknown input are written out here. What is not NaN at the end is
proved constant, for any input. Nothing here knows which graph format the values flow through.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNKNOWN = float("nan")


def contract(weight: Tensor, bias: Tensor | None, inputs: Tensor, *, bordered: bool) -> Tensor:
    """Constant outputs of a convolution or linear layer.

    An output is known iff every input with a nonzero weight is known and, where borders see padding, zero: a padded
    convolution of a constant other than 0 is not constant at the border.

    Args:
        weight: ``[groups, out, in, taps]``, see ``by_group``; NaN where it depends on the network's input itself.
        bias: ``[groups * out]`` or ``None``.
        inputs: float64 ``[groups * in]``, NaN where unknown.
        bordered: whether border outputs see fewer taps.

    Returns:
        float64 ``[groups * out]``, NaN where unknown.
    """
    groups, _, width, _ = weight.shape
    spoiling = inputs.isnan() | ((inputs != 0) & bordered)
    counted = (~spoiling & (inputs != 0)).reshape(groups, 1, width)
    spoiling = spoiling.reshape(groups, 1, width)
    if groups == 1:  # large weights: touch only what matters
        known = ~(weight[:, :, spoiling.flatten()] != 0).flatten(2).any(2)
        taps, constants = weight[:, :, counted.flatten()].double().sum(-1), inputs[counted.flatten()]
        out = taps @ constants
    else:
        known = ~((weight != 0).any(-1) & spoiling).any(2)
        constants = torch.where(counted.flatten(), inputs, 0.0).reshape(counted.shape)
        out = absorbing_product(weight.double().sum(-1), constants).sum(2)
    out = out.masked_fill(~known, UNKNOWN).reshape(-1)
    return out if bias is None else out + bias.double()


def by_group(weight: Tensor, groups: int, *, transposed: bool) -> Tensor:
    """The weight of a convolution or linear layer as ``[groups, out, in, taps]``, a view.

    Args:
        weight: ``[out, in / groups, *kernel]``, or transposed ``[in, out / groups, *kernel]``.
        groups: of the convolution, 1 for a linear layer.
        transposed: whether it is a transposed convolution's.
    """
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return split.transpose(1, 2) if transposed else split


def normalise(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    """BatchNorm in evaluation mode, channels along dimension 1: a scale of 0 leaves the shift, whatever enters."""
    shape = [1, -1, *[1] * (x.ndim - 2)]
    gain = torch.rsqrt(variance.double() + eps)
    if scale is not None:
        gain = gain * scale.double()
    gain = gain.reshape(shape)
    y = absorbing_product(x - mean.double().reshape(shape), gain)
    return y if shift is None else y + shift.double().reshape(shape)


def agreed(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """One value along each of ``dims``, of size 1 there: unknown where the values differ."""
    if not dims:
        return values
    first = values
    for dim in dims:
        first = first.narrow(dim, 0, 1)
    equal = values == first  # NaN differs from itself: unknown stays unknown
    for dim in dims:
        equal = equal.all(dim, keepdim=True)
    return torch.where(equal, first, UNKNOWN)


def absorbing_product(a: Tensor, b: Tensor) -> Tensor:
    """``a * b`` where a proved 0 on either side wins over an unknown."""
    return torch.where((a == 0) | (b == 0), torch.zeros((), dtype=torch.float64), a * b)
