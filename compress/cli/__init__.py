"""The ``compress`` command: one file a subcommand, one line each in ``COMMANDS``.

A subcommand's module is imported only when that subcommand runs, so that ``compress --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer

from compress.errors import CompressError

EXIT_BAD_INPUT = 2

IDLE_THREADS = "PASSIVE"
"""How OpenMP's threads wait: asleep. By default they spin, and where another process wants a core as well, each step
waits for a thread that is not scheduled: LeNet-5 on two shared cores was measured to train twenty times slower. Must be
in the environment before torch is loaded."""


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        home: ``module:function``; the signature gives arguments and options, the docstring the help.
        summary: Its line in ``compress --help``.
        examples: Commands to paste; its help ends with them.
    """

    home: str
    summary: str
    examples: tuple[str, ...]

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, function = self.home.partition(":")
        loaded: Callable[..., Any] = getattr(import_module(module), function)
        return loaded


COMMANDS: dict[str, Command] = {
    "train": Command(
        "compress.cli.train:train",
        "Train with a sparsity penalty, remove the dead channels, verify what is left.",
        (
            "compress train --recipe recipes/digits-demo.toml --out runs/demo",
            "compress train --recipe recipes/lenet5-mnist-l0.toml --data-dir data --download",
            "compress train --model my_net.py:make --dataset photos/ --image-size 64 --set optimizer.name=adam",
            "compress train --out runs/demo --resume",
        ),
    ),
    "prune": Command(
        "compress.cli.prune:prune",
        "Zero the least important channels of a run's network, and remove them.",
        (
            "compress prune runs/demo --out runs/half --target-macs 50%",
            "compress prune runs/demo --out runs/half --target-params 0.5 --criterion taylor --recalibrate 20",
            "compress prune runs/demo --out runs/even --keep-ratio 0.6 --per-layer --min-channels 8",
            "compress finetune runs/half",
        ),
    ),
    "finetune": Command(
        "compress.cli.finetune:finetune",
        "Train the compact network of a run on.",
        (
            "compress finetune runs/half --epochs 5 --learning-rate 0.001",
            "compress finetune runs/dense --penalty l0 --strength 0.1 --rounds 3 --out runs/small",
            "compress finetune runs/half --out runs/half-tuned --set schedule.lr_schedule=cosine",
            "compress finetune runs/half --set distill.teacher=dense --set average.decay=0.999",
            "compress finetune runs/half --out runs/half-tuned --resume",
            "compress export runs/half-tuned --onnx half.onnx",
        ),
    ),
    "inspect": Command(
        "compress.cli.inspect:inspect",
        "Show which channels are dead, which stay, and why.",
        (
            "compress inspect runs/demo",
            "compress inspect runs/demo --json",
            "compress inspect resnet20 --image-size 32",
            "compress inspect torchvision:mobilenet_v2 --image-size 224 --classes 1000",
        ),
    ),
    "compact": Command(
        "compress.cli.compact:compact_command",
        "Remove dead channels from an ONNX file of any framework.",
        (
            "compress compact model.onnx --out small.onnx",
            "compress compact model.onnx --out small.onnx --input-size images=1x3x640x640",
            "compress compact model.onnx --out small.onnx --json",
            "bench latency small.onnx --baseline model.onnx --device cpu",
        ),
    ),
    "export": Command(
        "compress.cli.export.command:export_command",
        "Write a network as a verified ONNX file, in 8 bits if wanted.",
        (
            "compress export runs/demo --onnx demo.onnx",
            "compress export runs/demo --onnx demo-int8.onnx --int8 --max-drop 0.005",
            "compress export runs/demo --onnx demo.onnx --with-preprocess --layout nhwc --ort",
            "compress export my_net.py:make --onnx net.onnx --image-size 64 --classes 5 --fp16",
            "compress export model.onnx --onnx model-fp16.onnx --fp16",
            "compress export runs/demo --onnx demo-dense.onnx --dense",
            "bench latency demo.onnx --baseline demo-dense.onnx --device cpu",
        ),
    ),
}

EXAMPLES = (
    "compress train --recipe recipes/digits-demo.toml --out runs/demo",
    "compress inspect runs/demo",
    "compress export runs/demo --onnx demo.onnx",
    "bench latency demo.onnx --device cpu",
)


def _epilog(examples: Sequence[str]) -> str:
    # \b keeps the lines of a paragraph as they are.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The command with all subcommands of the table; only those named in ``arguments`` are imported."""
    app = typer.Typer(
        help="Train vision networks until channels are exactly zero, remove them, export what is left.",
        epilog=_epilog(EXAMPLES),
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    for name, command in COMMANDS.items():
        run = command.load() if name in arguments else _not_called
        app.command(name, short_help=command.summary, epilog=_epilog(command.examples), no_args_is_help=True)(run)
    return app


def _not_called() -> None:
    """Stand for a subcommand that the command line does not name."""


def main() -> None:
    """Run the command line; what the user can mend is one message on stderr and exit code 2."""
    os.environ.setdefault("OMP_WAIT_POLICY", IDLE_THREADS)
    try:
        build_app(sys.argv[1:])()
    except CompressError as error:
        typer.echo(f"compress: {error}", err=True)
        sys.exit(EXIT_BAD_INPUT)
