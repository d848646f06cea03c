"""Memory that does not suffice: what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from compress.errors import CompressError, first_line
from compress.train.config import Config
from compress.train.rundir import CHECKPOINT, CONFIG, resume_command

TOLD = ("can't allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
"""How torch's CPU allocator, CUDA, C++ and cuDNN say so in a ``RuntimeError`` of no class of its own."""


class MemoryShortageError(CompressError):
    """The machine or its accelerator has too little memory for the recipe."""


def is_memory_shortage(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in TOLD)


@contextmanager
def memory_shortage_told(config: Config) -> Iterator[None]:
    """Turn an exception for want of memory into a message.

    Raises:
        MemoryShortageError: Memory ran out; checkpoints stay as they are.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_shortage(error):
            raise
        raise MemoryShortageError(_advice(config, error)) from error


def _advice(config: Config, error: BaseException) -> str:
    batch, size = config.schedule.batch_size, config.data.image_size
    reason = first_line(error).strip()
    wishes = []
    if batch > 1:
        wishes.append(f"half the batch, --set schedule.batch_size={batch // 2} (now {batch}), needs about half of it")
    now = "the data set's own now" if size is None else f"{size} now"
    wishes.append(f"images of half the height and width, --image-size N ({now}), about a quarter")
    kept = ""
    if (config.out / CONFIG).is_file():
        saved = any(config.out.rglob(CHECKPOINT))
        kept = (
            f". {'The last checkpoint is kept' if saved else 'Nothing was saved yet'}; where memory was short for a "
            f"while only, go on with: {resume_command(config.out)}"
        )
    return f"out of memory ({reason}). Ask for less, in a run with another --out: {'; '.join(wishes)}{kept}"
