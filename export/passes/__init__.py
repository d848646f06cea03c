"""Passes over an exported graph: each one file and one function `(onnx.ModelProto) -> int`, how many places it changed.

They run on what torch's exporter wrote, before onnxsim; what they return is verified like everything else.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx

from export.passes.pad_before_max_pool import name_padded_axes

PASSES: Mapping[str, Callable[[onnx.ModelProto], int]] = MappingProxyType(
    {
        "pad-before-max-pool": name_padded_axes,
    }
)


def run_all(model: onnx.ModelProto) -> dict[str, int]:
    """Run every pass on `model`, in place; the names of those that changed something, and how often."""
    return {name: count for name, run in PASSES.items() if (count := run(model))}
