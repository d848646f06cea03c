"""onnxsim, kept to what cannot change the function: shape inference, constant folding, its default graph fusions.

onnxsim 0.8 has grown pruning and quantisation by norm, which change the function; they are separate entry points and
stay untouched here. Its own `check_n` compares the model with itself on uniform random inputs; we switch it off and
verify against the torch model instead (`export.verify`).
"""

import io
import warnings
from contextlib import redirect_stdout

import onnx
import onnxsim

from export.errors import ExportError


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """A smaller graph with the same inputs, outputs, opset and IR version; `model` is not touched.

    Raises:
        ExportError: onnxsim failed, or changed the model's interface; the message holds its reason.
    """
    # Which exceptions leave the C++ core is nowhere documented, and any of them means the same: not simplified.
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # it prints advice; stdout is the caller's
            warnings.simplefilter("ignore")
            # certify would prove equality with Z3 only where Z3 happens to be installed: the same result everywhere.
            simplified, _ = onnxsim.simplify(model, check_n=0, certify=False)
    except Exception as error:
        raise ExportError(f"onnxsim {onnxsim.__version__} failed: {_first_line(error)}") from error
    for what, before, after in (
        ("inputs", _names(model.graph.input), _names(simplified.graph.input)),
        ("outputs", _names(model.graph.output), _names(simplified.graph.output)),
        ("opset", _opsets(model), _opsets(simplified)),
    ):
        if before != after:
            raise ExportError(f"onnxsim {onnxsim.__version__} changed the {what}: {before} became {after}")
    simplified.ir_version = model.ir_version
    return simplified


def _names(values: list[onnx.ValueInfoProto]) -> list[str]:
    return [value.name for value in values]


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    return {entry.domain: entry.version for entry in model.opset_import}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
