"""``bench profile``: where a model's time goes, and its baseline's beside it."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bench.cli import console, options
from bench.measure.profile import profile
from bench.report import NodeProfile, OperatorProfile, ProfileReport, ProfileResult, results_of


def profile_command(
    model: options.Model,
    baseline: options.Baseline = None,
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    pin: options.Pin = None,
    provider: options.Provider = "cpu",
    samples: Annotated[int, typer.Option(help="Inferences to measure of each model, at least 1.")] = 300,
    runs: Annotated[int, typer.Option(help="Fresh processes for each model, at least 1.")] = 3,
    top: Annotated[int, typer.Option(min=1, help="Nodes to print, those that take longest; --json has all.")] = 20,
    batch: options.Batch = None,
    shape: options.Shape = None,
    tolerance: options.Tolerance = None,
    seed: options.Seed = 0,
    timeout: options.Timeout = 600.0,
    json: options.Json = None,
) -> None:
    """Tell the time of each node and operator, as ONNX Runtime runs them, with what they compute for it."""
    options.require_output(json, model, baseline)
    with console.progress_bar("profiling") as progress:
        report = profile(
            model,
            baseline,
            device=device,
            threads=threads,
            pin=options.parse_numbers("--pin", pin),
            provider=provider,
            runs=runs,
            samples=samples,
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
    out.print(operator_table(report))
    out.print(node_table(report, top))
    for name, result in results_of(report):
        out.print(total_line(name, result), markup=False, highlight=False)
    console.print_notes(report, report.model.inputs)


def operator_table(report: ProfileReport) -> Table:
    """A row for each operator, the longest first."""
    other = report.baseline
    baseline = {} if other is None else {each.operator: each for each in other.profile.operators}
    counts = ("nodes",) if other is None else ("nodes", "baseline nodes")
    result = _table("by operator", counts, other is not None)
    for each in report.model.profile.operators:
        theirs = baseline.pop(each.operator, None)
        numbers = (each.nodes, 0 if theirs is None else theirs.nodes)[: len(counts)]
        beside = _beside(each, theirs, other is not None)
        result.add_row(escape(each.operator), *map(str, numbers), *_cells(each), *beside)
    for theirs in baseline.values():
        beside = _beside(None, theirs, with_baseline=True)
        result.add_row(escape(theirs.operator), "0", f"{theirs.nodes}", *[""] * 4, *beside)
    return result


def node_table(report: ProfileReport, top: int) -> Table:
    """The `top` nodes that take longest, of the model; a baseline's node of the same name beside each."""
    other = report.baseline
    baseline = {} if other is None else {each.name: each for each in other.profile.nodes}
    nodes = sorted(enumerate(report.model.profile.nodes, 1), key=lambda item: -item[1].time_us)
    shown = f"the {top} longest of {len(nodes)} nodes" if top < len(nodes) else "by node"
    result = _table(shown, ("place", "operator", "output"), other is not None)
    for place, each in nodes[:top]:
        theirs = baseline.get(each.name)
        fused_otherwise = theirs is not None and theirs.operator != each.operator
        operator = f"{each.operator} beside {theirs.operator}" if theirs and fused_otherwise else each.operator
        words = (f"{place}", escape(operator), "x".join(map(str, each.output_shape)))
        result.add_row(escape(each.name), *words, *_cells(each), *_beside(each, theirs, other is not None))
    return result


def _table(title: str, headings: Sequence[str], with_baseline: bool) -> Table:
    beside = ("baseline us", "baseline GFLOP/s", "ratio") if with_baseline else ()
    return console.table(title, "", *headings, "us", "share", "MACs", "GFLOP/s", *beside)


def _cells(each: NodeProfile | OperatorProfile) -> tuple[str, ...]:
    count = "unknown" if each.macs is None else f"{each.macs:,}" if each.macs else ""
    return f"{each.time_us:,.1f}", f"{each.share:.1%}", count, _rate(each)


def _rate(each: NodeProfile | OperatorProfile | None) -> str:
    return "" if each is None or each.gflops is None else f"{each.gflops:.3g}"


def _beside(
    ours: NodeProfile | OperatorProfile | None, theirs: NodeProfile | OperatorProfile | None, with_baseline: bool
) -> tuple[str, ...]:
    if not with_baseline:
        return ()
    if theirs is None:
        return "none", "", ""
    ratio = "" if ours is None or not theirs.time_us else f"{ours.time_us / theirs.time_us:.3f}"
    return f"{theirs.time_us:,.1f}", _rate(theirs), ratio


def total_line(name: str, result: ProfileResult) -> str:
    """The whole inference, and what the profiler does to it."""
    figures = result.profile
    count = "unknown" if figures.macs is None else f"{figures.macs:,}"
    line = (
        f"{name}: {result.file.file_name}, {count} MACs; p50 {figures.p50_ms:.4g} ms, with the profiler "
        f"{figures.profiled_p50_ms:.4g} ms, of which nodes {figures.nodes_ms:.4g} ms"
    )
    return f"{line}; no rule for {', '.join(figures.uncounted)}" if figures.uncounted else line
