"""Running a network for its outputs: on random inputs, in evaluation mode, and whether it takes them at all."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.graph.aten.trace import evaluating


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Every tensor that the network returns in evaluation mode, and every number, as a tensor of that number."""
    with evaluating(model), torch.no_grad():
        result: Any = model(*(x.clone() for x in inputs))
    leaves = [torch.tensor(leaf) if isinstance(leaf, (int, float)) else leaf for leaf in tree_leaves(result)]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def failing_module(model: nn.Module, inputs: tuple[Tensor, ...]) -> str | None:
    """The path of the innermost module whose forward raises on ``inputs``; ``None`` where none does."""
    running: list[str] = []
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # takes no hooks
        handles.append(module.register_forward_pre_hook(lambda _m, _x, path=path: running.append(path)))
        handles.append(module.register_forward_hook(lambda _m, _x, _y: running.pop() and None))
    failed = accepted(model, inputs) is None
    for handle in handles:
        handle.remove()
    return running[-1] if failed and running else None


def accepted(model: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype = torch.float32) -> list[Tensor] | None:
    """The outputs, where the model runs at this size at all; and, in float64, computes in float64 from end to end."""
    with _Roundings() if dtype == torch.float64 else contextlib.nullcontext() as roundings:  # type: ignore[no-untyped-call]
        try:
            found = outputs(model, inputs)
        except Exception:  # whatever a user's forward raises is its way of saying no
            return None
    return None if roundings is not None and roundings.seen else found


class _Roundings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices casts from float64 to a shorter type."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float64:
            self.seen |= result.is_floating_point() and result.dtype != torch.float64
        return result


def random_inputs(
    example_inputs: tuple[Tensor, ...], shapes: Sequence[tuple[int, ...]], seed: int
) -> tuple[Tensor, ...]:
    """Random inputs of the given shapes: standard normal, any byte, or whole numbers in the example's range."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(_random_like(x, shape, generator) for x, shape in zip(example_inputs, shapes, strict=True))


def _random_like(x: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if x.is_floating_point() or x.is_complex():
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32 if x.dtype == torch.float16 else x.dtype)
        return drawn.to(x)
    low, high = (0, 255) if x.dtype == torch.uint8 or not x.numel() else (int(x.min()), int(x.max()))
    if x.dtype == torch.bool:
        low, high = 0, 1
    return torch.randint(low, high + 1, shape, generator=generator).to(x)


def in_double(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs in float64; whole numbers, masks and complex numbers as they are."""
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)
