"""From a torch module, or an ONNX file, to a verified ONNX file.

    import export
    report = export.to_onnx(model, (torch.randn(1, 3, 32, 32),), "model.onnx")

    graph = export.graph_of(model, (torch.randn(1, 3, 32, 32),), export.Interface(dynamic_batch=True))
    small = export.to_int8(graph, export.Calibration(images), export.Judge(accuracy, validation_images))
    export.write(small.graph, "model-int8.onnx")

Knows torch, onnx, onnxruntime and onnxsim, and none of the other packages here. Importing it is cheap: the libraries
are loaded at the first use of a name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.accuracy import accuracy_of
    from export.errors import ExportError
    from export.files import require_writable
    from export.from_file import read_graph
    from export.from_torch import Interface, graph_of, to_onnx
    from export.metadata import given_metadata, read_metadata
    from export.preprocess import Preprocess, WithPreprocess
    from export.proof import Graph
    from export.quantise.float16 import to_float16
    from export.quantise.fusion import Fusion, fusion_of
    from export.quantise.int8 import Calibration, Int8, Judge, to_int8
    from export.quantise.weights import to_int8_weights
    from export.report import ExportReport, gzip_size, write

# Public name -> its module. No module may bear the name of a function that is listed here: importing it would put the
# module in the function's place.
_HOMES = {
    "Calibration": "export.quantise.int8",
    "ExportError": "export.errors",
    "ExportReport": "export.report",
    "Fusion": "export.quantise.fusion",
    "Graph": "export.proof",
    "Int8": "export.quantise.int8",
    "Interface": "export.from_torch",
    "Judge": "export.quantise.int8",
    "Preprocess": "export.preprocess",
    "WithPreprocess": "export.preprocess",
    "accuracy_of": "export.accuracy",
    "fusion_of": "export.quantise.fusion",
    "graph_of": "export.from_torch",
    "given_metadata": "export.metadata",
    "gzip_size": "export.report",
    "read_graph": "export.from_file",
    "read_metadata": "export.metadata",
    "require_writable": "export.files",
    "to_float16": "export.quantise.float16",
    "to_int8": "export.quantise.int8",
    "to_int8_weights": "export.quantise.weights",
    "to_onnx": "export.from_torch",
    "write": "export.report",
}

__all__ = [
    "Calibration",
    "ExportError",
    "ExportReport",
    "Fusion",
    "Graph",
    "Int8",
    "Interface",
    "Judge",
    "Preprocess",
    "WithPreprocess",
    "accuracy_of",
    "fusion_of",
    "given_metadata",
    "graph_of",
    "gzip_size",
    "read_graph",
    "read_metadata",
    "require_writable",
    "to_float16",
    "to_int8",
    "to_int8_weights",
    "to_onnx",
    "write",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
