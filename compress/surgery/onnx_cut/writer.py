"""From a cut graph back to the ONNX file that it came from.

Each operation of the file became a few ATen operations, which the cut wrote anew. Where these are the same, the
operation of the file stays, with smaller weights, and with channels picked in front of it where that is needed. Where
they hold other numbers of channels, the numbers of the file follow. Where picks stand in for it, they are written in
its place. All that is proved by the cut; what can't be said in ONNX is refused, and its channels stay.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from compress.errors import ModelError
from compress.graph.aten.labels import place
from compress.graph.aten.ops import BATCH_NORM, CONVOLUTION, CONVOLUTION_TRANSPOSED, named
from compress.graph.aten.trace import CHECKS, base_name
from compress.graph.onnx import OnnxNetwork
from compress.graph.onnx.layers import LAYERS
from compress.graph.onnx.order import outer_names
from compress.graph.onnx.statics import SHAPES, Array, shape_value
from compress.surgery.graph_cut import GraphCut
from compress.surgery.graph_cut.state import Constant, Pick
from compress.surgery.onnx_cut.emit import EMIT, SELF_SIZED, SIZED, Unwritable, resized
from compress.surgery.onnx_cut.model import Builder
from compress.surgery.onnx_cut.numbers import numbers_at
from compress.surgery.onnx_cut.shapes import Shapes, Sizes

HELPERS = frozenset(("slice", "Pick"))
"""What a cut puts in front of an operation to pick channels."""

RENAMING = frozenset(("alias", "detach", "lift_fresh", "lift_fresh_copy"))
"""What torch does to a tensor of positions before it is used: nothing."""

VIEWS = frozenset(("view", "reshape", "_unsafe_view"))


class Writer:
    """Writes one file.

    Args:
        model: the original, with its constants folded.
        network: the same as a module.
        cut: the cut graph of that, or of a copy with constants folded into it.
        moving: path -> position of an input that is made of numbers -> which of them follow the size of the inputs.
    """

    def __init__(
        self, model: onnx.ModelProto, network: OnnxNetwork, cut: GraphCut, moving: Mapping[str, Mapping[int, Array]]
    ):
        self.file, self.cut, self.moving = network.file, cut, moving
        self.builder = Builder(model)
        trace = cut.traced.trace
        self.inputs = [n for n in trace.graph.nodes if n.op == "placeholder" and n.name in trace.inputs]
        examples = [n.meta["val"] for n in self.inputs]
        self.statics, self.computed = numbers_at(network, [tuple(x.shape) for x in examples], examples)
        batch = int(examples[0].shape[0]) if examples and examples[0].ndim else 0
        batches = (batch, batch + 1) if cut.fixed_batch is None and batch else ()
        self.shapes = Shapes(cut.module, examples, batches)
        self.before = _by_path(trace.graph.nodes)
        self.after = _by_path(cut.module.graph.nodes)
        self.parameters = {n: trace.tensors[n.name][0] for n in trace.graph.nodes if n.name in trace.tensors}
        self.values: dict[str, fx.Node] = {}  # value of the file -> node of the trace
        self.names: dict[fx.Node, str] = {}  # node of the cut graph -> value of the new file
        self.numbers: dict[str, Array] = {}  # value that is made of numbers -> what it is in the new file

    def _reserve(self) -> None:
        """Initializers that are read as numbers, or by subgraphs, keep their names and values."""
        for path, proto in self.file.nodes.items():
            numbers = [proto.input[position] for position in self.statics.get(path, {})]
            computed = proto.input if all(name in self.computed for name in proto.output if name) else []
            for name in (*numbers, *computed, *outer_names(proto)):
                self.builder.reserve(name)
        for name in self.file.returned:
            self.builder.reserve(name)

    def write(self) -> onnx.ModelProto:
        """The new file.

        Raises:
            Unwritable: something that ONNX can't say.
        """
        self._reserve()
        for node, declared in zip(self.inputs, self.file.declared, strict=True):
            self.values[declared.name] = node
            self.names[self.cut.written[node]] = declared.name
        for path, proto in self.file.nodes.items():
            if all(name in self.computed for name in proto.output if name):
                self._compute(proto)
            elif proto.output[0] in self.file.aliases:
                self._alias(path, proto)
            elif path in self.before:
                self._note_results(path, proto)
                if path in self.after:
                    self._write(path, proto, self.before[path], self.after[path])
        self._return()
        sizes = {
            name: (_shape(node), self.shapes.of(self.cut.written[node]))
            for name, node in self.values.items()
            if node in self.cut.written
        }
        return self.builder.finish(sizes)

    # --- values ------------------------------------------------------------------------------------------------------

    def _note_results(self, path: str, proto: onnx.NodeProto) -> None:
        """Which node of the trace is which result of an operation."""
        nodes = self.before[path]
        if not isinstance(nodes[0].meta.get("val"), (tuple, list)):
            self.values[proto.output[0]] = nodes[-1]
            return
        for user in nodes[0].users:
            position = user.args[1] if base_name(user) == "getitem" else None
            if isinstance(position, int) and position < len(proto.output):
                self.values[proto.output[position]] = user

    def name(self, path: str, node: fx.Node) -> str:
        """The value of the new file that a node of the cut graph is."""
        if node in self.names:
            return self.names[node]
        if node.op == "get_attr" or isinstance(self.module(node), Constant):
            self.names[node] = self.builder.parameter(self.tensor(node), self._stored_name(str(node.target)))
            return self.names[node]
        raise Unwritable(path, f"{node.name} has no name")

    def _stored_name(self, target: str) -> str:
        source = self.file.sources.get(target)
        return self.builder.free("constant") if source is None else source.initializer

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self.cut.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def tensor(self, node: fx.Node) -> Tensor:
        """The tensor that a node stands for."""
        module = self.module(node)
        if isinstance(module, Constant):
            return module.value
        path, _, attribute = str(node.target).rpartition(".")
        found: Tensor = getattr(self.cut.module.get_submodule(path), attribute)
        return found

    def concrete(self, value: Any) -> Any:
        """An argument with every number that depends on the batch as it is at the traced size."""
        if isinstance(value, fx.Node) and not isinstance(self.shapes.of(value), (tuple, list)):
            return self.shapes.of(value)
        return value

    # --- what is made of numbers, and names for the same -------------------------------------------------------------

    def _compute(self, proto: onnx.NodeProto) -> None:
        """An operation on numbers: it stays; what it returns now, from smaller shapes, is noted."""
        node = onnx.NodeProto()
        node.CopyFrom(proto)
        if proto.op_type in SHAPES and proto.input[0] in self.values:
            source = self.cut.written.get(self.values[proto.input[0]])
            if source is None or source not in self.names:
                return
            node.input[0] = self.names[source]
            results = [shape_value(proto, self.shapes.of(source))]
        else:
            inputs = [self.number(name) for name in proto.input]
            if any(value is None for value, name in zip(inputs, proto.input, strict=True) if name):
                return
            try:
                results = self.file.evaluator.run(proto, inputs)
            except ModelError:  # an index beyond what is left: whoever reads this is given what it read before
                return
        self.builder.nodes.append(node)
        self.numbers |= {name: value for name, value in zip(proto.output, results, strict=False) if name}

    def number(self, name: str) -> Array | None:
        """What a value that is made of numbers is in the new file; ``None`` where that is not known."""
        if name in self.numbers or not name:
            return self.numbers.get(name)
        return self.file.array(name) if name in self.file.initializers else None

    def _alias(self, path: str, proto: onnx.NodeProto) -> None:
        """An operation that returns its input."""
        source = self.file.aliases[proto.output[0]]
        if source not in self.values:
            return
        self.values[proto.output[0]] = self.values[source]
        written = self.cut.written.get(self.values[source])
        if written in self.names:
            node = onnx.NodeProto()
            node.CopyFrom(proto)
            self._freeze(path, proto, node, None)
            node.input[list(proto.input).index(source)] = self.names[written]
            self.builder.nodes.append(node)
            self.names[written] = proto.output[0]

    # --- operations --------------------------------------------------------------------------------------------------

    def _write(self, path: str, proto: onnx.NodeProto, before: list[fx.Node], after: list[fx.Node]) -> None:
        lead, core = after[: -len(before)], after[-len(before) :]
        if len(core) == len(before) and all(_op(self, n) in HELPERS for n in lead):
            pairs = list(zip(before, core, strict=True))
            if all(_same_op(self, a, b) for a, b in pairs):
                differing = [(a, b) for a, b in pairs if not self._same_numbers(a, b)]
                if not differing or proto.op_type in SELF_SIZED | SIZED.keys():
                    self._emit(path, proto, lead)
                    self._keep(path, proto, pairs, differing=bool(differing))
                    return
        if any(bool(np.any(moves)) for moves in self.moving.get(path, {}).values()) and proto.op_type not in SIZED:
            raise Unwritable(path, "its numbers follow the size of the network's input")
        self._emit(path, proto, after)

    def _same_numbers(self, before: fx.Node, after: fx.Node) -> bool:
        """Whether an operation holds the numbers that it held, and makes as large a result where these are sizes."""
        if after.op == "call_module" or base_name(before) in LAYER_CALLS:
            return True
        if base_name(before) in VIEWS:
            return bool(_shape(before) == self.shapes.of(after))
        old, new = (tree_leaves((n.args, n.kwargs)) for n in (before, after))
        pairs = zip(old, map(self.concrete, new), strict=True) if len(old) == len(new) else [(0, 1)]
        return all(
            isinstance(a, fx.Node) == isinstance(b, fx.Node) and (isinstance(a, fx.Node) or a == b) for a, b in pairs
        )

    def _keep(
        self, path: str, proto: onnx.NodeProto, pairs: Sequence[tuple[fx.Node, fx.Node]], *, differing: bool
    ) -> None:
        """The operation of the file, on what is left of its inputs."""
        node = onnx.NodeProto()
        node.CopyFrom(proto)
        layer = next((m for _, w in pairs if (m := self.module(w)) is not None and not isinstance(m, Constant)), None)
        self._connect(path, node, pairs)
        if layer is not None:
            self._parametrise(path, node, layer, str(pairs[-1][1].target))
        elif base_name(pairs[-1][0]) in LAYER_CALLS:
            self._parametrise_call(node, pairs[-1][1])
        position = SIZED.get(proto.op_type)
        if proto.op_type == "Resize":  # by factors, or by sizes, of which one is the number of channels
            position = position if position in self.statics.get(path, {}) else None
            differing = _shape(pairs[-1][0]) != self.shapes.of(pairs[-1][1])
        self._freeze(path, proto, node, position)
        if position is not None and (differing or self._follows(path, proto, position)):
            name = resized(self, path, proto, *pairs[-1])
            while len(node.input) <= position:
                node.input.append("")
            node.input[position] = name
            for attribute in [a for a in node.attribute if a.name == "num_outputs"]:
                node.attribute.remove(attribute)
        self._require_outer(path, node)
        self._append(node, layer)
        self._name_results(proto, [w for _, w in pairs])

    def _follows(self, path: str, proto: onnx.NodeProto, position: int) -> bool:
        """Whether the file computes other sizes now, from shapes that became smaller."""
        old = self.statics.get(path, {}).get(position)
        new = self.number(proto.input[position]) if old is not None else None
        return old is not None and (new is None or not np.array_equal(old, new))

    def _append(self, node: onnx.NodeProto, layer: nn.Module | None) -> None:
        """Add it; a product of matrices has no bias, and is followed by a sum where it was given one."""
        bias = getattr(layer, "bias", None)
        if node.op_type == "MatMul" and isinstance(bias, Tensor):
            output, name = node.output[0], self.builder.parameter(bias, f"{node.input[1]}_bias")
            node.output[0] = self.builder.free(f"{output}_product")
            self.builder.nodes.append(node)
            self.builder.node("Add", [node.output[0], name], output)
        else:
            self.builder.nodes.append(node)

    def _name_results(self, proto: onnx.NodeProto, written: Sequence[fx.Node]) -> None:
        items = [w for w in written if base_name(w) == "getitem"]
        if not items or proto.op_type in LAYERS:
            self.names |= dict.fromkeys(written, proto.output[0])
        for item in items:
            if isinstance(position := item.args[1], int) and position < len(proto.output):
                self.names[item] = proto.output[position]

    def _connect(self, path: str, node: onnx.NodeProto, pairs: Sequence[tuple[fx.Node, fx.Node]]) -> None:
        """Let it read the values of the new file that stand for its inputs."""
        own = {before for before, _ in pairs}
        positions: dict[fx.Node, list[int]] = {}
        for position, name in enumerate(node.input):
            if name in self.values:
                positions.setdefault(self.values[name], []).append(position)
        stored = {name: n for n, name in self.parameters.items()}
        for position in range(len(node.input)):
            if (parameter := stored.get(f"{path}.input_{position}")) is not None:
                positions.setdefault(parameter, []).append(position)
        for before, after in pairs:
            old, new = tree_leaves((before.args, before.kwargs)), tree_leaves((after.args, after.kwargs))
            for a, b in zip(old, new, strict=False):
                if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or a in own:
                    continue
                for position in positions.get(a, ()):
                    node.input[position] = self.name(path, b)

    def _parametrise(self, path: str, node: onnx.NodeProto, layer: nn.Module, target: str) -> None:
        """The parameters of a layer, and its number of groups."""
        for position, attribute in LAYERS[node.op_type][1].items():
            tensor = getattr(layer, attribute, None)
            if not isinstance(tensor, Tensor):
                continue
            source = self.file.sources.get(f"{path}.{attribute}") or self.file.sources.get(f"{target}.{attribute}")
            name = f"{node.input[1]}_{attribute}" if source is None else source.initializer
            flip = source is not None and source.transposed
            while len(node.input) <= position:
                node.input.append("")
            node.input[position] = self.builder.parameter(tensor.t() if flip else tensor, name)
        if isinstance(groups := getattr(layer, "groups", None), int):
            _set_groups(node, groups)

    def _parametrise_call(self, node: onnx.NodeProto, call: fx.Node) -> None:
        """The same for a layer that shares parameters, and was written as a call."""
        for position in range(1, len(node.input)):
            argument = call.args[position] if len(call.args) > position else None
            if isinstance(argument, fx.Node):
                source = self.file.sources.get(str(argument.target))
                tensor = self.tensor(argument)
                flip = source is not None and source.transposed
                node.input[position] = self.builder.parameter(
                    tensor.t() if flip else tensor, self._stored_name(str(argument.target))
                )
        if base_name(call) in GROUPS:
            groups = call.args[GROUPS[base_name(call)]] if len(call.args) > GROUPS[base_name(call)] else 1
            assert isinstance(groups, int)
            _set_groups(node, groups)

    def _freeze(self, path: str, proto: onnx.NodeProto, node: onnx.NodeProto, sizes: int | None) -> None:
        """Numbers that would follow the channels, though the operation is the same: they stay as they were."""
        for position, old in self.statics.get(path, {}).items():
            name = proto.input[position]
            if position == sizes or name in self.file.initializers:
                continue
            new = self.number(name)
            if new is not None and np.array_equal(new, old):
                continue
            if bool(np.any(self.moving.get(path, {}).get(position, False))):
                raise Unwritable(path, "it computes with the number of channels, and with the size of its input")
            node.input[position] = self.builder.store(old, self.builder.free(name))

    def _require_outer(self, path: str, node: onnx.NodeProto) -> None:
        """What subgraphs read keeps its name."""
        for name in outer_names(node):
            if name in self.values:
                written = self.cut.written.get(self.values[name])
                if written is None or self.names.get(written) != name:
                    raise Unwritable(path, f"its subgraph reads {name}")

    def _emit(self, path: str, proto: onnx.NodeProto, written: Sequence[fx.Node]) -> None:
        """Write ATen operations that only move entries."""
        value = self.values.get(proto.output[0])
        result = None if value is None else self.cut.written.get(value)
        for node in written:
            rule = EMIT.get(_op(self, node))
            if rule is None:
                raise Unwritable(path, f"{_op(self, node)} of these channels")
            name = proto.output[0] if node is result else self.builder.free(f"{proto.output[0]}_cut")
            self.names[node] = name
            rule(self, path, proto, node, name)

    def _return(self) -> None:
        output = next(n for n in self.cut.module.graph.nodes if n.op == "output")
        for name, node in zip(self.file.returned, tree_leaves(output.args), strict=True):
            if name in self.numbers or name in self.file.initializers:
                continue
            found = self.name(name, node)
            if found != name:
                self.builder.node("Identity", [found], name)


LAYER_CALLS = frozenset((*CONVOLUTION.split(), *CONVOLUTION_TRANSPOSED.split(), "linear", *BATCH_NORM.split()))
"""Operations that a cut writes as modules where it can."""

GROUPS = named(6, f"{CONVOLUTION} {CONVOLUTION_TRANSPOSED}")
"""Operation -> which argument is the number of groups."""


def _by_path(nodes: Iterable[fx.Node]) -> dict[str, list[fx.Node]]:
    found: dict[str, list[fx.Node]] = {}
    for node in nodes:
        computes = node.op in ("call_function", "call_module") and base_name(node) not in RENAMING
        computes = computes and not base_name(node).startswith(CHECKS)
        if computes and node.meta.get("nn_module_stack") and not _is_part_of_norm(node):
            found.setdefault(place(node), []).append(node)
    return found


def _is_part_of_norm(node: fx.Node) -> bool:
    """Whether it takes the result of a BatchNorm in the form that returns statistics too; the module returns one."""
    source = node.args[0] if base_name(node) == "getitem" else None
    return isinstance(source, fx.Node) and base_name(source) in BATCH_NORM.split()


def _op(writer: Writer, node: fx.Node) -> str:
    module = writer.module(node)
    return base_name(node) if module is None else type(module).__name__


def _same_op(writer: Writer, before: fx.Node, after: fx.Node) -> bool:
    if after.op == "call_module":
        return base_name(before) in LAYER_CALLS and not isinstance(writer.module(after), (Pick, Constant))
    if before.target is operator.getitem or after.target is operator.getitem:
        return before.target is after.target
    return base_name(before) == base_name(after) or {base_name(before), base_name(after)} <= VIEWS


def _shape(node: fx.Node) -> Sizes:
    value = node.meta["val"]
    return tuple(int(size) for size in value.shape)


def _set_groups(node: onnx.NodeProto, groups: int) -> None:
    for attribute in node.attribute:
        if attribute.name == "group":
            attribute.i = groups
            return
    if groups != 1:
        node.attribute.append(onnx.helper.make_attribute("group", groups))
