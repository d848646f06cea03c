"""The graph that surgery works on: with the constants of another input size, and with channel selection."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Sequence
from typing import Literal

from torch import Tensor, nn

from compress.errors import ConstantOutputError, ModelError
from compress.graph import ChannelGraph, Consumer, consumers, graph_of, trace
from compress.surgery.dead import dead_by_weight, find_dead
from compress.surgery.running import random_inputs
from compress.surgery.select import may_select, worth_selecting
from compress.surgery.watch import Run

Select = Literal["auto", "never", "always"]


def analyse(
    plain: nn.Module, example_inputs: tuple[Tensor, ...], runs: Sequence[Run], *, fold: bool, select: Select
) -> ChannelGraph:
    """Trace a network in plain form and run both flows; see ``compact`` for the arguments.

    ``runs`` are the sizes at which the network does something else.

    Raises:
        ModelError: the model can't be traced.
        ConstantOutputError: its output is the same for every input.
    """
    traced = trace(plain, example_inputs)
    graph = graph_of(plain, traced)
    if graph.constant_output:
        raise _nothing_left(plain, graph)
    any_constant = any(not bool(consumer.constants.isnan().all()) for consumer in graph.consumers)
    elsewhere = _consumers_elsewhere(plain, example_inputs, runs) if any_constant else ()
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


def _consumers_elsewhere(
    plain: nn.Module, example_inputs: tuple[Tensor, ...], runs: Sequence[Run]
) -> tuple[Consumer, ...]:
    """What layers read at other input sizes, where ``forward`` does something else there.

    Where it runs the same operations on the same numbers, or where the network takes only one size, constants hold as
    they are. Else the network is traced at one size of each kind, larger and smaller: a limit that follows the size may
    cut off nothing at one of them.
    """
    found: list[Consumer] = []
    for alike in runs:
        with contextlib.suppress(ModelError):
            found += consumers(plain, random_inputs(example_inputs, alike[0], seed=0))
    return tuple(found)
