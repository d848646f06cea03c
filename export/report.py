"""What is written: the ONNX file, the JSON document beside it, and what a caller is told.

`m.onnx` holds the graph and, as its metadata, what a device needs to know. `m.onnx.json` holds the whole verification:
every step's figures, the notes, sizes and hash. Both come to the disk together or not at all.
"""

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from export import metadata as model_metadata
from export import opset as opsets
from export.files import require_writable, write_all
from export.ort_format import OrtFormat, ort_format
from export.proof import Graph, Step, count, figures
from export.sparse import NOT_SPARSE, Zeros, store_sparse, zeros_of
from export.verify import Parity

JSON_FORMAT = 1
NO_METADATA: Mapping[str, str] = MappingProxyType({})
NOTHING_MORE: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how far it agrees with the reference: the torch model, or the ONNX file that was given.

    Attributes:
        path: Of the ONNX file.
        json_path: Of the document beside it.
        file_bytes: Of the ONNX file.
        gzip_bytes: Of the same, compressed: what an update over the air carries.
        opset: Of the default domain.
        min_onnxruntime: The first release that reads the file.
        precision: ``float32``, ``float16``, ``int8`` or ``int8 weights``.
        simplified: False: the file holds the graph without onnxsim, and `notes` says why.
        nodes_exported: By torch's exporter, whose own optimiser already folds BatchNorm and constants; or in the file.
        nodes_written: In the file.
        batch_norm_modules: In the torch model, or BatchNorm nodes of the file that was read.
        batch_norm_nodes: Left in the file; the others were folded into the layer before them.
        steps: The figures of every step, the written graph's last.
        zeros: How many of the weights are zero.
        metadata: As stored in the file.
        notes: What the reader has to know.
        ort: The same graph in ONNX Runtime's own format, where it was asked for.
    """

    path: Path
    json_path: Path
    file_bytes: int
    gzip_bytes: int
    opset: int
    min_onnxruntime: str
    precision: str
    simplified: bool
    nodes_exported: int
    nodes_written: int
    batch_norm_modules: int
    batch_norm_nodes: int
    steps: tuple[Step, ...]
    zeros: Zeros
    metadata: Mapping[str, str]
    notes: tuple[str, ...]
    ort: OrtFormat | None

    @property
    def random(self) -> Parity:
        """Of the written graph, on random batches."""
        return self.steps[-1].random

    @property
    def real(self) -> Parity | None:
        """Of the written graph, on real inputs; None when there were none."""
        return self.steps[-1].real


def gzip_size(content: bytes) -> int:
    """Bytes of the content compressed as hard as gzip can."""
    return len(gzip.compress(content, compresslevel=9, mtime=0))


def write(
    graph: Graph,
    path: str | Path,
    *,
    metadata: Mapping[str, str] = NO_METADATA,
    details: Mapping[str, object] = NOTHING_MORE,
    sparse_initializers: bool = False,
    ort: bool = False,
) -> ExportReport:
    """Write a verified graph and the document beside it, and what else is asked for: all or nothing.

    Args:
        graph: From `graph_of`, `read_graph` or a quantiser.
        path: Of the ONNX file; an older one is replaced at the end.
        metadata: Text to text, stored in the file beside the measured figures and the tools' versions.
        details: More for the document, anything that JSON has.
        sparse_initializers: Store weights by their places and values where that is smaller.
        ort: Write the graph in ONNX Runtime's own format too, with the list of operators that it needs.

    Raises:
        ExportError: The place cannot be written, the disk is full, or what would be written does not agree.
    """
    path = Path(path)
    require_writable(path)
    model_metadata.require_valid(metadata)
    zeros = zeros_of(graph.model)
    wanted = sparse_initializers or zeros.telling
    smaller, stored = store_sparse(graph.model) if wanted else (graph.model, None)
    notes = [*graph.notes, *zeros.notes(sparse_is_smaller=stored is not None)]
    if sparse_initializers:
        graph = graph.then("sparse", smaller) if stored else graph
        notes.append(stored.note() if stored else NOT_SPARSE)
    model = type(graph.model)()
    model.CopyFrom(graph.model)
    entries = {**model_metadata.provenance(graph), **metadata}
    model_metadata.embed(model, entries)
    content = model.SerializeToString()
    made = ort_format(graph, model, path.stem) if ort else None
    report = ExportReport(
        path=path,
        json_path=path.with_name(f"{path.name}.json"),
        file_bytes=len(content),
        gzip_bytes=gzip_size(content),
        opset=graph.opset,
        min_onnxruntime=opsets.first_onnxruntime(graph.opset),
        precision=graph.precision,
        simplified=graph.simplified,
        nodes_exported=graph.nodes_before,
        nodes_written=len(graph.model.graph.node),
        batch_norm_modules=graph.batch_norms_before,
        batch_norm_nodes=count(graph.model, "BatchNormalization"),
        steps=graph.steps,
        zeros=zeros,
        metadata=MappingProxyType(entries),
        notes=tuple(notes),
        ort=made,
    )
    document = json.dumps({**_document(report, content), **details}, indent=2, allow_nan=False) + "\n"
    files = {report.json_path: document.encode()}
    if made is not None:
        files |= {path.with_name(name): part for name, part in made.files().items()}
    write_all({**files, path: content})
    return report


def _document(report: ExportReport, content: bytes) -> dict[str, object]:
    return {
        "format": JSON_FORMAT,
        "file": report.path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "file_bytes": report.file_bytes,
        "gzip_bytes": report.gzip_bytes,
        "opset": report.opset,
        "min_onnxruntime": report.min_onnxruntime,
        "precision": report.precision,
        "nodes": {"before": report.nodes_exported, "written": report.nodes_written},
        "weights": {"values": report.zeros.values, "zeros": report.zeros.zeros},
        "verification": [figures(step) for step in report.steps],
        "ort": None if report.ort is None else report.ort.figures(),
        "metadata": dict(report.metadata),
        "notes": list(report.notes),
    }
