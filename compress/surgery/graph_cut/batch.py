"""Which numbers in a static graph are the batch size.

A network is traced at two batch sizes that differ by one. Where the two graphs hold different whole numbers, the number
is ``slope * batch + intercept``; every other number does not depend on the batch. That asks nothing of symbolic shapes,
and holds wherever the network runs the same operations at both sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from compress.errors import ModelError
from compress.graph.aten.trace import Trace


class Static(Exception):  # noqa: N818 - a message between two functions, no error for users
    """Why a graph holds for one batch size only."""


@dataclass(frozen=True)
class Affine:
    """``slope * batch + intercept``, and its ``value`` at the traced batch size."""

    slope: int
    intercept: int
    value: int

    def shared(self, count: int) -> Affine:
        """A part of ``count`` entries at the traced batch size, that grows with the batch in proportion."""
        batch = (self.value - self.intercept) // self.slope
        if self.intercept or count % batch:
            raise Static("channels are cut along a dimension that holds the batch too")
        return Affine(count // batch, 0, count)


Size = int | Affine


def value_of(size: Size) -> int:
    """The size at the traced batch size."""
    return size.value if isinstance(size, Affine) else size


class Batch:
    """Tells sizes and arguments of a trace with the batch size as a variable.

    Args:
        trace: the network at one batch size.
        twin: the same one size larger; ``None`` where the batch size is fixed.
        size: the batch size of ``trace``.

    Raises:
        Static: the two traces do not run the same operations.
    """

    def __init__(self, trace: Trace, twin: Trace | None, size: int):
        self.size = size
        self.twin = {node: node for node in trace.graph.nodes}
        if twin is not None:
            nodes, others = list(trace.graph.nodes), list(twin.graph.nodes)
            if [(n.op, n.target) for n in nodes] != [(n.op, n.target) for n in others]:
                raise Static("forward runs other operations at another batch size")
            self.twin = dict(zip(nodes, others, strict=True))
            for node in nodes:
                self.arguments(node)

    def shape(self, node: fx.Node, index: int | None = None) -> tuple[Size, ...]:
        """The shape of a node's result, or of one of its results."""
        here, there = (n.meta["val"] if index is None else n.meta["val"][index] for n in (node, self.twin[node]))
        if not isinstance(here, Tensor):
            raise ModelError(f"{node.name} is no tensor; such a network cannot be returned as a graph.")
        if here.ndim != there.ndim:
            raise Static("forward makes tensors of another rank at another batch size")
        return tuple(self._merge(int(a), int(b)) for a, b in zip(here.shape, there.shape, strict=True))

    def arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a node, each number that depends on the batch size as an ``Affine``."""
        other = self.twin[node]
        if other is node:
            return node.args, node.kwargs
        args: tuple[Any, ...] = self._merge(node.args, other.args)
        kwargs: dict[str, Any] = self._merge(node.kwargs, other.kwargs)
        return args, kwargs

    def _merge(self, a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node):
            if self.twin[a] is not b:
                raise Static("forward connects its operations otherwise at another batch size")
            return a
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
            return type(a)([self._merge(x, y) for x, y in zip(a, b, strict=True)])
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: self._merge(a[key], b[key]) for key in a}
        if type(a) is type(b) and (a == b or a is b):
            return a
        if type(a) is int and type(b) is int:
            return Affine(b - a, a - (b - a) * self.size, a)
        raise Static(f"forward computes {a!r} from its batch size, and {b!r} at another one")
