"""One walk over an ATen graph for every analysis: labels and constants differ only in their table of rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from compress.graph.aten.trace import Trace, base_name, functional
from compress.graph.field import Field
from compress.graph.nested import map_only

Value = Any
"""What stands for a node during a walk: a ``Field``, a tuple of them, or ``None`` for what is no tensor."""


class Walk(ABC):
    """Visits every node once, in order; a subclass says what inputs and parameters are and holds the rules."""

    rules: Mapping[str, Callable[[Any, fx.Node, tuple[Value, ...], dict[str, Value]], Value]]

    def __init__(self, trace: Trace):
        self.trace = trace
        self.env: dict[fx.Node, Value] = {}

    def run(self) -> None:
        """Walk the whole graph."""
        for node in self.trace.graph.nodes:
            if node.op == "placeholder":
                self.env[node] = self.placeholder(node)
            elif node.op == "call_function":
                args, kwargs = map_only(fx.Node, self.env.__getitem__, (node.args, node.kwargs))
                rule = self.rules.get(base_name(node), type(self).unknown)
                self.env[node] = rule(self, node, args, kwargs)
            elif node.op == "output":
                self.output(node)
            else:  # get_attr of a subgraph: higher-order ops such as cond
                self.env[node] = None

    @abstractmethod
    def placeholder(self, node: fx.Node) -> Value:
        """What a parameter, a buffer or an input is."""

    def output(self, node: fx.Node) -> None:  # noqa: B027 - most walks have nothing to do there
        """What happens at the end."""

    @abstractmethod
    def unknown(self, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
        """What an op without a rule does."""


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of the node's result; ``None`` where it is no single tensor."""
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else None


def fields_in(*values: Value) -> list[Field]:
    """Every ``Field`` among (nested) arguments."""
    found: list[Field] = []
    map_only(Field, found.append, values)
    return found


def map_result(node: fx.Node, make: Callable[[tuple[int, ...]], Field]) -> Value:
    """``make(shape)`` for each tensor that the node returns; ``None`` for the others."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        return tuple(make(tuple(int(s) for s in v.shape)) if isinstance(v, Tensor) else None for v in value)
    shape = shape_of(node)
    return None if shape is None else make(shape)


def execute(
    node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value], through: torch.dtype | None = None
) -> Value:
    """Run the very op of the node on full fields: how every op that only moves data is handled.

    Args:
        node: the node.
        args: its arguments, with fields.
        kwargs: its keyword arguments.
        through: the dtype to compute in, where the op does not know the fields' own (int64 holds every label
            that float64 represents exactly).
    """

    def full(field: Field) -> Tensor:
        return field.full() if through is None else field.full().to(through)

    def store(tensor: Tensor) -> Field:
        return Field.of(tensor if through is None else tensor.to(original))

    original = fields_in(args, kwargs)[0].data.dtype
    args, kwargs = map_only(Field, full, (args, kwargs))
    if base_name(node) in ("view", "_unsafe_view"):  # a moved tensor is not always viewable where the original was
        return store(args[0].reshape(args[1]))
    return map_only(Tensor, store, functional(node)(*args, **kwargs))
