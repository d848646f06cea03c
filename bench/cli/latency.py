"""``bench latency``: inference time of a model, and of its baseline beside it."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bench.cli import console, options
from bench.files import require_writable
from bench.measure.latency import latency
from bench.report import LatencyReport, LatencyResult
from bench.stats import FAR_OUT, MIN_RUNS


def latency_command(
    model: options.Model,
    baseline: options.Baseline = None,
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    samples: Annotated[int, typer.Option(help="Inferences to measure of each model, or more; at least 1.")] = 200,
    min_seconds: Annotated[float, typer.Option(help="Time to measure each model, or longer; 0 or more.")] = 2.0,
    runs: Annotated[
        int, typer.Option(help=f"Fresh processes, at least {MIN_RUNS}; more make the interval narrower.")
    ] = 10,
    batch: options.Batch = None,
    shape: options.Shape = None,
    seed: options.Seed = 0,
    timeout: options.Timeout = 600.0,
    json: options.Json = None,
) -> None:
    """Measure inference time, interleaved with a baseline's, with the 95 % interval of their ratio."""
    if json is not None:
        require_writable(json)
        options.refuse_same(json, model, baseline)
    with console.progress_bar("measuring latency") as progress:
        report = latency(
            model,
            baseline,
            device=device,
            threads=threads,
            runs=runs,
            min_seconds=min_seconds,
            samples=samples,
            batch=batch,
            shapes=options.parse_shapes(shape),
            seed=seed,
            timeout_s=timeout,
            progress=progress,
        )
    if json is not None:
        report.save(json)
    out = console.stdout()
    out.print(latency_table(report))
    if report.ratio is not None:
        out.print(verdict_line(report), markup=False, highlight=False)
    out.print(outlier_line(report), markup=False, highlight=False)
    console.print_notes(report, report.model.inputs)


def latency_table(report: LatencyReport) -> Table:
    """A row for the model, one for its baseline."""
    count = report.settings.threads
    threads = f"{count} thread{'s' if count > 1 else ''}"
    heading = f"latency in ms, {threads}, one inference a sample, {report.settings.runs} processes"
    result = console.table(heading, "", "file", "p50", "95 % interval", "p90", "p99", "samples", "ratio [95 %]")
    ratio = report.ratio
    shown = "" if ratio is None else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    result.add_row("model", *_cells(report.model), shown)
    if report.baseline is not None:
        result.add_row("baseline", *_cells(report.baseline), "1")
    return result


def _cells(result: LatencyResult) -> tuple[str, ...]:
    figures = result.latency
    return (
        escape(result.file.file_name),
        f"{figures.p50_ms:.4g}",
        f"{figures.p50_low_ms:.4g} - {figures.p50_high_ms:.4g}",
        f"{figures.p90_ms:.4g}",
        f"{figures.p99_ms:.4g}",
        f"{figures.samples:,}",
    )


def outlier_line(report: LatencyReport) -> str:
    """How many samples lie far out; they are in every figure of the table."""
    counts = [f"model {report.model.latency.outliers:,}"]
    if report.baseline is not None:
        counts.append(f"baseline {report.baseline.latency.outliers:,}")
    return (
        f"outliers, kept: {', '.join(counts)} (more than {FAR_OUT:.0f} interquartile ranges above the upper quartile)"
    )


def verdict_line(report: LatencyReport) -> str:
    """The interval in words."""
    ratio = report.ratio
    if ratio is None:
        return ""
    if ratio.verdict == "faster":
        return f"the model is faster than its baseline: {1 / ratio.high:.4g} to {1 / ratio.low:.4g} times"
    if ratio.verdict == "slower":
        return f"the model is slower than its baseline: it takes {ratio.low:.4g} to {ratio.high:.4g} times as long"
    return (
        f"the model is not distinguishable from its baseline: the interval {ratio.low:.3f} to {ratio.high:.3f} holds 1"
    )
