"""ONNX files, read with care: what is no model, or points outside its folder, is refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import (
    ExternalDataInfo,
    _get_all_tensors,
    load_external_data_for_model,
    uses_external_data,
)

from compress.errors import ModelError
from compress.graph.onnx.order import sort_

OPSETS = range(13, 24)
"""Opsets of the default domain whose operations are known: axes became inputs in 13."""

DEFAULT_DOMAINS = ("", "ai.onnx")

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes that one file of protobuf holds; larger weights lie beside it."""


def read_model(path: Path) -> tuple[onnx.ModelProto, tuple[Path, ...]]:
    """The model of a file, weights included, its functions put in line; and all files that it was read from.

    Raises:
        ModelError: no such file, no ONNX model, an opset that is not known here, weights that are missing, cut short or
            outside the model's folder.
    """
    if not path.is_file():
        raise ModelError(f"{path}: {'this is a folder' if path.is_dir() else 'there is no such file'}.")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise ModelError(f"{path}: can't be read as ONNX, it is damaged or something else: {error}") from error
    if not model.ir_version or not (model.graph.node or model.graph.output):
        raise ModelError(f"{path}: this is no ONNX model: there is no graph in it.")
    if any(isinstance(text, bytes) for text in _names(model.graph)):
        raise ModelError(f"{path}: can't be read as ONNX, it is damaged: a name in it is no text (UTF-8).")
    _require_opset(path, model)
    files = _load_weights(path, model)
    sort_(model.graph)
    try:
        onnx.checker.check_model(model if model.ByteSize() < PROTOBUF_LIMIT else str(path))
    except Exception as error:  # the checker raises its own error, and others of its C++ side
        raise ModelError(f"{path}: the ONNX checker refuses this file: {str(error).strip()}") from error
    if model.graph.sparse_initializer:
        raise ModelError(f"{path}: holds sparse initializers, which can't be followed; export it with dense ones.")
    return (onnx.inliner.inline_local_functions(model) if model.functions else model), (path, *files)


def _names(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    """Names of nodes, values and open sizes; protobuf hands out bytes where they are no text."""
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    yield from (tensor.name for tensor in graph.initializer)
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)


def opset_of(model: onnx.ModelProto) -> int:
    """The opset of the default domain; 0 where the model names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), default=0)


def _require_opset(path: Path, model: onnx.ModelProto) -> None:
    opset = opset_of(model)
    if opset not in OPSETS:
        raise ModelError(
            f"{path}: opset {opset}; those from {OPSETS[0]} to {OPSETS[-1]} are known. Export the model again, or "
            "convert it with onnx.version_converter.convert_version."
        )


def _load_weights(path: Path, model: onnx.ModelProto) -> tuple[Path, ...]:
    """Read what lies in other files, once each is known to be there, large enough and in the model's folder."""
    folder, files = path.resolve().parent, dict[Path, None]()
    for name, info in _external(model):
        place = (folder / info.location).resolve()
        if Path(info.location).is_absolute() or not place.is_relative_to(folder):
            raise ModelError(
                f"{path}: the weights of {name} are said to lie in {info.location}, outside the model's folder; "
                "such a file is not read."
            )
        if not place.is_file():
            raise ModelError(f"{path}: the weights of {name} lie in {info.location}, which is not there.")
        end = (info.offset or 0) + (info.length or 0)
        if place.stat().st_size < end:
            raise ModelError(
                f"{path}: {info.location} has {place.stat().st_size:,} bytes, the weights of {name} end at {end:,}: "
                "the file is cut short."
            )
        files[place] = None
    try:
        load_external_data_for_model(model, str(folder))
    except Exception as error:  # onnx's own checks of the place, in C++
        raise ModelError(f"{path}: its weights can't be read: {str(error).strip()}") from error
    return tuple(files)


def _external(model: onnx.ModelProto) -> Iterator[tuple[str, ExternalDataInfo]]:
    for tensor in _get_all_tensors(model):
        if uses_external_data(tensor):
            yield tensor.name, ExternalDataInfo(tensor)
