"""Cutting a network in its own class, and what must stay because of that."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.graph import ChannelGraph, channel_graph
from compress.graph.modules import owners
from compress.surgery.apply import apply_, fold_, folded_into, make_plan, replace_constants_
from compress.surgery.bake import double_copy, own_, private_copy, sharing
from compress.surgery.dead import Decision
from compress.surgery.graph_cut import Blocked, GraphCut, Traces
from compress.surgery.plan import Plan, signature
from compress.surgery.rounding import find_rounded
from compress.surgery.running import failing_module, in_double
from compress.surgery.stopwatch import Stopwatch
from compress.surgery.suspects import find_failing, find_suspects


@dataclass(frozen=True)
class Cut:
    """A network that was cut, and how it came to that.

    Attributes:
        model: the network.
        plan: what makes it of the original; hashes are added by the caller.
        before: the graph of the original; ``after`` that of the cut network.
        decision: what left, and why the rest stayed.
        pinned: classes that stay for the sake of this form of the network, and why.
        rewritten: lines of the user's code that had to change; only a graph can do that.
        notes: what else is different, in words.
        fixed_batch: the one number of samples that a graph was written for; ``None`` for any.
    """

    model: nn.Module
    plan: Plan
    before: ChannelGraph
    after: ChannelGraph
    decision: Decision
    pinned: dict[int, str]
    rewritten: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fixed_batch: int | None = None

    def reason(self, cls: int, *, dead: bool = True) -> str:
        """Why a class stays; one that is not ``dead`` as a whole, for those of its channels that are."""
        if cls in self.decision.kept:
            return self.decision.kept[cls]
        if cls in self.before.classes.reasons:
            return "; ".join(self.before.classes.reasons[cls])
        if cls in self.pinned:
            return self.pinned[cls]
        if cls in self.before.lost:
            return self.before.lost[cls]
        if cls in self.before.classes.ties or not dead:
            return self.before.classes.why_together(cls)
        return "its constant reaches a layer in a form that cannot be folded"


def cut_class(
    plain: nn.Module,
    graph: ChannelGraph,
    example_inputs: tuple[Tensor, ...],
    watch: Stopwatch,
    *,
    fold: bool,
    replace: bool,
    pinned: Mapping[int, str],
    round_to: int = 1,
) -> Cut:
    """Cut in the network's own class: type-check, and pin what does not pass; in the end nothing is cut.

    ``pinned`` holds classes that must stay in any case, and why; widths are rounded up to multiples of ``round_to``.
    """
    pinned = dict(pinned)
    while True:
        decision = find_rounded(graph, pinned=_mask(graph, pinned), fold=fold, round_to=round_to)
        plan = make_plan(plain, graph, decision)
        small = _cut_copy(plain, decision, plan)
        with watch.stage("type check"):
            # far cheaper than to trace it in vain
            failing = failing_module(private_copy(small, parameter=lambda own: own), example_inputs)
            after = None if failing else _graph_or_none(small, example_inputs, graph)
            suspects = (
                find_failing(graph, plain, failing)
                if after is None
                else find_suspects(graph, after, plan, decision.removed)
            )
        if after is not None and suspects is None:
            if replace and not graph.elsewhere:  # what is constant at this size may not be at another
                plan = replace_constants_(small, after, plan)
            return Cut(small, plan, graph, after, decision, pinned)
        if not bool(decision.removed.any()):
            raise ModelError(
                f"two traces of the same {type(plain).__name__} differ: its forward does something else at every call. "
                "Make it repeatable in evaluation mode."
            )
        assert suspects is not None
        pinned |= suspects.pins(decision.removed, pinned)


def cut_graph(
    plain: nn.Module,
    graph: ChannelGraph,
    example_inputs: tuple[Tensor, ...],
    watch: Stopwatch,
    *,
    fold: bool,
    replace: bool,
    pinned: Mapping[int, str],
    traces: Traces,
    round_to: int = 1,
    finish: Callable[[GraphCut, Tensor], None] | None = None,
) -> Cut:
    """Cut the traced graph of a network: whatever its ``forward`` says about numbers of channels is rewritten.

    ``pinned`` and ``round_to`` are those of ``cut_class``; ``traces`` those of copies of this network. What is to be
    made of the graph besides is made by ``finish``, from the graph and what was removed; it may raise ``Blocked``.

    Raises:
        ModelError: the network can't be returned as a graph.
    """
    pinned = dict(pinned)
    while True:
        decision = find_rounded(graph, pinned=_mask(graph, pinned), fold=fold, round_to=round_to)
        plan = dataclasses.replace(make_plan(plain, graph, decision), form="graph", inputs=signature(example_inputs))
        folded = private_copy(plain)
        fold_(folded, decision)
        try:
            made = plan.as_graph(folded, example_inputs, traces)
            if finish is not None:
                finish(made, decision.removed)
        except Blocked as blocked:
            held = blocked.channels.among(graph.classes) & decision.removed
            if not bool(held.any()):
                raise
            pinned |= dict.fromkeys(held.nonzero().flatten().tolist(), blocked.reason)
            continue
        with watch.stage("type check"):
            after = channel_graph(made.module, example_inputs)
        if replace and not graph.elsewhere:
            plan = replace_constants_(made.module, after, plan)
        lines = tuple(made.lines(graph.classes, decision.removed))
        return Cut(made.module, plan, graph, after, decision, pinned, lines, made.notes, made.fixed_batch)


def _mask(graph: ChannelGraph, classes: Collection[int]) -> Tensor:
    mask = torch.zeros(graph.classes.count, dtype=torch.bool)
    mask[list(classes)] = True
    return mask


def _graph_or_none(small: nn.Module, example_inputs: tuple[Tensor, ...], graph: ChannelGraph) -> ChannelGraph | None:
    """The graph of a cut network; ``None`` where its forward does not run with fewer channels."""
    selected = [selection.mean for selection in graph.selections]
    try:
        return channel_graph(small, example_inputs, select=selected, channelwise=graph.channelwise)
    except ModelError:
        return None


def _cut_copy(plain: nn.Module, decision: Decision, plan: Plan) -> nn.Module:
    """A copy that is cut; of what leaves in part only the rest is copied, where nothing is folded into it."""
    holders = owners(plain)
    written = {id(getattr(*holders[name][0])) for name in folded_into(decision)}
    small = private_copy(plain, lambda p: copy.deepcopy(p) if id(p) in written else sharing(p))
    apply_(small, decision, plan)
    own_(small, plain)
    return small


def double_twin(plain: nn.Module, cut: Cut, example_inputs: tuple[Tensor, ...], traces: Traces) -> nn.Module | None:
    """The same surgery on a float64 copy; ``None`` for a network that is float64 already.

    Constant layers compute their constants there: those of the cut are rounded.
    """
    if all(p.dtype == torch.float64 for p in plain.parameters()):
        return None
    twin = double_copy(plain)
    if cut.plan.form == "class":
        apply_(twin, cut.decision, dataclasses.replace(cut.plan, constant_layers=()))
        return twin
    fold_(twin, cut.decision)
    return cut.plan.as_graph(twin, in_double(example_inputs), traces).module
