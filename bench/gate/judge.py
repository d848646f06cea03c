"""Measure what a budget asks for, and compare: a limit is broken when the whole range of a figure is beyond it."""

import time
from collections.abc import Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.gate.budget import Budget
from bench.gate.evidence import Evidence, Failed, Job, T, gather
from bench.gate.limits import BOUNDS, LIMITS, UNITS, Figure
from bench.gate.report import NOT_MEASURED, OVER, UNCERTAIN, WITHIN, Check, GateReport
from bench.measure.runs import Progress, busy, now
from bench.report import LatencyReport
from bench.targets import find_target

# A p99 of fewer samples rests on less than ten of them.
SAMPLES_FOR_P99 = 1000

BESIDE_OTHERS = (
    "; but other processes were running, and they may be the cause: gate again on an idle machine, or limit "
    "latency.ratio or instructions instead"
)

# What to raise for a narrower range.
MORE = {"latency": "measure.runs", "memory": "measure.memory_runs", "instructions": "measure.instruction_samples"}


def gate(
    model: Path,
    budget: Budget,
    baseline: Path | None = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> GateReport:
    """Hold `model` against `budget`.

    Args:
        model: ONNX file.
        budget: From `load_budget`.
        baseline: ONNX file that ratios and drops refer to.
        device: Where to measure, as in ``--device``.
        progress: Called after each process with those done and their number.

    Raises:
        BenchError: A file cannot be read, the device is unknown, or a limit needs a baseline. A measurement that fails
            is no such error: its checks come back as ``not measured``.
    """
    need = [name for name in budget.limits if LIMITS[name].needs_baseline]
    if need and baseline is None:
        raise BenchError(f"{budget.name} limits {', '.join(need)}: give --baseline DENSE.onnx to compare with")
    find_target(device)
    start = time.monotonic()
    wanted = {LIMITS[name].measure or "" for name in budget.limits}
    evidence = gather(
        Job(model=model, baseline=baseline, device=device, measure=budget.measure, progress=progress), wanted
    )
    checks = tuple(check(name, limit, evidence) for name, limit in budget.limits.items())
    latency, memory = _or_none(evidence.latency), _or_none(evidence.memory)
    instructions = _or_none(evidence.instructions)
    return GateReport(
        created=now(),
        device=device,
        budget=budget.name,
        seconds=time.monotonic() - start,
        measure=budget.measure,
        model=evidence.model.file,
        baseline=None if evidence.baseline is None else evidence.baseline.file,
        outcome=outcome(checks),
        checks=checks,
        warnings=(
            *(f"{one.name}: {one.reason}" for one in checks if one.verdict == UNCERTAIN),
            *(text for report in (latency, memory, instructions) if report is not None for text in report.warnings),
            *_few_samples(budget, latency),
        ),
        latency=latency,
        memory=memory,
        instructions=instructions,
    )


def check(name: str, limit: float, evidence: Evidence) -> Check:
    """Compare one figure with its limit."""
    rule = LIMITS[name]
    figure: Figure | None = None
    try:
        figure = rule.read(evidence)
    except BenchError as error:
        verdict, reason = NOT_MEASURED, f"could not be measured: {error}"
    else:
        verdict = judged(figure, limit, at_least=rule.at_least)
        reason = _reason(name, figure, limit, verdict)
        if verdict == UNCERTAIN and figure.range_of != BOUNDS:  # a search gives the same bounds again
            reason += f"; {_to_tell(name, limit, evidence)}"
        if verdict == OVER and _beside_others(name, evidence):
            reason += BESIDE_OTHERS
    return Check(
        name=name,
        unit=rule.unit,
        limit=limit,
        at_least=rule.at_least,
        value=None if figure is None else figure.value,
        low=None if figure is None else figure.low,
        high=None if figure is None else figure.high,
        verdict=verdict,
        reason=reason,
    )


def judged(figure: Figure, limit: float, *, at_least: bool) -> str:
    """``within`` or ``over`` if the whole range says so, else ``uncertain``; the limit itself is within."""
    if at_least:
        good, bad = figure.low >= limit, figure.high < limit
    else:
        good, bad = figure.high <= limit, figure.low > limit
    return WITHIN if good else OVER if bad else UNCERTAIN


def outcome(checks: Sequence[Check]) -> str:
    """A limit that is broken is broken whatever else could not be measured; one that may be is not within."""
    verdicts = {one.verdict for one in checks}
    return next((verdict for verdict in (OVER, NOT_MEASURED, UNCERTAIN) if verdict in verdicts), WITHIN)


def _reason(name: str, figure: Figure, limit: float, verdict: str) -> str:
    rule = LIMITS[name]
    unit = UNITS[rule.unit]
    exact = figure.low == figure.high
    where = "" if exact else f", {figure.range_of} {unit.shown(figure.low)} to {unit.shown(figure.high)}"
    side = {
        (WITHIN, False): "at most",
        (WITHIN, True): "at least",
        (OVER, False): "over the limit of",
        (OVER, True): "under the limit of",
        (UNCERTAIN, False): "not distinguishable from the limit of",
        (UNCERTAIN, True): "not distinguishable from the limit of",
    }[verdict, rule.at_least]
    return f"{unit.shown(figure.value)}{where}: {side} {unit.shown(limit)}"


def _beside_others(name: str, evidence: Evidence) -> bool:
    """Whether a figure in milliseconds was measured beside other processes, which nothing takes out of it."""
    rule, report = LIMITS[name], _or_none(evidence.latency)
    absolute = rule.measure == "latency" and not rule.needs_baseline
    return absolute and report is not None and busy(report.settings, report.host)


def _to_tell(name: str, limit: float, evidence: Evidence) -> str:
    rule = LIMITS[name]
    if rule.to_tell is not None:
        return rule.to_tell(evidence, limit)
    return f"to tell, raise {MORE[rule.measure or '']} in the budget"


def _few_samples(budget: Budget, report: LatencyReport | None) -> list[str]:
    if "latency.p99_ms" not in budget.limits or report is None or report.model.latency.samples >= SAMPLES_FOR_P99:
        return []
    return [
        f"latency.p99_ms rests on {report.model.latency.samples} samples, of which one in a hundred lies beyond: "
        f"set measure.samples = {SAMPLES_FOR_P99} or more in the budget"
    ]


def _or_none(outcome: T | Failed | None) -> T | None:
    return None if isinstance(outcome, Failed) else outcome
