"""The shapes of every value of a graph, at two batch sizes where it takes any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from compress.surgery.bake import private_copy

Sizes = tuple[int, ...]


class Shapes(fx.Interpreter):
    """Runs a graph without arithmetic, and notes shapes and whole numbers.

    Args:
        module: the graph.
        inputs: shape and type of each input; ``batches`` are the sizes to put in front, none for a graph that takes one
            alone.
    """

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Tensor], batches: Sequence[int]):
        empty = private_copy(module).to("meta")
        assert isinstance(empty, fx.GraphModule)
        super().__init__(empty, garbage_collect_values=False)
        self.values: dict[str, list[Any]] = {}
        with torch.no_grad():
            for batch in batches or (None,):
                shapes = [x.shape if batch is None else (batch, *x.shape[1:]) for x in inputs]
                self.run(*(torch.empty(s, dtype=x.dtype, device="meta") for s, x in zip(shapes, inputs, strict=True)))

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note what it returns."""
        result = super().run_node(n)
        noted = tuple(int(size) for size in result.shape) if isinstance(result, Tensor) else result
        self.values.setdefault(n.name, []).append(noted)
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function; what it makes is made without values, too."""
        return super().call_function(target, args, kwargs | ({"device": "meta"} if "device" in kwargs else {}))

    def of(self, node: fx.Node) -> Any:
        """The shape of a node's result, or the number that it is, at the first batch size."""
        return self.values[node.name][0]

    def varies(self, node: fx.Node, dim: int) -> bool:
        """Whether a size follows the number of samples."""
        return len({shape[dim] for shape in self.values[node.name]}) > 1
