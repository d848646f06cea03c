"""What an exported file tells about itself: the `metadata_props` of the ONNX model, text to text.

Read back with `onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import onnxsim
import torch

from export.errors import ExportError
from export.proof import Graph

RANDOM, REAL = "random batches", "real images"
"""Values of ``compared_on``, alone or joined."""

OWN_KEYS = (
    "compared_on",
    "max_abs_difference",
    "max_relative_difference",
    "mean_abs_difference",
    "argmax_agreement",
    "random_batches_checked",
    "real_batches_checked",
    "precision",
    "opset",
    "torch_version",
    "onnx_version",
    "onnxruntime_version",
    "onnxsim_version",
)


def require_valid(entries: Mapping[str, str]) -> None:
    """Refuse entries that are not text, or that would overwrite a measured figure.

    Raises:
        ExportError: Names every such key.
    """
    taken = sorted(set(entries) & set(OWN_KEYS))
    if taken:
        raise ExportError(f"metadata {taken} are measured by the export and cannot be given; use other names")
    not_text = sorted(
        str(key) for key, value in entries.items() if not (isinstance(key, str) and isinstance(value, str))
    )
    if not_text:
        raise ExportError(f"metadata must map text to text; these do not: {not_text}; convert them with str()")


def provenance(graph: Graph) -> dict[str, str]:
    """The entries of our own: how far the file was verified, and by which tools it was made.

    Float32 may lose nothing on any input: its figures are the worse ones of random batches and real inputs. Integers
    and float16 are made for real inputs, and differ at will on others: where there were real ones, the figures are
    theirs alone. ``compared_on`` says which.

    Args:
        graph: That is written; its last step's figures count.
    """
    random, real = graph.steps[-1].random, graph.steps[-1].real
    compared = {RANDOM: random} if real is None else {RANDOM: random, REAL: real} if graph.lossless else {REAL: real}
    parities = compared.values()
    agreements = [parity.argmax_agreement for parity in parities if parity.argmax_agreement is not None]
    return {
        "compared_on": " and ".join(compared),
        "max_abs_difference": repr(max(parity.max_abs_difference for parity in parities)),
        "max_relative_difference": repr(max(parity.max_relative_difference for parity in parities)),
        "mean_abs_difference": repr(max(parity.mean_abs_difference for parity in parities)),
        "argmax_agreement": repr(min(agreements)) if agreements else "none",
        "random_batches_checked": str(random.batches),
        "real_batches_checked": str(0 if real is None else real.batches),
        "precision": graph.precision,
        "opset": str(graph.opset),
        **({"torch_version": str(torch.__version__)} if graph.of_torch else {}),
        "onnx_version": onnx.__version__,
        "onnxruntime_version": onnxruntime.__version__,
        "onnxsim_version": onnxsim.__version__.removeprefix("v") if graph.simplified else "none",
    }


def given_metadata(entries: Mapping[str, str]) -> dict[str, str]:
    """The entries that were not measured by an export: what its caller gave, or other tools wrote."""
    return {key: value for key, value in entries.items() if key not in OWN_KEYS}


def embed(model: onnx.ModelProto, entries: Mapping[str, str]) -> None:
    """Replace the model's metadata by `entries`, in place."""
    onnx.helper.set_model_props(model, dict(entries))


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file.

    Raises:
        ExportError: It cannot be read, or is no ONNX file.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # those of the file system and of protobuf have no other base class in common
        raise ExportError(f"{path}: cannot be read as an ONNX file: {error}") from error
    return {entry.key: entry.value for entry in model.metadata_props}


def strip_traces(message: Any) -> None:
    """Remove the notes that torch's exporter leaves at nodes, values and graphs, in place.

    They hold a stack trace for each node, with the paths of the machine that exported: of no use on the device, nobody
    else's business, often larger than a small network's weights, and not allowed below IR version 10.

    Args:
        message: An `onnx.ModelProto`, or any protobuf message inside it.
    """
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if isinstance(value, Sequence) else (value,):
                strip_traces(part)
