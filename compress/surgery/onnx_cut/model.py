"""An ONNX model while it is written: nodes, initializers, and names that are still free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from compress.graph.onnx.order import outer_names
from compress.graph.onnx.statics import Array

INITIALIZERS_ALONE = 4
"""The IR version from which initializers need not be listed among the inputs."""


class Builder:
    """Collects the parts of a model.

    Args:
        original: the model that it is made from; what nothing replaces is taken over as it is.
    """

    def __init__(self, original: onnx.ModelProto):
        self.original = original
        self.nodes: list[onnx.NodeProto] = []
        self.stored = {tensor.name: tensor for tensor in original.graph.initializer}
        self.initializers: dict[str, onnx.TensorProto] = {}
        graph = original.graph
        self.taken = {name for node in graph.node for name in (*node.input, *node.output, *outer_names(node))}
        self.taken |= self.stored.keys() | {value.name for value in (*graph.input, *graph.output)}
        self.node_names = {node.name for node in graph.node}

    def free(self, stem: str) -> str:
        """A name that no value has."""
        name, number = stem, 1
        while name in self.taken:
            number += 1
            name = f"{stem}_{number}"
        self.taken.add(name)
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add an operation of the default domain; its result is called ``output``."""
        name, number = f"{output}/{op}", 1
        while name in self.node_names:
            number += 1
            name = f"{output}/{op}_{number}"
        self.node_names.add(name)
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def numbers(self, values: Sequence[int], stem: str) -> str:
        """An initializer of whole numbers."""
        return self.store(np.array(values, dtype=np.int64), self.free(stem))

    def store(self, value: Array, name: str) -> str:
        """An initializer under a name of which the original's is no other, or that is free."""
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def parameter(self, tensor: Tensor, name: str) -> str:
        """An initializer with the values of a parameter: the original's name, unless that has other values already."""
        new = from_torch(tensor, name)
        present = self.initializers.get(name)
        if present is None or _same(present, new):
            old = self.stored.get(name)
            self.initializers[name] = old if old is not None and _same(old, new) else new
            return name
        alike = [n for n, t in self.initializers.items() if n.startswith(f"{name}_") and _same(t, new)]
        if alike:
            return alike[0]
        free = self.free(name)
        new.name = free
        self.initializers[free] = new
        return free

    def reserve(self, name: str) -> None:
        """Keep the name of an initializer of the original for its own values."""
        if name in self.stored:
            self.initializers[name] = self.stored[name]

    def finish(self, sizes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> onnx.ModelProto:
        """The model, without what nothing reads.

        Args:
            sizes: name -> shape before and after, of values that the original declares: what is another size is
                declared anew, symbolic sizes stay.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.original)
        model.ir_version = max(model.ir_version, INITIALIZERS_ALONE)
        graph = model.graph
        nodes, read = [], {value.name for value in graph.output}
        for node in reversed(self.nodes):
            if read & set(node.output):
                nodes.append(node)
                read |= {*node.input, *outer_names(node)}
        for name in read - self.initializers.keys():
            self.reserve(name)
        made = {name for node in nodes for name in node.output}
        values = [v for v in graph.value_info if v.name in sizes.keys() & made and _of_one_rank(sizes[v.name])]
        inputs = [v for v in graph.input if v.name not in self.stored]
        _replace(graph.node, reversed(nodes))
        _replace(graph.initializer, [t for name, t in self.initializers.items() if name in read])
        _replace(graph.input, inputs)
        _replace(graph.value_info, values)
        for value in graph.value_info:
            before, after = sizes[value.name]
            for dim, old, new in zip(value.type.tensor_type.shape.dim, before, after, strict=False):
                if old != new and dim.HasField("dim_value"):
                    dim.dim_value = new
        return model


def _of_one_rank(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
    return len(shapes[0]) == len(shapes[1])


def _replace(repeated: Any, values: Iterable[Any]) -> None:
    kept = []
    for value in values:
        copy = type(value)()
        copy.CopyFrom(value)
        kept.append(copy)
    del repeated[:]
    repeated.extend(kept)


def from_torch(tensor: Tensor, name: str) -> onnx.TensorProto:
    """An initializer with the values of a tensor."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        raw = tensor.view(torch.int16).numpy().tobytes()
        return onnx.TensorProto(name=name, dims=tensor.shape, data_type=onnx.TensorProto.BFLOAT16, raw_data=raw)
    return numpy_helper.from_array(tensor.numpy(), name)


def _same(a: onnx.TensorProto, b: onnx.TensorProto) -> bool:
    if (a.data_type, list(a.dims)) != (b.data_type, list(b.dims)):
        return False
    return bool(numpy_helper.to_array(a).tobytes() == numpy_helper.to_array(b).tobytes())
