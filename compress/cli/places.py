"""Where an ONNX file comes from and goes to: what is wrong is told before anything large is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from compress.errors import ConfigError


def require_there(source: Path) -> None:
    """Refuse what cannot be read since it does not exist.

    Raises:
        ConfigError: Names it.
    """
    if not source.exists():
        raise ConfigError(f"{source}: there is no such file or folder")


def place_faults(option: str, out: Path, source: Path, beside: Iterable[Path] = ()) -> list[str]:
    """What speaks against writing a file.

    Args:
        option: That names the file on the command line.
        out: The file.
        source: What is read; it may not exist.
        beside: Further files that are written.

    Returns:
        Each fault as a sentence; none where writing can be tried.
    """
    try:
        return [f"{option} {out}: {fault}" for fault in _faults(out, source, beside)]
    except OSError as error:  # a name that is too long, for example
        return [f"{option} {out}: {error.strerror}; choose another place"]


def _faults(out: Path, source: Path, beside: Iterable[Path]) -> list[str]:
    if out.is_dir():
        return [f"it is a folder; give the name of a file in it, for example {out / 'model.onnx'}"]
    faults = []
    if out.suffix != ".onnx":  # a slip must not overwrite another file
        faults.append("the file's name must end in .onnx")
    if not out.parent.is_dir():
        faults.append(f"the folder {out.parent} does not exist; make it first")
    same = [path for path in (out, *beside) if source.exists() and path.exists() and path.samefile(source)]
    faults += [
        f"{path} is the file itself that is read; what is written refers to it, and it is kept: give another name"
        for path in same
    ]
    return faults
