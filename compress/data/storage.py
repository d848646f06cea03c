"""Where the images of a split are: in memory where they fit, else in their files, from which processes read ahead."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compress.data.machine import GIB, core_count, memory_gib
from compress.data.split import Split, TensorSplit, chunks
from compress.errors import DataError

MEMORY_SHARE = 0.25
"""Of the machine's memory, for images: the network, its gradients and activations, and others need the rest."""

MOST_WORKERS = 8
"""By default; more than eight processes seldom decode faster than a network trains."""

BATCHES_AHEAD = 4
"""That each process has ready: a slow file is made good by then."""


def memory_limit_gib(given: float | None) -> float:
    """``given``, else ``MEMORY_SHARE`` of what this machine or container has."""
    return MEMORY_SHARE * memory_gib() if given is None else given


def worker_count(given: int | None) -> int:
    """``given``, else one process for each core that this process may use, up to ``MOST_WORKERS``."""
    return min(core_count(), MOST_WORKERS) if given is None else given


def size_gib(split: Split) -> float:
    """What its images take in memory."""
    return len(split) * prod(split.image_shape) / GIB


def in_memory(split: Split, limit_gib: float) -> Split:
    """``split`` with all its images read, unless they take more than ``limit_gib``.

    Raises:
        DataError: A file cannot be decoded.
    """
    if isinstance(split, TensorSplit) or size_gib(split) > limit_gib:
        return split
    images = torch.empty(len(split), *split.image_shape, dtype=torch.uint8)
    for indices in chunks(split):
        images[indices] = split.images(indices)
    return TensorSplit(images, split.labels)


def held_gib(split: Split) -> float:
    """What it takes in memory now."""
    return size_gib(split) if isinstance(split, TensorSplit) else 0.0


def place(what: str, split: Split, *, limit_gib: float, workers: int) -> str:
    """Where its images are, in a sentence."""
    images = f"{len(split):,} {what} images, {size_gib(split):.3g} GiB"
    if isinstance(split, TensorSplit):
        return f"{images}: held in memory (data.memory_gib allows {limit_gib:.3g})"
    readers = {0: "without", 1: "by one"}.get(workers, f"by {workers}")
    return (
        f"{images}: read anew in every epoch, {readers} worker process{'es' * (workers > 1)} "
        f"(data.memory_gib allows {limit_gib:.3g})"
    )


def read(split: Split, batches: Sequence[Tensor], *, workers: int = 0) -> Iterator[Tensor]:
    """The images of each batch of indices, uint8 ``[n, C, H, W]``, in this order whoever reads them.

    Args:
        split: Any; one in memory needs no processes, and gets none.
        batches: Indices, int64 ``[n]`` each.
        workers: Processes that read ahead.

    Raises:
        DataError: A file cannot be decoded; or a process was killed.
    """
    if workers == 0 or isinstance(split, TensorSplit):
        for indices in batches:
            yield split.images(indices)
        return
    loader = DataLoader(
        _Batches(split, batches),
        batch_size=None,
        num_workers=min(workers, len(batches)),
        prefetch_factor=BATCHES_AHEAD if batches else None,
        worker_init_fn=_leave_interrupts_to_the_parent,
        generator=torch.Generator(),  # its own: the loader draws a number, which would move the run's generator
    )
    try:
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that reads images has ended ({error}); if memory is short, use fewer: --set data.workers=1"
        ) from error


class _Batches(Dataset[Tensor | DataError]):
    """Batches by number; an image that cannot be read is handed over as the error."""

    def __init__(self, split: Split, batches: Sequence[Tensor]) -> None:
        self._split = split
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Tensor | DataError:
        try:
            return self._split.images(self._batches[number])
        except DataError as error:
            return error


def _leave_interrupts_to_the_parent(_: int) -> None:
    """Ctrl-C reaches every process of a terminal; the parent finishes its step, and needs batches until then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
