"""``compact``: remove what is zero, lose nothing, prove it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, fx, nn

from compress.errors import ConfigError, ModelError, VerificationError
from compress.graph import ChannelGraph, check_inputs
from compress.surgery.analyse import Select, analyse
from compress.surgery.bake import baked_copy, private_copy
from compress.surgery.cut import Cut, cut_class, cut_graph, double_twin
from compress.surgery.graph_cut import Traces, fix_samples_, fix_size_
from compress.surgery.input_sizes import all_sizes
from compress.surgery.plan import Plan, signature, weights_hash
from compress.surgery.report import CompactReport, report_of
from compress.surgery.rounding import check_round_to
from compress.surgery.running import in_double
from compress.surgery.stopwatch import Stopwatch
from compress.surgery.suspects import find_differing
from compress.surgery.verify import Agreement, certify, takes_every_batch
from compress.surgery.watch import Run, other_runs

Prefer = Literal["class", "graph", "smallest"]


@dataclass(frozen=True)
class CompactResult:
    """The compact network, the plan that makes it, and the report."""

    model: nn.Module
    plan: Plan
    report: CompactReport


def compact(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    fold: bool = True,
    select: Select = "auto",
    prefer: Prefer = "class",
    round_to: int = 1,
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
        prefer: the form of the result. ``"class"``: the class of ``model``, whose ``forward`` may hold numbers of
            channels that can't change. ``"graph"``: the traced graph, in which they are rewritten; it takes images of
            other sizes only where the traced sizes do not stand in it. ``"smallest"``: the class, unless the graph
            loses more channels.
        round_to: leave in dead channels until every layer's width is a multiple of this, or what it was: processors
            compute channels in blocks (8, or 16 with AVX-512, in ONNX Runtime), and a last block that is not full is no
            gain. 1 leaves in none.

    Returns:
        A network equal to ``model`` in evaluation mode, with plan and report, which says what form it has and why.

    Raises:
        ModelError: the model can't be traced.
        ConstantOutputError: its output is the same for every input.
        VerificationError: the compact network computes something else. It is not returned.
        ConfigError: an unknown value of ``select`` or ``prefer``, or a ``round_to`` below 1.
    """
    for name, value, known in (("select", select, get_args(Select)), ("prefer", prefer, get_args(Prefer))):
        if value not in known:
            raise ConfigError(f"{name}={value!r}; known: {', '.join(known)}.")
    check_round_to(round_to)
    check_inputs(example_inputs)
    with torch.no_grad():
        plain = baked_copy(model)
        watch = Stopwatch()
        with watch.stage("analysis"):
            runs = other_runs(plain, example_inputs)
            graph = analyse(plain, example_inputs, runs, fold=fold, select=select)
        task = _Task(model, plain, graph, example_inputs, runs, fold, round_to, watch)
        certified = {"class": _in_class, "graph": _as_graph, "smallest": _smallest}[prefer](task)
    cut = certified.cut
    plan = dataclasses.replace(
        cut.plan, hash_before=weights_hash(plain.state_dict()), hash_after=weights_hash(cut.model.state_dict())
    )
    report = report_of(plain, cut, certified.agreements, watch.seconds(), more_removed=certified.more_removed)
    return CompactResult(cut.model, plan, report)


@dataclass(frozen=True)
class _Task:
    """What is to be cut: the model as it was given, in plain form, and its graph."""

    model: nn.Module
    plain: nn.Module
    graph: ChannelGraph
    example_inputs: tuple[Tensor, ...]
    runs: list[Run]
    fold: bool
    round_to: int
    watch: Stopwatch
    traces: Traces = field(default_factory=Traces)


@dataclass(frozen=True)
class _Certified:
    """A cut that was verified; ``more_removed`` than in the other form, where both were tried."""

    cut: Cut
    agreements: list[Agreement]
    more_removed: int | None = None


def _in_class(task: _Task) -> _Certified:
    return _certified(task, "class")


def _as_graph(task: _Task) -> _Certified:
    return _certified(task, "graph")


def _smallest(task: _Task) -> _Certified:
    """The class, unless something stays for its sake and a graph without that can be made."""
    own = _in_class(task)
    if not own.cut.pinned:
        return own
    try:
        other = _as_graph(task)
    except (ModelError, VerificationError) as error:
        notes = (*own.cut.notes, f"no graph without these channels could be made: {error}")
        return dataclasses.replace(own, cut=dataclasses.replace(own.cut, notes=notes))
    more = _channels(own.cut.after) - _channels(other.cut.after)
    fewer = _parameters(other.cut.model) < _parameters(own.cut.model)
    return dataclasses.replace(other, more_removed=more) if more > 0 and fewer else own


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _channels(graph: ChannelGraph) -> int:
    """Output channels of all layers."""
    return sum(c.numel() for (name, dim), c in graph.out_slices().items() if graph.tensors[name].ndim > 1)


def _certified(task: _Task, form: Literal["class", "graph"]) -> _Certified:
    """Cut and compare; what a class can't lose without another output stays, until the two agree."""
    pinned: dict[int, str] = {}
    while True:
        found = _tried(task, form, pinned)
        if isinstance(found, _Certified):
            return found
        removed = found.cut.decision.removed
        if form == "graph" or not bool(removed.any()) or not _repeatable(task):
            raise found.error
        suspects = find_differing(task.graph, removed, *found.networks, found.inputs)
        pinned |= suspects.pins(removed, pinned)


@dataclass(frozen=True)
class _Differs:
    """A cut that computes something else: the error, both networks in the same precision, and inputs in that."""

    cut: Cut
    error: VerificationError
    networks: tuple[nn.Module, nn.Module]
    inputs: tuple[Tensor, ...]


def _tried(task: _Task, form: Literal["class", "graph"], pinned: dict[int, str]) -> _Certified | _Differs:
    """Cut and compare; on failure without constant layers, and then without folded constants: cut only zeros.

    A graph that fails in every way is tried for the given size alone: numbers in it may follow from the size.
    """
    ways = ((True, True), (True, False), (False, False)) if task.fold else ((False, True), (False, False))
    tries = [(*way, fixed) for fixed in ((False,) if form == "class" else (False, True)) for way in ways]
    for fold, replace, fixed in tries:
        with task.watch.stage("cut"):
            cutting = cut_class if form == "class" else partial(cut_graph, traces=task.traces)
            make = partial(cutting, fold=fold, replace=replace, pinned=pinned, round_to=task.round_to)
            cut = make(task.plain, task.graph, task.example_inputs, task.watch)
        with task.watch.stage("comparison"):
            twin, original = double_twin(task.plain, cut, task.example_inputs, task.traces), private_copy(task.model)
            tested = private_copy(cut.model)  # a forward may write to buffers
            any_samples = form == "class" or (
                cut.fixed_batch is None and takes_every_batch(original, tested, task.example_inputs)
            )
            try:
                agreements = certify(
                    original, tested, twin, task.example_inputs,
                    any_size=form == "class", only_given=fixed, any_samples=any_samples, runs=task.runs,
                )  # fmt: skip
            except VerificationError as error:
                if cut.decision.folds or cut.plan.constant_layers or (form == "graph" and not fixed):
                    continue
                plain = private_copy(task.plain)
                if twin is None:
                    return _Differs(cut, error, (plain, tested), task.example_inputs)
                return _Differs(cut, error, (plain.double(), twin), in_double(task.example_inputs))
        if not any_samples:
            cut = _for_given_samples(cut, task.example_inputs)
        return _Certified(_for_given_size(cut, agreements, task.example_inputs), agreements)
    raise AssertionError("without folds the loop returns")


def _repeatable(task: _Task) -> bool:
    """Whether the network agrees with itself; else no other could agree with it."""
    try:
        certify(private_copy(task.model), private_copy(task.model), None, task.example_inputs)
    except VerificationError:
        return False
    return True


def _for_given_samples(cut: Cut, example_inputs: tuple[Tensor, ...]) -> Cut:
    """A graph that is right for one number of samples takes no other from now on, and says so."""
    assert isinstance(cut.model, fx.GraphModule)
    fix_samples_(cut.model, signature(example_inputs))
    notes = cut.notes
    if cut.fixed_batch is None:  # else it is told why
        size = max(x.shape[0] for x in example_inputs if x.ndim)
        notes = (*notes, f"the batch size stays {size}: what the network does with others does not follow in a line")
    return dataclasses.replace(cut, plan=dataclasses.replace(cut.plan, fixed_samples=True), notes=notes)


def _for_given_size(cut: Cut, agreements: list[Agreement], example_inputs: tuple[Tensor, ...]) -> Cut:
    """A graph that was compared at one height and width, or one length, takes no others from now on, and says so."""
    sizes = {tuple(shape[1:] for shape in agreement.input_shapes) for agreement in agreements}
    if cut.plan.form == "class" or len(sizes) > 1 or len(all_sizes(example_inputs)) <= 2:
        return cut  # vectors of features have no other size
    assert isinstance(cut.model, fx.GraphModule)
    fix_size_(cut.model, signature(example_inputs))
    shapes = ", ".join("x".join(map(str, shape)) for shape in agreements[0].input_shapes)
    images = any(x.ndim > 3 for x in example_inputs)
    stays = "height and width stay those" if images else "the length stays that"
    notes = (*cut.notes, f"{stays} of the example inputs ({shapes})")
    return dataclasses.replace(cut, plan=dataclasses.replace(cut.plan, fixed_size=True), notes=notes)
