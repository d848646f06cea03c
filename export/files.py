"""Write files whole or not at all."""

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from export.errors import ExportError


def _beside(path: Path) -> Path:
    """A name in the same folder, hence on the same file system, so that the final rename is atomic."""
    return path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex[:8]}.tmp")


def require_writable(path: Path) -> None:
    """Refuse a path that cannot be written, before any long work starts.

    The folder is tried by making a file in it: permission bits do not tell about read-only mounts or the superuser.

    Raises:
        ExportError: The path is a folder, or its folder is missing or does not take a new file.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # the probe's name is short: this one may be too long for the file system
        if path.is_dir():
            raise ExportError(f"{path} is a folder; give the name of a file, for example {path / 'model.onnx'}")
        if not path.parent.is_dir():
            raise ExportError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
        probe = _beside(path)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}; choose another place") from error


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write each content to a temporary name beside its path, then rename all; the last one is renamed last.

    Older files stay as they were on any failure.

    Raises:
        ExportError: The disk is full, a folder went away, or one of the paths is a folder.
    """
    for path in contents:
        if path.is_dir():  # renaming would fail there after others were replaced
            raise ExportError(f"cannot write {path}: it is a folder; no file was changed")
    temporary = {path: _beside(path) for path in contents}
    try:
        for path, content in contents.items():
            try:
                with temporary[path].open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise ExportError(
                    f"cannot write the {len(content)} bytes of {path}: {error.strerror}; no file was changed"
                ) from error
        for path, written in temporary.items():
            try:
                written.replace(path)
            except OSError as error:
                raise ExportError(f"cannot write {path}: {error.strerror}") from error
    finally:
        for written in temporary.values():
            with suppress(OSError):
                written.unlink()
