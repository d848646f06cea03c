"""Read the outcome of a gate, and refuse one that contradicts itself."""

from collections.abc import Iterator
from pathlib import Path

from bench.errors import BenchError
from bench.gate.judge import judged, outcome
from bench.gate.limits import LIMITS, Figure
from bench.gate.report import NOT_MEASURED, Check, GateReport
from bench.saved import read_saved
from bench.sound import require_sound


def load_gate_report(path: Path) -> GateReport:
    """Read what `GateReport.save` wrote.

    Raises:
        BenchError: The file cannot be read, is no such report of this version, or its verdicts are not those of its
            figures.
    """
    report = GateReport.from_json(read_saved(path), str(path))
    fault = next(
        (f"checks[{place}].{fault}" for place, one in enumerate(report.checks) for fault in _faults(one)), None
    )
    if fault is None and report.outcome != outcome(report.checks):
        fault = f"outcome is {report.outcome!r:.60}, but its checks are {outcome(report.checks)!r}"
    if fault is not None:
        raise BenchError(f"{path}: {fault}; the file was changed, or is another bench's: gate again")
    for measured in report.measurements():
        require_sound(measured, f"{path}: {measured.measure}")
    return report


def _faults(check: Check) -> Iterator[str]:
    """What no gate writes."""
    if check.name not in LIMITS:
        yield f"name is {check.name!r:.60}, which is no limit of this bench"
    elif check.unit != LIMITS[check.name].unit:
        yield f"unit is {check.unit!r:.60}, expected {LIMITS[check.name].unit!r}"
    verdict = NOT_MEASURED
    if check.value is not None and check.low is not None and check.high is not None:
        verdict = judged(
            Figure(value=check.value, low=check.low, high=check.high), check.limit, at_least=check.at_least
        )
    if check.verdict != verdict:
        yield f"verdict is {check.verdict!r:.60}, but the figure and its limit give {verdict!r}"
