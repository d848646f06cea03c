"""Checkpoints: everything that a run needs to go on as if it had never stopped.

A checkpoint is a torch archive of tensors, numbers and strings, so that reading one never runs code
(``weights_only=True``). It is written whole or not at all, and its checksums are verified before it is believed.
"""

from __future__ import annotations

import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from compress.errors import CheckpointError
from compress.files import write_atomic

FORMAT = 3
"""Raised when the keys below change their meaning; older files are refused, not guessed at."""

State = dict[str, Any]


def _cuda_state() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_cuda_state(states: list[torch.Tensor]) -> None:
    if states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states)


RANDOM_STATES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "torch": (torch.get_rng_state, torch.set_rng_state),
    "cuda": (_cuda_state, _set_cuda_state),
    "python": (random.getstate, random.setstate),
}
"""Generators that layers draw from while training, torch's and Python's: name -> (read, set)."""


def random_state() -> State:
    """The state of every generator in ``RANDOM_STATES``."""
    return {name: read() for name, (read, _) in RANDOM_STATES.items()}


def set_random_state(state: State) -> None:
    """Bring the generators back to where ``random_state`` found them."""
    for name, (_, restore) in RANDOM_STATES.items():
        restore(state[name])


@contextmanager
def unmoved_generators() -> Iterator[None]:
    """Whatever is drawn inside leaves no trace."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def save_checkpoint(path: Path, state: State) -> None:
    """Write ``state`` (tensors, numbers, strings, and lists, tuples and dicts of them) atomically.

    Raises:
        WriteError: It cannot be written; an older checkpoint stays as it was.
    """
    write_atomic(path, lambda temporary: _save({"format": FORMAT, **state}, temporary))


def _save(state: State, path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch's archive writer hides what the disk said
            raise error.__context__ from None
        raise


def load_checkpoint(path: Path) -> State:
    """Read what ``save_checkpoint`` wrote, tensors on the CPU.

    Raises:
        CheckpointError: It is missing, truncated, damaged, or of another format.
    """
    advice = "delete it: --resume then starts from the first epoch"
    try:
        # torch does not compare the archive's checksums when it reads; a flipped bit would train on in silence.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"the checkpoint {path} is damaged in its part {damaged}; {advice}")
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"the checkpoint {path} ({size} bytes) is truncated or no checkpoint; {advice}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        got = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"the checkpoint {path} has format {got}, expected {FORMAT}; {advice}")
    return state
