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

from compress.errors import CheckpointError, ModelError
from compress.files import write_atomic, write_json
from compress.graph.modules import owners, resize_
from compress.surgery.bake import baked_copy
from compress.surgery.graph_cut import GraphCut, Traces, fix_samples_, fix_size_, graph_module
from compress.surgery.kept import Kept
from compress.surgery.layers import ConstantLayer, replace_module_, select_channels_

FORMAT = "compress-plan"
VERSION = 2


@dataclass(frozen=True)
class Plan:
    """Everything that turns the original network into the compact one, except the weights.

    Attributes:
        architecture: qualified name of the original class, for messages.
        parameters: state name -> what stays, for every parameter and buffer that was cut.
        new_biases: state names of biases that the original does not have: constants were folded into them.
        selections: path of a BatchNorm -> which channels of its input it reads, as positions in the compact network.
        constant_layers: paths of layers that return the same for every input, and were replaced by that constant.
        form: ``"class"``, or ``"graph"`` for a network that is rebuilt by tracing the original and cutting its graph.
        inputs: in graph form, shape and dtype of each example input, since sizes stand in the graph.
        fixed_size: in graph form, whether it takes no other height and width than those of ``inputs``.
        fixed_samples: in graph form, whether it takes no other number of samples than that of ``inputs``.
        folds: what was folded, for the reader: ``{"weight", "into", "inputs"}``.
        hash_before: of the original's weights; ``hash_after`` of the compact ones. SHA-256.
    """

    architecture: str
    parameters: dict[str, Kept]
    new_biases: tuple[str, ...] = ()
    selections: dict[str, list[int]] = field(default_factory=dict)
    constant_layers: tuple[str, ...] = ()
    form: str = "class"
    inputs: tuple[tuple[tuple[int, ...], str], ...] = ()
    fixed_size: bool = False
    fixed_samples: bool = False
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
        except (OSError, ValueError, RecursionError) as error:  # RecursionError: brackets within brackets
            raise CheckpointError(f"{path}: can't be read as a plan: {error}") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise CheckpointError(f'{path}: this is no plan: expected a JSON object with "format": "{FORMAT}".')
        if document.get("version") != VERSION:
            raise CheckpointError(
                f"{path}: plan version {document.get('version')!r}, this release reads version {VERSION}. "
                "Update the package, or make the plan anew from the masked weights."
            )
        try:
            form, inputs = {"class": "class", "graph": "graph"}[document["form"]], document["inputs"]
            if form == "graph" and not inputs:
                raise ValueError("a graph without inputs")
            return cls(
                architecture=str(document["architecture"]),
                parameters={str(name): _kept(kept) for name, kept in document["parameters"].items()},
                new_biases=tuple(map(str, document["new_biases"])),
                selections={str(path): list(map(_whole, found)) for path, found in document["selections"].items()},
                constant_layers=tuple(map(str, document["constant_layers"])),
                form=form,
                inputs=tuple((tuple(map(_whole, shape)), _dtype(dtype)) for shape, dtype in inputs),
                fixed_size=_flag(document.get("fixed_size", False)),  # plans of older releases have none
                fixed_samples=_flag(document.get("fixed_samples", False)),
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

    def as_graph(self, model: nn.Module, example_inputs: tuple[Tensor, ...], traces: Traces | None = None) -> GraphCut:
        """Trace a network of the original shapes, new biases included, and cut its graph.

        Constant layers are still the layers that they stand for. ``traces`` of other copies of it save time.

        Raises:
            Blocked: some of these channels cannot leave the graph.
            ModelError: the network can't be traced, or is not the one that the plan was made for.
        """
        kept = dict(self.parameters)
        for name in self.new_biases:
            layer = self._module(model, name.rpartition(".")[0])
            out_dim = int(isinstance(layer, TRANSPOSED))
            weight = self.parameters.get(f"{name.rpartition('.')[0]}.weight")
            if weight is not None and out_dim in weight.indices:
                kept[name] = Kept((_outputs(layer),), {0: weight.indices[out_dim]})
        select = [f"{path}.running_mean" for path in self.selections]
        return graph_module(model, example_inputs, kept, select=select, traces=traces)

    def rebuild(self, model: nn.Module) -> nn.Module:
        """The compact network, of the original's class or as a graph, with weights still to be loaded.

        Args:
            model: the original network, whose weights do not matter; it is not changed.

        Raises:
            CheckpointError: the model is not the one that the plan was made for.
        """
        model = baked_copy(model)
        if self.form == "class":
            self.reshape_(model)
            return model
        for name in self.new_biases:
            layer = self._module(model, name.rpartition(".")[0])
            assert isinstance(layer.weight, nn.Parameter)
            bias = layer.weight.detach().new_zeros(_outputs(layer))
            layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
        inputs = tuple(torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in self.inputs)
        try:
            made = self.as_graph(model, inputs).module
        except ModelError as error:
            raise CheckpointError(f"the plan does not fit this {type(model).__name__}: {error}") from error
        for path in self.constant_layers:
            replace_module_(made, self._module(made, path), ConstantLayer(self._module(made, path)))
        if self.fixed_size:
            fix_size_(made, self.inputs)
        if self.fixed_samples:
            fix_samples_(made, self.inputs)
        return made

    def _module(self, model: nn.Module, path: str) -> nn.Module:
        try:
            return model.get_submodule(path)
        except AttributeError as error:
            raise CheckpointError(
                f"the plan changes {path}, which this {type(model).__name__} lacks; "
                f"it was made for {self.architecture}."
            ) from error


def _kept(document: dict[str, Any]) -> Kept:
    """What stays of one parameter, as it stands in a file."""
    indices = {int(dim): list(map(_whole, found)) for dim, found in document["indices"].items()}
    return Kept(tuple(map(_whole, document["shape"])), indices, _whole(document["groups"]))


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {value!r}")
    return value


def _dtype(name: str) -> str:
    """The name of one of torch's types of tensors."""
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise TypeError(f"unknown type of tensors {name!r}")
    return name


def _whole(number: object) -> int:
    """A whole number that is not negative, and nothing that could be taken for one."""
    if type(number) is not int or number < 0:
        raise ValueError(f"expected a whole number of 0 or more, got {number!r}")
    return number


TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers whose weight holds its outputs along dimension 1."""


def _outputs(layer: nn.Module) -> int:
    """Output channels of a layer."""
    return int(layer.out_channels if isinstance(layer, TRANSPOSED) else layer.weight.shape[0])  # type: ignore[index]


def signature(inputs: tuple[Tensor, ...]) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Shape and dtype of each tensor."""
    return tuple((tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in inputs)


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
    model = plan.rebuild(model)
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
        tensor = state[name].detach().cpu()
        tensor = (tensor if tensor.layout is torch.strided else tensor.to_dense()).contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
