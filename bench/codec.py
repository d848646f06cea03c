"""JSON in and out for frozen dataclasses, with every fault told by its place in the document.

The annotations are the schema: a field's type decides how its JSON is read, by the table of `_READERS`. Unknown and
missing keys are refused, since a figure read from the wrong place is worse than none.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from typing import Any

from bench.errors import BenchError

Header = tuple[str, int]
T = typing.TypeVar("T")


def dumps(value: Any, header: Header) -> str:
    """A dataclass as JSON, led by its format's name and version."""
    name, version = header
    body = {"format": name, "version": version, **dataclasses.asdict(value)}
    return json.dumps(body, allow_nan=False, separators=(",", ":"))


def loads(cls: type[T], text: str, header: Header, source: str) -> T:
    """Read what `dumps` wrote.

    Args:
        cls: The dataclass.
        text: The JSON document.
        header: Format name and version that `cls` reads.
        source: What to call the document in messages, a file's name for example.

    Raises:
        BenchError: Not JSON, another format or version, or a field that is missing, unknown or of the wrong type.
    """
    return read(cls, parse(text, header, source), source)


def parse(text: str, header: Header, source: str) -> dict[str, Any]:
    """The document without its header, which is checked.

    Raises:
        BenchError: Not a JSON object, or another format or version.
    """
    name, version = header
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets within brackets by the thousand
        raise BenchError(f"{source}: expected JSON, got {_shown(text)}: {error}") from error
    if not isinstance(data, dict) or data.get("format") != name:
        got = data.get("format") if isinstance(data, dict) else data
        raise BenchError(f"{source}: expected a document of format {name!r}, got {_shown(got)}")
    if data.get("version") != version:
        raise BenchError(
            f"{source}: {name} version {_shown(data.get('version'))}, but this bench reads version {version}; "
            "measure again, or use the bench that wrote it"
        )
    return {key: value for key, value in data.items() if key not in ("format", "version")}


def format_of(text: str) -> str | None:
    """The format that a document names; None where it is no JSON object or names none."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name = data.get("format") if isinstance(data, dict) else None
    return name if isinstance(name, str) else None


def read(cls: type[T], data: Any, where: str) -> T:
    """A value of type `cls` from parsed JSON.

    Raises:
        BenchError: A field is missing, unknown or of the wrong type; the message holds its path.
    """
    return typing.cast("T", _read(cls, data, where))


def _read(kind: Any, data: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast("type[Any]", kind), data, where)
    origin = typing.get_origin(kind) or kind
    if origin not in _READERS:
        raise TypeError(f"{where}: no JSON reader for fields of type {kind}")
    return _READERS[origin](typing.get_args(kind), data, where)


def _read_dataclass(kind: type[Any], data: Any, where: str) -> Any:
    values = _expect(dict, data, where)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    faults = [f"missing {name}" for name in fields if name in required - values.keys()]
    faults += [f"unknown {name}" for name in values if name not in fields]
    if faults:
        raise BenchError(f"{where}: {', '.join(faults)}; the keys are {', '.join(fields)}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _read(hints[name], value, f"{where}: {name}") for name, value in values.items()})


def _read_tuple(args: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    return tuple(_read(args[0], item, f"{where}[{index}]") for index, item in enumerate(_expect(list, data, where)))


def _read_dict(args: tuple[Any, ...], data: Any, where: str) -> dict[str, Any]:
    return {key: _read(args[1], item, f"{where}.{key}") for key, item in _expect(dict, data, where).items()}


def _read_optional(args: tuple[Any, ...], data: Any, where: str) -> Any:
    (inner,) = (arg for arg in args if arg is not types.NoneType)
    return None if data is None else _read(inner, data, where)


def _read_float(_: tuple[Any, ...], data: Any, where: str) -> float:
    try:
        value = float(data if type(data) is int else _expect(float, data, where))
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise BenchError(f"{where}: expected float, got {_shown(data)}")
    return value


def _scalar(kind: type) -> Callable[[tuple[Any, ...], Any, str], Any]:
    return lambda _, data, where: _expect(kind, data, where)


def _expect(kind: type, data: Any, where: str) -> Any:
    """Exactly this type: True is no number here."""
    if type(data) is not kind:
        raise BenchError(f"{where}: expected {kind.__name__}, got {_shown(data)}")
    return data


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."


_READERS: dict[Any, Callable[[tuple[Any, ...], Any, str], Any]] = {
    tuple: _read_tuple,
    dict: _read_dict,
    types.UnionType: _read_optional,
    float: _read_float,
    int: _scalar(int),
    str: _scalar(str),
    bool: _scalar(bool),
}
