"""BatchNorm folded into the convolution, transposed convolution or Gemm in front of it. The rules are onnxscript's.

For ``y = gamma * (W x + b - mu) / sqrt(var + eps) + beta``: ``W' = W * gamma / sqrt(var + eps)``, ``b' = (b - mu) *
gamma / sqrt(var + eps) + beta``.
"""

import onnx_ir
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules.common import (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)

RULES = RewriteRuleSet(
    [fuse_batchnorm_into_conv_rule, fuse_batchnorm_into_conv_transpose_rule, fuse_batchnorm_into_gemm_rule]
)


class FoldBatchNorm(onnx_ir.passes.InPlacePass):
    """Fold every BatchNorm whose layer nobody else reads and whose parameters are constants."""

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        """See the class."""
        return onnx_ir.passes.PassResult(model, modified=RULES.apply_to_model(model) > 0)
