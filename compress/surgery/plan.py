"""The plan: surgery as data.

A plan says which indices of which parameters stay, what was folded where, and for which weights it was made. Together
with the compact weights (safetensors) it rebuilds the compact network in its original class; nothing in either file is
executed, no pickle is involved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from compress.errors import CheckpointError
from compress.files import write_atomic, write_json
from compress.graph.modules import owners, resize_
from compress.surgery.layers import ConstantLayer, replace_module_, select_channels_

FORMAT = "compress-plan"
VERSION = 2


@dataclass(frozen=True)
class Kept:
    """What stays of one parameter.

    Attributes:
        shape: its shape before.
        indices: the kept indices of each dimension that was cut. In a grouped convolution dimension 1 holds the
            channels of one group; its indices count through all groups.
        groups: of the convolution, else 1.
    """

    shape: tuple[int, ...]
    indices: dict[int, list[int]]
    groups: int = 1

    def __post_init__(self) -> None:
        for dim, indices in self.indices.items():
            size = self._size(dim) if 0 <= dim < len(self.shape) else 0
            if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= size:
                raise ValueError(
                    f"kept indices of dimension {dim} of shape {self.shape} must rise within that dimension"
                )
        counts = [[len(own) for own in self._by_group(dim)] for dim in self.indices if self.groups > 1]
        if any(len({*count} - {0}) != 1 for count in counts) or len({tuple(map(bool, c)) for c in counts}) > 1:
            raise ValueError(f"{self.groups} groups of shape {self.shape} must keep equally many channels: {counts}")

    @property
    def groups_left(self) -> int:
        """How many groups stay."""
        return sum(map(bool, self._by_group(0))) if self.groups > 1 else 1

    def cut(self, tensor: Tensor) -> Tensor:
        """The part of ``tensor`` that stays."""
        if self.groups > 1:
            pairs = zip(self._by_group(0), self._by_group(1), strict=True)
            return torch.cat([tensor[own][:, read] for own, read in pairs if own])
        for dim, indices in self.indices.items():
            tensor = tensor.index_select(dim, torch.tensor(indices, dtype=torch.int64, device=tensor.device))
        return tensor.contiguous()

    def _size(self, dim: int) -> int:
        """Entries along ``dim``, through all groups."""
        return self.shape[dim] * (self.groups if dim == 1 else 1)

    def _by_group(self, dim: int) -> list[list[int]]:
        """The kept indices along ``dim`` of each group, counted within the tensor."""
        width = self._size(dim) // self.groups
        own: list[list[int]] = [[] for _ in range(self.groups)]
        for index in self.indices.get(dim, range(self._size(dim))):
            own[index // width].append(index % width if dim == 1 else index)
        return own


@dataclass(frozen=True)
class Plan:
    """Everything that turns the original network into the compact one, except the weights.

    Attributes:
        architecture: qualified name of the original class, for messages.
        parameters: state name -> what stays, for every parameter and buffer that was cut.
        new_biases: state names of biases that the original does not have: constants were folded into them.
        selections: path of a BatchNorm -> which channels of its input it reads, as positions in the compact network.
        constant_layers: paths of layers that return the same for every input, and were replaced by that constant.
        folds: what was folded, for the reader: ``{"weight", "into", "inputs"}``.
        hash_before: of the original's weights; ``hash_after`` of the compact ones. SHA-256.
    """

    architecture: str
    parameters: dict[str, Kept]
    new_biases: tuple[str, ...] = ()
    selections: dict[str, list[int]] = field(default_factory=dict)
    constant_layers: tuple[str, ...] = ()
    folds: tuple[dict[str, Any], ...] = ()
    hash_before: str = ""
    hash_after: str = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON; the file appears whole or not at all."""
        write_json(Path(path), {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan.

        Raises:
            CheckpointError: no such file, no plan, or a version that this release does not know.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: can't be read as a plan: {error}") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise CheckpointError(f'{path}: this is no plan: expected a JSON object with "format": "{FORMAT}".')
        if document.get("version") != VERSION:
            raise CheckpointError(
                f"{path}: plan version {document.get('version')!r}, this release reads version {VERSION}. "
                "Update the package, or make the plan anew from the masked weights."
            )
        try:
            return cls(
                architecture=str(document["architecture"]),
                parameters={
                    str(name): Kept(
                        tuple(map(int, kept["shape"])),
                        {int(dim): list(map(int, indices)) for dim, indices in kept["indices"].items()},
                        int(kept["groups"]),
                    )
                    for name, kept in document["parameters"].items()
                },
                new_biases=tuple(map(str, document["new_biases"])),
                selections={str(path): list(map(int, positions)) for path, positions in document["selections"].items()},
                constant_layers=tuple(map(str, document["constant_layers"])),
                folds=tuple(document["folds"]),
                hash_before=str(document["hash_before"]),
                hash_after=str(document["hash_after"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: the plan is damaged: {type(error).__name__}: {error}") from error

    def reshape_(self, model: nn.Module) -> None:
        """Cut every parameter and add the new biases, in place: the shapes of the compact network, in its class.

        Raises:
            CheckpointError: the model is not the one that the plan was made for.
        """
        holders = owners(model)
        for name, kept in self.parameters.items():
            if name not in holders:
                raise CheckpointError(
                    f"the plan cuts {name}, which this {type(model).__name__} lacks; "
                    f"it was made for {self.architecture}."
                )
            module, attribute = holders[name][0]
            tensor = getattr(module, attribute)
            if tuple(tensor.shape) != kept.shape:
                raise CheckpointError(
                    f"{name} has shape {tuple(tensor.shape)}, the plan expects {kept.shape}; "
                    f"it was made for {self.architecture}, with another width or number of classes?"
                )
            cut = kept.cut(tensor.detach())
            if isinstance(tensor, nn.Parameter):
                cut = nn.Parameter(cut, requires_grad=tensor.requires_grad)
            for holder, key in holders[name]:
                setattr(holder, key, cut)
        for name in self.new_biases:
            layer = name.rpartition(".")[0]
            if f"{layer}.weight" not in holders or name in holders:
                raise CheckpointError(
                    f"the plan gives {layer} a bias, which in this {type(model).__name__} is no layer without one; "
                    f"it was made for {self.architecture}."
                )
            module = holders[f"{layer}.weight"][0][0]
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            module.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)
        groups = {
            id(module): kept.groups_left
            for name, kept in self.parameters.items()
            for module, _ in holders[name]
            if kept.groups > 1
        }
        for module in model.modules():
            resize_(module, groups.get(id(module), getattr(module, "groups", 1)))
        for path, positions in self.selections.items():
            select_channels_(self._module(model, path), positions)
        for path in self.constant_layers:
            replace_module_(model, self._module(model, path), ConstantLayer(self._module(model, path)))

    def _module(self, model: nn.Module, path: str) -> nn.Module:
        try:
            return model.get_submodule(path)
        except AttributeError as error:
            raise CheckpointError(
                f"the plan changes {path}, which this {type(model).__name__} lacks; "
                f"it was made for {self.architecture}."
            ) from error


def load(
    plan: str | os.PathLike[str] | Plan, weights: str | os.PathLike[str], *, base: Callable[[], nn.Module]
) -> nn.Module:
    """Rebuild a compact network from its plan and weights.

    Args:
        plan: the plan, or its file.
        weights: the compact weights, a safetensors file.
        base: makes the original network (its weights do not matter).

    Returns:
        The compact network, an object of the class that ``base`` makes, in evaluation mode.

    Raises:
        CheckpointError: a file that can't be read, or files that do not belong together.
    """
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    state = load_weights(weights)
    if plan.hash_after and weights_hash(state) != plan.hash_after:
        raise CheckpointError(f"{weights}: these are not the weights that the plan was made with (their hash differs).")
    model = base() if not isinstance(base, nn.Module) else None
    if not isinstance(model, nn.Module):
        got = type(base if model is None else model).__name__
        raise CheckpointError(f"base: expected a function or class that makes the original network, got {got}.")
    plan.reshape_(model)
    for name, tensor in model.state_dict().items():
        if name in state and state[name].dtype != tensor.dtype:
            raise CheckpointError(
                f"{weights}: {name} is {state[name].dtype}, the base model's is {tensor.dtype}; "
                "make the base model in the precision of the weights."
            )
    put_weights_(model, state, source=str(weights))
    return model.eval()


def put_weights_(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state into a model of the same shapes.

    Raises:
        CheckpointError: keys are missing, left over or of another shape.
    """
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise CheckpointError(f"{source}: does not fit {type(model).__name__}: {error}") from error


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the state of ``model`` as safetensors; the file appears whole or not at all.

    Raises:
        CheckpointError: the file can't be written.
    """
    # tied weights share memory, which safetensors refuses
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    write_atomic(Path(path), lambda temporary: temporary.write_bytes(save(tensors)))


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: no such file, or it is damaged.
    """
    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read as safetensors: {error}") from error
    return state


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
