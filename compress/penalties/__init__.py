"""Sparsity penalties: one file each, one line in the table below.

A new penalty is a subclass of ``Penalty`` and a line in ``PENALTIES``; the contract tests pick it up from there.
"""

from compress.penalties.base import Penalty
from compress.penalties.l0 import L0
from compress.penalties.l1 import L1, GroupLasso

PENALTIES: dict[str, type[Penalty]] = {
    "l0": L0,
    "l1": L1,
    "group-lasso": GroupLasso,
}

__all__ = ["L0", "L1", "PENALTIES", "GroupLasso", "Penalty"]
