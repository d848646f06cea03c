"""The channel graph: what training groups by and surgery cuts by.

It says, for every parameter and dimension, which class of channels each index belongs to; which classes must stay, and
why; and for every layer that mixes channels, which inputs are proved constant. It is the same for every front end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.graph.labels import Classes


@dataclass(frozen=True)
class Consumer:
    """One use of a layer that mixes input channels.

    Attributes:
        where: the module's path, for messages.
        weight: state name of the weight, ``[out, in, *kernel]``.
        bias: state name of the bias, if there is one.
        constants: float64 ``[in]``, the proved constant of each input, NaN where it depends on the network's input.
        padded: whether outputs at the border see fewer inputs.
        mean_after: state name of the running mean of the BatchNorm that alone reads the output, if there is one.
    """

    where: str
    weight: str
    bias: str | None
    constants: Tensor
    padded: bool
    mean_after: str | None


@dataclass(frozen=True)
class ChannelGraph:
    """Classes of channels, and what is known about each.

    Attributes:
        classes: the solved labels.
        consumers: every use of a layer that mixes channels, in the order of the computation.
        tensors: state name -> tensor, of everything the graph reads.
        uses: state name -> how many operations read it.
        sized: bool ``[classes]``, classes that pass an op whose arguments may hold a number of channels as a literal.
        signature: the sequence of ops with their numbers, for comparison with that of a compact network.
        macs: multiply-accumulates of convolutions, linear layers and matrix products for the example inputs as given.
    """

    classes: Classes
    consumers: tuple[Consumer, ...]
    tensors: dict[str, Tensor]
    uses: dict[str, int]
    sized: Tensor
    signature: tuple[tuple[object, ...], ...]
    macs: int

    def out_slices(self) -> dict[tuple[str, int], Tensor]:
        """(parameter or buffer, dimension) -> class of each index, where the index *is* a channel of that class.

        These are a layer's output channels and what belongs to them: biases, BatchNorm scales, shifts and statistics,
        slopes. The dimension along which a layer reads its input channels is not among them.
        """
        read = {(consumer.weight, 1) for consumer in self.consumers}
        return {
            (name, dim): classes
            for name, dims in self.classes.parameters.items()
            for dim, classes in dims.items()
            if (name, dim) not in read
        }

    def free(self) -> Tensor:
        """Bool ``[classes]``: which classes may leave the network."""
        free = torch.ones(self.classes.count, dtype=torch.bool)
        free[list(self.classes.reasons)] = False
        return free
