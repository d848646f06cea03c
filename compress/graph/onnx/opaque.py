"""Operations that the table does not hold: they get a name and results of the right shape, and nothing else.

The label flow has no rule for such a name, so that everything that enters or leaves it stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, shape_inference
from torch import Tensor

from compress.errors import ModelError
from compress.graph.onnx.node import DTYPES, Unhandled, torch_dtype

NAMESPACE = "compress_onnx"
_LIBRARY: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
_KNOWN: dict[str, Any] = {}

Signature = tuple[tuple[tuple[int, ...], torch.dtype], ...]
"""Shape and type of each result."""


def opaque(node: onnx.NodeProto, inputs: Mapping[str, Any], opsets: onnx.ModelProto) -> list[Tensor]:
    """Stand-ins for the results of an operation.

    Args:
        node: the operation.
        inputs: name -> tensor or array, of all that it reads, also within subgraphs.
        opsets: a model without nodes that names the opsets.

    Raises:
        ModelError: the shapes of its results can't be told.
    """
    signature = _signature(node, inputs, opsets)
    tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
    sizes = [size for shape, _ in signature for size in shape]
    made: list[Tensor] = _operator(node)(
        tensors, sizes, [len(shape) for shape, _ in signature], [dtype for _, dtype in signature]
    )
    return made


def _operator(node: onnx.NodeProto) -> Any:
    plain = "".join(c if c.isalnum() else "_" for c in f"{node.domain}_{node.op_type}".strip("_"))
    name = f"onnx_{plain}"  # no operation of torch begins so: it must not be taken for one
    if name not in _KNOWN:
        _LIBRARY.define(f"{name}(Tensor[] inputs, int[] sizes, int[] ranks, ScalarType[] dtypes) -> Tensor[]")
        _LIBRARY.impl(name, _results, "CompositeExplicitAutograd")
        _KNOWN[name] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return _KNOWN[name]


def _results(inputs: list[Tensor], sizes: list[int], ranks: list[int], dtypes: list[torch.dtype]) -> list[Tensor]:
    """Fixed numbers that depend on the input a little, so that what is behind can be compared."""
    made, start, device = [], 0, inputs[0].device if inputs else "cpu"
    floats = [x for x in inputs if x.is_floating_point() and x.numel()]
    for rank, dtype in zip(ranks, dtypes, strict=True):
        shape = sizes[start : start + rank]
        start += rank
        count = int(np.prod(shape, dtype=np.int64))
        numbers = torch.sin(torch.arange(count, device=device, dtype=torch.float64)).reshape(shape)
        for x in floats:
            numbers = numbers * (1 + 0.1 * torch.tanh(x.double().mean()))
        wide = floats[0].dtype if floats and dtype == torch.float32 else dtype  # a network in double precision
        made.append(numbers.to(wide if dtype.is_floating_point else torch.float64).to(wide))
    return made


def _signature(node: onnx.NodeProto, inputs: Mapping[str, Any], opsets: onnx.ModelProto) -> Signature:
    """Shapes and types by onnx's shape inference of this node alone."""
    graph = onnx.GraphProto(name="node", node=[node])
    for name, value in inputs.items():
        _declare(graph, name, value)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
    model = onnx.ModelProto(ir_version=opsets.ir_version, graph=graph, opset_import=opsets.opset_import)
    try:
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output
    except Exception:  # of its C++ side: an operation that it does not know, inputs that do not fit
        inferred = []
    found = []
    for output in inferred:
        kind = output.type.tensor_type
        sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if not kind.HasField("shape") or -1 in sizes:
            break
        try:
            found.append((tuple(sizes), torch_dtype(kind.elem_type)))
        except Unhandled as error:
            raise ModelError(
                f"{node.op_type} {node.name}: its results have {error}; such a file can't be followed."
            ) from None
    if len(found) < len([name for name in node.output if name]):
        raise ModelError(
            f"{node.domain + '.' if node.domain else ''}{node.op_type} {node.name}: the shape of its results is not "
            "known without running it; such a file can't be followed. Take this operation out of the network."
        )
    return tuple(found)


def _declare(graph: onnx.GraphProto, name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        kinds = {dtype: kind for kind, dtype in DTYPES.items()}
        dtype = torch.float32 if value.dtype == torch.float64 else value.dtype  # a network in double precision
        graph.input.append(helper.make_tensor_value_info(name, kinds[dtype], list(value.shape)))
    else:
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
