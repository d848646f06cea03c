"""A model held against a budget, so that a deployment can fail on it.

`budget.py` reads the budget file, `limits.py` is the table of what can be limited, `evidence.py` measures what a budget
asks for, `judge.py` compares, `report.py` holds the outcome, `loading.py` reads it,
`junit.py` and `markdown.py` write it for others.
"""

from bench.gate.budget import Budget, load_budget
from bench.gate.judge import gate
from bench.gate.loading import load_gate_report
from bench.gate.report import GateReport

__all__ = ["Budget", "GateReport", "gate", "load_budget", "load_gate_report"]
