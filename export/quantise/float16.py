"""float16: half the bytes. The converter is ONNX Runtime's; inputs and outputs stay float32.

ONNX Runtime has next to no float16 kernels for x86: it brings every layer back to float32 with casts, and is no faster.
ARM CPUs from ARMv8.2 on with half-precision arithmetic have some.
"""

import warnings

import onnx

from export.errors import ExportError
from export.naming import in_order, named
from export.proof import FLOAT16, Graph
from export.quiet import quiet

TOLERANCE = 5e-2
"""On the relative difference. float16 rounds to 5e-4, and tens of layers bring that to some 1e-2; a weight or value
beyond its largest number, 65504, is far above."""


def to_float16(graph: Graph) -> Graph:
    """The graph with weights and values in float16.

    Raises:
        ExportError: It cannot be converted, or differs by more than the tolerance.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if not graph.lossless:
        raise ExportError(f"float16 starts from float32, this graph is {graph.precision}")
    # The converter raises what its parts raise, and warns of every weight that is too small.
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: onnx.ModelProto = convert_float_to_float16(named(graph.model), keep_io_types=True)
    except Exception as error:
        raise ExportError(f"float16: ONNX Runtime's converter cannot take this graph: {error}") from error
    return graph.then(FLOAT16, in_order(made, graph.model.ir_version), tolerance=TOLERANCE, precision=FLOAT16)
