"""The outcome of a gate on the page: a bar for each limit."""

from typing import Any

from bench.gate.limits import UNITS
from bench.gate.report import NOT_MEASURED, OVER, UNCERTAIN, WITHIN, Check, GateReport
from bench.html.parts import Panel, Tile, percents

MOODS = {WITHIN: "good", UNCERTAIN: "doubt", OVER: "bad", NOT_MEASURED: "doubt"}
HEADLINES = {
    WITHIN: "within budget",
    UNCERTAIN: "uncertain",
    OVER: "over budget",
    NOT_MEASURED: "could not be measured",
}


def gate_content(report: GateReport) -> tuple[list[Tile], list[Panel]]:
    """The outcome, and every check; the measurements that they rest on come behind."""
    verdicts = [check.verdict for check in report.checks]
    counts = ", ".join(f"{verdicts.count(each)} {each}" for each in MOODS if each in verdicts)
    outcome = Tile(label="gate", value=HEADLINES[report.outcome], note=counts, mood=MOODS[report.outcome])
    checks = Panel(
        kind="checks",
        title=f"Budget {report.budget}",
        caption="Bar: the range of the figure, as a share of its limit; line: the limit.",
        data=[_check_row(check) for check in report.checks],
        wide=True,
    )
    return [outcome], [checks]


def _check_row(check: Check) -> dict[str, Any]:
    """A check with its bar: the limit lies at two thirds of the width."""
    unit = UNITS[check.unit]
    value, low, high = (check.value or 0.0, check.low or 0.0, check.high or 0.0)
    full = 1.5 * check.limit if check.limit > 0 else max(value, high, 1e-300)
    ends = [min(100.0, percent) for percent in percents([low, value, high, check.limit], full)]
    return {
        "name": check.name,
        "verdict": check.verdict,
        "mood": MOODS[check.verdict],
        "value": "" if check.value is None else unit.shown(check.value),
        "limit": f"{'≥' if check.at_least else '≤'} {unit.shown(check.limit)}",
        "reason": check.reason,
        "ends": None if check.value is None else ends,
        "limit_at": ends[3],
    }
