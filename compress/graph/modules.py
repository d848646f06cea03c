"""What a module must be told after its parameters were sliced: one line a type.

A subclass is told what its base class is; a module of another type needs nothing. Whether a ``forward`` that computes
with sizes of its own still works is for the certificate to see.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def _conv(module: nn.Module, groups: int) -> None:
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    module.groups = groups
    module.out_channels = module.weight.shape[0]
    module.in_channels = module.weight.shape[1] * groups


def _conv_transposed(module: nn.Module, groups: int) -> None:
    assert isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    module.groups = groups
    module.in_channels = module.weight.shape[0]
    module.out_channels = module.weight.shape[1] * groups


def _linear(module: nn.Module, _groups: int) -> None:
    assert isinstance(module, nn.Linear)
    module.out_features, module.in_features = module.weight.shape


def _norm(module: nn.Module, _groups: int) -> None:
    tensor = module.running_mean if module.running_mean is not None else module.weight
    if tensor is not None:
        module.num_features = tensor.numel()  # type: ignore[assignment, operator]


def _prelu(module: nn.Module, _groups: int) -> None:
    assert isinstance(module, nn.PReLU)
    module.num_parameters = module.weight.numel()


def _embedding(module: nn.Module, _groups: int) -> None:
    assert isinstance(module, nn.Embedding)
    module.embedding_dim = module.weight.shape[1]


SIZE_ATTRIBUTES: dict[type[nn.Module], Callable[[nn.Module, int], None]] = {
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.ConvTranspose1d: _conv_transposed,
    nn.ConvTranspose2d: _conv_transposed,
    nn.ConvTranspose3d: _conv_transposed,
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.BatchNorm3d: _norm,
    nn.InstanceNorm1d: _norm,
    nn.InstanceNorm2d: _norm,
    nn.InstanceNorm3d: _norm,
    nn.PReLU: _prelu,
    nn.Embedding: _embedding,
}
"""Module type -> what brings its size attributes in line with its sliced parameters and its number of groups."""


def resize_(module: nn.Module, groups: int) -> None:
    """Bring the size attributes of a module in line with its parameters; ``groups`` is a convolution's number."""
    for kind, update in SIZE_ATTRIBUTES.items():
        if isinstance(module, kind):
            update(module, groups)


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
