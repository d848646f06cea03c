"""Options that several subcommands share, and what they mean."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import BenchError
from bench.files import require_writable
from bench.measure.runs import Advise
from bench.onnx_file import external_files
from bench.targets import EMULATED, TARGETS

Model = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model to measure.")]
Baseline = Annotated[Path | None, typer.Option(metavar="DENSE.onnx", help="Compare with this model.")]
NATIVE = ", ".join(name for name in TARGETS if name not in EMULATED)
Device = Annotated[str, typer.Option(help=f"Where to measure: {NATIVE}; see bench devices.")]
AnyDevice = Annotated[
    str,
    typer.Option(
        help=f"Where to measure: {NATIVE}; {', '.join(sorted(EMULATED))} for instructions alone; see bench devices."
    ),
]
Threads = Annotated[int, typer.Option(help="Intra-op threads of ONNX Runtime, at least 1.")]
Batch = Annotated[int | None, typer.Option(help="Size of open first dimensions, at least 1; 1 by default.")]
Shape = Annotated[
    list[str] | None,
    typer.Option(metavar="INPUT=N,C,H,W", help="Whole shape of an input; may be repeated. Other open sizes are 1."),
]
Pin = Annotated[
    str | None, typer.Option(metavar="CORES", help="Run on these cores alone, for example 0,1; free by default.")
]
Provider = Annotated[
    str, typer.Option(help="Execution provider of ONNX Runtime: cpu, or xnnpack and others where the build has them.")
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        min=0.0, help="Allowed difference of a device's outputs from this machine's, as a share of the largest value."
    ),
]
Seed = Annotated[int, typer.Option(help="Of the random inputs.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Give up after this time.")]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the whole report, raw samples included.")
]

SUFFIXES = {"--junit": ".xml", "--markdown": ".md", "--html": ".html"}  # of the files that options write; .json else


def parse_numbers(option: str, words: str | None) -> tuple[int, ...]:
    """``"1,4,8"`` as ``(1, 4, 8)``; nothing as no numbers.

    Raises:
        BenchError: It is written otherwise.
    """
    if words is None:
        return ()
    try:
        return tuple(int(word) for word in words.split(","))
    except ValueError as error:
        raise BenchError(f"{option} {words!r}: expected whole numbers with commas, for example 1,4,8") from error


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


def again(context: typer.Context) -> Advise:
    """Says how to run the command again, with all that was given."""
    return lambda **changed: f"run: {command_again(context, changed)}"


def command_again(context: typer.Context, changed: Mapping[str, int | str]) -> str:
    """The running command as it was given, with other values of some options."""
    words = ["bench", context.info_name or ""]
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in changed and (source is None or source.name != "COMMANDLINE"):
            continue
        value = changed.get(name, context.params.get(name))
        option = [] if parameter.param_type_name == "argument" else [parameter.opts[0]]
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [*option, f"{each}"]
    return shlex.join(words)


def require_output(output: Path | None, *inputs: Path | None, option: str = "--json") -> None:
    """Refuse an output that cannot be written, or that stands in place of an input; none needs nothing.

    Raises:
        BenchError: ``output``, given with ``option``, is no place for a file, or is one of the files to read.
    """
    if output is None:
        return
    suffix = SUFFIXES.get(option, ".json")
    require_writable(output, f"report{suffix}")
    if not output.exists():
        return
    for path, what in _read_from([path for path in inputs if path is not None]):
        if path.exists() and output.samefile(path):
            other = output.with_name(f"{output.stem}-report{suffix}")
            raise BenchError(f"{option} {output} would overwrite {what}; give another name: {other.name}")


def _read_from(inputs: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """The files that are read for `inputs`, and what to call each: themselves, and those with a model's weights."""
    for path in inputs:
        yield path, "the model" if path.suffix == ".onnx" else f"{path}"
        with suppress(OSError):  # what cannot be read is told when it is read
            yield from ((path.parent / name, f"the weights of {path}") for name in external_files(path.read_bytes()))


def refuse_twice(outputs: Mapping[str, Path]) -> None:
    """Refuse two outputs in one file.

    Args:
        outputs: Paths by option.

    Raises:
        BenchError: Two options name the same file.
    """
    seen: dict[Path, str] = {}
    for option, path in outputs.items():
        first = seen.setdefault(path.resolve(), option)
        if first != option:
            raise BenchError(f"{first} and {option} name the same file, {path}; give each its own")
