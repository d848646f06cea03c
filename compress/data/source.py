"""What a data set's loader returns, before a validation split is held out and images are resized."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from compress.data.split import Split
from compress.errors import DataError


@dataclass(frozen=True)
class Source:
    """A data set as it lies on the disk.

    ``validation`` is None where the data set has none of its own; ``load_test`` reads the test split when called, and
    returns None where there is none.
    """

    classes: tuple[str, ...]
    train: Split
    validation: Split | None
    load_test: Callable[[], Split | None]


class Loader(Protocol):
    """Reads a data set by name, except its test split."""

    def __call__(self, data_dir: Path | None, *, download: bool) -> Source:
        """Raises ``DataError`` where files are missing or damaged, those of the test split included if missing."""
        ...


def required_folder(name: str, data_dir: Path | None, *, holds: str, may_be_new: bool) -> Path:
    """``data_dir``, which must be given, and must exist unless ``may_be_new``.

    Args:
        name: The data set, for the message.
        data_dir: The folder that the user gave.
        holds: What is expected in it, for the message.
        may_be_new: Whether a download will create it.
    """
    if data_dir is None:
        raise DataError(f"{name}: no data folder given; pass --data-dir DIR, where DIR holds (or gets) {holds}")
    folder = data_dir.expanduser()
    if not may_be_new and not folder.is_dir():
        raise DataError(f"{name}: there is no folder {folder}; expected it to hold {holds} (--download fetches it)")
    return folder
