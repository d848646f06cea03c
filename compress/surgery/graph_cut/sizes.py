"""A graph that is right for images of one size refuses others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx


@fx.node.has_side_effect
def require_size(x: Tensor, size: Sequence[int]) -> None:
    """Refuse what has another height and width than ``size``: all dimensions behind the channels.

    Raises:
        ValueError: it has.
    """
    if tuple(x.shape[2:]) != tuple(size):
        raise ValueError(
            f"this network takes inputs of {_by(size)} alone, got {_by(x.shape[2:])}: numbers in its graph follow from "
            "the size of the example inputs. Compact the original with example inputs of the size that you need."
        )


def fix_size_(module: fx.GraphModule, inputs: Sequence[tuple[Sequence[int], str]]) -> None:
    """Let a graph check the height and width of what enters it, in place.

    Args:
        module: the graph.
        inputs: shape and dtype of each of its inputs.
    """
    entries = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node, (shape, _) in zip(entries, inputs, strict=True):
        if len(shape) > 2:
            with module.graph.inserting_after(entries[-1]):
                module.graph.call_function(require_size, (node, tuple(shape[2:])))
    module.recompile()


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
