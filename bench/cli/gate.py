"""``bench gate``: a model held against a budget; the exit code is the answer."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.cli import console, options
from bench.files import write_whole
from bench.gate import GateReport, gate, load_budget
from bench.gate.junit import junit_xml
from bench.gate.limits import UNITS
from bench.gate.markdown import markdown
from bench.gate.report import NOT_MEASURED, OVER, UNCERTAIN, WITHIN

STYLES = {WITHIN: "green", UNCERTAIN: "yellow", OVER: "bold red", NOT_MEASURED: "magenta"}
WORDS = {
    WITHIN: "within budget",
    UNCERTAIN: "uncertain: not over budget, but a figure cannot be told from its limit",
    OVER: "over budget",
    NOT_MEASURED: "could not be measured",
}


def gate_command(
    model: options.Model,
    budget: Annotated[Path, typer.Option(metavar="budget.toml", help="Limits, and how to measure.")],
    baseline: options.Baseline = None,
    device: options.AnyDevice = "cpu",
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML, a test case a limit.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write a summary for a pull request.")
    ] = None,
    json: options.Json = None,
) -> None:
    """Hold a model against a budget: exit code 0 within, 1 over, 2 could not be measured.

    A limit is broken when the whole interval of the figure is beyond it; an interval that holds the limit is a warning.
    The budget says how to measure, too, so that everybody measures alike.
    """
    outputs = {"--junit": junit, "--markdown": markdown_file, "--json": json}
    given = {option: path for option, path in outputs.items() if path is not None}
    for option, path in given.items():
        options.require_output(path, model, baseline, budget, option=option)
    options.refuse_twice(given)
    limits = load_budget(budget)
    with console.progress_bar("measuring") as progress:
        report = gate(model, limits, baseline, device=device, progress=progress)
    if json is not None:
        report.save(json)
    if junit is not None:
        write_whole(junit, junit_xml(report))
    if markdown_file is not None:
        write_whole(markdown_file, markdown(report))
    with console.reader_may_leave():
        _print(report)
    raise typer.Exit(report.exit_code)


def _print(report: GateReport) -> None:
    out, errors = console.stdout(), Console(stderr=True, soft_wrap=True)
    out.print(gate_table(report))
    out.print(f"{report.model.file_name}: {WORDS[report.outcome]}", markup=False, highlight=False)
    for measured in report.measurements()[:1]:
        out.print(console.host_line(measured), markup=False, highlight=False)
    for check in report.checks:
        if check.verdict in (OVER, NOT_MEASURED):
            errors.print(f"{check.name}: {check.reason}", markup=False, highlight=False, style=STYLES[check.verdict])
    for warning in report.warnings:
        errors.print(f"warning: {warning}", markup=False, highlight=False, style="yellow")


def gate_table(report: GateReport) -> Table:
    """A row for each limit."""
    result = console.table(f"budget {report.budget}", "limit", "measured", "range", "at most", "at least", "")
    for check in report.checks:
        unit = UNITS[check.unit]
        exact = check.low is None or check.high is None or check.low == check.high
        result.add_row(
            check.name,
            "" if check.value is None else unit.shown(check.value),
            "" if exact else f"{check.low:{unit.spec}} - {check.high:{unit.spec}}",
            "" if check.at_least else unit.shown(check.limit),
            unit.shown(check.limit) if check.at_least else "",
            f"[{STYLES[check.verdict]}]{check.verdict}[/]",
        )
    return result
