"""ONNX Runtime's own format, for mobile and minimal builds, and the list of operators that such a build needs.

The converter is ONNX Runtime's (`onnxruntime.tools`). It bakes its optimisations in, but for the layout that only one
kind of CPU has (NCHWc), so that the file runs on x86 and on ARM.
"""

import math
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from export.errors import ExportError
from export.proof import Graph, Step, compared, figures
from export.quiet import quiet


@dataclass(frozen=True, slots=True)
class OrtFormat:
    """A graph in ONNX Runtime's format.

    Attributes:
        name: Of the file, without its folder.
        content: Of the file.
        operators: What a minimal build has to include: `--include_ops_by_config` of ONNX Runtime's build script.
        step: How far it agrees with the reference.
    """

    name: str
    content: bytes
    operators: str
    step: Step

    def figures(self) -> dict[str, object]:
        """For the document beside the file."""
        return {
            "file": self.name,
            "file_bytes": len(self.content),
            "operators_file": self.operators_name,
            "verification": figures(self.step),
        }

    @property
    def operators_name(self) -> str:
        """The name of the list of operators, as ONNX Runtime's own converter gives it."""
        return f"{Path(self.name).stem}.required_operators.config"

    def files(self) -> dict[str, bytes]:
        """What is written, by name."""
        return {self.name: self.content, self.operators_name: self.operators.encode()}


def ort_format(graph: Graph, model: onnx.ModelProto, stem: str) -> OrtFormat:
    """Convert a graph and verify the result like the graph itself.

    Args:
        graph: What the result is held against.
        model: The same with its metadata, which the result carries too.
        stem: The file's name without its ending.

    Raises:
        ExportError: ONNX Runtime cannot convert it, or the result does not agree.
    """
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    # The tool prints and logs its way, works on files, and raises what its parts raise.
    try:
        with tempfile.TemporaryDirectory() as folder, quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the tool leaves a file open
            source = Path(folder) / f"{stem}.onnx"
            source.write_bytes(model.SerializeToString())
            convert_onnx_models_to_ort(source, optimization_styles=[OptimizationStyle.Fixed])
            content = source.with_suffix(".ort").read_bytes()
            operators = source.with_suffix(".required_operators.config").read_text(encoding="utf-8")
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} cannot convert to its own format: {error}"
        ) from error
    step = compared("ort", content, graph.cases, graph.cases.tolerance if graph.lossless else math.inf)
    return OrtFormat(f"{stem}.ort", content, operators.replace(f"{folder}{os.sep}", ""), step)
