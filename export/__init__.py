"""From a torch module to a verified ONNX file.

    import export
    report = export.to_onnx(model, (torch.randn(1, 3, 32, 32),), "model.onnx")

Knows torch, onnx, onnxruntime and onnxsim, and none of the other packages here. Importing it is cheap: the libraries
are loaded at the first use of a name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.errors import ExportError
    from export.from_torch import ExportReport, to_onnx
    from export.metadata import read_metadata

# Public name -> its module. No module may bear the name of a function that is listed here: importing it would put the
# module in the function's place.
_HOMES = {
    "ExportError": "export.errors",
    "ExportReport": "export.from_torch",
    "read_metadata": "export.metadata",
    "to_onnx": "export.from_torch",
}

__all__ = ["ExportError", "ExportReport", "read_metadata", "to_onnx"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
