"""The graph of an ONNX file: nodes, and sizes of weights; without the onnx package.

Field numbers are those of onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from bench.errors import BenchError
from bench.protobuf import inside, numbers, texts

GRAPH_OF_MODEL, FUNCTION_OF_MODEL = 7, 25
NAME_OF_FUNCTION, DOMAIN_OF_FUNCTION = 1, 10
NODE, INITIALIZER, INPUT, OUTPUT, SPARSE_INITIALIZER = 1, 5, 11, 12, 15
NAME_OF_VALUE = 1
INPUTS_OF_NODE, OUTPUTS_OF_NODE, NAME_OF_NODE, OPERATOR_OF_NODE, ATTRIBUTE_OF_NODE, DOMAIN_OF_NODE = 1, 2, 3, 4, 5, 7
NAME_OF_ATTRIBUTE, INT_OF_ATTRIBUTE, TENSOR_OF_ATTRIBUTE, GRAPH_OF_ATTRIBUTE, GRAPHS_OF_ATTRIBUTE = 1, 3, 5, 6, 11
DIMS_OF_TENSOR, TYPE_OF_TENSOR, NAME_OF_TENSOR = 1, 2, 8
VALUES_OF_SPARSE, INDICES_OF_SPARSE = 1, 2

# Bits of an element by TensorProto.DataType, from UNDEFINED (0) to INT2 (26); text has no size of its own.
ELEMENT_BITS = (0, 32, 8, 8, 16, 16, 32, 64, 0, 8, 16, 64, 32, 64, 64, 128, 16, 8, 8, 8, 8, 4, 4, 4, 8, 2, 2)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Shape and size of a weight."""

    shape: tuple[int, ...]
    tensor_bytes: int


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node.

    Attributes:
        inputs: Names of values; empty where an optional one is left out.
        outputs: The same.
        integers: Attributes that are one whole number.
        has_body: It holds graphs of its own, or is a function of the model.
    """

    name: str
    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: dict[str, int]
    has_body: bool


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The outermost graph of a model.

    Attributes:
        nodes: In the order of the file, Constant nodes left out: they are weights.
        inputs: Names of what the user gives.
        outputs: Names of what the user gets.
        weights: Of this graph, by name.
        weight_bytes: Of all weights, those inside the bodies of nodes included.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: dict[str, Tensor]
    weight_bytes: int


def read_graph(path: Path) -> Graph:
    """The graph of a file.

    Raises:
        BenchError: The file cannot be read, or is no ONNX file.
    """
    try:
        return parse_graph(path.read_bytes())
    except OSError as error:
        raise BenchError(f"model file {path} cannot be read: {error}") from error
    except (IndexError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise BenchError(f"{path} is no ONNX file: its graph cannot be read") from error


def parse_graph(content: bytes) -> Graph:
    """The graph of a model in memory.

    Raises:
        IndexError, KeyError, UnicodeDecodeError, ValueError: It is no ONNX model.
    """
    model = memoryview(content)
    (graph,) = inside(model, GRAPH_OF_MODEL)
    functions = {
        ("".join(texts(function, DOMAIN_OF_FUNCTION)), "".join(texts(function, NAME_OF_FUNCTION)))
        for function in inside(model, FUNCTION_OF_MODEL)
    }
    weights, weight_bytes = _weights(graph)
    nodes = [_node(node, functions) for node in inside(graph, NODE)]
    return Graph(
        nodes=tuple(node for node in nodes if not (node.operator == "Constant" and node.domain == "")),
        # Old files list their weights among the inputs.
        inputs=tuple(name for name in _names(graph, INPUT) if name not in weights),
        outputs=tuple(_names(graph, OUTPUT)),
        weights=weights,
        weight_bytes=weight_bytes,
    )


def _names(graph: memoryview, number: int) -> list[str]:
    return ["".join(texts(value, NAME_OF_VALUE)) for value in inside(graph, number)]


def _node(node: memoryview, functions: set[tuple[str, str]]) -> Node:
    attributes = inside(node, ATTRIBUTE_OF_NODE)
    domain, operator = "".join(texts(node, DOMAIN_OF_NODE)), "".join(texts(node, OPERATOR_OF_NODE))
    integers = {"".join(texts(each, NAME_OF_ATTRIBUTE)): numbers(each, INT_OF_ATTRIBUTE) for each in attributes}
    return Node(
        name="".join(texts(node, NAME_OF_NODE)),
        operator=operator,
        domain="" if domain == "ai.onnx" else domain,
        inputs=tuple(texts(node, INPUTS_OF_NODE)),
        outputs=tuple(texts(node, OUTPUTS_OF_NODE)),
        integers={name: found[0] for name, found in integers.items() if found},
        has_body=(domain, operator) in functions or any(_bodies(each) for each in attributes),
    )


def _bodies(attribute: memoryview) -> list[memoryview]:
    return inside(attribute, GRAPH_OF_ATTRIBUTE) + inside(attribute, GRAPHS_OF_ATTRIBUTE)


def _weights(graph: memoryview) -> tuple[dict[str, Tensor], int]:
    """Weights by name, and the bytes of these and of those in the bodies of nodes."""
    weights = {"".join(texts(tensor, NAME_OF_TENSOR)): _tensor(tensor) for tensor in inside(graph, INITIALIZER)}
    for sparse in inside(graph, SPARSE_INITIALIZER):
        (values,), (indices,) = inside(sparse, VALUES_OF_SPARSE), inside(sparse, INDICES_OF_SPARSE)
        both = _tensor(values).tensor_bytes + _tensor(indices).tensor_bytes
        dense = Tensor(shape=tuple(numbers(sparse, 3)), tensor_bytes=both)
        weights["".join(texts(values, NAME_OF_TENSOR))] = dense
    inner = 0
    for node in inside(graph, NODE):
        constant = "".join(texts(node, OPERATOR_OF_NODE)) == "Constant"
        for attribute in inside(node, ATTRIBUTE_OF_NODE):
            if constant:
                found = [_tensor(tensor) for tensor in inside(attribute, TENSOR_OF_ATTRIBUTE)]
                weights[texts(node, OUTPUTS_OF_NODE)[0]] = found[0] if found else Tensor(shape=(), tensor_bytes=0)
            inner += sum(_weights(body)[1] for body in _bodies(attribute))
    return weights, inner + sum(weight.tensor_bytes for weight in weights.values())


def _tensor(tensor: memoryview) -> Tensor:
    shape = tuple(numbers(tensor, DIMS_OF_TENSOR))
    (kind,) = numbers(tensor, TYPE_OF_TENSOR)
    return Tensor(shape=shape, tensor_bytes=-(-prod(shape) * ELEMENT_BITS[kind] // 8))
