"""``compact``: remove what is zero, lose nothing, prove it."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.graph import ChannelGraph, channel_graph
from compress.surgery.apply import apply_, make_plan
from compress.surgery.dead import Decision, dead_by_weight, find_dead
from compress.surgery.plan import Plan, weights_hash, write_text
from compress.surgery.verify import Agreement, certify, type_conflicts


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

    @property
    def kept(self) -> dict[str, str]:
        """Layer -> why dead channels of it stay, in words."""
        return {
            layer: "; ".join(f"{count} {'channel' if count == 1 else 'channels'}: {why}" for why, count in w.kept.items())
            for layer, w in self.layers.items()
            if w.kept
        }

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {**dataclasses.asdict(self), "kept": self.kept}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON; the file appears whole or not at all."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")


@dataclass(frozen=True)
class CompactResult:
    """The compact network, the plan that makes it, and the report."""

    model: nn.Module
    plan: Plan
    report: CompactReport


def compact(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> CompactResult:
    """Remove every dead channel that can leave without a trace.

    Args:
        model: the network, with exact zeros; it is not changed.
        example_inputs: one tensor for each argument of ``forward``; with batch size 1, so that multiply-accumulates are
            counted for one sample.

    Returns:
        A network of the same class, equal to ``model`` in evaluation mode, with plan and report.

    Raises:
        ModelError: the model can't be traced.
        VerificationError: the compact network computes something else. It is not returned.
    """
    with torch.no_grad():
        graph = channel_graph(model, example_inputs)
        small, plan, after, decision, pins = _cut(model, graph, example_inputs)
        double = _double_twin(model, decision, plan)
        agreements = tuple(certify(model, small, double, example_inputs))
    plan = dataclasses.replace(
        plan, hash_before=weights_hash(model.state_dict()), hash_after=weights_hash(small.state_dict())
    )
    own = [a for a in agreements if double is None or a.dtype != "float64"] or list(agreements)
    exact = [a.max_relative_error for a in agreements if a.dtype == "float64"]
    report = CompactReport(
        params_before=sum(p.numel() for p in model.parameters()),
        params_after=sum(p.numel() for p in small.parameters()),
        macs_before=graph.macs,
        macs_after=after.macs,
        max_abs_error=max(a.max_abs_error for a in own),
        max_relative_error=max(a.max_relative_error for a in own),
        max_exact_error=max(exact) if exact else None,
        agreements=agreements,
        layers=_widths(graph, decision, pins),
    )
    return CompactResult(small, plan, report)


def _cut(
    model: nn.Module, graph: ChannelGraph, example_inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, Plan, ChannelGraph, Decision, dict[int, str]]:
    """Cut, type-check, and pin what does not pass; in the end nothing is cut."""
    pinned = torch.zeros(graph.classes.count, dtype=torch.bool)
    reasons: dict[int, str] = {}
    while True:
        decision = find_dead(graph, pinned=pinned)
        plan = make_plan(model, graph, decision)
        small = copy.deepcopy(model)
        apply_(small, decision, plan)
        try:
            after = channel_graph(small, example_inputs)
            conflict = type_conflicts(graph, after, plan)
            why = "cut unevenly where forward splits, shuffles or mixes channels"
        except ModelError:
            if not bool(decision.removed.any()):
                raise
            conflict = graph.sized & decision.removed
            why = "forward holds its number of channels as a literal"
        if not bool(conflict.any()) and "after" in locals() and graph.signature == after.signature:
            return small, plan, after, decision, reasons
        new = conflict & ~pinned
        if not bool((new & decision.removed).any()):
            new = ~pinned
        reasons.update(dict.fromkeys(new.nonzero().flatten().tolist(), why))
        pinned |= new


def _double_twin(model: nn.Module, decision: Decision, plan: Plan) -> nn.Module | None:
    """The same surgery on a float64 copy; ``None`` for a network that is float64 already."""
    if all(p.dtype == torch.float64 for p in model.parameters()):
        return None
    twin = copy.deepcopy(model).double()
    apply_(twin, decision, plan)
    return twin


def _widths(graph: ChannelGraph, decision: Decision, pins: dict[int, str]) -> dict[str, LayerWidth]:
    dead = dead_by_weight(graph)
    widths: dict[str, LayerWidth] = {}
    for (name, dim), classes in graph.out_slices().items():
        if graph.tensors[name].ndim < 2 or dim != 0:
            continue
        kept: dict[str, int] = {}
        for cls in classes[dead[classes] & ~decision.removed[classes]].tolist():
            reason = _reason(cls, graph, decision, pins)
            kept[reason] = kept.get(reason, 0) + 1
        after = int((~decision.removed[classes]).sum())
        widths[name.removesuffix(".weight")] = LayerWidth(classes.numel(), after, int(dead[classes].sum()), kept)
    return widths


def _reason(cls: int, graph: ChannelGraph, decision: Decision, pins: dict[int, str]) -> str:
    if cls in decision.kept:
        return decision.kept[cls]
    if cls in graph.classes.reasons:
        return "; ".join(graph.classes.reasons[cls])
    return pins.get(cls, "its constant reaches a layer in a form that cannot be folded")
