"""The line to paste after an export."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compress.cli.export.facts import batch, preprocessing, size, variant
from compress.cli.export.options import FLOAT32, ONNX_FILE, Options

if TYPE_CHECKING:
    from compress.train.rundir import Run

DENSE_SUFFIX = "-dense"
"""``model.onnx`` and ``model-dense.onnx`` belong together: the compact network, and the one before removal."""

SMALLER_SUFFIX = re.compile(r"[-_](weights[-_])?(int8|fp16|float16)$")
"""``model-int8.onnx`` and ``model.onnx`` belong together, if the latter is the same network in float32."""

LIKEWISE = (
    *("dynamic_batch", "dynamic_size", "with_preprocess", "layout", "input_name", "output_name", "opset"),
    *("image_size", "channels", "classes"),
)
"""Options that a file must share with the one that it is compared with."""

NO_SHAPES: Mapping[str, Sequence[int]] = {}


def next_command(run: Run | None, options: Options, shapes: Mapping[str, Sequence[int]] = NO_SHAPES) -> str:
    """The file compared with what it is smaller than, after the export of that where it is not there yet.

    A run's compact network is held against the one before removal, smaller numbers against float32, and what was read
    from an ONNX file against that file.

    Args:
        run: That was exported, if it was one.
        options: How; the other network has to be written likewise.
        shapes: Of inputs whose sizes are open, from `facts.open_shapes`.
    """
    if options.kind == ONNX_FILE:
        return _bench(options.onnx, Path(options.source), shapes)
    if options.precision != FLOAT32:
        other, dense = _in_float32(run, options), options.dense
    elif run is not None:
        other, dense = _counterpart(options.onnx, dense=options.dense), not options.dense
    else:
        return _bench(options.onnx, None, shapes)
    pair = (other, options.onnx) if options.dense and not dense else (options.onnx, other)
    bench = _bench(*pair, shapes)
    if _is_there(other, run, options, dense=dense):
        return bench
    words = ["compress", "export", options.source if run is None else str(run.path), "--onnx", str(other)]
    words += ["--dense"] if dense else []
    for name in LIKEWISE:
        if options.holds(name):
            value = getattr(options, name)
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return f"{shlex.join(words)} && {bench}"


def compact_command(options: Options) -> str:
    """What takes the dead channels out of the ONNX file that was read, which an export leaves in."""
    source = Path(options.source)
    return shlex.join(["compress", "compact", str(source), "--out", str(source.with_stem(f"{source.stem}-compact"))])


def _bench(model: Path, baseline: Path | None, shapes: Mapping[str, Sequence[int]]) -> str:
    words = ["bench", "latency", str(model)]
    words += [] if baseline is None else ["--baseline", str(baseline)]
    words += ["--device", "cpu"]
    for name, shape in shapes.items():
        words += ["--shape", f"{name}={','.join(map(str, shape))}"]
    return shlex.join(words)


def _in_float32(run: Run | None, options: Options) -> Path:
    """The file of the same network in float32: the one that the name points to where it is that, or one of its own."""
    plain = options.onnx.with_stem(SMALLER_SUFFIX.sub("", options.onnx.stem) or options.onnx.stem)
    if plain != options.onnx and _is_there(plain, run, options, dense=options.dense):
        return plain
    return options.onnx.with_stem(f"{options.onnx.stem}-float32")


def _is_there(onnx: Path, run: Run | None, options: Options, *, dense: bool) -> bool:
    """Whether a file holds the run's network in float32 and takes what the exported file takes."""
    if run is None or options.input_name is not None or options.output_name is not None:
        return False  # a file does not tell which factory it is of, and its metadata hold no names
    wanted = {
        "run_hash": run.hash,
        "variant": variant(dense=dense),
        "precision": FLOAT32,
        "batch": batch(dynamic=options.dynamic_batch),
        "size": size(dynamic=options.dynamic_size),
        "preprocess": json.dumps(preprocessing(run, options)),
    }
    return wanted.items() <= _stored(onnx).items()


def _counterpart(onnx: Path, *, dense: bool) -> Path:
    """The other network's file: without the suffix for dense, or one word in the place of the other, or added."""
    if dense and onnx.stem != DENSE_SUFFIX and onnx.stem.endswith(DENSE_SUFFIX):
        return onnx.with_stem(onnx.stem.removesuffix(DENSE_SUFFIX))
    own, other = ("dense", "compact") if dense else ("compact", "dense")
    stem, replaced = re.subn(rf"(?<![a-z0-9]){own}(?![a-z0-9])", other, onnx.stem, count=1)
    return onnx.with_stem(stem if replaced else f"{onnx.stem}-{other}")


def _stored(onnx: Path) -> dict[str, str]:
    """The metadata of a file; none where there is no such file, or no ONNX in it."""
    from export import ExportError, read_metadata

    try:
        return read_metadata(onnx)
    except ExportError:
        return {}
