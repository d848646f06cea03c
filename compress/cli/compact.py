"""``compress compact``: dead channels leave an ONNX file, and the smaller file is proved to compute the same."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress.cli.places import place_faults, require_there
from compress.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from compress.surgery.onnx_compact import OnnxResult


def compact_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="A model of any framework, opset 13 to 23.")],
    out: Annotated[Path, typer.Option("--out", metavar="SMALL.onnx", help="The file to write.")],
    input_size: Annotated[
        list[str] | None,
        typer.Option(
            "--input-size",
            metavar="NAME=1x3x224x224",
            help="The shape of an input that the file leaves open; images of 224 pixels by default. May be repeated.",
        ),
    ] = None,
    round_to: Annotated[
        int, typer.Option(min=1, metavar="N", help="Leave in dead channels until every width is a multiple of N.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Remove every dead channel from an ONNX file that can leave without a trace.

    Dead are channels that are the same for every input, or that all readers multiply by zero. Names, open sizes and
    metadata stay. Both files are compared in ONNX Runtime at several sizes, and in float64; a file that differs is not
    written. What has to stay is told with the reason. A file without dead channels is written as it is.
    """
    sizes = _sizes(input_size or [])
    _require_place(file, out)

    from compress.surgery.onnx_compact import compact_onnx, write_model

    result = compact_onnx(file, sizes=sizes, round_to=round_to)
    for read in result.files:  # weights lie beside large files
        _require_place(read, out)
    write_model(result.model, out)
    if as_json:
        report = result.report.to_dict()
        typer.echo(json.dumps({"file": str(file), "out": str(out), "removed": result.removed, **report}, indent=2))
    else:
        _print(file, out, result)


def _sizes(given: list[str]) -> dict[str, tuple[int, ...]]:
    sizes = {}
    for text in given:
        name, _, shape = text.rpartition("=")
        if not name or not all(part.isdecimal() and int(part) for part in shape.split("x")):
            raise ConfigError(f"--input-size {text}: expected a name and a shape, for example input=1x3x224x224.")
        sizes[name] = tuple(map(int, shape.split("x")))
    return sizes


def _require_place(file: Path, out: Path) -> None:
    """Refuse places that can't be read or written, before any work."""
    require_there(file)
    if faults := place_faults("--out", out, file, [out.parent / f"{out.name}.data"]):
        raise ConfigError("; ".join(faults))


def _print(file: Path, out: Path, result: OnnxResult) -> None:
    from compress.cli.inspect import RUN_HEADINGS, report_changes, report_layers, row
    from compress.cli.tables import console, layer_table

    screen, report = console(), result.report.to_dict()
    rows = [row(layer) for layer in report_layers(report) if layer["before"] != layer["after"] or layer["kept"]]
    if rows:
        screen.print(layer_table(f"layers of {file} with dead channels", RUN_HEADINGS, rows))
    for change in report_changes(report):
        screen.print(f"  {change}", highlight=False, markup=False)
    if not result.removed:
        text = f"nothing to remove: no channel of {file} can leave; {out} is the same network"
        screen.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    screen.print(_summary(result))
    following = shlex.join(["bench", "latency", str(out), "--baseline", str(file), "--device", "cpu"])
    screen.print(following, markup=False, highlight=False, soft_wrap=True)


def _summary(result: OnnxResult) -> Table:
    from compress.cli.tables import pairs_table

    report = result.report
    sizes = ", ".join("x".join(map(str, a.input_shapes[0])) for a in report.agreements if a.dtype != "float64")
    rows = {
        "channels removed": f"{result.removed:,}",
        "parameters": f"{report.params_before:,} -> {report.params_after:,}",
        "multiply-accumulates": f"{report.macs_before:,} -> {report.macs_after:,}",
        "bytes": f"{result.original_bytes:,} -> {result.model.ByteSize():,}",
        "largest difference in ONNX Runtime": f"{report.max_relative_error:.1e} of the largest output, at {sizes}",
        "in float64": "not compared" if report.max_exact_error is None else f"{report.max_exact_error:.1e}",
    }
    return pairs_table(rows)
