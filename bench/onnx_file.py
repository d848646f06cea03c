"""Which file is measured: name, size and hash, the files with external weights included.

An ONNX file may keep its weights in files beside it. To find them, and what the file tells about itself, takes a few
field numbers of onnx.proto, hence no dependency on the onnx package.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.protobuf import fields, inside

# Of onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
GRAPH_OF_MODEL, INITIALIZER_OF_GRAPH, EXTERNAL_DATA_OF_TENSOR = 7, 5, 13
NODE_OF_GRAPH, ATTRIBUTE_OF_NODE = 1, 5
TENSORS_OF_ATTRIBUTE, GRAPHS_OF_ATTRIBUTE = (5, 10), (6, 11)
METADATA_OF_MODEL = 14
KEY_OF_ENTRY, VALUE_OF_ENTRY = 1, 2


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A model file as it was measured.

    Attributes:
        file_bytes: Of the ONNX file and the files with external weights that it names.
        sha256: Of the same, in the order of their names after the ONNX file.
    """

    file_name: str
    sha256: str
    file_bytes: int


def describe(path: Path) -> OnnxFile:
    """Name, size and hash of a model.

    Raises:
        BenchError: The file, or one with its weights, is missing or cannot be read.
    """
    content = _read(path, "model file")
    digest, size = hashlib.sha256(content), len(content)
    for name in external_files(content):
        part = _read(path.parent / name, f"the weights of {path}, file")
        digest.update(part)
        size += len(part)
    return OnnxFile(file_name=path.name, sha256=digest.hexdigest(), file_bytes=size)


def external_files(content: bytes) -> list[str]:
    """Names, relative to the ONNX file, of the files that hold weights outside of it.

    A file that is no protobuf names none: to refuse it is left to ONNX Runtime, which tells why.
    """
    try:
        entries = [
            {number: bytes(text) for number, text in fields(entry)}
            for graph in inside(memoryview(content), GRAPH_OF_MODEL)
            for tensor in _tensors(graph)
            for entry in inside(tensor, EXTERNAL_DATA_OF_TENSOR)
        ]
        return sorted({entry[VALUE_OF_ENTRY].decode() for entry in entries if entry.get(KEY_OF_ENTRY) == b"location"})
    except (IndexError, KeyError, UnicodeDecodeError):
        return []


def _tensors(graph: memoryview) -> Iterator[memoryview]:
    """The weights and constants of a graph, and of the graphs inside of its nodes (If, Loop)."""
    yield from inside(graph, INITIALIZER_OF_GRAPH)
    for node in inside(graph, NODE_OF_GRAPH):
        for attribute in inside(node, ATTRIBUTE_OF_NODE):
            for number, content in fields(attribute):
                if number in TENSORS_OF_ATTRIBUTE:
                    yield content
                elif number in GRAPHS_OF_ATTRIBUTE:
                    yield from _tensors(content)


def metadata(path: Path) -> dict[str, str]:
    """What a model file tells about itself, text to text; docs/export.md lists the keys that `compress export` writes.

    Raises:
        BenchError: The file is missing, cannot be read, or is no ONNX file.
    """
    content = memoryview(_read(path, "model file"))
    try:
        if not inside(content, GRAPH_OF_MODEL):
            raise BenchError(f"{path} is no ONNX file: it holds no graph")
        entries = [
            {number: bytes(text).decode() for number, text in fields(entry)}
            for entry in inside(content, METADATA_OF_MODEL)
        ]
        return {entry.get(KEY_OF_ENTRY, ""): entry.get(VALUE_OF_ENTRY, "") for entry in entries}
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} is no ONNX file: its metadata cannot be read") from error


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BenchError(f"{what} not found: {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise BenchError(f"{what} {path} cannot be read: {error}") from error
