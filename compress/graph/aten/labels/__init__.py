"""The label flow over an ATen graph: `flow.py` holds the table of rules, which stand in a file for each theme."""

from compress.graph.aten.labels.flow import RULES, LabelFlow
from compress.graph.aten.labels.meeting import channels, meet
from compress.graph.aten.labels.values import Computed, Contraction, Parameter, place

__all__ = ["RULES", "Computed", "Contraction", "LabelFlow", "Parameter", "channels", "meet", "place"]
