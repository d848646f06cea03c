"""Tables that the commands print."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH_WITHOUT_TERMINAL = 1000
"""In characters. Files and pipes have no width; by rich's own, 80, tables would be cut and lines broken."""


def console(*, quiet: bool = False) -> Console:
    """Where a command prints its tables."""
    out = Console(quiet=quiet)
    return out if out.is_terminal else Console(quiet=quiet, width=WIDTH_WITHOUT_TERMINAL)


def summary_table(summary: dict[str, Any]) -> Table:
    """Dense, masked and compact network side by side, from ``summary.json``."""
    table = Table(title=f"{summary['model']} on {summary['dataset']}", box=box.SIMPLE_HEAD)
    for heading in ("accuracy:", "test", "validation", "parameters", "MACs", "bytes"):
        table.add_column(heading, justify="left" if heading.endswith(":") else "right", overflow="fold")
    # Masking changes neither shapes nor the work of a dense network.
    shape_of = {"dense": "dense", "masked": "dense", "compact": "compact"}
    for name, shape in shape_of.items():
        table.add_row(
            name,
            percent(summary["accuracy"]["test"][name]),
            percent(summary["accuracy"]["validation"][name]),
            f"{summary['parameters'][shape]:,}",
            f"{summary['macs'][shape]:,}",
            f"{summary['bytes'][name]:,}",
        )
    share = [percent(summary[key]["compact"] / summary[key]["dense"]) for key in ("parameters", "macs", "bytes")]
    table.add_row("compact/dense", "", "", *share)
    table.caption = f"largest difference of masked and compact outputs: {summary['max_abs_error']:.2g}"
    return table


def rounds_table(summaries: list[dict[str, Any]]) -> Table:
    """The compact networks of a run and of the rounds after it, one row each, from their ``summary.json``."""
    table = Table(title="rounds", box=box.SIMPLE_HEAD)
    for heading in ("", "test", "validation", "parameters", "MACs"):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for number, summary in enumerate(summaries):
        accuracy = (percent(summary["accuracy"][split]["compact"]) for split in ("test", "validation"))
        sizes = (f"{summary[key]['compact']:,}" for key in ("parameters", "macs"))
        table.add_row(f"round {number}" if number else "before", *accuracy, *sizes)
    return table


def pairs_table(rows: dict[str, str], title: str | None = None) -> Table:
    """Names and what is told of each, a line each."""
    table = Table(title=title, box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def percent(share: float | None) -> str:
    """A share to read; a dash where there is none."""
    return "-" if share is None else f"{share:.2%}"


def layer_table(title: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """A table of layers: the first and last column are words, the others numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for position, heading in enumerate(headings):
        words = position in (0, len(headings) - 1)
        table.add_column(heading, justify="left" if words else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def told_of(report: dict[str, Any]) -> list[str]:
    """What surgery notes besides widths, a line each; from its report."""
    return [f"note: {note}" for note in report["notes"]]


def stays_note(run: str, report: dict[str, Any]) -> str | None:
    """What to do about channels that are zero and stay for the sake of ``forward``; from the report of surgery."""
    from compress.surgery.suspects import HELD_BY_FORWARD

    held = sum(width["kept"].get(HELD_BY_FORWARD, 0) for width in report["layers"].values())
    if not held:
        return None
    return (
        f"note: {held:,} {'channel is' if held == 1 else 'channels are'} zero and stay in the network, since its "
        "forward splits channels\nor holds their number as a literal; compress inspect says in which layers. "
        "An ONNX file can lose them:\n"
        f"  compress export {run} --onnx model.onnx\n  compress compact model.onnx --out smaller.onnx"
    )
