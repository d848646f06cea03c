"""What a person sees while a network trains: a bar in a terminal, a line an epoch everywhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

REFRESH_S = 0.25
"""Figures for the bar are collected this often at most: the share of dead groups reads all weights."""


class ProgressView:
    """The bar of one training; a context manager.

    Args:
        console: Where to draw; outside a terminal only the lines are printed.
        title: What is trained (``dense``, ``l0``).
        epochs: Epochs of the whole training.
        steps_per_epoch: Steps in each.
    """

    def __init__(self, console: Console, title: str, *, epochs: int, steps_per_epoch: int) -> None:
        self._console = console
        self._title = title
        self._epochs = epochs
        self._steps = steps_per_epoch
        self._next_s = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=epochs * steps_per_epoch, figures="")

    def __enter__(self) -> ProgressView:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def due(self) -> bool:
        """Whether the bar wants new figures now."""
        now = time.monotonic()
        if self._bar.disable or now < self._next_s:
            return False
        self._next_s = now + REFRESH_S
        return True

    def update(self, epoch: int, step: int, *, loss: float, accuracy: float, dead_share: float | None) -> None:
        """Show the epoch's figures so far."""
        self._bar.update(
            self._task,
            completed=epoch * self._steps + step,
            description=f"{self._title} {epoch + 1}/{self._epochs}",
            figures=f"loss {loss:.4f}  accuracy {accuracy:.2%}{_dead(dead_share)}",
        )

    def epoch(self, record: dict[str, Any]) -> None:
        """Print the line of an epoch that is complete (``record`` as in ``metrics.jsonl``)."""
        self.say(
            f"{self._title} {record['epoch']}/{self._epochs}  loss {record['loss']:.4f}"
            f"  accuracy {record['accuracy']:.2%}  validation {record['validation_accuracy']:.2%}"
            f"{_dead(record['dead_share'])}  {record['seconds']:.1f} s"
        )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _dead(share: float | None) -> str:
    return "" if share is None else f"  dead {share:.1%}"
