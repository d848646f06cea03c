"""``compress export``: a network as an ONNX file that is proved to compute the same."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from compress.cli.export.options import FLOAT32, ONNX_FILE, Options, precision_of
from compress.cli.places import require_there
from compress.errors import CompressError


class Calibration(StrEnum):
    """How the range of a value is found."""

    MIN_MAX = "min-max"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"


class Layout(StrEnum):
    """Of images."""

    NCHW = "nchw"
    NHWC = "nhwc"


def export_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE.py:FACTORY|FILE.onnx",
            help="A finished run, a function that returns a module, or an ONNX file, to be folded, simplified and "
            "converted; its dead channels leave with compress compact.",
        ),
    ],
    onnx: Annotated[Path, typer.Option("--onnx", metavar="FILE", help="The file to write; weights are inside.")],
    opset: Annotated[
        int | None, typer.Option("--opset", help="18 to 23; 18 by default, which ONNX Runtime 1.14 and later read.")
    ] = None,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Let the number of images vary; one image at a time by default.")
    ] = False,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Let height and width vary, from the trained ones on.")
    ] = False,
    input_name: Annotated[str | None, typer.Option(help="Of the graph's input; 'input' by default.")] = None,
    output_name: Annotated[str | None, typer.Option(help="Of its output; 'output' by default.")] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Of a run, the network before removal instead, the baseline for bench.")
    ] = False,
    with_preprocess: Annotated[
        bool, typer.Option("--with-preprocess", help="Of a run: uint8 images in, normalised inside the file.")
    ] = False,
    layout: Annotated[
        Layout | None, typer.Option(help="Of the images with --with-preprocess; nchw by default.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise to 8 bits, calibrated on the run's training images.")
    ] = False,
    calibration: Annotated[
        Calibration | None, typer.Option(help="How ranges are found for --int8; min-max by default.")
    ] = None,
    calibration_images: Annotated[
        int | None, typer.Option(help="Training images that --int8 calibrates on; 128 by default.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Validation accuracy that may be lost, as a share, 0.01 by default; layers that cost more stay float."
        ),
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(help="Of --int8, 7 (the default) or 8; with 8, x86 CPUs without VNNI compute otherwise."),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Weights and values in float16: half the bytes.")] = False,
    weights_int8: Annotated[
        bool, typer.Option("--weights-int8", help="Weights alone in 8 bits: a quarter of the bytes, no calibration.")
    ] = False,
    latency: Annotated[
        bool | None,
        typer.Option("--latency/--no-latency", help="Time int8 and the like beside float32 on this CPU, the default."),
    ] = None,
    ort: Annotated[
        bool, typer.Option("--ort", help="Write ONNX Runtime's own format and its list of operators too.")
    ] = False,
    sparse_initializers: Annotated[
        bool, typer.Option("--sparse-initializers", help="Store weights sparsely where that makes the file smaller.")
    ] = False,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="For a factory: height and width in pixels, 32 by default.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="For a factory: channels of the images, 3 by default.")
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="For a factory: number of classes, 10 by default.")] = None,
) -> None:
    """Write a network as ONNX, verified against torch (or the given file) on random and on real images.

    The differences are printed and stored in the file, with the run's hash, accuracy, class names and preprocessing;
    all of it is in FILE.json too. A difference above the tolerance is an error and leaves no file. A run whose images
    are gone is verified on random ones alone.
    """
    with_defaults: dict[str, Any] = {
        "layout": layout,
        "calibration": calibration,
        "calibration_images": calibration_images,
        "max_drop": max_drop,
        "weight_bits": weight_bits,
        "latency": latency,
        "image_size": image_size,
        "channels": channels,
        "classes": classes,
    }
    given = {name: value for name, value in with_defaults.items() if value is not None}
    write_export(
        Options(
            source=str(source),
            onnx=onnx,
            opset=opset,
            dynamic_batch=dynamic_batch,
            dynamic_size=dynamic_size,
            input_name=input_name,
            output_name=output_name,
            dense=dense,
            with_preprocess=with_preprocess,
            precision=precision_of(int8=int8, fp16=fp16, weights_int8=weights_int8),
            ort=ort,
            sparse_initializers=sparse_initializers,
            **given,
            given=frozenset(given),
        )
    )


def write_export(options: Options) -> None:
    """Export, quantise, write, and print what came out.

    Raises:
        CompressError: Nothing was written; the message says why.
    """
    from export import ExportError, require_writable

    require_there(options.source_path)
    try:
        require_writable(options.onnx)
        _export(options)
    except ExportError as error:
        told = str(error).removeprefix(f"{options.source}: ")
        raise CompressError(f"cannot export {options.source}: {told}") from error


def _export(options: Options) -> None:
    from compress.cli.export.facts import carried, open_shapes, run_metadata, torch_accuracy
    from compress.cli.export.following import compact_command, next_command
    from compress.cli.export.show import report_table, variant_table
    from compress.cli.export.sources import open_source
    from compress.cli.export.variants import make_variant
    from compress.cli.tables import console
    from export import write

    out = console()
    source = open_source(options)
    run = source.run
    variant = None if options.precision == FLOAT32 else make_variant(source, options)
    if run is None:
        metadata = carried(source.metadata, options)
    else:
        known = torch_accuracy(run, dense=options.dense) if variant is None else variant.accuracy
        metadata = run_metadata(run, options, known)
    report = write(
        source.graph if variant is None else variant.graph,
        options.onnx,
        metadata=metadata,
        details={} if variant is None else variant.details,
        sparse_initializers=options.sparse_initializers,
        ort=options.ort,
    )
    out.print(report_table(report, options, run))
    if variant is not None:
        out.print(variant_table(variant, report))
    notes = list(report.notes)
    if options.kind == ONNX_FILE and report.zeros.telling:
        notes.append(f"an export leaves all channels in; those that are dead leave with {compact_command(options)}")
    for note in notes:
        out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    out.print(next_command(run, options, open_shapes(source.graph)), markup=False, highlight=False, soft_wrap=True)
