"""A training that diverged: which numbers are none any more, and where they first appear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from compress.errors import CompressError

FIRST = "the first layer whose output is not finite is"


class DivergenceError(CompressError):
    """A loss, a weight or a running statistic is no longer a finite number."""


def finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    return bool(tensor.isfinite().all())


def where_not_finite(network: nn.Module, batches: Iterable[Tensor]) -> str:
    """Run batches of images until one gives an output that is not finite, and name the first layer that makes one.

    Args:
        network: In the mode in which it diverged; statistics of its BatchNorms may move.
        batches: Images ``[N, C, H, W]`` on the network's device.

    Returns:
        A clause for a message.
    """
    for images in batches:
        if not finite(images):
            return "the images themselves are not finite, before any layer has seen them"
        found = _first_layer(network, images)
        if found is not None:
            return found
    return "every layer's output is finite in a second pass over the same images, though perhaps too large for the loss"


class _Found(Exception):  # noqa: N818  # it ends a forward pass early: that is no error
    """The first layer was found; the message describes it."""


def _first_layer(network: nn.Module, images: Tensor) -> str | None:
    """Describe the module whose output is the first that is not finite; a module ends after those inside it."""

    def watch(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def look(module: nn.Module, given: tuple[object, ...], output: object) -> None:
            if not all(map(finite, _tensors(output))):
                raise _Found(_describe(name, module, list(_tensors(given))))

        return look

    with ExitStack() as hooks, torch.no_grad():
        for name, module in network.named_modules():
            hooks.callback(module.register_forward_hook(watch(name)).remove)
        try:
            network(images)
        except _Found as found:
            return str(found)
    return None


def _describe(name: str, module: nn.Module, given: list[Tensor]) -> str:
    layer = f"{name or 'the network'} ({type(module).__name__})"
    for own, tensor in _state(module):
        if not finite(tensor):
            return f"{FIRST} {layer}: its {own} is not finite, after earlier steps"
    largest = {"weight": _largest(module.parameters()), "input": _largest(given)}
    told = " and ".join(f"{kind}s up to {value:.2g}" for kind, value in largest.items() if value is not None)
    return f"{FIRST} {layer}" + (f", of {told}" if told else "")


def _largest(tensors: Iterable[Tensor]) -> float | None:
    values = [float(tensor.detach().abs().max()) for tensor in tensors if tensor.numel()]
    return max(values, default=None)


def _tensors(value: object) -> Iterator[Tensor]:
    """Every floating-point tensor in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and running statistics, by name; other buffers may hold infinities by design, as masks do."""
    yield from module.named_parameters()
    for name, part in module.named_modules():
        if isinstance(part, _NormBase):
            prefix = f"{name}." if name else ""
            yield from ((prefix + own, buffer) for own, buffer in part.named_buffers() if buffer.is_floating_point())


def check_finite(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse a state that training cannot go on from.

    Raises:
        DivergenceError: A weight, a running statistic, or what the optimizer keeps of a weight is not finite.
    """
    for name, tensor in _state(network):
        if not finite(tensor):
            raise DivergenceError(f"{name} is not finite")
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    for parameter, kept in optimizer.state.items():
        for key, value in kept.items():
            if isinstance(value, Tensor) and not finite(value):
                raise DivergenceError(f"the optimizer's {key} of {names.get(parameter, 'a weight')} is not finite")
