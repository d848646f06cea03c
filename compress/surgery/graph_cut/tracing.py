"""A trace that can be trained again, at two batch sizes where the network allows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import TreeSpec

from compress.errors import ModelError
from compress.graph.aten.trace import (
    DROPOUT,
    Trace,
    _needs_functional_form,
    _quiet,
    _remove_idle_dropout,
    base_name,
    evaluating,
    inline_blocks,
    remove_unread,
    trace,
    write_out_of_place,
)
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
        self._known: dict[object, Traced] = {}

    def of(self, model: nn.Module, example_inputs: tuple[Tensor, ...], *, fixed: str = "") -> Traced:
        """Like ``trace_for_cutting``; for a network with the parameters and buffers of an earlier one, its trace.

        ``forward`` must be the same function, which only the network's class and attributes can tell: a cache is for
        copies of one network.
        """
        held = {n: t.detach() for n, t in model.named_parameters(remove_duplicate=False)}
        held |= dict(model.named_buffers(remove_duplicate=False))
        key = (
            *((n, tuple(t.shape), t.dtype, t.device) for n, t in held.items()),
            *((tuple(x.shape), x.dtype, x.device) for x in example_inputs),
            fixed,
        )
        if key not in self._known:
            self._known[key] = trace_for_cutting(model, example_inputs, fixed=fixed)
            return self._known[key]
        known = self._known[key]
        tensors = {node: (name, held.get(name, made)) for node, (name, made) in known.trace.tensors.items()}
        return dataclasses.replace(known, trace=dataclasses.replace(known.trace, tensors=tensors))


def _two(size: int) -> tuple[int, int]:
    """A batch of one hides what moves along the batch, and ``squeeze`` drops it: never trace with one."""
    return (2, 3) if size == 1 else (size, size + 1)


def _batch_of(inputs: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    return tuple(torch.cat([x] * (size // x.shape[0] + 1))[:size] for x in inputs)


def _export(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Trace, TreeSpec, tuple[str, ...]]:
    """Like ``trace``, but with the dropout that training needs, and the structure of the outputs."""
    with evaluating(model), torch.no_grad(), _quiet():
        try:
            program = torch.export.export(model, inputs)
        except Exception:  # whatever a user's forward raises
            trace(model, inputs)  # tells it in one line
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
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    _remove_idle_dropout(copy)
    return copy
