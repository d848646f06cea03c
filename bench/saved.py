"""Documents that are kept in files: JSON with a kind and a version, written whole or not at all."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from bench import codec
from bench.errors import BenchError
from bench.files import write_whole


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Base of such documents."""

    HEADER: ClassVar[codec.Header]

    def to_json(self) -> str:
        """As docs/bench-report.md and docs/bench-gate.md tell."""
        return codec.dumps(self, self.HEADER)

    def save(self, path: Path) -> None:
        """Write the JSON whole or not at all; raises BenchError."""
        write_whole(path, self.to_json() + "\n")

    @classmethod
    def from_json(cls, text: str, source: str = "report") -> Self:
        """Read this kind of document; raises BenchError naming the fault's place."""
        return codec.loads(cls, text, cls.HEADER, source)


def read_saved(path: Path) -> str:
    """The text of such a file.

    Raises:
        BenchError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read {path}: {error}") from error
