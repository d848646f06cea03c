"""Copies of a network: as it is, and in plain form, with every computed weight stored as a weight.

``torch.nn.utils.prune`` keeps a mask beside each weight and multiplies the two before every forward;
``torch.nn.utils.parametrize`` computes weights in the same way. Neither can be cut as it is, so surgery works on a copy
in which the products are plain parameters, under the names that the network has without masks.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune


def private_copy(model: nn.Module) -> nn.Module:
    """A deep copy, also of networks that hold computed tensors, which ``copy.deepcopy`` alone refuses."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def baked_copy(model: nn.Module) -> nn.Module:
    """A copy without masks and parametrizations: their results are its parameters."""
    model = private_copy(model)
    for module in model.modules():
        for name in _masked(module):
            prune.remove(module, name)  # type: ignore[no-untyped-call]
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return model


def _masked(module: nn.Module) -> list[str]:
    hooks = module._forward_pre_hooks.values()
    return [hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)]
