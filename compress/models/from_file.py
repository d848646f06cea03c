"""``path/file.py:factory``: a model of the user's own."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from zlib import crc32

from torch import nn

from compress.errors import ModelError

EXPECTED = "expected FILE.py:factory, where factory is a function that returns the model"


def build_from_file(name: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Run the file of ``FILE.py:factory`` and call its factory.

    The factory gets, by keyword, those of ``num_classes``, ``in_channels`` and ``image_size`` that its signature
    accepts. A class works as well as a function. While the file runs, its folder comes first in the search path of
    ``import``.

    Raises:
        ModelError: The file is missing or does not run; the factory is missing, raises or returns no ``nn.Module``.
    """
    file_name, _, factory_name = name.rpartition(":")
    path = Path(file_name).expanduser()
    if not factory_name.isidentifier():
        raise ModelError(f"{name}: {EXPECTED}")
    if not path.is_file():
        raise ModelError(f"{name}: there is no file {path}; give its path from the current folder, {Path.cwd()}")
    factory = _factory(_run(path), factory_name, path)
    try:
        model = factory(**_accepted(factory, num_classes=num_classes, in_channels=in_channels, image_size=image_size))
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise ModelError(f"{path}: {factory_name}() raised {_text(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{path}: {factory_name}() returned {type(model).__name__}, expected a torch.nn.Module")
    return model


def _run(path: Path) -> ModuleType:
    # In sys.modules, since dataclasses and torch.export look a class's module up there; the checksum keeps two files of
    # the same name apart.
    module_name = f"_compress_user_{path.stem}_{crc32(str(path.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path}: is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        with _first_in_search_path(path.resolve().parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # user code may raise anything, a SyntaxError too
        del sys.modules[module_name]
        raise ModelError(f"{path}: cannot be run: {_text(error)}") from error
    return module


@contextmanager
def _first_in_search_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _factory(module: ModuleType, name: str, path: Path) -> Callable[..., object]:
    factory = getattr(module, name, None)
    if callable(factory) and not isinstance(factory, nn.Module):
        return factory  # type: ignore[no-any-return]
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    found = f"({type(factory).__name__}) cannot be called" if factory is not None else "is not defined"
    raise ModelError(f"{path}: {name} {found}; the file defines: {', '.join(own) or 'no function or class'}")


def _accepted(factory: Callable[..., object], **offered: int) -> dict[str, int]:
    parameters = inspect.signature(factory).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return offered
    return {key: value for key, value in offered.items() if key in parameters}


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
