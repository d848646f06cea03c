"""What surgery puts in the place of a layer, so that a class keeps its ``forward``: two small kinds of module.

A BatchNorm that reads only some of the channels picks them by an index. A layer that returns the same for every input
is replaced by that constant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_Size = tuple[int, ...]


class SelectsChannels(nn.Module):
    """Mixed into the class of a BatchNorm: of the channels that enter, those at ``selected`` are normalised.

    Attributes:
        selected: int64 ``[num_features]``, positions among the channels of the input, a buffer.
    """

    selected: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x[:, selected]``."""
        result: Tensor = super().forward(x.index_select(1, self.selected))
        return result


class SelectingBatchNorm1d(SelectsChannels, nn.BatchNorm1d):
    """A BatchNorm that reads some of the channels."""


class SelectingBatchNorm2d(SelectsChannels, nn.BatchNorm2d):
    """A BatchNorm that reads some of the channels."""


class SelectingBatchNorm3d(SelectsChannels, nn.BatchNorm3d):
    """A BatchNorm that reads some of the channels."""


_SELECTING: dict[str, type[nn.Module]] = {
    f"{kind.__module__}.{kind.__qualname__}": selecting
    for kind, selecting in (
        (nn.BatchNorm1d, SelectingBatchNorm1d),
        (nn.BatchNorm2d, SelectingBatchNorm2d),
        (nn.BatchNorm3d, SelectingBatchNorm3d),
    )
}


def _selecting(kind: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``kind`` that selects channels: one for each, however often it is asked for.

    Those of torch's own BatchNorms can be pickled; one that is made here for a user's subclass can't.
    """
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name not in _SELECTING:
        made = type(f"Selecting{kind.__name__}", (SelectsChannels, kind), {"__doc__": SelectsChannels.__doc__})
        _SELECTING[name] = made
    return _SELECTING[name]


def select_channels_(norm: nn.Module, positions: list[int]) -> None:
    """Turn a normalisation into one that reads the channels at ``positions`` alone, in place.

    Its parameters and its ``forward`` stay; its class becomes a subclass, and its state has one more key, ``selected``.
    """
    if not isinstance(norm, SelectsChannels):
        norm.__class__ = _selecting(type(norm))
    device = next((t.device for t in (*norm.parameters(), *norm.buffers())), None)
    norm.register_buffer("selected", torch.tensor(positions, dtype=torch.int64, device=device))


class ConstantLayer(nn.Module):
    """What remains of a convolution or linear layer that returns the same for every input: its bias, in its shape.

    Attributes:
        bias: the constant of each channel, ``[out]``; it can be trained like the bias of the layer.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)
        self.bias = nn.Parameter(weight.detach().new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)
        self.geometry: tuple[_Size, _Size, _Size, _Size] | None = None
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            before = layer._reversed_padding_repeated_twice[::2]
            after = layer._reversed_padding_repeated_twice[1::2]
            padding = tuple(a + b for a, b in zip(before, after, strict=True))[::-1]
            self.geometry = (layer.kernel_size, layer.stride, padding, layer.dilation)

    def forward(self, x: Tensor) -> Tensor:
        """The constant in the shape that the layer would return for ``x``."""
        if self.geometry is None:
            return self.bias.expand(*x.shape[:-1], -1).clone(memory_format=torch.contiguous_format)
        batch, sizes = x.shape[: x.ndim - 1 - len(self.geometry[0])], x.shape[-len(self.geometry[0]) :]
        spatial = [
            (size + padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(sizes, *self.geometry, strict=True)
        ]
        constant = self.bias.reshape(-1, *[1] * len(spatial)).expand(*batch, -1, *spatial)
        return constant.clone(memory_format=torch.contiguous_format)  # what is behind may write to it

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"{self.bias.numel()}, geometry={self.geometry}"


REPLACEABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Types (not their subclasses) of layers that a constant can stand in for."""


def replace_module_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is registered in ``model``."""
    for module in model.modules():
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new
