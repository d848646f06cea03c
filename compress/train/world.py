"""The processes that train one network together, on one machine or several.

``torchrun --nproc-per-node 2 -m compress train ...`` starts them; Accelerate says which one this is and connects them.
Every process holds the whole network and sees its share of each batch; gradients are summed over all, so that each
takes the very step that one process with the whole batch would take, up to the order of a sum. All that follows from
the gradient, the optimizer's step, the proximal step, the budget and compaction, is a pure function of the same
numbers: each process does it, and at the end of every epoch they compare. Only the main process writes.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from compress.errors import CompressError, ConfigError

T = TypeVar("T")


class DesynchronisedError(CompressError):
    """The processes no longer hold the same network."""


def _disconnect() -> None:
    """End the connection's threads before the interpreter ends, which aborts the process where one is left."""
    if dist.is_initialized():
        dist.destroy_process_group()


class World:
    """This process among all.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def joined(cls, device: str) -> World:
        """The processes that ``torchrun`` started, connected; one alone where it did not.

        Args:
            device: ``run.device``; gloo connects processes on the CPU, nccl those on GPUs.

        Raises:
            ConfigError: there are several, and Accelerate is not installed.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        try:
            from accelerate import PartialState
        except ImportError:
            raise ConfigError(
                f"{size} processes were started, and Accelerate, which connects them, is not installed. "
                "Install it (pip install accelerate), or start one process."
            ) from None
        state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
        atexit.register(_disconnect)
        return cls(state.process_index, state.num_processes)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does something (a download, say) before the others do it too."""
        if self.size > 1 and not self.main:
            dist.barrier()
        yield
        if self.size > 1 and self.main:
            dist.barrier()

    @contextmanager
    def directory(self, run: Path) -> Iterator[Path]:
        """Where this process writes a run: the main one into its directory, others where nothing stays.

        What the directory holds already (the checkpoint of a run that goes on) is there for all.
        """
        files = {} if self.size == 1 else self.from_main(_contents(run) if self.main else {})
        if self.main:
            yield run
            return
        with tempfile.TemporaryDirectory(prefix="compress-") as folder:
            own = Path(folder) / run.name
            for name, content in files.items():
                (own / name).parent.mkdir(parents=True, exist_ok=True)
                (own / name).write_bytes(content)
            yield own

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def least(self) -> int:
        """Images of the smallest batch: two for each process, since BatchNorm cannot train on a single 1x1 image."""
        return 2 * self.size

    def share(self, count: int) -> slice:
        """Which of ``count`` images of a batch are this process's: shares differ by one image at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def sum_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over all processes, in one message for each dtype; a parameter without one counts as 0."""
        if self.size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                by_dtype.setdefault(parameter.dtype, []).append(parameter.grad)
        for gradients in by_dtype.values():
            self._all_at_once_(gradients)

    def mean_statistics_(self, model: nn.Module) -> None:
        """Average the floating-point buffers (BatchNorm's statistics): each process saw another share of the batch."""
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if self.size > 1 and buffers:
            self._all_at_once_(buffers)
            for buffer in buffers:
                buffer.div_(self.size)

    def _all_at_once_(self, tensors: list[Tensor]) -> None:
        flat = self.sum_(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def from_main(self, value: T) -> T:
        """What the main process holds, by every process; anything that pickles."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return bool(self.sum_(torch.tensor(float(flag))) > 0) if self.size > 1 else flag

    def check_same(self, model: nn.Module) -> None:
        """Compare the networks of all processes, bit by bit.

        Raises:
            DesynchronisedError: they differ.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for tensor in model.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        if self.any(self.from_main(digest.digest()) != digest.digest()):
            raise DesynchronisedError(
                "the processes no longer hold the same network; do all of them run the same versions on the same kind "
                "of machine? Go on from the last checkpoint with --resume"
            )


def is_main() -> bool:
    """Whether this process is the one that writes and prints; by what ``torchrun`` says, before they are connected."""
    return os.environ.get("RANK", "0") == "0"


def _contents(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file()) if directory.exists() else ()
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}
