"""Passes over an ONNX graph: each one file, one `onnx_ir` pass, and tested on its own.

They run on what torch's exporter wrote, and on ONNX files of other origin, before onnxsim; what they return is verified
like everything else.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx
import onnx_ir

from export.errors import ExportError
from export.passes.batch_norm import FoldBatchNorm
from export.passes.constants import FoldConstants
from export.passes.dead_branches import RemoveDeadBranches
from export.passes.identities import RemoveIdentities
from export.passes.pad_before_max_pool import NamePaddedAxes

Passes = Mapping[str, Callable[[], onnx_ir.passes.InPlacePass]]

REPAIRS: Passes = MappingProxyType({"pad-before-max-pool": NamePaddedAxes})
"""What has to be done for ONNX Runtime to compute what the graph says."""

PASSES: Passes = MappingProxyType(
    {
        "constants": FoldConstants,  # first: it infers the shapes that dead branches are judged by
        "batch-norm": FoldBatchNorm,
        "dead-branches": RemoveDeadBranches,
        "identities": RemoveIdentities,
    }
)
"""What makes a graph smaller."""


def run(passes: Passes, model: onnx.ModelProto) -> tuple[str, ...]:
    """Run passes on `model`, in place; the names of those that changed something.

    Raises:
        ExportError: A pass failed on this graph, or onnx_ir cannot read it.
    """
    try:
        graph = onnx_ir.from_proto(model)
    except Exception as error:  # of many types, one around another; the innermost says why
        raise ExportError(f"onnx_ir {onnx_ir.__version__} cannot read the graph: {_innermost(error)}") from error
    changed = []
    for name, make in passes.items():
        # Passes of onnx_ir and onnxscript raise many unrelated types on graphs that they do not know.
        try:
            result = make()(graph)
        except Exception as error:
            raise ExportError(f"the pass {name} failed: {error}") from error
        if result.modified:
            changed.append(name)
    if changed:
        model.CopyFrom(onnx_ir.to_proto(graph))
    return tuple(changed)


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
