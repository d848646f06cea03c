"""Which modules' parameters may be sliced, and what a module must be told afterwards: one line a type.

Exact types only: a subclass may compute its weight in ``forward`` or read its sizes elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def _conv(module: nn.Module) -> None:
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    out_channels, per_group = module.weight.shape[:2]
    if module.groups > 1:  # only depthwise ones are sliced: one input channel a group
        module.groups = out_channels * module.groups // module.out_channels
    module.out_channels = out_channels
    module.in_channels = per_group * module.groups


def _linear(module: nn.Module) -> None:
    assert isinstance(module, nn.Linear)
    module.out_features, module.in_features = module.weight.shape


def _batch_norm(module: nn.Module) -> None:
    assert isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
    if module.running_mean is not None:
        module.num_features = module.running_mean.numel()


def _prelu(module: nn.Module) -> None:
    assert isinstance(module, nn.PReLU)
    module.num_parameters = module.weight.numel()


SLICEABLE: dict[type[nn.Module], Callable[[nn.Module], None]] = {
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.PReLU: _prelu,
}
"""Module type -> what brings its size attributes in line with its sliced parameters."""


def owners(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """State name -> every (module, attribute) that holds this very tensor: tied weights are sliced together.

    A module that is registered under several names has as many state names, and is listed once under each.
    """
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    names: dict[str, int] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                held = holders.setdefault(id(tensor), [])
                if (module, attribute) not in held:
                    held.append((module, attribute))
                names[f"{path}.{attribute}" if path else attribute] = id(tensor)
    return {name: holders[key] for name, key in names.items()}
