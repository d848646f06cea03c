"""Which channels must stay where a compact network turned out to compute something else.

Three ways in which that shows itself: its forward does not run, the type check finds other operations or other channels
that meet, or the outputs differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress.graph import ChannelGraph, Consumer
from compress.surgery.input_sizes import all_sizes
from compress.surgery.plan import Plan
from compress.surgery.running import outputs, random_inputs
from compress.surgery.type_check import changed_operations, displaced_channels, mixed_channels
from compress.surgery.verify import agrees

HELD_BY_FORWARD = "forward splits its channels, or holds their number as a literal"
"""Why channels stay that only another form of the network than its class can lose, see ``Plan.form``."""


@dataclass(frozen=True)
class Suspects:
    """Classes that can't be cut as they were, from the likeliest to all.

    Attributes:
        rounds: bool ``[classes]`` each; the first of them in which a class was removed is to blame.
        why: the reason for the report.
    """

    rounds: tuple[Tensor, ...]
    why: str

    def pins(self, removed: Tensor, pinned: Collection[int]) -> dict[int, str]:
        """Class -> why it stays from now on; at least one that was removed is among them."""
        blamed = next(some for some in self.rounds if bool((some & removed).any())).clone()
        blamed[list(pinned)] = False
        return dict.fromkeys(blamed.nonzero().flatten().tolist(), self.why)


def find_failing(graph: ChannelGraph, model: nn.Module, module: str | None) -> Suspects:
    """What to keep where the forward of ``module`` does not run with fewer channels.

    Where it is attention that holds its number of heads, so do the others of its class: one failure tells of all.
    """
    here = _held_by(graph, {module})
    suspected = here & graph.sized
    heads = torch.zeros_like(here)
    heads[list(graph.classes.ties)] = True
    if module and bool((suspected & heads).any()):
        kind = type(model.get_submodule(module))
        alike = {path for path, other in model.named_modules() if type(other) is kind}
        suspected |= _held_by(graph, alike) & graph.sized & heads
    return Suspects((suspected, graph.sized, here, torch.ones_like(here)), HELD_BY_FORWARD)


def _held_by(graph: ChannelGraph, modules: Collection[str | None]) -> Tensor:
    """Bool ``[classes]``: channels that the operations of some modules hold."""
    found = torch.zeros(graph.classes.count, dtype=torch.bool)
    for operation in graph.operations:
        if operation.where in modules:
            found[operation.classes] = True
    return found


def find_suspects(graph: ChannelGraph, after: ChannelGraph, plan: Plan, removed: Tensor) -> Suspects | None:
    """The type check: what to keep where the compact network is another one; ``None`` where it is the same.

    Args:
        graph: of the original.
        after: of the compact network.
        plan: what made it of the original.
        removed: bool ``[classes]``, what it has lost.
    """
    changed = changed_operations(graph, after, plan)
    if changed:
        behind, front = _behind(graph, changed), _in_front(graph, changed)
        rounds = (behind, _neighbours(graph, behind), front, torch.ones_like(behind))
        return Suspects(rounds, "forward computes with its number of channels")
    mixed = mixed_channels(graph, after, plan)
    if not bool(mixed.any()):
        mixed = displaced_channels(graph, after, plan, removed)
    if not bool(mixed.any()):
        return None
    why = "cut unevenly where forward splits, shuffles or mixes channels"
    return Suspects((mixed, _neighbours(graph, mixed), torch.ones_like(mixed)), why)


def find_differing(
    graph: ChannelGraph, removed: Tensor, original: nn.Module, small: nn.Module, example_inputs: tuple[Tensor, ...]
) -> Suspects:
    """What to keep where outputs differ: what enters the first layer that returns something else on what it has left.

    Args:
        graph: of the original.
        removed: bool ``[classes]``, what the compact network has lost; nothing was folded.
        original: the network.
        small: the compact one, in the same precision.
        example_inputs: as for ``certify``, which compares at the same sizes.
    """
    every = torch.ones_like(removed)
    why = "without it the network returns something else"
    for seed, shapes in enumerate(all_sizes(example_inputs)):
        consumer = _first_difference(graph, removed, original, small, random_inputs(example_inputs, shapes, seed))
        if consumer is not None:
            entering = torch.zeros_like(removed)
            entering[graph.classes.parameters[consumer.weight][consumer.in_dim]] = True
            uses = [i for i, operation in enumerate(graph.operations) if operation.where == consumer.where]
            return Suspects((entering, _in_front(graph, uses), every), why)
    return Suspects((every,), why)


def _first_difference(
    graph: ChannelGraph, removed: Tensor, original: nn.Module, small: nn.Module, inputs: tuple[Tensor, ...]
) -> Consumer | None:
    layers = {path for path, module in original.named_modules() if isinstance(module, (_ConvNd, nn.Linear))}
    consumers = {c.where: c for c in graph.consumers if c.where in layers and c.weight == f"{c.where}.weight"}
    calls = [_calls(network, consumers, inputs) for network in (original, small)]
    for (where, expected), (also, got) in zip(*calls, strict=False):
        consumer = consumers[where]
        stays = ~removed[graph.classes.parameters[consumer.weight][1 - consumer.in_dim]]
        dim = -1 if graph.tensors[consumer.weight].ndim == 2 else 1 - graph.tensors[consumer.weight].ndim
        if where != also or expected.shape[dim] != stays.numel():
            return consumer
        if not agrees(expected.index_select(dim, stays.nonzero().flatten().to(expected.device)), got):
            return consumer
    return None


def _calls(model: nn.Module, paths: Collection[str], inputs: tuple[Tensor, ...]) -> list[tuple[str, Tensor]]:
    """What the modules at ``paths`` return, call by call, until the network raises."""
    calls: list[tuple[str, Tensor]] = []

    def note(path: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _inputs, output: calls.append((path, output)) if isinstance(output, Tensor) else None

    handles = [m.register_forward_hook(note(path)) for path, m in model.named_modules() if path in paths]
    with contextlib.suppress(Exception):  # a user's forward may raise anything
        outputs(model, inputs)
    for handle in handles:
        handle.remove()
    return calls


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


def _behind(graph: ChannelGraph, positions: Sequence[int]) -> Tensor:
    """Bool ``[classes]``: channels that operations hold; of those that hold none, what the nearest behind hold.

    A range or a tensor that ``forward`` makes holds no channels until it meets some.
    """
    readers: list[list[int]] = [[] for _ in graph.operations]
    for position, operation in enumerate(graph.operations):
        for source in operation.reads:
            readers[source].append(position)
    free, found = graph.free(), torch.zeros(graph.classes.count, dtype=torch.bool)
    seen, waiting = set(positions), list(positions)
    while waiting:
        position = waiting.pop()
        held = graph.operations[position].classes
        if bool(free[held].any()):
            found[held] = True
            continue
        waiting.extend(new := [r for r in readers[position] if r not in seen])
        seen.update(new)
    return found & free


def _in_front(graph: ChannelGraph, positions: Sequence[int]) -> Tensor:
    """Bool ``[classes]``: channels that operations, and all that lead to them, hold."""
    found = torch.zeros(graph.classes.count, dtype=torch.bool)
    wanted = set(positions)
    for position in range(max(positions), -1, -1):
        if position in wanted:
            operation = graph.operations[position]
            found[operation.classes] = True
            wanted.update(operation.reads)
    return found
