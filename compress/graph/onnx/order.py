"""What nodes of an ONNX graph read, and the order that follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter

import onnx


def sort_(graph: onnx.GraphProto) -> None:
    """Put every node behind those that it reads, in place, as ONNX demands; ONNX Runtime's float16 converter does not.

    A graph that is in order, or that cannot be, stays as it is.
    """
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    reads = {
        i: {makers[name] for name in (*node.input, *outer_names(node)) if name in makers}
        for i, node in enumerate(graph.node)
    }
    if all(source < i for i, sources in reads.items() for source in sources):
        return
    with suppress(CycleError):
        order = list(TopologicalSorter(reads).static_order())
        nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
        del graph.node[:]
        graph.node.extend(nodes)


def outer_names(node: onnx.NodeProto) -> Iterator[str]:
    """What subgraphs of a node read from outside of them."""
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {value.name for value in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                yield from (name for name in (*inner.input, *outer_names(inner)) if name and name not in own)
                own |= set(inner.output)
            yield from (value.name for value in graph.output if value.name not in own)
