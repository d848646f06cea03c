"""The log of a run: ``metrics.jsonl``, one line an epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compress.errors import WriteError
from compress.files import write_text

Record = dict[str, Any]


class MetricsLog:
    """Appends one JSON object an epoch to a file.

    Args:
        path: The file; it is made by the first ``append``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Record) -> None:
        """Add one line.

        Raises:
            WriteError: The file cannot be written.
        """
        line = json.dumps(record, allow_nan=False) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise WriteError(f"cannot write {self.path}: {error.strerror}") from error

    def keep(self, epochs: int) -> None:
        """Drop the lines after the first ``epochs``: those that a killed run wrote after its last checkpoint."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(self.path, "".join(lines[:epochs]))

    def records(self) -> list[Record]:
        """All lines, first epoch first."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
