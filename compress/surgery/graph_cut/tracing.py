"""A trace that can be trained again, at two batch sizes where the network allows."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import TreeSpec, tree_leaves

from compress.errors import ModelError
from compress.graph.aten.record import Recording, record, state
from compress.graph.aten.trace import (
    DROPOUT,
    Trace,
    _needs_functional_form,
    _quiet,
    _remove_idle_dropout,
    base_name,
    evaluating,
    exported,
    inline_blocks,
    remove_unread,
    write_out_of_place,
)
from compress.graph.caches import unspoilt
from compress.surgery.graph_cut.batch import Batch, Static

SWITCHED = "torch.no_grad() within forward is not kept: in training gradients pass"
DROPPED = "dropout is not kept: forward writes in place to parts of tensors, and its graph holds none"


@dataclass(frozen=True)
class Traced:
    """A network ready to be cut.

    Attributes:
        trace: the graph, with dropout.
        batch: what tells its numbers with the batch size as a variable.
        outputs: the structure of what ``forward`` returns.
        notes: what the graph does not keep of the network, for the report.
        fixed_batch: the one batch size that the graph takes; ``None`` for any.
    """

    trace: Trace
    batch: Batch
    outputs: TreeSpec
    notes: tuple[str, ...]
    fixed_batch: int | None


def trace_for_cutting(model: nn.Module, example_inputs: tuple[Tensor, ...], *, fixed: str = "") -> Traced:
    """Trace at two batch sizes; where that fails, at the size of ``example_inputs`` alone.

    Args:
        model: the network.
        example_inputs: one tensor for each argument of ``forward``.
        fixed: why only the batch size of ``example_inputs`` will do, if so.

    Raises:
        ModelError: the model can't be captured, or writes to its buffers in ``forward``.
    """
    sizes = {x.shape[0] if x.ndim else 0 for x in example_inputs}
    size = max(sizes)
    why = fixed or f"the inputs have the batch sizes {sorted(sizes)}"
    if len(sizes) == 1 and size and not fixed:
        try:
            (first, outputs, notes), (twin, _, _) = (_export(model, _batch_of(example_inputs, n)) for n in _two(size))
            return Traced(first, Batch(first, twin, _two(size)[0]), outputs, notes, None)
        except (ModelError, Static) as reason:
            why = str(reason).splitlines()[0]
    only, outputs, notes = _export(model, example_inputs)
    return Traced(only, Batch(only, None, size), outputs, (*notes, f"the batch size stays {size}: {why}"), size)


class Traces:
    """Traces that were made, to be used again for other weights: tracing is most of what a cut takes."""

    def __init__(self) -> None:
        self._known: dict[object, list[tuple[tuple[torch.dtype, ...], Traced]]] = {}

    def of(self, model: nn.Module, example_inputs: tuple[Tensor, ...], *, fixed: str = "") -> Traced:
        """Like ``trace_for_cutting``; for a network with the parameters and buffers of an earlier one, its trace.

        Where it runs the same operations on the same numbers, also that of a network in another precision.
        ``forward`` must be the same function, which only the network's class and attributes can tell: a cache is for
        copies of one network.
        """
        held, known_once = _held(model), [name for name, _ in state(model)]
        tensors = (*held.values(), *example_inputs)
        sizes = ((tuple(t.shape), t.device, t.is_floating_point() or t.dtype) for t in tensors)
        key = (*held, *known_once, *sizes, fixed)
        precision = tuple(t.dtype for t in tensors)
        for made_in, known in self._known.get(key, ()):
            if made_in == precision or (
                _names_no_precision(known.trace) and _runs_alike(model, example_inputs, made_in)
            ):
                return _with_tensors(known, held)
        found = trace_for_cutting(model, example_inputs, fixed=fixed)
        self._known.setdefault(key, []).append((precision, found))
        return found


def _held(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, under all their names, and other tensors that are attributes of modules."""
    held = dict(model.named_parameters(remove_duplicate=False))
    return held | dict(model.named_buffers(remove_duplicate=False)) | dict(state(model))


def _with_tensors(known: Traced, held: Mapping[str, Tensor]) -> Traced:
    tensors = {node: (name, held.get(name, made).detach()) for node, (name, made) in known.trace.tensors.items()}
    return dataclasses.replace(known, trace=dataclasses.replace(known.trace, tensors=tensors))


def _names_no_precision(trace: Trace) -> bool:
    leaves = (leaf for node in trace.graph.nodes for leaf in tree_leaves((node.args, node.kwargs)))
    return not any(isinstance(leaf, torch.dtype) and leaf.is_floating_point for leaf in leaves)


def _runs_alike(model: nn.Module, example_inputs: tuple[Tensor, ...], precision: Collection[torch.dtype]) -> bool:
    """Whether a copy whose tensors and inputs have these types runs the same operations on the same numbers.

    A ``forward`` may ask for the type: ``torch.finfo(x.dtype).min``.
    """
    dtypes = iter(precision)
    with unspoilt(model), evaluating(model), torch.no_grad(), _quiet():
        try:
            twin = copy.deepcopy(model)
            for tensor in _held(twin).values():
                tensor.data = tensor.data.to(next(dtypes))
            inputs = tuple(x.to(dtype) for x, dtype in zip(example_inputs, dtypes, strict=True))
            return _operations(record(model, example_inputs), model) == _operations(record(twin, inputs), model)
        except Exception:  # whatever a copy of a user's network raises
            return False


def _operations(recording: Recording, model: nn.Module) -> list[tuple[str, str]]:
    """Operations and their arguments: nodes by their number, tensors that ``forward`` made of numbers by those."""
    held = dict(state(model))
    names: dict[fx.Node, Any] = {}
    for node in recording.graph.nodes:
        name, tensor = recording.tensors.get(node.name, (node.name, None))
        made = () if tensor is None else (str(tensor.dtype), tensor.tolist())
        names[node] = len(names) if tensor is None else name if name in held else made
    nodes = (node for node in recording.graph.nodes if node.op != "placeholder")
    return [(str(n.target), repr(fx.node.map_arg((n.args, n.kwargs), names.__getitem__))) for n in nodes]


def _two(size: int) -> tuple[int, int]:
    """A batch of one hides what moves along the batch, and ``squeeze`` drops it: never trace with one."""
    return (2, 3) if size == 1 else (size, size + 1)


def _batch_of(inputs: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    return tuple(torch.cat([x] * (size // x.shape[0] + 1))[:size] for x in inputs)


def _export(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Trace, TreeSpec, tuple[str, ...]]:
    """Like ``trace``, but with the dropout that training needs, and the structure of the outputs."""
    with unspoilt(model), evaluating(model), torch.no_grad(), _quiet():
        try:
            program = torch.export.export(model, inputs)
        except Exception:  # whatever a user's forward raises
            exported(model, inputs)  # tells it in one line
            raise
        notes: tuple[str, ...] = (SWITCHED,) if inline_blocks(program.graph_module) else ()
        write_out_of_place(program.graph)
        if _needs_functional_form(_without_dropout(program.graph)):
            drops = any(n.args[1] for n in program.graph.nodes if base_name(n) in DROPOUT.split())
            _remove_idle_dropout(program.graph)
            if drops:
                notes = (*notes, DROPPED)
            program = program.run_decompositions({})
        remove_unread(program.graph)
    written = [spec for spec in program.graph_signature.output_specs if spec.kind is not OutputKind.USER_OUTPUT]
    if written:
        raise ModelError(
            f"forward of {type(model).__name__} writes to {written[0].target or 'its input'} in evaluation mode; "
            "such a network cannot be returned as a graph."
        )
    tensors, names = {}, []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            names.append(spec.arg.name)
        elif spec.target is not None:
            source = program.constants if spec.target in program.constants else program.state_dict
            if isinstance(value := source[spec.target], Tensor):
                tensors[spec.arg.name] = (spec.target, value.detach())
    structure = program.call_spec.out_spec
    assert structure is not None
    return Trace(program.graph, tensors, tuple(names)), structure, notes


def _without_dropout(graph: fx.Graph) -> fx.Graph:
    bare = fx.Graph()
    bare.output(bare.graph_copy(graph, {}))
    _remove_idle_dropout(bare)
    return bare
