"""Constants: which channels have the same value for every input of the network.

Values flow through the graph in float64, with NaN for "depends on the input". Torch's own arithmetic propagates it;
the few places where a known parameter absorbs an unknown input are written out here. What is not NaN at the end is
proved constant, for any input. Nothing here knows which graph format the values flow through.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNKNOWN = float("nan")


def contract(weight: Tensor, bias: Tensor | None, inputs: Tensor, *, padded: bool) -> Tensor:
    """Constant outputs of a convolution or linear layer.

    An output is known iff every input with a nonzero weight is known and, where borders see padding, zero: a padded
    convolution of a constant other than 0 is not constant at the border.

    Args:
        weight: ``[out, in, *kernel]``.
        bias: ``[out]`` or ``None``.
        inputs: float64 ``[in]``, NaN where unknown.
        padded: whether border outputs see fewer inputs.

    Returns:
        float64 ``[out]``, NaN where unknown.
    """
    spoiling = inputs.isnan() | ((inputs != 0) & padded)
    known = ~(weight[:, spoiling] != 0).flatten(1).any(1)
    out = torch.full((weight.shape[0],), UNKNOWN, dtype=torch.float64)
    if bool(known.any()):
        taps = weight[known].double().flatten(2).sum(2) if weight.ndim > 2 else weight[known].double()
        out[known] = taps @ inputs.masked_fill(spoiling, 0.0)
        if bias is not None:
            out[known] += bias[known].double()
    return out


def contract_depthwise(weight: Tensor, bias: Tensor | None, inputs: Tensor, *, padded: bool) -> Tensor:
    """The same for a depthwise convolution: ``weight`` is ``[in * multiplier, 1, *kernel]``."""
    inputs = inputs.repeat_interleave(weight.shape[0] // inputs.numel())
    taps = weight.double().flatten(1)
    spoiling = inputs.isnan() | ((inputs != 0) & padded)
    out = taps.sum(1) * inputs.masked_fill(spoiling, 0.0)
    if bias is not None:
        out = out + bias.double()
    return out.masked_fill(spoiling & (taps != 0).any(1), UNKNOWN)


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
