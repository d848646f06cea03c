"""Latency on the page: distributions, processes, cold start, throughput, frames."""

from collections.abc import Sequence

import numpy as np

from bench.html import plots
from bench.html.parts import Bar, Panel, Part, Tile, figure, percent, percents
from bench.measure.realtime import missed_frames
from bench.report import Frames, LatencyReport, LatencyResult, Realtime, Throughput, results_of
from bench.shares import share_interval
from bench.stats import FAR_OUT
from bench.units import NS_PER_MS

FRAMES_IN_STRIP = 600  # a line each
DEADLINES_SHOWN = 4.0  # height of the frames' plot: beyond, late is late


def latency_content(report: LatencyReport) -> tuple[list[Tile], list[Panel]]:
    """Distributions, processes, cold start, throughput, frames."""
    times = report.model.latency
    tiles = [
        Tile(
            label="p50",
            value=f"{figure(times.p50_ms)} ms",
            note=f"95 % interval {figure(times.p50_low_ms)} – {figure(times.p50_high_ms)}",
        ),
        Tile(label="p95", value=f"{figure(times.p95_ms)} ms"),
        Tile(label="p99", value=f"{figure(times.p99_ms)} ms", note=f"of {times.samples:,} samples"),
    ]
    results = results_of(report)
    panels = [_ridges(results), _processes(report)]
    if report.ratio is not None:
        ratio = report.ratio
        tiles.insert(
            0,
            Tile(
                label="time over the baseline's",
                value=f"{ratio.value:.3f}",
                note=f"95 % interval {ratio.low:.3f} – {ratio.high:.3f}: {report.verdict}",
                mood={"faster": "good", "slower": "bad"}.get(report.verdict or "", "doubt"),
            ),
        )
    panels.append(_cold_start(results))
    if report.throughput:
        panels.append(_throughput(report.throughput))
    if report.realtime is not None:
        tiles.append(_missed(report.realtime))
        panels.append(_frames(report.realtime))
    return tiles, panels


def _milliseconds(result: LatencyResult) -> list[float]:
    return [sample / NS_PER_MS for run in result.latency.runs for sample in run.samples_ns]


def _ridges(results: Sequence[tuple[str, LatencyResult]]) -> Panel:
    samples = [_milliseconds(result) for _, result in results]
    over = plots.histogram_axis(samples)
    rows = []
    for (kind, result), values in zip(results, samples, strict=True):
        times = result.latency
        ridge = plots.Ridge(
            kind=kind,
            path=plots.histogram_path(values, over),
            median=over.x(times.p50_ms),
            median_low=over.x(times.p50_low_ms),
            median_high=over.x(times.p50_high_ms),
            p99=over.x(times.p99_ms),
            beyond=sum(value > over.high for value in values),
            largest_ms=figure(max(values)),
            outliers=times.outliers,
        )
        rows.append((ridge, result.file.file_name, f"p50 {figure(times.p50_ms)} ms, p99 {figure(times.p99_ms)} ms"))
    scale = "logarithmic axis" if over.log else "linear axis"
    return Panel(
        kind="ridges",
        title="Distribution of inference times",
        caption=f"milliseconds, {scale}. Full line: median; shaded: its 95 % interval; dashed: p99. Outliers: more "
        f"than {FAR_OUT:.0f} interquartile ranges above the upper quartile; they are in every figure.",
        data={"rows": rows, "ticks": over.ticks()},
    )


def _processes(report: LatencyReport) -> Panel:
    medians = [[float(np.median(run.samples_ns)) / NS_PER_MS for run in r.latency.runs] for _, r in results_of(report)]
    if report.ratio is None:
        times = report.model.latency
        interval = (times.p50_low_ms, times.p50_ms, times.p50_high_ms)
        return Panel(
            kind="dots",
            title="Median of each process",
            caption="milliseconds; a dot is a process. Shaded: 95 % interval of the median, over the processes.",
            data=plots.dots(medians[0], interval),
        )
    ratios = [ours / theirs for ours, theirs in zip(*medians, strict=True)]
    ratio = report.ratio
    return Panel(
        kind="dots",
        title="Ratio of each process",
        caption="model over baseline; a dot is a process that ran both in turns. Shaded: 95 % interval of the ratio. "
        "Below 1 the model is faster.",
        data=plots.dots(ratios, (ratio.low, ratio.value, ratio.high), reference=1.0),
    )


def _cold_start(results: Sequence[tuple[str, LatencyResult]]) -> Panel:
    full = max(result.latency.load_ms + result.latency.first_inference_ms for _, result in results)
    bars = []
    for kind, result in results:
        times = result.latency
        load, first = percents([times.load_ms, times.first_inference_ms], full)
        parts = (
            Part(f"{kind} light", load, f"load {figure(times.load_ms)} ms"),
            Part(kind, first, f"first inference {figure(times.first_inference_ms)} ms"),
        )
        note = f"load {figure(times.load_ms)} ms + first inference {figure(times.first_inference_ms)} ms"
        bars.append(
            Bar(label=kind, parts=parts, value=f"{figure(times.load_ms + times.first_inference_ms)} ms", note=note)
        )
    return Panel(
        kind="bars",
        title="Cold start",
        caption="From the file to the first result in a fresh process, ONNX Runtime imported before, the file in the "
        f"page cache; median of {results[0][1].latency.cold_starts} processes. Pale: loading.",
        data=bars,
    )


def _throughput(rows: Sequence[Throughput]) -> Panel:
    times = [
        (row.batch, kind, each) for row in rows for kind, each in (("model", row.model), ("baseline", row.baseline))
    ]
    known = [(batch, kind, each) for batch, kind, each in times if each is not None]
    full = max(each.images_per_second for _, _, each in known)
    bars = [
        Bar(
            label=f"batch {batch}" + ("" if kind == "model" else f", {kind}"),
            parts=(Part(kind, percent(each.images_per_second, full), f"{each.images_per_second:,.4g} images/s"),),
            value=f"{each.images_per_second:,.0f}/s",
            note=f"95 % interval {each.images_per_second_low:,.0f} – {each.images_per_second_high:,.0f}",
        )
        for batch, kind, each in known
    ]
    return Panel(kind="bars", title="Throughput", caption="images a second, inferences one after the other.", data=bars)


def _missed(realtime: Realtime) -> Tile:
    frames = realtime.model
    low, high = share_interval(missed_frames(frames.runs, realtime.deadline_ms))
    return Tile(
        label=f"missed deadlines of {realtime.deadline_ms:g} ms",
        value=f"{frames.missed_share:.2%}",
        note=f"95 % interval {low:.2%} – {high:.2%}; {frames.missed:,} of {frames.frames:,} frames, at most "
        f"{frames.longest_run} in a row",
        mood="bad" if frames.missed else "good",
    )


def _responses(frames: Frames) -> list[list[float | None]]:
    """Milliseconds of each process, thinned out to its share of `FRAMES_IN_STRIP`; missed frames are all there."""
    runs = [[None if time is None else time / NS_PER_MS for time in run.response_ns] for run in frames.runs]
    return [run[: FRAMES_IN_STRIP // len(runs)] for run in runs]


def _frames(realtime: Realtime) -> Panel:
    found = [("model", realtime.model), ("baseline", realtime.baseline)]
    runs = [(kind, _responses(frames), frames) for kind, frames in found if frames is not None]
    times = [time for _, each, _ in runs for run in each for time in run if time is not None]
    top = min(DEADLINES_SHOWN * realtime.deadline_ms, 1.15 * max([realtime.deadline_ms, *times]))
    rows = [
        (
            plots.strip(kind, each, realtime.deadline_ms, top),
            f"{frames.missed:,} of {frames.frames:,} missed, {frames.longest_run} in a row at most",
        )
        for kind, each, frames in runs
    ]
    shown = max(sum(map(len, each)) for _, each, _ in runs)
    measured = max(frames.frames for _, _, frames in runs)
    part = "" if shown == measured else f" The first {shown:,} of {measured:,} frames are shown."
    return Panel(
        kind="strips",
        title=f"Frames every {realtime.period_ms:g} ms",
        caption=f"response from a frame's arrival to its result, 0 to {top:.3g} ms, longer ones cut off. "
        f"Line: the deadline of {realtime.deadline_ms:g} ms; red: missed, at the upper edge: dropped.{part}",
        data=rows,
        wide=True,
    )
