"""Which operator sets can be asked for, and which ONNX Runtime reads them.

The lowest is the one that torch's exporter is written in: below it torch exports opset 18 and tries to convert down,
and when that fails it keeps 18 with nothing but a line in the log. We refuse instead. The highest is the last one that
torch's exporter knows (`torch.onnx._constants.ONNX_MAX_OPSET`).

Source of the table: "ONNX opset support" in ONNX Runtime's compatibility page, and its commits "Integrate onnx 1.17.0"
(for 1.21) and "Integration with ONNX rel-1.18.0" (for 1.23).
"""

import onnxruntime

from export.errors import ExportError

# opset -> first release of ONNX Runtime that implements it, and the IR version that belongs to it
FIRST_ONNXRUNTIME = {18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.21", 23: "1.23"}

# The lowest, because it is read by most: nothing that a convolutional network needs came later, and runtimes on devices
# are old. With the IR version lowered to match (8), every ONNX Runtime from 1.14 (February 2023) on loads the file.
DEFAULT_OPSET = 18


def resolve(opset: int | None) -> int:
    """The opset to export with.

    Raises:
        ExportError: An opset that torch cannot write or whose readers we do not know.
    """
    if opset is None:
        return DEFAULT_OPSET
    require_known(opset)
    return opset


def require_known(opset: int) -> None:
    """Refuse an opset that we do not write.

    Raises:
        ExportError: It is none of the table.
    """
    if opset not in FIRST_ONNXRUNTIME:
        known = ", ".join(f"{number} (ONNX Runtime {version}+)" for number, version in FIRST_ONNXRUNTIME.items())
        raise ExportError(f"opset {opset} cannot be exported; choose one of {known}")


def first_onnxruntime(opset: int) -> str:
    """The first release of ONNX Runtime that is known to read an opset, also one that others wrote.

    That is the oldest of the table for older opsets (still older releases are of no use today), and the one that is
    installed, which has just run it, for newer ones.
    """
    if opset > max(FIRST_ONNXRUNTIME):
        return str(onnxruntime.__version__)
    return FIRST_ONNXRUNTIME[max(opset, DEFAULT_OPSET)]
