"""What the subcommands print: tables on stdout, progress and warnings on stderr."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.measure.runs import Progress as OnRun
from bench.protocol import Input
from bench.report import Report

WIDTH_WITHOUT_TERMINAL = 140  # files and pipes have no width; rich would wrap at 80


def stdout() -> Console:
    """Where results go."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_WITHOUT_TERMINAL)


@contextmanager
def progress_bar(what: str) -> Iterator[OnRun]:
    """A bar over the worker processes, on stderr, gone when they are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Around printing that may go to a pipe whose reader ends early, as `head` does: the rest is dropped.

    rich ends the program with code 1 then, which is another verdict.
    """
    try:
        yield
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != 1:
            raise  # a signal's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def table(title: str, *headings: str) -> Table:
    """The first column is words, the others are figures."""
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for position, heading in enumerate(headings):
        result.add_column(heading, justify="right" if position else "left", overflow="fold", no_wrap="[" in heading)
    return result


def host_line(report: Report) -> str:
    """The machine in one line."""
    host = report.host
    parts = [
        f"{host.cpu_model} ({host.architecture}{', ' if host.isa else ''}{' '.join(host.isa)})",
        f"{host.usable_cores} cores, {report.settings.threads} used",
        f"governor {host.governor or 'unknown'}",
        f"onnxruntime {host.onnxruntime}",
        f"Python {host.python}",
        "emulated" if host.emulated else "native",
    ]
    return "host: " + "; ".join(parts)


def input_line(inputs: Sequence[Input]) -> str:
    """The inputs as they were run."""
    return "inputs: " + ", ".join(f"{value.name} {list(value.shape)} {value.dtype}" for value in inputs)


def print_notes(report: Report, inputs: Sequence[Input]) -> None:
    """Inputs and host under the table; warnings to stderr."""
    out = stdout()
    out.print(input_line(inputs), markup=False, highlight=False)
    out.print(host_line(report), markup=False, highlight=False)
    errors = Console(stderr=True, soft_wrap=True)  # a wrapped command could not be pasted
    for warning in report.warnings:
        errors.print(f"warning: {warning}", markup=False, highlight=False, style="yellow")
