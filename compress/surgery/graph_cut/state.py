"""The modules of a cut graph: parameters and buffers under the names that they have in the original network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.surgery.graph_cut.layout import Layout, same


class Pick(nn.Module):
    """Channels in another order, or some of them: ``x.index_select(dim, index)``.

    The index belongs to the graph, not to the state of the network: it is not saved with the weights.
    """

    index: Tensor

    def __init__(self, dim: int, index: Tensor):
        super().__init__()
        self.dim = dim
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with the picked positions along ``dim``."""
        return x.index_select(self.dim, self.index)

    def extra_repr(self) -> str:
        """What the module's print shows."""
        return f"{self.index.numel()} positions along dimension {self.dim}"


class Constant(nn.Module):
    """A tensor of the network that is not saved with its weights."""

    value: Tensor

    def __init__(self, value: Tensor):
        super().__init__()
        self.register_buffer("value", value, persistent=False)

    def forward(self) -> Tensor:
        """The tensor."""
        return self.value


Block = tuple[Tensor | None, ...]
"""The positions that stay along the first dimensions of a parameter; ``None`` for all."""


@dataclass(frozen=True, eq=False)
class Slices:
    """What stays of one parameter: blocks, one after another along dimension 0 (one, or one a convolution's group)."""

    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, layout: Layout) -> Slices:
        """The slices that leave a plain layout."""
        return cls((tuple(group.kept for group in layout.groups),))

    def cut(self, tensor: Tensor) -> Tensor:
        """A tensor of its own with what stays."""
        parts = []
        for block in self.blocks:
            part = tensor
            for dim, kept in enumerate(block):
                if kept is not None:
                    part = part.index_select(dim, kept.to(tensor.device))
            parts.append(part)
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        return joined.clone(memory_format=torch.contiguous_format)

    def equals(self, other: Slices) -> bool:
        """Whether both cut the same."""
        return len(self.blocks) == len(other.blocks) and all(
            len(a) == len(b) and all(map(same, a, b)) for a, b in zip(self.blocks, other.blocks, strict=True)
        )


class Conflict(Exception):  # noqa: N818 - a message between two functions, no error for users
    """One parameter is needed in two different parts."""


class State:
    """Cuts each tensor once, and keeps it in modules below ``root``.

    Args:
        model: the original network.
        tensors: every tensor that its graph reads, by name.
    """

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]):
        self.model = model
        self.root = nn.Module()
        self.tensors = tensors
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.saved = model.state_dict(keep_vars=True)
        self.cuts: dict[str, tuple[Slices, Tensor]] = {}
        self.layers: dict[str, str] = {}

    def tensor(self, name: str, slices: Slices) -> Tensor:
        """What stays of a tensor: a parameter where the original is one.

        Raises:
            Conflict: it was cut in another way before.
        """
        if name not in self.cuts:
            cut = slices.cut(self.tensors[name].detach())
            original = self.parameters.get(name)
            if original is not None:
                cut = nn.Parameter(cut, requires_grad=original.requires_grad)
            self.cuts[name] = (slices, cut)
        first, cut = self.cuts[name]
        if not first.equals(slices):
            raise Conflict(name)
        return cut

    def attribute(self, name: str, slices: Slices) -> tuple[str, str]:
        """Store a tensor under its own name, for (``get_attr`` or ``call_module``, target)."""
        tensor, (holder, attribute) = self.tensor(name, slices), self._place(name)
        if name in self.saved:
            if not hasattr(holder, attribute):
                if isinstance(tensor, nn.Parameter):
                    holder.register_parameter(attribute, tensor)
                else:
                    holder.register_buffer(attribute, tensor)
            return "get_attr", name
        if not hasattr(holder, attribute):
            holder.add_module(attribute, Constant(tensor))
        return "call_module", name

    def layer(self, parameters: Mapping[str, tuple[str, Slices]], make: Callable[[], nn.Module]) -> str | None:
        """A module that holds parameters under their own names.

        Args:
            parameters: attribute -> (name, what stays).
            make: creates it; its parameters are replaced.

        Returns:
            Its path; ``None`` where the names are not those that such a module gives to its parameters, or another
            module stands there already.
        """
        paths = {name.rpartition(".")[0] for name, _ in parameters.values()}
        path = next(iter(paths), "")
        usual = all(name == f"{path}.{attribute}" and name in self.saved for attribute, (name, _) in parameters.items())
        if not path or len(paths) > 1 or not usual:
            return None
        with torch.device("meta"):
            module = make()
        tensors = {attribute: self.tensor(name, slices) for attribute, (name, slices) in parameters.items()}
        if path in self.layers:
            return path if self.layers[path] == repr(module) else None
        parent, name = self._place(path)
        if hasattr(parent, name) or any(
            isinstance(tensor, nn.Parameter) != (attribute in module._parameters)
            for attribute, tensor in tensors.items()
        ):
            return None
        for attribute, tensor in tensors.items():
            setattr(module, attribute, tensor)
        for attribute in module._buffers.keys() - tensors.keys():  # BatchNorm counts its batches
            module.register_buffer(attribute, self._counter(f"{path}.{attribute}"))
        parent.add_module(name, module)
        self.layers[path] = repr(module)
        return path

    def helper(self, stem: str, module: nn.Module) -> str:
        """Store a module that the original does not have under a free name."""
        number = 0
        while any(hasattr(taken, f"{stem}_{number}") for taken in (self.root, self.model)):
            number += 1
        self.root.add_module(f"{stem}_{number}", module)
        return f"{stem}_{number}"

    def original(self, path: str) -> nn.Module | None:
        """The module of the original network at ``path``."""
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            return None

    def _counter(self, name: str) -> Tensor | None:
        value = self.saved.get(name)
        return None if value is None else value.detach().clone()

    def _place(self, name: str) -> tuple[nn.Module, str]:
        path, _, attribute = name.rpartition(".")
        holder = self.root
        for part in path.split(".") if path else ():
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        return holder, attribute
