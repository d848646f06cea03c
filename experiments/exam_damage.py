"""How a network of the exam comes by its weights and its dead channels.

Weights are random; half of the inner channels are dead, with shifts that are not zero; then every layer is rescaled on
one batch so that activations keep their size through any depth: otherwise an output that no longer depends on the
input would pass every comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.graph import ChannelGraph

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)

OUTER = ("input of the network", "output of the network")
"""Reasons of classes that are no inner channels."""

SHIFT = 0.3
"""Standard deviation of shifts, where activations have one of 1."""

LIVE_SHIFT = 1.0
"""Mean of the BatchNorm shifts of live channels. Most of what enters a ReLU is positive then. Around 0 a random network
is chaotic: a rounding error grows by a tenth in every layer, to 5e-5 behind the 50 of a ResNet, where a trained one
has 1e-6."""

DEAD_SHIFT = 0.5
"""Standard deviation of the BatchNorm shifts of dead channels, around 0: some constants pass a ReLU, some do not."""


def randomise_(model: nn.Module, generator: torch.Generator) -> None:
    """Random weights, scales and nonzero shifts, none left as its constructor made it where that is a constant."""
    known: set[int] = set()
    for module in model.modules():
        if isinstance(module, LAYERS):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        elif isinstance(module, NORMS) and module.weight is not None:
            module.weight.uniform_(0.5, 1.5, generator=generator)
        else:
            continue
        if module.bias is not None:
            mean = LIVE_SHIFT if isinstance(module, BATCH_NORMS) else 0.0
            module.bias.normal_(mean, SHIFT, generator=generator)
        known |= {id(p) for p in (module.weight, module.bias)}
    for name, parameter in model.named_parameters():
        if id(parameter) not in known and _is_constant(parameter):
            if name.endswith("bias") or sum(size > 1 for size in parameter.shape) > 1:
                parameter.normal_(0, SHIFT, generator=generator)  # positions, tokens
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)  # layer scales, gains


def _is_constant(parameter: Tensor) -> bool:
    """Whether it holds one number of no more than 1: a 0 or a 1e-6 that training would move."""
    first = parameter.flatten()[0]
    return bool(first.abs() <= 1) and bool((parameter == first).all())


def calibrate_(model: nn.Module, x: Tensor, generator: torch.Generator) -> None:
    """Run ``x`` once; every layer is rescaled to outputs of size 1, every BatchNorm gets the statistics that it sees.

    The statistics are then perturbed, since those of a trained network do not fit a batch either. Zeros stay zeros.
    """
    done: set[int] = set()

    def rescale(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if id(module.weight) in done:
            return None
        done.add(id(module.weight))
        assert isinstance(module.weight, Tensor)
        assert isinstance(module.bias, Tensor | None)
        offset: Tensor | float = 0.0
        if module.bias is not None:
            per_channel = (1, -1, *[1] * (output.ndim - 2))
            offset = module.bias if isinstance(module, nn.Linear) else module.bias.reshape(per_channel)
        size = float((output - offset).square().mean().sqrt())
        if size == 0:
            return None
        module.weight.div_(size)
        result: Tensor = module.forward(*inputs)
        return result

    def observe(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, BATCH_NORMS)
        if module.running_mean is None or module.running_var is None or id(module) in done:
            return
        done.add(id(module))
        x = inputs[0].transpose(0, 1).flatten(1)
        mean, variance = x.mean(1), x.var(1, correction=0)
        dead = variance <= 1e-12  # the statistics of a channel that died long ago stand still somewhere
        variance = torch.where(dead, torch.ones_like(variance), variance)
        noise = torch.randn(mean.shape, generator=generator)
        module.running_mean.copy_(mean + SHIFT * variance.sqrt() * noise)
        module.running_var.copy_(variance * (0.5 + 1.5 * torch.rand(mean.shape, generator=generator)))

    with _hooked(model, rescale, observe), torch.no_grad():
        model(x)


@contextmanager
def _hooked(model: nn.Module, rescale: Any, observe: Any) -> Iterator[None]:
    handles = []
    for module in model.modules():
        if isinstance(module, LAYERS):
            handles.append(module.register_forward_hook(rescale))
        elif isinstance(module, BATCH_NORMS):
            handles.append(module.register_forward_pre_hook(observe))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- which channels die ----------------------------------------------------------------------------------------------


def kill_groups_(model: nn.Module, graph: ChannelGraph, generator: torch.Generator) -> dict[str, Tensor]:
    """Case (a): zero the filters and BatchNorm scales of half of the coupled groups.

    Returns:
        State name of each layer's weight -> bool ``[out]``, its dead output channels.
    """
    dead = choose_classes(graph, generator)
    scales = {
        f"{name}.weight"
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, BATCH_NORMS)
    }
    state = dict(model.named_parameters(remove_duplicate=False))
    killed: dict[str, Tensor] = {}
    outer, blobs = _outer(graph), _blobs(graph)
    for name, classes in _layer_outputs(graph).items():
        if name in state and (state[name].ndim > 1 or name in scales):
            by_index = blobs[classes] & ~outer[classes]
            rows = torch.where(by_index, same_half(classes.numel(), generator), dead[classes])
            state[name].data[rows] = 0
            if state[name].ndim > 1:
                killed[name] = rows
            else:
                _shift_dead_(model, name, rows, generator)
    return killed


def kill_scales_(model: nn.Module, graph: ChannelGraph, generator: torch.Generator) -> dict[str, Tensor]:
    """Case (b): zero half of the scales of every normalisation; filters, where a network has no normalisation.

    Returns:
        State name of each scale (or weight) -> bool, which are zero.
    """
    names = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, NORMS) and module.weight is not None
    ]
    if not names:
        outer = _outer(graph)
        outputs = _layer_outputs(graph)
        names = [n for n, classes in outputs.items() if graph.tensors[n].ndim > 1 and not bool(outer[classes].any())]
    killed = {}
    for name in names:
        scale = model.get_parameter(name).data
        killed[name] = torch.zeros(scale.shape[0], dtype=torch.bool)
        killed[name][torch.randperm(scale.shape[0], generator=generator)[: scale.shape[0] // 2]] = True
        scale[killed[name]] = 0
        _shift_dead_(model, name, killed[name], generator)
    return killed


def _shift_dead_(model: nn.Module, scale: str, rows: Tensor, generator: torch.Generator) -> None:
    """Constants for the dead channels of a BatchNorm, where ``scale`` belongs to one."""
    module = model.get_submodule(scale.rpartition(".")[0])
    if isinstance(module, BATCH_NORMS):
        module.bias[rows] = DEAD_SHIFT * torch.randn(int(rows.sum()), generator=generator)


def choose_classes(graph: ChannelGraph, generator: torch.Generator) -> Tensor:
    """Bool ``[classes]``: half of the inner classes of every layer, balanced in grouped convolutions.

    Classes that are the same layers' channels are drawn from together. Classes that the graph pins for whatever reason
    are drawn too, by their index in a layer: a pinned channel is to be counted, not to be passed over.
    """
    free = graph.free()
    dead = free & _half_of_each_layer(graph, free, generator)
    balance_(dead, getattr(graph, "partitions", ()), free, generator)
    pinned = ~free & ~_outer(graph) & ~_blobs(graph)
    seen = torch.zeros_like(free)
    for name, classes in _layer_outputs(graph).items():
        if graph.tensors[name].ndim > 1:
            new = pinned[classes] & ~seen[classes]
            dead[classes[new & same_half(classes.numel(), generator)]] = True
            seen[classes] = True
    return dead


def same_half(width: int, generator: torch.Generator) -> Tensor:
    """Bool ``[width]``: one of every two neighbours, so that groups are balanced; the same ones for the same width."""
    own = torch.Generator().manual_seed(generator.initial_seed() + width)
    first = torch.rand(width // 2, generator=own) < 0.5
    chosen = torch.zeros(width, dtype=torch.bool)
    chosen[: width // 2 * 2] = torch.stack((first, ~first), dim=1).flatten()
    return chosen


def _half_of_each_layer(graph: ChannelGraph, among: Tensor, generator: torch.Generator) -> Tensor:
    """Bool ``[classes]``: exactly half (rounded down) of ``among`` in each set of classes with the same members."""
    names = torch.Generator().manual_seed(0)
    member_of = torch.zeros(graph.classes.count, dtype=torch.int64)
    for classes in graph.out_slices().values():
        present = torch.unique(classes)
        member_of[present] += int(torch.randint(2**62, (1,), generator=names))  # wraps around: a hash of a set
    order = torch.randperm(graph.classes.count, generator=generator)
    order = order[torch.argsort(member_of[order], stable=True)]
    order = order[among[order] & (member_of[order] != 0)]
    _, counts = torch.unique_consecutive(member_of[order], return_counts=True)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    rank = torch.arange(order.numel()) - starts
    chosen = torch.zeros(graph.classes.count, dtype=torch.bool)
    chosen[order[rank < torch.repeat_interleave(counts // 2, counts)]] = True
    return chosen


def balance_(
    dead: Tensor, partitions: tuple[Tensor, ...], free: Tensor, generator: torch.Generator, sweeps: int = 20
) -> None:
    """Change ``dead`` until each partition, int64 ``[groups, channels of a group]``, has as many in every group.

    Greedy: each partition is brought to its mean; partitions that share classes undo each other's work, so the sweep
    is repeated. If that does not come to rest, channels are only brought to life, down to the smallest count.
    """
    for sweep in range(sweeps + 1):
        for partition in partitions:
            counts = dead[partition].sum(1)
            target = int(counts.min()) if sweep == sweeps else round(float(counts.double().mean()))
            for row, count in zip(partition, counts.tolist(), strict=True):
                change = row[dead[row]] if count > target else row[free[row] & ~dead[row]]
                change = change[torch.randperm(change.numel(), generator=generator)][: abs(count - target)]
                dead[change] = count < target
        if all(bool((dead[p].sum(1) == dead[p[0]].sum()).all()) for p in partitions):
            return
    while not all(bool((dead[p].sum(1) == dead[p[0]].sum()).all()) for p in partitions):
        for partition in partitions:
            counts = dead[partition].sum(1)
            for row, count in zip(partition, counts.tolist(), strict=True):
                dead[row[dead[row]][: count - int(counts.min())]] = False


def _layer_outputs(graph: ChannelGraph) -> dict[str, Tensor]:
    """State name -> class of each index along dimension 0, of every parameter whose indices there are channels."""
    return {name: classes for (name, dim), classes in graph.out_slices().items() if dim == 0}


def _outer(graph: ChannelGraph) -> Tensor:
    """Bool ``[classes]``: channels of the network's inputs and outputs."""
    outer = torch.zeros(graph.classes.count, dtype=torch.bool)
    outer[[cls for cls, reasons in graph.classes.reasons.items() if any(r in OUTER for r in reasons)]] = True
    return outer


def _blobs(graph: ChannelGraph) -> Tensor:
    """Bool ``[classes]``: classes that hold more than half of the channels of a layer, behind an op without a rule.

    They cannot die as a whole; their channels die one by one, the same indices in all layers of one width.
    """
    blobs = torch.zeros(graph.classes.count, dtype=torch.bool)
    for classes in _layer_outputs(graph).values():
        found, counts = torch.unique(classes, return_counts=True)
        blobs[found[(counts > 1) & (2 * counts > classes.numel())]] = True
    return blobs
