"""An ONNX graph as a torch module: what every analysis of this package reads.

Each operation is a submodule of its own, named by its weight or by its name in the file, so that all that is found is
told by that name. Weights are parameters; what is computed without the network's inputs is computed in place.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from compress.errors import ModelError
from compress.graph.onnx.files import DEFAULT_DOMAINS, opset_of
from compress.graph.onnx.layers import LAYERS, is_transposed, layer_of
from compress.graph.onnx.movement import picked
from compress.graph.onnx.node import Node, Unhandled, made, tensors, torch_dtype
from compress.graph.onnx.opaque import opaque
from compress.graph.onnx.ops import OPS, cast_type
from compress.graph.onnx.order import outer_names
from compress.graph.onnx.statics import SHAPES, Array, Evaluator, attributes, has_subgraph, shape_value

CASTS = frozenset(("Cast", "CastLike"))
PICKING = frozenset(("Gather", "GatherND"))
"""Operations whose second input says what they pick."""


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from.

    Attributes:
        initializer: its name in the file.
        transposed: whether the file holds the matrix the other way round.
    """

    initializer: str
    transposed: bool = False


class Operation(nn.Module):
    """One operation of the file that is no layer.

    Args:
        proto: the operation.
        node: the same for the op table.
        opsets: a model without nodes that names the opsets.
    """

    def __init__(self, proto: onnx.NodeProto, node: Node, opsets: onnx.ModelProto):
        super().__init__()
        self.proto, self.node, self.opsets = proto, node, opsets
        self.op = OPS.get(node.op) if proto.domain in DEFAULT_DOMAINS else None

    def positions(self) -> Tensor | None:
        """Of a Gather or GatherND: what it picks, where that is part of the network."""
        return self._buffers.get("input_1") if self.node.op in PICKING else None

    def forward(self, values: list[Any], outer: dict[str, Any], *, double: bool = False) -> Any:
        """The results.

        Args:
            values: the inputs.
            outer: what subgraphs read.
            double: whether the network runs in double precision, which a cast to float does not leave.
        """
        static = frozenset() if self.op is None else self.op.static
        if self.op is not None and all(i not in static or not isinstance(v, Tensor) for i, v in enumerate(values)):
            with contextlib.suppress(Unhandled):
                if double and self.node.op in CASTS and cast_type(self.node, *values[1:]).is_floating_point:
                    (x,) = tensors(values[0])
                    return x if x.dtype == torch.float64 else x.double()
                if (positions := self.positions()) is not None and values[1] is positions:
                    return picked(self.node, values[0], positions)
                return self.op.run(self.node, *values)
        named = {name: value for name, value in zip(self.proto.input, values, strict=True) if name}
        return opaque(self.proto, named | outer, self.opsets)


class File:
    """What all copies of a network share: the graph of the file, and numbers of the last run.

    Attributes:
        initializers: by name.
        declared: the inputs; ``returned`` the names of the outputs.
        nodes: path of each operation -> the operation, in the order of the computation.
        sources: state name -> where the parameter comes from.
        statics: path -> position of an input -> its value at the last run, of all inputs that are numbers.
        computed: name -> number that was computed without the inputs' values at the last run.
        aliases: name of a result -> name of the input that it is, at the last run.
        double: whether the copy that runs does so in double precision.
    """

    def __init__(self, model: onnx.ModelProto):
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.declared = [value for value in model.graph.input if value.name not in self.initializers]
        self.returned = [value.name for value in model.graph.output]
        self.opset = opset_of(model)
        self.evaluator = Evaluator(self.opset)
        self.nodes: dict[str, onnx.NodeProto] = {}
        self.sources: dict[str, Source] = {}
        self.statics: dict[str, dict[int, Array]] = {}
        self.computed: dict[str, Array] = {}
        self.aliases: dict[str, str] = {}
        self.double = False
        self._arrays: dict[str, Array] = {}

    def array(self, name: str) -> Array:
        """The values of an initializer.

        Raises:
            ModelError: there is none of that name.
        """
        if name not in self._arrays:
            if name not in self.initializers:
                raise ModelError(f"{name} is read, and nothing makes it.")
            self._arrays[name] = numpy_helper.to_array(self.initializers[name])
        return self._arrays[name]

    def __deepcopy__(self, _memo: dict[int, object]) -> File:
        return self


class OnnxNetwork(nn.Module):
    """An ONNX model that computes in torch.

    Args:
        model: with its constants folded. It is not changed.

    Raises:
        ModelError: a type of tensor that torch does not have.
    """

    def __init__(self, model: onnx.ModelProto):
        super().__init__()
        self.file = File(model)
        self._shared: dict[tuple[str, ...], Tensor] = {}
        opsets = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
        nodes = model.graph.node
        read = {name for node in nodes for name in (*node.input, *outer_names(node))} | set(self.file.returned)
        for position, proto in enumerate(nodes):
            count = max((i + 1 for i, name in enumerate(proto.output) if name in read), default=1)
            name = proto.name or f"{proto.op_type}_{position}"
            given = {} if has_subgraph(proto) else attributes(proto)
            self._add(proto, Node(proto.op_type, name, given, self.file.opset, count, len(proto.output)), opsets)

    def channels_read(self, name: str) -> int | None:
        """How many channels the layers read that an input of the network enters; ``None`` where none does."""
        for node in self.file.nodes.values():
            if node.op_type == "Conv" and node.input[0] == name and node.input[1] in self.file.initializers:
                return int(self.file.initializers[node.input[1]].dims[1] * attributes(node).get("group", 1))
        return None

    # --- building ----------------------------------------------------------------------------------------------------

    def _add(self, proto: onnx.NodeProto, node: Node, opsets: onnx.ModelProto) -> None:
        stored = {
            i: to_torch(self.file.initializers[name])
            for i, name in enumerate(proto.input)
            if self._is_tensor(proto, i, name)
        }
        layer = layer_of(node, stored, len(proto.input)) if proto.domain in DEFAULT_DOMAINS else None
        path = self._path(proto, node, is_layer=layer is not None)
        if layer is not None:
            owner = path if node.op == "BatchNormalization" else proto.input[1]
            for position, attribute in LAYERS[node.op][1].items():
                if position in stored:
                    flip = position == 1 and isinstance(layer, nn.Linear) and is_transposed(node)
                    value = self._weight(proto.input[position], stored[position], owner, flip=flip)
                    _register(layer, attribute, value, buffer=attribute.startswith("running"))
                    self.file.sources[f"{path}.{attribute}"] = Source(proto.input[position], flip)
        else:
            layer = Operation(proto, node, opsets)
            for position, tensor in stored.items():
                picks = node.op in PICKING and position == 1
                value = tensor.long() if picks else tensor  # what torch picks by: a cast would hide that it is fixed
                _register(layer, f"input_{position}", value.clone(), buffer=not tensor.is_floating_point())
                self.file.sources[f"{path}.input_{position}"] = Source(proto.input[position])
        holder: nn.Module = self
        *parents, last = path.split(".")
        for part in parents:
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        holder.add_module(last, layer)
        self.file.nodes[path] = proto

    def _is_tensor(self, proto: onnx.NodeProto, position: int, name: str) -> bool:
        if name not in self.file.initializers:
            return False
        op = OPS.get(proto.op_type) if proto.domain in DEFAULT_DOMAINS else None
        is_number = proto.op_type == "Gather" and position == 1 and not self.file.initializers[name].dims
        return op is None or not (is_number or position in op.static)

    def _weight(self, name: str, tensor: Tensor, owner: str, *, flip: bool) -> Tensor:
        """A layer's parameter. Layers that share a weight share it here, and a bias that they share as well.

        Other tensors that the file stores once, since they happen to be equal, belong to each layer for itself.
        """
        key = (name, owner, str(flip))
        if key not in self._shared:
            value = (tensor.t() if flip else tensor).clone(memory_format=torch.contiguous_format)
            self._shared[key] = nn.Parameter(value, requires_grad=False)
        return self._shared[key]

    def _path(self, proto: onnx.NodeProto, node: Node, *, is_layer: bool) -> str:
        """Where an operation stands: by the name of its weight, where that is a path; else by its own name."""
        found = re.fullmatch(r"((?:\w+\.)*\w+)\.weight", proto.input[1], re.ASCII) if is_layer else None
        if found is not None and self._is_free(found[1]):
            return found[1]
        plain = node.name.replace(".", "_")
        candidate, number = plain, 1
        while not self._is_free(candidate):
            number += 1
            candidate = f"{plain}_{number}"
        return candidate

    def _is_free(self, path: str) -> bool:
        """Whether nothing stands at a path, and no operation above it."""
        holder: nn.Module = self
        *parents, last = path.split(".")
        for part in parents:
            if not hasattr(holder, part):
                return True
            holder = getattr(holder, part)
            if type(holder) is not nn.Module:
                return False
        return not hasattr(holder, last)

    # --- running -----------------------------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs, in the order of the file.

        Raises:
            ValueError: an input of another shape than the file declares.
        """
        self._check(inputs)
        env: dict[str, Any] = dict(zip((value.name for value in self.file.declared), inputs, strict=True))
        self.file.statics, self.file.computed, self.file.aliases = {}, {}, {}
        precisions = {p.dtype for p in self.parameters() if p.is_floating_point()}
        self.file.double = precisions == {torch.float64}
        for path, proto in self.file.nodes.items():
            results = self._run(path, proto, env)
            env |= {name: value for name, value in zip(proto.output, results, strict=False) if name}
        return [self._returned(env, name) for name in self.file.returned]

    def _run(self, path: str, proto: onnx.NodeProto, env: Mapping[str, Any]) -> Sequence[Any]:
        module, file = self.get_submodule(path), self.file
        if not isinstance(module, Operation):
            (x,) = tensors(self._value(module, 0, proto.input[0], env))
            return [module(x)]
        values: list[Any] = [self._value(module, i, name, env) for i, name in enumerate(proto.input)]
        outer = {name: env[name] if name in env else file.array(name) for name in outer_names(proto)}
        if proto.op_type in SHAPES and proto.domain in DEFAULT_DOMAINS and isinstance(values[0], Tensor):
            results = [shape_value(proto, [int(size) for size in values[0].shape])]
        elif not any(isinstance(v, Tensor) for v in (*values, *outer.values())) and not has_subgraph(proto):
            results = file.evaluator.run(proto, values)
        else:
            file.statics[path] = {i: v for i, v in enumerate(values) if isinstance(v, np.ndarray)}
            found: Any = module(values, outer, double=file.double)
            returned: list[Any] = list(found) if isinstance(found, (tuple, list)) else [found]
            for name, value in zip(proto.input, values, strict=True):
                if isinstance(value, Tensor) and returned[0] is value:
                    file.aliases[proto.output[0]] = name
            return returned
        file.computed |= {name: value for name, value in zip(proto.output, results, strict=False) if name}
        return results

    def _value(self, module: nn.Module, position: int, name: str, env: Mapping[str, Any]) -> Any:
        if name in env or not name:
            return env.get(name)
        if isinstance(module, Operation) and hasattr(module, f"input_{position}"):
            computes = module.op is None or any(isinstance(env.get(other), Tensor) for other in module.proto.input)
            if computes:  # else it is arithmetic on numbers
                return getattr(module, f"input_{position}")
        return self.file.array(name)

    def _returned(self, env: Mapping[str, Any], name: str) -> Tensor:
        value = env[name] if name in env else self.file.array(name)
        return value if isinstance(value, Tensor) else made(value)

    def _check(self, inputs: Sequence[Tensor]) -> None:
        if len(inputs) != len(self.file.declared):
            raise ValueError(f"{len(inputs)} inputs, the file declares {len(self.file.declared)}")
        sizes: dict[str, int] = {}
        for x, declared in zip(inputs, self.file.declared, strict=True):
            dims = declared.type.tensor_type.shape.dim
            for size, dim in zip(x.shape, dims, strict=True):
                fixed = sizes.get(dim.dim_param) if (own := fixed_size(dim)) is None else own
                if fixed is not None and int(size) != fixed:
                    raise ValueError(f"{declared.name} has shape {tuple(x.shape)}, the file declares {fixed} there")
                if dim.dim_param:
                    sizes[dim.dim_param] = int(size)


def input_dtype(value: onnx.ValueInfoProto) -> torch.dtype:
    """Torch's type of an input.

    Raises:
        ModelError: a type that torch does not have.
    """
    try:
        return torch_dtype(value.type.tensor_type.elem_type)
    except Unhandled as error:
        raise ModelError(f"the input {value.name} has {error}, which can't be followed.") from None


def fixed_size(dim: Any) -> int | None:
    """The size that a file declares for a dimension; ``None`` for an open one, which some exporters write as -1."""
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else None


def to_torch(tensor: onnx.TensorProto) -> Tensor:
    """The values of an initializer.

    Raises:
        ModelError: a type that torch does not have.
    """
    try:
        dtype = torch_dtype(tensor.data_type)
    except Unhandled as error:
        raise ModelError(f"{tensor.name} holds {error}, which can't be followed.") from None
    array = numpy_helper.to_array(tensor)
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _register(module: nn.Module, name: str, value: Tensor, *, buffer: bool) -> None:
    if buffer:
        module.register_buffer(name, value.detach())
    else:
        module.register_parameter(name, value if isinstance(value, nn.Parameter) else nn.Parameter(value, False))
