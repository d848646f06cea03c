"""Sizes of the values inside a model, from one inference on this machine."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.measure.runs import answers, request_of
from bench.onnx_graph import Graph, Node
from bench.protocol import CPU_PROVIDER, Value
from bench.report import Settings


def computing(graph: Graph) -> tuple[list[Node], set[str]]:
    """The nodes that depend on an input, and the names of all values that do not."""
    constants = set(graph.weights)
    nodes = []
    for node in graph.nodes:
        if node.has_body or any(name and name not in constants for name in node.inputs):
            nodes.append(node)
        else:
            constants.update(node.outputs)
    return nodes, constants


def values_of(path: Path, graph: Graph, settings: Settings, timeout_s: float) -> dict[str, Value]:
    """Every value that a node makes, and the graph's inputs, by name.

    Sizes are the same everywhere: they are asked for here, on the CPU, whatever the device.

    Raises:
        BenchError: The model cannot run here, or cannot return what is inside it.
    """
    inner = tuple(name for node in graph.nodes for name in node.outputs if name and name not in graph.outputs)
    request = request_of("shapes", (str(path),), replace(settings, pin=(), provider=CPU_PROVIDER))
    (answer,) = answers("cpu", [replace(request, outputs=inner)], timeout_s, None)
    found: Sequence[Value] = answer.models[0].shapes or ()
    return {value.name: value for value in found}
