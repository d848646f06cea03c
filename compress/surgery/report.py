"""What surgery did, in numbers and in words."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from compress.files import write_json
from compress.graph import ChannelGraph
from compress.surgery.cut import Cut
from compress.surgery.dead import dead_by_weight
from compress.surgery.verify import Agreement

ALIGNMENT = 4
"""Channels: depthwise convolutions of other widths have a slow kernel in ONNX Runtime on x86, see
``docs/results/surgery-rounding.md``."""


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
        form: ``"class"`` for a network of the original's class, ``"graph"`` for an ``fx.GraphModule``.
        rewritten: in graph form, each line of the user's code that the class could not have run with these channels,
            and what was done about it.
        more_removed: in graph form, channels that left and that the class would have had to keep; ``None`` where the
            class was not tried.
        notes: what else is different, in words.
        seconds: how long each stage took: ``analysis``, ``cut``, ``type check``, ``comparison``.
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
    form: str
    rewritten: tuple[str, ...] = ()
    more_removed: int | None = None
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

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


def report_of(
    plain: nn.Module,
    cut: Cut,
    agreements: Sequence[Agreement],
    seconds: dict[str, float],
    *,
    form: str | None = None,
    more_removed: int | None = None,
) -> CompactReport:
    """What a cut did to ``plain``, with its certificate; see ``CompactReport``. ``form`` is the plan's by default."""
    exact = [a.max_relative_error for a in agreements if a.dtype == "float64"]
    own = [a for a in agreements if a.dtype == agreements[0].dtype]  # the network's own precision comes first
    layers = _widths(cut)
    constant = (cut.after.layer_macs.get(f"{path}.weight", 0) for path in cut.plan.constant_layers)
    return CompactReport(
        params_before=sum(p.numel() for p in plain.parameters()),
        params_after=sum(p.numel() for p in cut.model.parameters()),
        macs_before=cut.before.macs,
        macs_after=cut.after.macs - sum(constant),
        max_abs_error=max((a.max_abs_error for a in own), default=0.0),
        max_relative_error=max((a.max_relative_error for a in own), default=0.0),
        max_exact_error=max(exact) if exact else None,
        agreements=tuple(agreements),
        layers=layers,
        selections={
            path: (len(positions), int((~cut.decision.removed[selection.inputs]).sum()))
            for selection in cut.before.selections
            for path, positions in cut.plan.selections.items()
            if path == selection.mean.rpartition(".")[0]
        },
        constant_layers=cut.plan.constant_layers,
        form=form or cut.plan.form,
        rewritten=cut.rewritten,
        more_removed=more_removed,
        notes=(*cut.notes, *slow_widths(cut.before, layers)),
        seconds=seconds | {"cut": seconds["cut"] - seconds["type check"]},  # which runs inside it
    )


def slow_widths(graph: ChannelGraph, layers: dict[str, LayerWidth]) -> tuple[str, ...]:
    """A line on depthwise convolutions whose new widths may cost more than they save, if there are any."""
    slow = sum(
        groups == layers[layer].before > layers[layer].after and layers[layer].after % ALIGNMENT > 0
        for name, groups in graph.groups.items()
        if (layer := name.removesuffix(".weight")) in layers
    )
    if not slow:
        return ()
    have = "depthwise convolution has a width that is" if slow == 1 else "depthwise convolutions have widths that are"
    return (
        f"{slow} {have} no multiple of {ALIGNMENT}, which ONNX Runtime may compute more slowly than more channels: "
        "round widths up with round_to=8 (--round-to 8), and measure",
    )


def _widths(cut: Cut) -> dict[str, LayerWidth]:
    graph, decision = cut.before, cut.decision
    dead = dead_by_weight(graph)
    widths: dict[str, LayerWidth] = {}
    for (name, dim), classes in graph.out_slices().items():
        tensor = graph.tensors[name]
        if tensor.ndim < 2 or dim != 0:
            continue
        zero = dead[classes]
        if name in graph.layer_macs and classes.numel() == len(tensor):
            zero |= ~(tensor != 0).flatten(1).any(1).cpu()
        after = int((~decision.removed[classes]).sum())
        reasons = (cut.reason(cls, dead=bool(dead[cls])) for cls in classes[zero & ~decision.removed[classes]].tolist())
        kept = _carriers_together(Counter(reasons))
        widths[name.removesuffix(".weight")] = LayerWidth(classes.numel(), after, int(zero.sum()), kept)
    return widths


_CARRIED = re.compile(r"constant (\S+), (carried for .*)")


def _carriers_together(reasons: Counter[str]) -> dict[str, int]:
    """One entry for all channels that carry constants into the same layer: those of a grouped convolution are many."""
    kept: dict[str, int] = {}
    values: dict[str, list[float]] = {}
    for reason, count in reasons.items():
        if (carried := _CARRIED.fullmatch(reason)) is None:
            kept[reason] = count
        else:
            values.setdefault(carried[2], []).extend([float(carried[1])] * count)
    for why, own in values.items():
        several = f"constants {min(own):g} to {max(own):g}" if len(set(own)) > 1 else f"constant {own[0]:g}"
        kept[f"{several}, {why}"] = len(own)
    return kept
