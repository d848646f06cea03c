"""A graph that is right for images of one size, or for one number of samples, refuses others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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


@fx.node.has_side_effect
def require_samples(x: Tensor, samples: int) -> None:
    """Refuse another number of samples.

    Raises:
        ValueError: there are more or fewer.
    """
    if x.shape[0] != samples:
        raise ValueError(
            f"this network takes inputs of {samples} along dimension 0 alone, got {x.shape[0]}: numbers in its graph "
            "follow from those of the example inputs. Compact the original with as many samples as you need."
        )


def fix_size_(module: fx.GraphModule, inputs: Sequence[tuple[Sequence[int], str]]) -> None:
    """Let a graph check the size of what enters it, but for the batch, in place.

    Args:
        module: the graph.
        inputs: shape and dtype of each of its inputs.
    """
    _check_(module, require_size, [tuple(shape[1:]) or None for shape, _ in inputs])


def fix_samples_(module: fx.GraphModule, inputs: Sequence[tuple[Sequence[int], str]]) -> None:
    """Let a graph check the number of samples that enter it, in place; arguments as for ``fix_size_``."""
    _check_(module, require_samples, [shape[0] if shape else None for shape, _ in inputs])


def _check_(module: fx.GraphModule, check: Callable[[Tensor, Any], None], expected: Sequence[Any]) -> None:
    entries = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node, value in zip(entries, expected, strict=True):
        if value is not None:
            with module.graph.inserting_after(entries[-1]):
                call = module.graph.call_function(check, (node, value))
                call.meta["is_wrapped"] = True  # a leaf where the graph is traced again, as when it is unpickled
    module.recompile()


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
