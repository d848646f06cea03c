"""What stands for a parameter while labels flow, and what the flow notes of layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, fx

from compress.graph.aten.walk import Value
from compress.graph.field import Field
from compress.graph.labels import NEUTRAL
from compress.graph.nested import leaves


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer as an argument: it has no labels until an op says what its dimensions mean.

    Attributes:
        name: its state-dict name.
        shape: its shape as it is registered.
        moved: behind ops that move data, the address of each entry in the registered tensor (int64, of the present
            shape); ``None`` where nothing was moved.
    """

    name: str
    shape: tuple[int, ...]
    moved: Tensor | None = None

    def addresses(self) -> Tensor:
        """The address of each entry, int64, of the present shape."""
        return torch.arange(math.prod(self.shape)).reshape(self.shape) if self.moved is None else self.moved

    def coordinates(self, dim: int) -> Tensor:
        """The index along the registered dimension ``dim`` of each entry, int64, of the present shape."""
        return self.addresses() // math.prod(self.shape[dim + 1 :]) % self.shape[dim]


@dataclass(frozen=True)
class Computed:
    """The result of arithmetic on parameters alone; it carries the labels of their indices."""

    labels: Field


@dataclass(frozen=True)
class Contraction:
    """One use of a convolution or linear layer, which mixes input channels into output channels.

    Attributes:
        node: the graph node.
        weight: state-dict name of the weight; ``bias`` of the bias, if there is one.
        padded: whether border outputs see fewer inputs than inner ones.
        groups: of the convolution; each mixes its own share of the inputs into its own share of the outputs.
        transposed: whether the weight is ``[in, out / groups, *kernel]`` instead of ``[out, in / groups, *kernel]``.
    """

    node: fx.Node
    weight: str
    bias: str | None
    padded: bool
    groups: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Selection:
    """A BatchNorm whose outputs have labels of their own, so that it may see fewer channels than there are.

    Attributes:
        mean: state-dict name of its running mean.
        inputs: int64 ``[channels]``, the labels that enter; ``outputs`` those that leave.
        entries: how many numbers each channel holds.
    """

    mean: str
    inputs: Tensor
    outputs: Tensor
    entries: int


def place(node: fx.Node) -> str:
    """Where in the user's model a node comes from: the module's path, else the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values() if path]
    return paths[-1] if paths else node.name


def has_parameters(*values: Value) -> bool:
    """Whether a parameter or buffer is among (nested) arguments."""
    return any(isinstance(leaf, (Parameter, Computed)) for leaf in leaves(values))


def is_plain(weight: Value) -> TypeGuard[Parameter]:
    """Whether this is a parameter as it is registered."""
    return isinstance(weight, Parameter) and weight.moved is None


def of_activation(x: Value) -> Value:
    """A parameter that a layer reads as its input (a table of coordinates, say): its channels are none of ours."""
    if isinstance(x, Parameter):
        return Field.uniform(NEUTRAL, x.addresses().shape, torch.int64)
    return x
