"""Options that several subcommands share, and what they mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import BenchError
from bench.targets import TARGETS

Model = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model to measure.")]
Baseline = Annotated[Path | None, typer.Option(metavar="DENSE.onnx", help="Compare with this model.")]
Device = Annotated[str, typer.Option(help=f"Where to measure: {', '.join(TARGETS)}.")]
Threads = Annotated[int, typer.Option(help="Intra-op threads of ONNX Runtime, at least 1.")]
Batch = Annotated[int | None, typer.Option(help="Size of open first dimensions, at least 1; 1 by default.")]
Shape = Annotated[
    list[str] | None,
    typer.Option(metavar="INPUT=N,C,H,W", help="Whole shape of an input; may be repeated. Other open sizes are 1."),
]
Seed = Annotated[int, typer.Option(help="Of the random inputs.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Give up after this time.")]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the whole report, raw samples included.")
]


def parse_shapes(words: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """``["x=1,3,32,32"]`` as ``{"x": (1, 3, 32, 32)}``.

    Raises:
        BenchError: A word is written otherwise, or names an input again.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for word in words or ():
        # Input names may hold "=", sizes never do.
        name, _, sizes = word.rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            shape = ()
        if not name or not shape:
            raise BenchError(f"--shape {word!r}: expected INPUT=SIZES, for example --shape image=1,3,224,224")
        if name in shapes:
            raise BenchError(f"--shape names the input {name!r} twice")
        shapes[name] = shape
    return shapes


def refuse_same(json: Path, *models: Path | None) -> None:
    """Refuse a report in place of a model.

    Raises:
        BenchError: ``json`` is one of the files to measure.
    """
    for model in models:
        if model is not None and json.exists() and model.exists() and json.samefile(model):
            raise BenchError(f"--json {json} would overwrite the model; give another name: {json.stem}.json")
