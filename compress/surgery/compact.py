"""``compact``: remove what is zero, lose nothing, prove it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from compress.errors import ConfigError, ConstantOutputError, ModelError, VerificationError
from compress.files import write_json
from compress.graph import ChannelGraph, Consumer, channel_graph, graph_of, trace
from compress.surgery.apply import apply_, make_plan, replace_constants_
from compress.surgery.bake import baked_copy, private_copy
from compress.surgery.dead import Decision, dead_by_weight, find_dead
from compress.surgery.plan import Plan, weights_hash
from compress.surgery.select import may_select, worth_selecting
from compress.surgery.verify import (
    Agreement,
    certify,
    changed_operations,
    failing_module,
    mixed_channels,
    other_sizes,
    random_inputs,
    runs_the_same,
)

Select = Literal["auto", "never", "always"]


@dataclass(frozen=True)
class LayerWidth:
    """Output channels of one layer.

    Attributes:
        before: channels of the original; ``after`` of the compact network.
        dead: channels of the original whose filters are all zero.
        kept: for dead channels that stay, each reason and how many channels it holds.
    """

    before: int
    after: int
    dead: int
    kept: dict[str, int]


@dataclass(frozen=True)
class CompactReport:
    """What surgery did, and the certificate that it changed nothing.

    Attributes:
        params_before: parameters of the original; ``params_after`` of the compact network.
        macs_before: multiply-accumulates for the example inputs as given; ``macs_after`` likewise.
        max_abs_error: largest output difference of all comparisons in the network's own precision.
        max_relative_error: the same relative to the original's largest output.
        max_exact_error: largest relative difference in float64; ``None`` where the model has no float64 form.
        agreements: every comparison.
        layers: widths by layer.
        selections: path of each BatchNorm that reads only some of the channels -> (how many, of how many).
        constant_layers: paths of the layers that were replaced by their constant.
    """

    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    max_abs_error: float
    max_relative_error: float
    max_exact_error: float | None
    agreements: tuple[Agreement, ...]
    layers: dict[str, LayerWidth]
    selections: dict[str, tuple[int, int]]
    constant_layers: tuple[str, ...]

    @property
    def kept(self) -> dict[str, str]:
        """Layer -> why dead channels of it stay, in words."""
        return {
            layer: "; ".join(
                f"{count} {'channel' if count == 1 else 'channels'}: {why}" for why, count in w.kept.items()
            )
            for layer, w in self.layers.items()
            if w.kept
        }

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {**dataclasses.asdict(self), "kept": self.kept}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON; the file appears whole or not at all."""
        write_json(Path(path), self.to_dict())


@dataclass(frozen=True)
class CompactResult:
    """The compact network, the plan that makes it, and the report."""

    model: nn.Module
    plan: Plan
    report: CompactReport


def compact(
    model: nn.Module, example_inputs: tuple[Tensor, ...], *, fold: bool = True, select: Select = "auto"
) -> CompactResult:
    """Remove every dead channel that can leave without a trace.

    Args:
        model: the network, with exact zeros; it is not changed.
        example_inputs: one tensor for each argument of ``forward``; with batch size 1, so that multiply-accumulates are
            counted for one sample.
        fold: whether constants other than 0 may be folded into what reads them. Without, only channels that are 0, or
            that nobody reads, leave: then the two networks agree in training mode too.
        select: in pre-activation networks a channel may be dead for one BatchNorm and alive for other readers. An index
            in front of that BatchNorm then picks the channels that it reads: ``"auto"`` where this saves more than it
            costs, ``"never"``, or ``"always"`` where a channel can be left out.

    Returns:
        A network of the same class, equal to ``model`` in evaluation mode, with plan and report.

    Raises:
        ModelError: the model can't be traced.
        ConstantOutputError: its output is the same for every input.
        VerificationError: the compact network computes something else. It is not returned.
        ConfigError: an unknown value of ``select``.
    """
    if select not in get_args(Select):
        raise ConfigError(f"select={select!r}; known: {', '.join(get_args(Select))}.")
    with torch.no_grad():
        plain = baked_copy(model)
        graph = _analyse(plain, example_inputs, fold=fold, select=select)
        cut, agreements = _certified_cut(model, plain, graph, example_inputs, fold=fold)
    plan = dataclasses.replace(
        cut.plan, hash_before=weights_hash(plain.state_dict()), hash_after=weights_hash(cut.model.state_dict())
    )
    exact = [a.max_relative_error for a in agreements if a.dtype == "float64"]
    own = [a for a in agreements if a.dtype == agreements[0].dtype]  # the network's own precision comes first
    report = CompactReport(
        params_before=sum(p.numel() for p in plain.parameters()),
        params_after=sum(p.numel() for p in cut.model.parameters()),
        macs_before=graph.macs,
        macs_after=cut.graph.macs - sum(cut.graph.layer_macs.get(f"{path}.weight", 0) for path in plan.constant_layers),
        max_abs_error=max(a.max_abs_error for a in own),
        max_relative_error=max(a.max_relative_error for a in own),
        max_exact_error=max(exact) if exact else None,
        agreements=tuple(agreements),
        layers=_widths(cut),
        selections={
            path: (len(positions), int((~cut.decision.removed[selection.inputs]).sum()))
            for selection in cut.before.selections
            for path, positions in plan.selections.items()
            if path == selection.mean.rpartition(".")[0]
        },
        constant_layers=plan.constant_layers,
    )
    return CompactResult(cut.model, plan, report)


def _analyse(plain: nn.Module, example_inputs: tuple[Tensor, ...], *, fold: bool, select: Select) -> ChannelGraph:
    """The graph that surgery works on: with the constants of another input size, and with channel selection."""
    traced = trace(plain, example_inputs)
    graph = graph_of(plain, traced)
    if graph.constant_output:
        raise _nothing_left(plain, graph)
    elsewhere = _consumers_elsewhere(plain, example_inputs) if graph.depends_on_size else ()
    graph = dataclasses.replace(graph, elsewhere=elsewhere)
    if select == "never" or not may_select(graph, find_dead(graph, fold=fold)):
        return graph

    def selecting(means: Collection[str]) -> ChannelGraph:
        return dataclasses.replace(graph_of(plain, traced, select=means), elsewhere=elsewhere)

    every = selecting(graph.norms)
    chosen = worth_selecting(every, find_dead(every, fold=fold), at_any_cost=select == "always")
    return selecting(chosen) if chosen else graph


def _nothing_left(plain: nn.Module, graph: ChannelGraph) -> ConstantOutputError:
    dead = dead_by_weight(graph)
    empty = tuple(
        name.removesuffix(".weight")
        for (name, dim), classes in graph.out_slices().items()
        if graph.tensors[name].ndim > 1 and dim == 0 and bool(dead[classes].all())
    )
    named = ", ".join(empty[:3]) + (f" and {len(empty) - 3} more layers" if len(empty) > 3 else "")
    return ConstantOutputError(
        f"the output of this {type(plain).__name__} no longer depends on its input: no filter is left in "
        f"{named or 'any path'}. Train with a smaller strength, or prune less.",
        empty,
    )


def _consumers_elsewhere(plain: nn.Module, example_inputs: tuple[Tensor, ...]) -> tuple[Consumer, ...]:
    """What layers read at another input size, where ``forward`` does something else there.

    Where it runs the same operations, or where the network takes only one size, constants hold as they are.
    """
    for shapes in other_sizes(example_inputs):
        inputs = random_inputs(example_inputs, shapes, seed=0)
        try:
            return () if runs_the_same(plain, example_inputs, inputs) else channel_graph(plain, inputs).consumers
        except ModelError:
            continue
    return ()


@dataclass(frozen=True)
class _Cut:
    """A cut network that passed the type check, the graphs before and after, and why some classes were pinned."""

    model: nn.Module
    plan: Plan
    before: ChannelGraph
    graph: ChannelGraph
    decision: Decision
    pinned: dict[int, str]


def _certified_cut(
    model: nn.Module, plain: nn.Module, graph: ChannelGraph, example_inputs: tuple[Tensor, ...], *, fold: bool
) -> tuple[_Cut, list[Agreement]]:
    """Cut and compare; where folded constants do not hold at every input size, cut only zeros."""
    for constants in (True, False) if fold else (False,):
        cut = _cut(plain, graph, example_inputs, fold=constants)
        try:
            return cut, certify(private_copy(model), cut.model, _double_twin(plain, cut), example_inputs)
        except VerificationError:
            if not cut.decision.folds:
                raise
    raise AssertionError("without folds the loop returns or raises")


def _cut(plain: nn.Module, graph: ChannelGraph, example_inputs: tuple[Tensor, ...], *, fold: bool) -> _Cut:
    """Cut, type-check, and pin what does not pass; in the end nothing is cut."""
    pinned: dict[int, str] = {}
    while True:
        stay = torch.zeros(graph.classes.count, dtype=torch.bool)
        stay[list(pinned)] = True
        decision = find_dead(graph, pinned=stay, fold=fold)
        plan = make_plan(plain, graph, decision)
        small = private_copy(plain)
        apply_(small, decision, plan)
        after = _graph_or_none(small, example_inputs, plan)
        suspects, why = _suspects(graph, after, small, example_inputs, plan)
        if after is not None and not bool(suspects[0].any()):
            plan = replace_constants_(small, after, plan)
            return _Cut(small, plan, graph, after, decision, pinned)
        if not bool(decision.removed.any()):
            raise ModelError(
                f"two traces of the same {type(plain).__name__} differ: its forward does something else at every call. "
                "Make it repeatable in evaluation mode."
            )
        new = next(some for some in suspects if bool((some & decision.removed).any()))
        pinned |= dict.fromkeys((new & ~stay).nonzero().flatten().tolist(), why)


def _neighbours(graph: ChannelGraph, classes: Tensor) -> Tensor:
    """Bool ``[classes]``: all that share a parameter's dimension with one of ``classes``.

    Where channels are cut unevenly it is those that stay which get mixed up.
    """
    found = classes.clone()
    for dims in graph.classes.parameters.values():
        for along in dims.values():
            if bool(classes[along].any()):
                found[along] = True
    return found


def _graph_or_none(small: nn.Module, example_inputs: tuple[Tensor, ...], plan: Plan) -> ChannelGraph | None:
    """The graph of a cut network; ``None`` where its forward does not run with fewer channels."""
    try:
        return channel_graph(small, example_inputs, select=[f"{path}.running_mean" for path in plan.selections])
    except ModelError:
        return None


def _suspects(
    graph: ChannelGraph, after: ChannelGraph | None, small: nn.Module, inputs: tuple[Tensor, ...], plan: Plan
) -> tuple[tuple[Tensor, ...], str]:
    """Classes that must not be cut like this, bool ``[classes]`` each, from the likeliest to all; and why."""
    every = torch.ones_like(graph.sized)
    if after is None:
        here = torch.zeros_like(graph.sized)
        failing = failing_module(small, inputs)
        for operation in graph.operations:
            if operation.where == failing:
                here[operation.classes[operation.classes >= 0]] = True
        why = "forward splits its channels, or holds their number as a literal"
        return (here & graph.sized, graph.sized, here, every), why
    changed = changed_operations(graph, after, plan)
    if bool(changed.any()):
        return (changed, _neighbours(graph, changed), every), "forward computes with its number of channels"
    mixed = mixed_channels(graph, after, plan)
    why = "cut unevenly where forward splits, shuffles or mixes channels"
    return (mixed, _neighbours(graph, mixed), every), why


def _double_twin(plain: nn.Module, cut: _Cut) -> nn.Module | None:
    """The same surgery on a float64 copy; ``None`` for a network that is float64 already."""
    if all(p.dtype == torch.float64 for p in plain.parameters()):
        return None
    twin = private_copy(plain).double()
    apply_(twin, cut.decision, dataclasses.replace(cut.plan, constant_layers=()))
    replace_constants_(twin, cut.graph, cut.plan)
    return twin


def _widths(cut: _Cut) -> dict[str, LayerWidth]:
    graph, decision = cut.before, cut.decision
    dead = dead_by_weight(graph)
    widths: dict[str, LayerWidth] = {}
    for (name, dim), classes in graph.out_slices().items():
        if graph.tensors[name].ndim < 2 or dim != 0:
            continue
        kept: dict[str, int] = {}
        for cls in classes[dead[classes] & ~decision.removed[classes]].tolist():
            reason = _reason(cls, cut)
            kept[reason] = kept.get(reason, 0) + 1
        after = int((~decision.removed[classes]).sum())
        widths[name.removesuffix(".weight")] = LayerWidth(classes.numel(), after, int(dead[classes].sum()), kept)
    return widths


def _reason(cls: int, cut: _Cut) -> str:
    if cls in cut.decision.kept:
        return cut.decision.kept[cls]
    if cls in cut.before.classes.reasons:
        return "; ".join(cut.before.classes.reasons[cls])
    return cut.pinned.get(cls, "its constant reaches a layer in a form that cannot be folded")
