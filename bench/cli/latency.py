"""``bench latency``: inference time of a model, and of its baseline beside it."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bench.cli import console, options
from bench.errors import BenchError
from bench.measure.latency import latency
from bench.measure.realtime import Deadline, missed_frames
from bench.report import BatchTimes, LatencyReport, LatencyResult, Realtime, results_of
from bench.shares import share_interval
from bench.stats import FAR_OUT, MIN_RUNS, Ratio


def latency_command(
    context: typer.Context,
    model: options.Model,
    baseline: options.Baseline = None,
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    pin: options.Pin = None,
    provider: options.Provider = "cpu",
    samples: Annotated[int, typer.Option(help="Inferences to measure of each model, or more; at least 1.")] = 200,
    min_seconds: Annotated[float, typer.Option(help="Time to measure each model, or longer; 0 or more.")] = 2.0,
    runs: Annotated[
        int, typer.Option(help=f"Fresh processes, at least {MIN_RUNS}; more make the interval narrower.")
    ] = 10,
    batch: options.Batch = None,
    batches: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Throughput at these sizes of open first dimensions: 1,4,8.")
    ] = None,
    shape: options.Shape = None,
    deadline_ms: Annotated[
        float | None, typer.Option(help="Feed frames at a fixed period too, and count results later than this.")
    ] = None,
    period_ms: Annotated[
        float | None, typer.Option(help="Time from a frame to the next; as long as the deadline by default.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of each model with --deadline-ms, at least 1.")] = 300,
    tolerance: options.Tolerance = None,
    seed: options.Seed = 0,
    timeout: options.Timeout = 600.0,
    json: options.Json = None,
) -> None:
    """Measure inference time, interleaved with a baseline's, with the 95 % interval of their ratio."""
    options.require_output(json, model, baseline)
    with console.progress_bar("measuring latency") as progress:
        report = latency(
            model,
            baseline,
            device=device,
            threads=threads,
            pin=options.parse_numbers("--pin", pin),
            provider=provider,
            runs=runs,
            min_seconds=min_seconds,
            samples=samples,
            batch=batch,
            batches=options.parse_numbers("--batches", batches),
            shapes=options.parse_shapes(shape),
            deadline=_deadline(deadline_ms, period_ms, frames),
            tolerance=tolerance,
            seed=seed,
            timeout_s=timeout,
            progress=progress,
            advise=options.again(context),
        )
    if json is not None:
        report.save(json)
    out = console.stdout()
    out.print(latency_table(report))
    if report.ratio is not None:
        out.print(verdict_line(report), markup=False, highlight=False)
    out.print(outlier_line(report), markup=False, highlight=False)
    out.print(cold_line(report), markup=False, highlight=False)
    if report.throughput:
        out.print(throughput_table(report))
    if report.realtime is not None:
        out.print(realtime_table(report.realtime))
        out.print(REALTIME_NOTE, markup=False, highlight=False)
    console.print_notes(report, report.model.inputs)


def _deadline(deadline_ms: float | None, period_ms: float | None, frames: int) -> Deadline | None:
    if deadline_ms is not None:
        return Deadline(deadline_ms=deadline_ms, period_ms=period_ms, frames=frames)
    if period_ms is not None:
        raise BenchError("--period-ms needs --deadline-ms: without a deadline nothing can be missed")
    return None


def latency_table(report: LatencyReport) -> Table:
    """A row for the model, one for its baseline."""
    count = report.settings.threads
    threads = f"{count} thread{'s' if count > 1 else ''}"
    heading = f"latency in ms, {threads}, one inference a sample, {report.settings.runs} processes"
    result = console.table(heading, "", "file", "p50", "95 % interval", "p90", "p95", "p99", "samples", "ratio [95 %]")
    ratio = report.ratio
    result.add_row("model", *_cells(report.model), "" if ratio is None else _shown(ratio))
    if report.baseline is not None:
        result.add_row("baseline", *_cells(report.baseline), "1")
    return result


def _shown(ratio: Ratio) -> str:
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _cells(result: LatencyResult) -> tuple[str, ...]:
    figures = result.latency
    return (
        escape(result.file.file_name),
        f"{figures.p50_ms:.4g}",
        f"{figures.p50_low_ms:.4g} - {figures.p50_high_ms:.4g}",
        f"{figures.p90_ms:.4g}",
        f"{figures.p95_ms:.4g}",
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


def cold_line(report: LatencyReport) -> str:
    """The cold start, apart from the steady state."""
    found = [(name, result.latency) for name, result in results_of(report)]
    parts = [
        f"{name} {times.load_ms:.4g} ms to load and {times.first_inference_ms:.4g} ms for the first inference, "
        f"median of {times.cold_starts} processes"
        for name, times in found
    ]
    return f"cold start, the file in the page cache: {'; '.join(parts)}"


def throughput_table(report: LatencyReport) -> Table:
    """A row for each batch size and model."""
    headings = ("batch", "images/s", "95 % interval", "p50 ms", "p99 ms", "time ratio [95 %]")
    result = console.table("throughput, inferences one after the other", "", *headings)
    for row in report.throughput:
        result.add_row("model", *_batch_cells(row.batch, row.model), "" if row.ratio is None else _shown(row.ratio))
        if row.baseline is not None:
            result.add_row("baseline", *_batch_cells(row.batch, row.baseline), "1")
    return result


def _batch_cells(batch: int, times: BatchTimes) -> tuple[str, ...]:
    rates = (times.images_per_second, times.images_per_second_low, times.images_per_second_high)
    value, low, high = (f"{rate:,.4g}" if rate < 1e4 else f"{rate:,.0f}" for rate in rates)
    return f"{batch}", value, f"{low} - {high}", f"{times.p50_ms:.4g}", f"{times.p99_ms:.4g}"


REALTIME_NOTE = (
    "a frame waits for the one before it and is dropped when a newer one arrives; response: from its arrival to its "
    "result, dropped frames left out"
)


def realtime_table(realtime: Realtime) -> Table:
    """A row for the model, one for its baseline."""
    title = f"frames every {realtime.period_ms:g} ms, deadline {realtime.deadline_ms:g} ms"
    headings = (
        "frames",
        "missed",
        "of them dropped",
        "share [95 %]",
        "longest run",
        "response p50",
        "p99",
        "inference p50",
    )
    result = console.table(title, "", *headings)
    for name, frames in (("model", realtime.model), ("baseline", realtime.baseline)):
        if frames is not None:
            low, high = share_interval(missed_frames(frames.runs, realtime.deadline_ms))
            share = f"{frames.missed_share:.2%} [{low:.2%}, {high:.2%}]"
            counts = (f"{frames.frames:,}", f"{frames.missed:,}", f"{frames.dropped:,}", share)
            times = (frames.response_p50_ms, frames.response_p99_ms, frames.inference_p50_ms)
            result.add_row(name, *counts, f"{frames.longest_run}", *(f"{time:.4g}" for time in times))
    return result


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
