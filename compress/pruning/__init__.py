"""Pruning: decide which channels a network can spare, and make them exactly zero.

This is the lossy half, whose price is measured. The other half, ``compress.compact``, removes what is zero and loses
nothing; the two are never mixed::

    from compress.pruning import Policy, Target, prune_

    report = prune_(model, (x,), Target("macs", 0.5), Policy("magnitude"))
    result = compress.compact(model, (x,))
"""

from compress.pruning.criteria import CRITERIA
from compress.pruning.policy import Policy
from compress.pruning.prune import PruneReport, prune_
from compress.pruning.statistics import recalibrate_
from compress.pruning.target import Target

__all__ = ["CRITERIA", "Policy", "PruneReport", "Target", "prune_", "recalibrate_"]
