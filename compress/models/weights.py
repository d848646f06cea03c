"""Starting weights: from a file that somebody has, into a network that this package builds.

A file is a state dict, tensors by name: ``.safetensors``, or what ``torch.save`` wrote, which is read without running
any code (``weights_only``). Of the forms that training scripts leave behind, these are taken as well: a state dict
inside a checkpoint, and names with the prefix of ``DataParallel`` or ``torch.compile``. Nothing else is guessed: a
network starts with every weight of the file, or not at all.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.errors import ModelError, first_line

State = dict[str, Tensor]

CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")
"""Where checkpoints keep the state dict, in the order in which they are looked for."""

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""What ``DataParallel`` and ``torch.compile`` put in front of every name."""

COUNTER = "num_batches_tracked"
"""BatchNorm's count of batches: files from before torch 0.4.1 have none, and nothing here reads it."""

NAMES_SHOWN = 4
"""Of tensors at fault; the others are counted."""

TENSORS_ALONE = (
    "Write the tensors alone: torch.save(model.state_dict(), FILE), or "
    "safetensors.torch.save_file(model.state_dict(), FILE)"
)

SAME_NETWORK = (
    "Give the state dict of this very network, by the names of its modules. "
    "A compact network is trained on with compress finetune RUN"
)


@dataclass(frozen=True)
class Start:
    """What a network started from.

    Attributes:
        path: The file.
        tensors: How many of its tensors are in the network now.
        new: Layers that the file does not have for this number of classes, and that stayed as they were drawn.
    """

    path: Path
    tensors: int
    new: tuple[str, ...]

    def __str__(self) -> str:
        told = f"started from {self.path}: {self.tensors} tensor{'' if self.tensors == 1 else 's'}"
        return told + (f"; new last layer: {', '.join(self.new)}" if self.new else "")


def start_from_(model: nn.Module, path: Path, *, num_classes: int, new_head: bool = False) -> Start:
    """Put the weights of a file into a network, if all of them fit.

    Args:
        model: Built for ``num_classes``.
        path: ``.safetensors``, ``.pth`` or ``.pt``.
        num_classes: Of the data set.
        new_head: Leave the layer that returns the classes as it is, where the file has it for another number of them.

    Raises:
        ModelError: The file cannot be read or is no state dict, or does not fit: keys are missing, left over, or of
            another shape. Or ``new_head`` was asked for, and the file's last layer fits.
    """
    own = model.state_dict()
    state = _without_prefixes(_state_dict(_read(path), path), own)
    head = _head(own, state, num_classes)
    faults = _faults(own, state, skip=head if new_head else frozenset())
    if faults:
        advice = _new_head_hint(state, head) if head and not _faults(own, state, skip=head) else SAME_NETWORK
        raise ModelError("\n".join([f"{path}: does not fit {type(model).__name__}", *faults, advice]))
    if new_head and not head:
        raise ModelError(
            f"model.new_head: the last layer in {path} has as many classes as the data set, {num_classes}, and would "
            "be used; leave new_head out"
        )
    kept = {name: tensor for name, tensor in state.items() if name not in head}
    try:
        model.load_state_dict(kept, strict=False)
    except RuntimeError as error:  # a layer's own way to load its state
        raise ModelError(f"{path}: does not fit {type(model).__name__}: {error}") from error
    return Start(path, len(kept), tuple(dict.fromkeys(name.rpartition(".")[0] for name in own if name in head)))


# --- reading ---------------------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> object:
    return load_file(path)


def _read_torch(path: Path) -> object:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # torch does not compare checksums; a flipped bit would stay unseen
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"its part {damaged} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], object]] = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
}
"""Ending of a file's name -> what reads it."""


def _read(path: Path) -> object:
    if path.suffix not in READERS:
        raise ModelError(f"{path}: weights are read from files that end in {', '.join(READERS)}")
    try:
        return READERS[path.suffix](path)
    except OSError as error:
        raise ModelError(f"cannot read the weights {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:  # torch's own text tells how to run code in the file
        raise ModelError(
            f"{path}: cannot be read as weights: it is damaged, or holds more than tensors (a whole model, say), which "
            f"could run code when it is read. {TENSORS_ALONE}"
        ) from error
    except Exception as error:  # damaged files raise whatever the unpickler runs into
        raise ModelError(
            f"{path}: cannot be read as weights: {first_line(error)}\n"
            f"It is damaged, or holds more than tensors. {TENSORS_ALONE}"
        ) from error


def _state_dict(content: object, path: Path) -> State:
    """The tensors by name in what a file holds."""
    if isinstance(content, dict):
        content = next((content[key] for key in CHECKPOINT_KEYS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}, expected a state dict: tensors by name")
    wrong = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if wrong or not content:
        found = f"entries that are no tensors ({_listed(wrong)})" if wrong else "nothing"
        raise ModelError(
            f"{path}: holds {found}, expected a state dict: tensors by name, alone or under "
            + ", ".join(CHECKPOINT_KEYS)
        )
    return content


def _without_prefixes(state: State, own: State) -> State:
    """The names without prefixes that all of them have, and none of the network's."""
    for _ in WRAPPER_PREFIXES:  # one may be inside the other
        for prefix in WRAPPER_PREFIXES:
            if all(name.startswith(prefix) for name in state) and not any(name.startswith(prefix) for name in own):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


# --- fitting ---------------------------------------------------------------------------------------------------------


def _head(own: State, state: State, num_classes: int) -> frozenset[str]:
    """The tensors of another shape, if each counts the classes along its first dimension and differs in that alone.

    A hidden layer of another width is never among them: whatever reads it differs in its second dimension.
    """
    names = [name for name in own if name in state and own[name].shape != state[name].shape]
    counts = all(
        own[name].shape[:1] == (num_classes,) and own[name].shape[1:] == state[name].shape[1:] for name in names
    )
    one = len({state[name].shape[:1] for name in names}) == 1
    return frozenset(names) if counts and one else frozenset()


def _faults(own: State, state: State, *, skip: frozenset[str]) -> list[str]:
    """What keeps the state from being loaded, a line for each kind."""
    both = [name for name in own if name in state and name not in skip]
    shapes = [name for name in both if own[name].shape != state[name].shape]
    unequal = [f"{name} {list(state[name].shape)} in the file, {list(own[name].shape)} here" for name in shapes]
    values = [f"{name} ({why})" for name in both if name not in shapes and (why := _unusable(own[name], state[name]))]
    kinds = {
        "missing in the file": _missing(own, state),
        "not in the network": [name for name in state if name not in own],
        "of another shape": unequal,
        "unusable": values,
    }
    return [f"  {len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names]


def _missing(own: State, state: State) -> list[str]:
    """Names without a tensor in the file; of tied weights one of their names will do."""
    given = {_memory(own[name]) for name in state if name in own}
    return [
        name
        for name, tensor in own.items()
        if name not in state and _memory(tensor) not in given and not name.endswith(COUNTER)
    ]


def _memory(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _unusable(own: Tensor, given: Tensor) -> str | None:
    """Why the numbers of ``given`` cannot stand in ``own``, which has its shape."""
    if own.is_floating_point() != given.is_floating_point():
        return f"{given.dtype}, expected {own.dtype}"
    if given.layout != torch.strided:
        return f"{given.layout}, expected a dense tensor"
    if own.is_floating_point() and not bool(given.to(own.dtype).isfinite().all()):
        return f"not finite as {own.dtype}"
    return None


def _new_head_hint(state: State, head: frozenset[str]) -> str:
    [classes] = {state[name].shape[0] for name in head}
    return (
        f"The last layer alone differs: the file has it for {classes} classes. To start with a new one: "
        "new_head = true in [model], or --set model.new_head=true"
    )


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
