"""The ``bench`` command: one file a subcommand, one line each in ``COMMANDS``."""

import io
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from bench.cli.compare import compare_command
from bench.cli.devices import devices_command
from bench.cli.gate import gate_command
from bench.cli.instructions import instructions_command
from bench.cli.latency import latency_command
from bench.cli.memory import memory_command
from bench.cli.profile import profile_command
from bench.cli.report import report_command
from bench.cli.stopping import stopped_by_signals
from bench.errors import BenchError

EXIT_NOT_MEASURED = 2


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        run: Its signature gives arguments and options, its docstring the help.
        summary: Its line in ``bench --help``.
        examples: Commands to paste; its help ends with them.
        alone: It does something without an argument; else that shows the help.
    """

    run: Callable[..., Any]
    summary: str
    examples: tuple[str, ...]
    alone: bool = False


COMMANDS: dict[str, Command] = {
    "latency": Command(
        latency_command,
        "Inference time, beside a baseline's.",
        (
            "bench latency small.onnx",
            "bench latency small.onnx --baseline dense.onnx --device cpu --json latency.json",
            "bench latency small.onnx --baseline dense.onnx --threads 4 --min-seconds 10 --runs 20",
            "bench latency small.onnx --baseline dense.onnx --device ssh://pi@raspberrypi.local",
            "bench latency small.onnx --batches 1,4,8",
            "bench latency small.onnx --deadline-ms 33 --period-ms 33 --frames 1000",
            "bench latency small.onnx --pin 2,3 --threads 2 --provider xnnpack",
            "bench latency detector.onnx --shape image=1,3,640,640",
        ),
    ),
    "memory": Command(
        memory_command,
        "File size and resident memory.",
        (
            "bench memory small.onnx",
            "bench memory small.onnx --baseline dense.onnx --repeats 5 --json memory.json",
        ),
    ),
    "profile": Command(
        profile_command,
        "Time and GFLOP/s of each node and operator.",
        (
            "bench profile small.onnx",
            "bench profile small.onnx --baseline dense.onnx --top 50 --json profile.json",
        ),
    ),
    "instructions": Command(
        instructions_command,
        "Instructions per inference on an emulated ARM CPU.",
        (
            "bench devices setup arm64",
            "bench instructions small.onnx --baseline dense.onnx --device arm64:cortex-a53",
            "bench instructions small-int8.onnx --device arm64:cortex-a76 --json instructions.json",
        ),
    ),
    "devices": Command(
        devices_command,
        "Where can be measured from here, and what is missing.",
        ("bench devices", "bench devices setup arm64"),
        alone=True,
    ),
    "compare": Command(
        compare_command,
        "Reports of several sessions side by side.",
        ("bench compare monday.json tuesday.json",),
    ),
    "gate": Command(
        gate_command,
        "Fail where a model is over its budget.",
        (
            "bench gate small.onnx --budget budget.toml",
            "bench gate small.onnx --budget budget.toml --baseline dense.onnx --junit gate.xml --markdown gate.md",
        ),
    ),
    "report": Command(
        report_command,
        "Reports as one HTML page.",
        ("bench report latency.json memory.json --html report.html",),
    ),
}

EXAMPLES = (
    "bench latency small.onnx --baseline dense.onnx --device cpu",
    "bench memory small.onnx --baseline dense.onnx",
)


def _epilog(examples: Sequence[str]) -> str:
    # \b keeps the lines of a paragraph as they are.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)


def build_app() -> typer.Typer:
    """The command with all subcommands of the table."""
    app = typer.Typer(
        help="Measure ONNX models where they will run, in figures that can be trusted.",
        epilog=_epilog(EXAMPLES),
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    # Without a callback typer would drop the subcommand's name if the table had one line.
    app.callback()(_no_options)
    for name, command in COMMANDS.items():
        app.command(
            name, short_help=command.summary, epilog=_epilog(command.examples), no_args_is_help=not command.alone
        )(command.run)
    return app


def _no_options() -> None:
    """Measure ONNX models where they will run, in figures that can be trusted."""


def main() -> None:
    """Run the command line; what the user can mend is one message on stderr and exit code 2.

    A defect of ours keeps its traceback and has the same code: Python's own, 1, would say that a model is over budget.
    Stopped by a signal it ends with 128 and the signal's number.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        with stopped_by_signals():
            build_app()()
    except BenchError as error:
        typer.echo(f"bench: {error}", err=True)
        sys.exit(EXIT_NOT_MEASURED)
    except Exception:
        traceback.print_exc()
        sys.exit(EXIT_NOT_MEASURED)
