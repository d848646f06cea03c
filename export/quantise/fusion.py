"""What ONNX Runtime makes of a quantised graph: which layers it computes in integers, and which it does not."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.errors import ExportError
from export.runtime import open_session

INTEGER = frozenset(("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger"))
FLOAT = frozenset(("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "NhwcFusedConv"))
CONVERSIONS = frozenset(("QuantizeLinear", "DequantizeLinear"))


@dataclass(frozen=True, slots=True)
class Fusion:
    """Layers with weights after ONNX Runtime's own optimisation on this machine.

    Attributes:
        integer: Computed in integers.
        floating: Computed in float.
        conversions: QuantizeLinear and DequantizeLinear that are left, to be run at every inference.
    """

    integer: int
    floating: int
    conversions: int


def fusion_of(model: onnx.ModelProto) -> Fusion:
    """Let ONNX Runtime optimise the graph, and count.

    Raises:
        ExportError: It cannot load it, or there is no room for a temporary file.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "optimised.onnx"
            open_session(model, "the quantised graph", save_to=made)
            ops = [node.op_type for node in onnx.load(made).graph.node]
    except OSError as error:
        raise ExportError(
            f"no room for a temporary file: {error.strerror}; set TMPDIR to a folder with room"
        ) from error
    return Fusion(*(sum(op in kind for op in ops) for kind in (INTEGER, FLOAT, CONVERSIONS)))
