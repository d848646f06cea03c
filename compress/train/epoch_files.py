"""The log of a run for other programs: ``metrics.csv`` for tables, event files for TensorBoard."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from compress.errors import ConfigError, WriteError
from compress.files import write_text
from compress.train.metrics import Record

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TABLE = "metrics.csv"
EVENTS = "tensorboard"

Row = dict[str, float | None]


def row(record: Record) -> Row:
    """The numbers of an epoch by name: groups that live as ``live_groups/LAYER``, and sizes after a compaction."""
    numbers = {key: value for key, value in record.items() if key not in ("live_groups", "compaction")}
    live = {f"live_groups/{layer}": count for layer, count in (record["live_groups"] or {}).items()}
    compaction = record["compaction"] or {}
    left = {key: compaction[key][1] for key in ("parameters", "macs") if compaction.get(key)}
    return numbers | live | left


def table(records: list[Record]) -> str:
    """All epochs as comma-separated values, with a header; a number that an epoch does not have is left empty."""
    rows = [row(record) for record in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for each in rows for key in each)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def require_tensorboard() -> None:
    """Find out before a training what it needs at its first epoch's end.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "run.tensorboard: the package tensorboard is not installed; pip install tensorboard, or leave the key out "
            f"(every run has {TABLE})"
        ) from error


class EpochFiles:
    """Written after every epoch, from the log; a context manager.

    Args:
        directory: Of the run.
        tensorboard: Whether event files are written too, into its folder ``tensorboard``.
    """

    def __init__(self, directory: Path, *, tensorboard: bool) -> None:
        self._directory = directory
        self._tensorboard = tensorboard
        self._events: SummaryWriter | None = None

    def __enter__(self) -> EpochFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._events is not None:
            self._events.close()

    def write(self, records: list[Record], *, new: bool) -> None:
        """Bring the files up to date with the log.

        Args:
            records: Of all epochs so far.
            new: Whether the last one is new; else the log was only read again.

        Raises:
            WriteError: A file cannot be written.
        """
        if records:
            write_text(self._directory / TABLE, table(records))
        if new and self._tensorboard:
            try:
                self._write_events(records[-1])
            except OSError as error:
                raise WriteError(f"cannot write into {self._directory / EVENTS}: {error.strerror}") from error

    def _write_events(self, record: Record) -> None:
        from torch.utils.tensorboard import SummaryWriter

        epoch = record["epoch"]
        if self._events is None:  # epochs that a killed run wrote after its last checkpoint are purged
            self._events = SummaryWriter(self._directory / EVENTS, purge_step=epoch)
        for name, value in row(record).items():
            if value is not None and name != "epoch":
                self._events.add_scalar(name, value, epoch)
        self._events.flush()
