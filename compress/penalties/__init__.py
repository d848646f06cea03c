"""Sparsity penalties: one file each, one line in the table below.

A new penalty is a subclass of ``SeparablePenalty``, ``LayerwisePenalty`` or ``GroupwisePenalty`` and a line in
``PENALTIES``; the contract tests pick it up from there.
"""

from compress.penalties.base import GroupwisePenalty, LayerwisePenalty, Penalty, SeparablePenalty
from compress.penalties.hoyer import Hoyer
from compress.penalties.l0 import L0
from compress.penalties.l1 import L1, GroupLasso
from compress.penalties.l1_over_l2 import L1OverL2
from compress.penalties.log_sum import LogSum
from compress.penalties.lp import Lp
from compress.penalties.mcp import MCP
from compress.penalties.scad import SCAD
from compress.penalties.sparse_group_lasso import SparseGroupLasso
from compress.penalties.transformed_l1 import TransformedL1

PENALTIES: dict[str, type[Penalty]] = {
    "l0": L0,
    "l1": L1,
    "lp": Lp,
    "transformed-l1": TransformedL1,
    "mcp": MCP,
    "scad": SCAD,
    "log-sum": LogSum,
    "l1-over-l2": L1OverL2,
    "hoyer": Hoyer,
    "group-lasso": GroupLasso,
    "sparse-group-lasso": SparseGroupLasso,
}

__all__ = [
    "L0",
    "L1",
    "MCP",
    "PENALTIES",
    "SCAD",
    "GroupLasso",
    "GroupwisePenalty",
    "Hoyer",
    "L1OverL2",
    "LayerwisePenalty",
    "LogSum",
    "Lp",
    "Penalty",
    "SeparablePenalty",
    "SparseGroupLasso",
    "TransformedL1",
]
