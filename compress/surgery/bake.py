"""Copies of a network: as it is, and in plain form, with every computed weight stored as a weight.

``torch.nn.utils.prune`` keeps a mask beside each weight and multiplies the two before every forward;
``torch.nn.utils.parametrize`` computes weights in the same way. Neither can be cut as it is, so surgery works on a copy
in which the products are plain parameters, under the names that the network has without masks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from compress.errors import ModelError, first_line


def private_copy(model: nn.Module, parameter: Callable[[nn.Parameter], nn.Parameter] | None = None) -> nn.Module:
    """A deep copy, also of networks that hold computed tensors, which ``copy.deepcopy`` alone refuses.

    Args:
        model: the network.
        parameter: what stands in the copy for each parameter, by default a copy of it; a run that is to change nothing
            but buffers and attributes does with the parameter itself.

    Raises:
        ModelError: it holds something that can't be copied.
    """
    memo: dict[int, object] = {} if parameter is None else {id(p): parameter(p) for p in model.parameters()}
    for module in model.modules():
        for value in _computed(vars(module), set()):
            memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        raise ModelError(
            f"{type(model).__name__} can't be copied: {first_line(error)}\n"
            "Take out of it what can't be: locks, open files, results of a training step that it keeps."
        ) from error


def double_copy(model: nn.Module) -> nn.Module:
    """A private copy in float64, as the network's own ``double`` makes it."""
    twin = private_copy(model, parameter=sharing).double()
    own_(twin, model)
    return twin


def sharing(parameter: nn.Parameter) -> nn.Parameter:
    """Another parameter over the same memory, for a copy in which it is replaced; see ``own_``."""
    if type(parameter) is not nn.Parameter:
        return copy.deepcopy(parameter)  # a class of its own knows how to copy itself
    return nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)


def own_(copied: nn.Module, model: nn.Module) -> None:
    """Give a copy memory of its own for parameters that it still shares with ``model``: a forward may write there."""
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    for parameter in copied.parameters():
        if type(parameter) is nn.Parameter and parameter.data_ptr() in shared:
            parameter.data = parameter.data.clone()


def _computed(container: Any, seen: set[int]) -> Iterator[Tensor]:
    """Results that are kept in dicts, lists and tuples, which may hold themselves."""
    if id(container) in seen:
        return
    seen.add(id(container))
    for value in container.values() if isinstance(container, dict) else container:
        if isinstance(value, (dict, list, tuple)):
            yield from _computed(value, seen)
        elif isinstance(value, Tensor) and not value.is_leaf:
            yield value


def baked_copy(model: nn.Module) -> nn.Module:
    """A copy without masks and parametrizations: their results are its parameters."""
    model = private_copy(model)
    for module in model.modules():
        for name in _masked(module):
            prune.remove(module, name)  # type: ignore[no-untyped-call]
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            _drop_parametrizations_(module)
    return model


def _drop_parametrizations_(module: nn.Module) -> None:
    """Like ``remove_parametrizations``, which would change the class of the original too: a copy shares it."""
    assert isinstance(module.parametrizations, nn.ModuleDict)
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    trained = {name: [p.requires_grad for p in inner.parameters()] for name, inner in module.parametrizations.items()}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        if trained[name]:
            module.register_parameter(name, nn.Parameter(value, requires_grad=any(trained[name])))
        else:
            module.register_buffer(name, value)


def _masked(module: nn.Module) -> list[str]:
    hooks = module._forward_pre_hooks.values()
    return [hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)]
