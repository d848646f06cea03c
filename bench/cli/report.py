"""``bench report``: reports as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from bench import codec
from bench.cli import options
from bench.files import write_whole
from bench.gate import GateReport, load_gate_report
from bench.html import Document, page
from bench.loading import load_report


def report_command(
    reports: Annotated[list[Path], typer.Argument(metavar="A.json ...", help="Written by bench with --json.")],
    html: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")],
) -> None:
    """Write reports as one HTML page that needs nothing else: it opens offline, on a phone, in light and dark."""
    options.require_output(html, *reports, option="--html")
    documents = [_document(path) for path in reports]
    write_whole(html, page(documents))
    typer.echo(f"wrote {html}")


def _document(path: Path) -> Document:
    """A report of any kind, told apart by its format."""
    try:
        is_gate = codec.format_of(path.read_text(encoding="utf-8")) == GateReport.HEADER[0]
    except (OSError, UnicodeDecodeError):
        is_gate = False  # the loader tells what is wrong
    return Document(name=path.name, report=load_gate_report(path) if is_gate else load_report(path))
