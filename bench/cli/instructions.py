"""``bench instructions``: instructions per inference of a model, and of its baseline beside it."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bench.cli import console, options
from bench.measure.instructions import instructions
from bench.report import InstructionsReport, InstructionsResult
from bench.targets.qemu.cpus import CPUS


def instructions_command(
    context: typer.Context,
    model: options.Model,
    baseline: options.Baseline = None,
    device: Annotated[str, typer.Option(help=f"arm64:CPU; the CPUs are {', '.join(CPUS)}.")] = "arm64",
    runs: Annotated[int, typer.Option(help="Fresh processes for each model, at least 1.")] = 2,
    samples: Annotated[int, typer.Option(help="Inferences of each model, or more; at least 1.")] = 6,
    batch: options.Batch = None,
    shape: options.Shape = None,
    tolerance: options.Tolerance = None,
    seed: options.Seed = 0,
    timeout: options.Timeout = 600.0,
    json: options.Json = None,
) -> None:
    """Count the instructions of an inference on an emulated ARM CPU, one thread, and compare its outputs."""
    options.require_output(json, model, baseline)
    with console.progress_bar("counting instructions") as progress:
        report = instructions(
            model,
            baseline,
            device=device,
            runs=runs,
            samples=samples,
            batch=batch,
            shapes=options.parse_shapes(shape),
            tolerance=tolerance,
            seed=seed,
            timeout_s=timeout,
            progress=progress,
            advise=options.again(context),
        )
    if json is not None:
        report.save(json)
    console.stdout().print(instructions_table(report))
    console.print_notes(report, report.model.inputs)


def instructions_table(report: InstructionsReport) -> Table:
    """A row for the model, one for its baseline."""
    count = report.settings.runs
    title = f"instructions per inference, 1 thread, median of {count} process{'es' if count > 1 else ''}"
    result = console.table(title, "", "file", "instructions", "spread", "largest difference of outputs", "ratio")
    result.add_row("model", *_cells(report.model), "" if report.ratio is None else f"{report.ratio:.3f}")
    if report.baseline is not None:
        result.add_row("baseline", *_cells(report.baseline), "1")
    return result


def _cells(result: InstructionsResult) -> tuple[str, ...]:
    figures, parity = result.instructions, result.parity
    return (
        escape(result.file.file_name),
        f"{figures.per_inference:,}",
        f"{figures.spread:.2%}",
        f"{parity.max_abs_error:.2g} of {parity.largest_value:.4g}",
    )
