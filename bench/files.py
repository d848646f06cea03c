"""Write a file whole or not at all."""

import os
import uuid
from contextlib import suppress
from pathlib import Path

from bench.errors import BenchError


def _beside(path: Path) -> Path:
    """A name in the same folder, hence on the same file system, so that the final rename is atomic."""
    return path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex[:8]}.tmp")


def _followed(path: Path) -> Path:
    """Where a link leads: the rename would put a file in the link's place."""
    return Path(os.path.realpath(path))


def require_writable(path: Path, example: str = "report.json") -> None:
    """Refuse a path that cannot be written, before minutes of measuring.

    The folder is tried by making a file in it: permission bits do not tell about read-only mounts or the superuser.

    Args:
        path: Where the file shall be.
        example: A name for it, which is proposed where `path` is a folder.

    Raises:
        BenchError: The path is a folder, a device or a pipe, or its folder is missing or does not take a new file.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # the probe's name is short: this one may be too long for the file system
        if path.is_dir():
            raise BenchError(f"{path} is a folder; give the name of a file, for example {path / example}")
        if path.exists() and not path.is_file():
            raise BenchError(f"{path} is a device or a pipe, which a file would replace; give the name of a file")
        if not path.parent.is_dir():
            raise BenchError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
        probe = _beside(_followed(path))
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}; choose another place") from error


def write_whole(path: Path, text: str) -> None:
    """Write `text` to a temporary name beside `path`, then rename; an older file stays as it was on any failure.

    A link is followed. Half a character, as in names of files that are not UTF-8, becomes a question mark.

    Raises:
        BenchError: The disk is full, or the folder went away.
    """
    place = _followed(path)
    temporary = _beside(place)
    try:
        with temporary.open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}; no file was changed") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
