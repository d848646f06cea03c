"""A cut network as a graph, where its class cannot express the cut.

``x.chunk(2, dim=1)`` halves, ``x.view(n, 2, 29, h, w)`` holds numbers: a class whose ``forward`` says so can lose
channels only evenly, or not at all. Its traced graph can: every number of channels in it is rewritten. What is returned
is an ``fx.GraphModule`` of plain modules with the original parameter names, that trains and is exported. It takes any
batch size where the original does, or refuses others; height and width that stand as numbers in the trace stay those of
the traced input, and such a graph refuses others too.
"""

from __future__ import annotations

from compress.surgery.graph_cut.cut import GraphCut, cut_graph, graph_module, removed_by
from compress.surgery.graph_cut.outcome import Blocked, Channels, Rewrite
from compress.surgery.graph_cut.sizes import fix_samples_, fix_size_
from compress.surgery.graph_cut.source import source_line
from compress.surgery.graph_cut.tracing import Traced, Traces, trace_for_cutting

__all__ = [
    "Blocked",
    "Channels",
    "GraphCut",
    "Rewrite",
    "Traced",
    "Traces",
    "cut_graph",
    "fix_samples_",
    "fix_size_",
    "graph_module",
    "removed_by",
    "source_line",
    "trace_for_cutting",
]
