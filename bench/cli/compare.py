"""``bench compare``: reports of several sessions side by side."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.cli import console
from bench.compare import Comparison, Named, Row, compare
from bench.loading import load_report

FORMATS = {"ms": ".4g", "bytes": ",.0f", "instructions": ",.0f"}


def compare_command(
    reports: Annotated[list[Path], typer.Argument(metavar="A.json B.json ...", help="Written by bench with --json.")],
) -> None:
    """Compare reports with the first of them.

    Reports of different machines, threads, batches or measures are refused, as are emulated beside native ones.
    """
    found = compare([Named(name=str(path), report=load_report(path)) for path in reports])
    out, errors = console.stdout(), Console(stderr=True, soft_wrap=True)
    out.print(comparison_table(found))
    for note in found.notes:
        errors.print(f"note: {note}", markup=False, highlight=False)


def comparison_table(found: Comparison) -> Table:
    """A row for each report."""
    headings = (f"{found.figure}, {found.unit}", "ratio to the first", "95 % interval")
    result = console.table("sessions compared", "report", "file", *headings)
    for row in found.rows:
        result.add_row(
            escape(row.name), escape(row.file_name), f"{row.value:{FORMATS[found.unit]}}", _ratio(row), _interval(row)
        )
    return result


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return "1" if row.first else "none"
    return f"{row.ratio:.3f}" + (" (through the baseline)" if row.through_baseline else "")


def _interval(row: Row) -> str:
    if row.low is None or row.high is None:
        return "" if row.first else "too few processes"
    return f"{row.low:.3f} - {row.high:.3f}"
