"""Nodes that change nothing: Identity, plus 0, times 1; and what nobody reads. The passes are onnx_ir's."""

import onnx_ir
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules.common import (
    add_0_rule,
    div_by_1_rule,
    mul_by_1_rule,
    no_op_cast_rule,
    no_op_expand_rule,
    no_op_transpose_rule,
    sub_0_rule,
)

RULES = RewriteRuleSet(
    [
        *mul_by_1_rule.commute(),
        *add_0_rule.commute(),
        sub_0_rule,
        div_by_1_rule,
        no_op_cast_rule,
        no_op_expand_rule,
        no_op_transpose_rule,
    ]
)


class RemoveIdentities(onnx_ir.passes.InPlacePass):
    """Turn what changes nothing into Identity, and take those and all that is unused out."""

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        """See the class."""
        rewritten = RULES.apply_to_model(model) > 0
        removed = [each(model).modified for each in (IdentityEliminationPass(), RemoveUnusedNodesPass())]
        return onnx_ir.passes.PassResult(model, modified=rewritten or any(removed))
