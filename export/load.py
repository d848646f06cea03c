"""An ONNX file from anywhere, read whole or refused with the reason."""

import re
from pathlib import Path

import onnx
import onnxruntime

from export.errors import ExportError
from export.naming import in_order
from export.protos import default_opset
from export.sparse import make_dense_


def load(path: Path) -> onnx.ModelProto:
    """Read a model with its weights, also those that lie in files beside it; sparse ones become dense.

    Raises:
        ExportError: There is no such file, it is empty, damaged or cut short, its weights are missing or lie outside of
            its folder, the checker refuses it, or its opset is one that nobody here knows.
    """
    content = _content(path)
    # protobuf's and onnx's errors have no common base class but Exception.
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:
        raise ExportError(f"{path}: is no ONNX file, or is damaged or cut short ({len(content):,} bytes)") from error
    if not model.graph.node:
        raise ExportError(f"{path}: holds no graph with nodes; is it an ONNX file, and whole?")
    _require_known_opset(model, path)
    _load_weights(model, path)
    _take_in_sparse(model, path)
    model = _in_order(model, path)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ExportError(f"{path}: is refused by the ONNX checker: {_first_line(error)}") from error
    return model


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from error
    if not content:
        raise ExportError(f"{path}: is empty, no ONNX file")
    return content


def _require_known_opset(model: onnx.ModelProto, path: Path) -> None:
    opset, newest = default_opset(model), onnx.defs.onnx_opset_version()
    if not 1 <= opset <= newest:
        raise ExportError(
            f"{path}: has opset {opset or 'none'}; onnx {onnx.__version__} and ONNX Runtime {onnxruntime.__version__} "
            f"know 1 to {newest}: export it anew with an older one"
        )


def _load_weights(model: onnx.ModelProto, path: Path) -> None:
    """Take the weights in that lie in other files; onnx refuses those outside of the folder, links there included."""
    folder = path.parent
    named = sorted(
        {
            entry.value
            for tensor in model.graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )
    for name in named:
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ExportError(f"{path}: its weights lie in {name}, outside of its folder: that file is not read")
        if not file.is_file():
            raise ExportError(f"{path}: its weights lie in {name}, and {file} does not exist; copy both together")
    try:
        onnx.load_external_data_for_model(model, str(folder))
    except Exception as error:
        raise ExportError(f"{path}: its weights in {', '.join(named)} cannot be read: {_first_line(error)}") from error


def _take_in_sparse(model: onnx.ModelProto, path: Path) -> None:
    try:
        for sparse in model.graph.sparse_initializer:
            onnx.checker.check_sparse_tensor(sparse)
        make_dense_(model)
    except Exception as error:  # the checker's own, or no memory for that many zeros
        raise ExportError(f"{path}: its sparse weights cannot be read: {_first_line(error)}") from error


def _in_order(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model with nodes behind those that they read, as ONNX demands; ONNX Runtime's float16 converter does not."""
    if _is_in_order(model.graph):
        return model
    try:
        return in_order(model, model.ir_version)
    except Exception as error:  # onnx_ir refuses damaged graphs with errors of many types
        raise ExportError(
            f"{path}: its nodes do not stand behind those that they read, and cannot be sorted: {_first_line(error)}"
        ) from error


def _is_in_order(graph: onnx.GraphProto) -> bool:
    made = {value.name for value in (*graph.input, *graph.initializer)}
    for node in graph.node:
        if not made.issuperset(name for name in node.input if name):
            return False
        made |= set(node.output)
    return True


def _first_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:300] or type(error).__name__
