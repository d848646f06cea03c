"""Reports of several sessions side by side, or a refusal that says what makes them no comparison.

Sessions are not interleaved as a model and its baseline are: what the machine did to one of them and not to the other
is in the ratio and in no interval. Where both measured the same baseline, the ratio is that of the models' ratios to
it: what slowed a whole session cancels then. Fewer than `MIN_RUNS` processes give no interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.errors import BenchError
from bench.protocol import Host
from bench.report import AnyReport, InstructionsReport, LatencyReport, LatencyResult, MemoryReport, Report
from bench.stats import MIN_RUNS, ratio_of_sessions


@dataclass(frozen=True, kw_only=True)
class Named:
    """A report and what to call it."""

    name: str
    report: AnyReport


@dataclass(frozen=True, kw_only=True)
class Row:
    """A report's figure beside that of the first.

    Attributes:
        name: The report's.
        file_name: The model's.
        value: Median milliseconds, peak bytes over the bare runtime, or instructions.
        first: Whether the others are compared with it.
        ratio: To the first report's; None for the first itself, and where a figure is 0.
        low: Lower end of its 95 % interval over the processes; None where there are too few.
        high: Upper end.
        through_baseline: The ratio is one of ratios to the same baseline, which each session measured.
    """

    name: str
    file_name: str
    value: float
    first: bool
    ratio: float | None
    low: float | None
    high: float | None
    through_baseline: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows in the order given, and what to mind."""

    figure: str
    unit: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What is compared of a kind of report: `value` for the table, `of_runs` for the ratio and its interval."""

    name: str
    unit: str
    value: Callable[[AnyReport], float]
    of_runs: Callable[[AnyReport], list[float]]
    advice: str


def _medians(result: LatencyResult) -> list[float]:
    return [float(np.median(run.samples_ns)) for run in result.latency.runs]


def _latency(report: AnyReport) -> LatencyReport:
    if not isinstance(report, LatencyReport):
        raise TypeError(f"a report of {report.measure} holds no latency")
    return report


def _instructions(report: AnyReport) -> InstructionsReport:
    if not isinstance(report, InstructionsReport):
        raise TypeError(f"a report of {report.measure} holds no instructions")
    return report


def _memory(report: AnyReport) -> MemoryReport:
    if not isinstance(report, MemoryReport):
        raise TypeError(f"a report of {report.measure} holds no memory")
    return report


FIGURES: dict[str, Figure] = {
    "latency": Figure(
        name="latency p50",
        unit="ms",
        value=lambda report: _latency(report).model.latency.p50_ms,
        of_runs=lambda report: _medians(_latency(report).model),
        advice="the sessions were not interleaved: a machine that was slower in one of them looks like a slower model; "
        "for a ratio to rely on measure both at once, bench latency A.onnx --baseline B.onnx",
    ),
    "memory": Figure(
        name="peak memory over the bare runtime",
        unit="bytes",
        value=lambda report: _memory(report).model.memory.peak_over_bare_bytes,
        of_runs=lambda report: [run.peak_rss_bytes - run.bare_rss_bytes for run in _memory(report).model.memory.runs],
        advice="",
    ),
    "instructions": Figure(
        name="instructions per inference",
        unit="instructions",
        value=lambda report: _instructions(report).model.instructions.per_inference,
        of_runs=lambda report: [float(np.median(run.counts)) for run in _instructions(report).model.instructions.runs],
        advice="",
    ),
}


def _methods(report: Report) -> str:
    """Some give peaks of inference alone, others those of loading, too."""
    runs = report.model.memory.runs if isinstance(report, MemoryReport) else ()
    return " ".join(sorted({run.method for run in runs})) or "none"


# What must be the same. Two boards of one kind have the same facts, hence the device as well.
SAME: dict[str, Callable[[Report], object]] = {
    "measures": lambda report: report.measure,
    "emulated or native": lambda report: "emulated" if report.host.emulated else "native",
    "devices": lambda report: report.device,
    "CPUs": lambda report: report.host.cpu_model,
    "architectures": lambda report: report.host.architecture,
    "instruction-set extensions": lambda report: " ".join(report.host.isa) or "none",
    "logical cores": lambda report: report.host.logical_cores,
    "usable cores": lambda report: report.host.usable_cores,
    "clock governors": lambda report: report.host.governor or "unknown",
    "threads": lambda report: report.settings.threads,
    "pinned cores": lambda report: ",".join(map(str, report.settings.pin)) or "none",
    "execution providers": lambda report: report.settings.provider,
    "ways to measure memory": _methods,
}

# What may differ, and is told: people compare versions of ONNX Runtime, too.
MAY_DIFFER: dict[str, Callable[[Host], str]] = {
    "onnxruntime": lambda host: host.onnxruntime,
    "numpy": lambda host: host.numpy,
    "Python": lambda host: host.python,
    "operating system": lambda host: host.os,
}


def compare(reports: Sequence[Named]) -> Comparison:
    """Compare every report with the first.

    Raises:
        BenchError: There are fewer than two, they are of a measure without a figure to compare, or they differ in what
            makes a comparison; every difference is named.
    """
    if len(reports) < 2:
        raise BenchError("compare needs two reports or more: bench compare a.json b.json")
    first, *others = reports
    faults = [fault for other in others for fault in differences(first, other)]
    if faults:
        raise BenchError("these reports cannot be compared" + "".join(f"\n  {fault}" for fault in faults))
    if first.report.measure not in FIGURES:
        raise BenchError(
            f"reports of {first.report.measure} cannot be compared afterwards: give --baseline to the command that "
            f"measures, or see them side by side with: bench report {first.name} --html page.html"
        )
    figure = FIGURES[first.report.measure]
    notes = [note for other in others for note in _notes(first, other)]
    return Comparison(
        figure=figure.name,
        unit=figure.unit,
        rows=tuple(_row(figure, first, named) for named in reports),
        notes=(*notes, *([figure.advice] if figure.advice else [])),
    )


def differences(first: Named, other: Named) -> list[str]:
    """What makes the two no comparison, in words."""
    pair = first.report, other.report
    found = [
        f"different {what}: {read(pair[0])} in {first.name}, {read(pair[1])} in {other.name}"
        for what, read in SAME.items()
        if read(pair[0]) != read(pair[1])
    ]
    if pair[0].measure != pair[1].measure:
        return found[:1]  # the figures have nothing in common, whatever else differs
    batches = [_batch(report) for report in pair]
    if batches[0] != batches[1]:
        found.append(f"different batches: {batches[0]} in {first.name}, {batches[1]} in {other.name}")
    return found


def _batch(report: AnyReport) -> int:
    """Images in an inference: the first size of the first input, given by --batch, by --shape or by the file."""
    shapes = [value.shape for value in report.model.inputs]
    return shapes[0][0] if shapes and shapes[0] else 1


def _row(figure: Figure, first: Named, named: Named) -> Row:
    report = named.report
    ratio = low = high = None
    through = False
    if named is not first:
        through = _same_baseline(first.report, report)
        runs = [_over_baseline(one) if through else figure.of_runs(one) for one in (report, first.report)]
        if min(map(min, runs)) > 0:
            ratio = float(np.exp(np.log(runs[0]).mean() - np.log(runs[1]).mean()))
        if ratio is not None and min(map(len, runs)) >= MIN_RUNS:
            found = ratio_of_sessions(*runs)
            low, high = found.low, found.high
    return Row(
        name=named.name,
        file_name=report.model.file.file_name,
        value=figure.value(report),
        first=named is first,
        ratio=ratio,
        low=low,
        high=high,
        through_baseline=through,
    )


def _same_baseline(*reports: AnyReport) -> bool:
    """Whether every session timed the same file, on inputs of the same shapes, beside its model."""
    baselines = [report.baseline if isinstance(report, LatencyReport) else None for report in reports]
    works = {
        None if baseline is None else (baseline.file.sha256, tuple(value.shape for value in baseline.inputs))
        for baseline in baselines
    }
    return len(works) == 1 and None not in works


def _over_baseline(report: AnyReport) -> list[float]:
    """Ratio of medians of each process; what slowed the process slowed both."""
    pairs = zip(_medians(_latency(report).model), _baseline_medians(report), strict=True)
    return [ours / theirs for ours, theirs in pairs]


def _baseline_medians(report: AnyReport) -> list[float]:
    baseline = _latency(report).baseline
    return [] if baseline is None else _medians(baseline)


def _notes(first: Named, other: Named) -> list[str]:
    hosts = first.report.host, other.report.host
    found = [
        f"{what} differs, and is in the ratio: {read(hosts[0])} in {first.name}, {read(hosts[1])} in {other.name}"
        for what, read in MAY_DIFFER.items()
        if read(hosts[0]) != read(hosts[1])
    ]
    shapes = [[list(value.shape) for value in named.report.model.inputs] for named in (first, other)]
    if shapes[0] != shapes[1]:
        found.append(f"inputs differ: {shapes[0]} in {first.name}, {shapes[1]} in {other.name}")
    if _same_baseline(first.report, other.report):
        drift = ratio_of_sessions(*(_baseline_medians(named.report) for named in (other, first)))
        found.append(
            "both sessions measured the same baseline, which took "
            f"{drift.value:.3f} [{drift.low:.3f}, {drift.high:.3f}] times as long in {other.name} as in {first.name}; "
            "this is taken out of the ratio"
        )
    return found
