"""Constant folding: what depends on no input is computed once. The pass is onnxscript's."""

import onnx_ir
from onnxscript.optimizer import fold_constants_ir


class FoldConstants(onnx_ir.passes.InPlacePass):
    """Compute constants, of shapes too, and infer the shapes of all values."""

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        """See the class."""
        result = fold_constants_ir(model, onnx_shape_inference=True)
        return onnx_ir.passes.PassResult(model, result.modified)
