"""A graph that is right for images of one size refuses others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx


@fx.node.has_side_effect
def require_size(x: Tensor, size: Sequence[int]) -> None:
    """Refuse what has other dimensions behind the batch than ``size``.

    Raises:
        ValueError: it has.
    """
    if tuple(x.shape[1:]) != tuple(size):
        raise ValueError(
            f"this network takes inputs of {_by(size)} alone, got {_by(x.shape[1:])}: numbers in its graph follow from "
            "the size of the example inputs. Compact the original with example inputs of the size that you need."
        )


def fix_size_(module: fx.GraphModule, inputs: Sequence[tuple[Sequence[int], str]]) -> None:
    """Let a graph check the size of what enters it, but for the batch, in place.

    Args:
        module: the graph.
        inputs: shape and dtype of each of its inputs.
    """
    entries = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node, (shape, _) in zip(entries, inputs, strict=True):
        if len(shape) > 1:
            with module.graph.inserting_after(entries[-1]):
                check = module.graph.call_function(require_size, (node, tuple(shape[1:])))
                check.meta["is_wrapped"] = True  # a leaf where the graph is traced again, as when it is unpickled
    module.recompile()


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
