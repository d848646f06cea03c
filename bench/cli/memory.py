"""``bench memory``: what a model takes of the memory, and its baseline beside it."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bench.cli import console, options
from bench.measure.memory import memory
from bench.report import MemoryReport, MemoryResult, StaticMemory

MIB = 1 << 20


def memory_command(
    model: options.Model,
    baseline: options.Baseline = None,
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    pin: options.Pin = None,
    provider: options.Provider = "cpu",
    repeats: Annotated[int, typer.Option(help="Fresh processes for each model, at least 1.")] = 3,
    batch: options.Batch = None,
    shape: options.Shape = None,
    tolerance: options.Tolerance = None,
    seed: options.Seed = 0,
    timeout: options.Timeout = 600.0,
    json: options.Json = None,
) -> None:
    """Measure file size and resident memory, each model alone in fresh processes; and what its graph needs at least."""
    options.require_output(json, model, baseline)
    with console.progress_bar("measuring memory") as progress:
        report = memory(
            model,
            baseline,
            device=device,
            threads=threads,
            pin=options.parse_numbers("--pin", pin),
            provider=provider,
            repeats=repeats,
            batch=batch,
            shapes=options.parse_shapes(shape),
            tolerance=tolerance,
            seed=seed,
            timeout_s=timeout,
            progress=progress,
        )
    if json is not None:
        report.save(json)
    out = console.stdout()
    out.print(memory_table(report))
    out.print(static_table(report))
    console.print_notes(report, report.model.inputs)


def memory_table(report: MemoryReport) -> Table:
    """A row for the model, one for its baseline, one for their ratios."""
    count = report.settings.runs
    title = f"memory in MiB, median of {count} process{'es' if count > 1 else ''}"
    headings = ("file bytes", "bare runtime", "model", "peak of loading", "peak", "peak - bare", "spread of peak")
    result = console.table(title, "", "file", *headings)
    result.add_row("model", *_cells(report.model))
    if report.baseline is not None:
        result.add_row("baseline", *_cells(report.baseline))
    ratios = report.ratios
    if ratios is not None:
        shown = [
            "" if value is None else f"{value:.3f}"
            for value in (ratios.model_rss_bytes, None, ratios.peak_rss_bytes, ratios.peak_over_bare_bytes)
        ]
        result.add_row("model/baseline", "", f"{ratios.file_bytes:.3f}", "", *shown, "")
    return result


def static_table(report: MemoryReport) -> Table:
    """What the graphs need whatever the runtime: a row for the model, one for its baseline, one for their ratios."""
    headings = ("weight bytes", "peak activation bytes", "", "in the file's order")
    result = console.table("by the graph alone, best order of execution", "", *headings)
    result.add_row("model", *_static_cells(report.model.static))
    if report.baseline is not None:
        result.add_row("baseline", *_static_cells(report.baseline.static))
    if report.ratios is not None:
        ratios = (report.ratios.weight_bytes, report.ratios.peak_activation_bytes)
        weights, peak = ("" if ratio is None else f"{ratio:.3f}" for ratio in ratios)
        result.add_row("model/baseline", weights, peak, "", "")
    return result


def _static_cells(static: StaticMemory) -> tuple[str, ...]:
    if static.peak_activation_bytes is None:
        return f"{static.weight_bytes:,}", "unknown", escape(f"{static.unknown_because}"), ""
    proof = "exact" if static.peak_is_exact else f"at most; at least {static.lower_bound_bytes:,}"
    return f"{static.weight_bytes:,}", f"{static.peak_activation_bytes:,}", proof, f"{static.file_order_bytes:,}"


def _cells(result: MemoryResult) -> tuple[str, ...]:
    figures = result.memory
    sizes = (
        figures.bare_rss_bytes,
        figures.model_rss_bytes,
        figures.load_peak_rss_bytes,
        figures.peak_rss_bytes,
        figures.peak_over_bare_bytes,
        figures.spread_bytes,
    )
    return (escape(result.file.file_name), f"{result.file.file_bytes:,}", *(f"{size / MIB:.2f}" for size in sizes))
