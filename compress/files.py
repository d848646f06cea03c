"""Write a file whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from compress.errors import WriteError

LEFTOVER = re.compile(r"\..+\.\d+\.tmp")
"""Names of the temporary files below; a killed process leaves its own behind."""


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, bring it to the disk, then take the name in one step.

    Whatever happens in between, ``path`` holds the old content or the new one, never a part.

    Raises:
        WriteError: The file cannot be written (the disk is full, the directory is gone or read-only).
    """
    if path.is_dir() or not path.name:
        raise WriteError(f"cannot write {path}: it is a folder; give the name of a file in it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        kept = "; the old file is as it was" if path.exists() else ""
        raise WriteError(f"cannot write {path}: {error.strerror or error}{kept}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def leftovers(directory: Path) -> Iterator[Path]:
    """What killed processes left behind in ``directory`` of files that they had not finished."""
    return (path for path in directory.iterdir() if LEFTOVER.fullmatch(path.name))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON, whole or not at all; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
