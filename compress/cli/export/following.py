"""The line to paste after an export."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from compress.cli.export.facts import batch, variant

if TYPE_CHECKING:
    from compress.cli.export.options import Options
    from compress.train.rundir import Run

DENSE_SUFFIX = "-dense"
"""``model.onnx`` and ``model-dense.onnx`` belong together: the compact network, and the one before removal."""


def next_command(run: Run, options: Options) -> str:
    """Both networks of a run compared, after the export of the other one where it is not there yet.

    Args:
        run: That was exported.
        options: How; the other network has to be written likewise.
    """
    other = _counterpart(options.onnx, dense=options.dense)
    model, baseline = (other, options.onnx) if options.dense else (options.onnx, other)
    bench = shlex.join(["bench", "latency", str(model), "--baseline", str(baseline), "--device", "cpu"])
    wanted = {
        "run_hash": run.hash,
        "variant": variant(dense=not options.dense),
        "batch": batch(dynamic=options.dynamic_batch),
    }
    if wanted.items() <= _stored(other).items():
        return bench
    words = ["compress", "export", str(run.path), "--onnx", str(other)]
    words += [] if options.dense else ["--dense"]
    words += ["--dynamic-batch"] if options.dynamic_batch else []
    words += [] if options.opset is None else ["--opset", str(options.opset)]
    return f"{shlex.join(words)} && {bench}"


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
