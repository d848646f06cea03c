"""Whether what a report says follows from the raw samples that it holds.

A report is a file that anybody can edit, cut or mix up. What can be computed again from its samples is computed again,
and a difference is refused: a figure that nobody measured is worse than none.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np

from bench.errors import BenchError
from bench.measure.instructions import instruction_figures
from bench.measure.instructions import ratio_of as instruction_ratio
from bench.measure.latency import latency_figures
from bench.measure.memory import memory_figures
from bench.measure.memory import ratios as memory_ratios
from bench.measure.profile import by_operator, gflops, node_times, profile_times
from bench.measure.realtime import frames
from bench.measure.throughput import throughput
from bench.report import (
    AnyReport,
    BatchTimes,
    Compared,
    InstructionsReport,
    InstructionsResult,
    Latency,
    LatencyReport,
    LatencyResult,
    MemoryReport,
    MemoryResult,
    ProfileReport,
    ProfileResult,
)
from bench.stats import Ratio, ratio_of_medians

T = TypeVar("T")

ROUNDING = 1e-9  # relative: sums of the same numbers in another order
# A bootstrap of other resamples: numpy does not promise the same random numbers for ever. As a share of the interval.
RESAMPLED = 0.25
INTERVALS: dict[type, frozenset[str]] = {
    Ratio: frozenset({"low", "high"}),
    Latency: frozenset({"p50_low_ms", "p50_high_ms"}),
    BatchTimes: frozenset({"images_per_second_low", "images_per_second_high"}),
}
# What a system's page cache can make smaller, and a number that may be any.
ANY_SIGN = {"model_rss_bytes", "peak_over_bare_bytes", "seed"}
RAW = {"runs", "samples_ns", "samples_us", "profiled_ns", "response_ns", "inference_ns", "counts"}


def require_sound(report: AnyReport, where: str) -> None:
    """Refuse a report that contradicts itself.

    Args:
        report: As it was read.
        where: What to call it, its file for example.

    Raises:
        BenchError: A number is negative, a list of samples empty, or a figure is not that of the samples.
    """
    fault = next(impossible(report, ""), None) or contradiction(report)
    if fault is not None:
        raise BenchError(f"{where}: {fault}; the file was changed, or is another bench's: measure again")


def impossible(value: Any, place: str) -> Iterator[str]:
    """Numbers that no measurement gives, and lists without a sample, with their places."""
    name = place.rpartition(".")[2].partition("[")[0]
    if isinstance(value, int | float):
        if value < 0 and name not in ANY_SIGN:
            yield f"{place} is {value}, expected 0 or more"
    elif is_dataclass(value):
        for field in fields(value):
            yield from impossible(getattr(value, field.name), f"{place}.{field.name}".lstrip("."))
    elif isinstance(value, tuple):
        if not value and name in RAW:
            yield f"{place} is empty"
        for index, item in enumerate(value):
            yield from impossible(item, f"{place}[{index}]")


def contradiction(report: AnyReport) -> str | None:
    """The first figure that is not that of the samples, in words."""
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            expected = AGAIN[type(report)](report)
    except (ArithmeticError, ValueError, IndexError):
        return "its raw samples do not fit together"
    return next(differences(report, expected, ""), None)


def differences(stored: Any, expected: Any, place: str, tolerance: float = 0.0) -> Iterator[str]:
    """Where two values of the same type differ, in words."""
    if is_dataclass(expected) and type(stored) is type(expected):
        loose = INTERVALS.get(type(expected), frozenset())
        ends = [getattr(expected, name) for name in loose]
        width = max(ends, default=0.0) - min(ends, default=0.0)
        for field in fields(expected):
            name = field.name
            pair = getattr(stored, name), getattr(expected, name)
            yield from differences(*pair, f"{place}.{name}".lstrip("."), RESAMPLED * width if name in loose else 0.0)
    elif isinstance(expected, tuple) and len(stored) == len(expected):
        for index, pair in enumerate(zip(stored, expected, strict=True)):
            yield from differences(*pair, f"{place}[{index}]")
    elif not _same(stored, expected, tolerance):
        yield f"{place} is {_shown(stored)}, but its raw samples give {_shown(expected)}"


def _same(stored: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(stored, int | float) and isinstance(expected, int | float):
        return math.isclose(stored, expected, rel_tol=ROUNDING, abs_tol=tolerance)
    return bool(stored == expected)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{value!r:.60}"


# The report as its own samples give it --------------------------------------------------------------------------------


def _both(report: Compared[T], again: Callable[[T], T]) -> tuple[T, T | None]:
    return again(report.model), None if report.baseline is None else again(report.baseline)


def _latency_again(report: LatencyReport) -> LatencyReport:
    def again(result: LatencyResult) -> LatencyResult:
        return replace(result, latency=latency_figures(result.latency.runs))

    model, baseline = _both(report, again)
    ratio = None
    if baseline is not None:
        ratio = ratio_of_medians(*([run.samples_ns for run in each.latency.runs] for each in (model, baseline)))
    realtime = report.realtime
    if realtime is not None:
        deadline_ms = realtime.deadline_ms
        ours, theirs = _both(realtime, lambda fed: frames(fed.runs, deadline_ms))
        realtime = replace(realtime, model=ours, baseline=theirs)
    return replace(
        report,
        model=model,
        baseline=baseline,
        ratio=ratio,
        verdict=None if report.ratio is None else report.ratio.verdict,  # of the ends as they were drawn then
        throughput=tuple(
            throughput(row.batch, row.model.runs, None if row.baseline is None else row.baseline.runs)
            for row in report.throughput
        ),
        realtime=realtime,
    )


def _memory_again(report: MemoryReport) -> MemoryReport:
    def again(result: MemoryResult) -> MemoryResult:
        return replace(result, memory=memory_figures(result.memory.runs))

    model, baseline = _both(report, again)
    return replace(
        report,
        model=model,
        baseline=baseline,
        ratios=None if baseline is None else memory_ratios(model, baseline),
    )


def _instructions_again(report: InstructionsReport) -> InstructionsReport:
    def again(result: InstructionsResult) -> InstructionsResult:
        return replace(result, instructions=instruction_figures(result.instructions.runs))

    model, baseline = _both(report, again)
    ratio = None if baseline is None else instruction_ratio(model, baseline)
    return replace(report, model=model, baseline=baseline, ratio=ratio)


def _profile_again(report: ProfileReport) -> ProfileReport:
    """Times alone: names and multiply-accumulates are the file's, which is not here."""

    def again(result: ProfileResult) -> ProfileResult:
        stored = result.profile
        times = node_times(stored.runs)
        p50_ms, profiled_p50_ms, nodes_ms = profile_times(stored.runs)
        total_us = sum(times)
        nodes = tuple(
            replace(node, time_us=time, share=time / total_us if total_us else 0.0, gflops=gflops(node.macs, time))
            for node, time in zip(stored.nodes, times, strict=True)
        )
        figures = replace(
            stored,
            p50_ms=p50_ms,
            profiled_p50_ms=profiled_p50_ms,
            nodes_ms=nodes_ms,
            nodes=nodes,
            operators=by_operator(nodes),
        )
        return replace(result, profile=figures)

    model, baseline = _both(report, again)
    return replace(report, model=model, baseline=baseline)


AGAIN: dict[type, Callable[[Any], AnyReport]] = {
    LatencyReport: _latency_again,
    MemoryReport: _memory_again,
    ProfileReport: _profile_again,
    InstructionsReport: _instructions_again,
}
