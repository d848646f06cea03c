"""From a recipe file, flags and ``--set`` to a checked ``Config``, and back to TOML.

Later wins: defaults, recipe, flags, ``--set``. All faults are told at once, each with its key, the value got, and what
was expected.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from compress.errors import ConfigError
from compress.train.config import Config

Tree = dict[str, Any]

COMMAND_LINE = "command line"


class Fault(NamedTuple):
    """What is wrong in a configuration.

    Attributes:
        told: The key, what was got and what was expected.
        source: Where it is to be mended: the recipe's file or the command line.
    """

    told: str
    source: str


LOCATION_KEYS = frozenset(
    {"run.out", "run.tensorboard", "run.curves", "data.dir", "data.download", "data.memory_gib", "data.workers"}
)
"""Keys that say where things lie and what is shown, not what is computed: a resumed run may change them."""


def resolve(
    recipe: Path | None = None,
    flags: Mapping[str, object] | None = None,
    settings: Sequence[str] = (),
    *,
    without: Sequence[str] = (),
) -> Config:
    """The checked configuration of a run.

    Args:
        recipe: A TOML file with the sections of ``Config``.
        flags: Values by dotted key (``{"optimizer.lr": 0.1}``); None means that the flag was not given.
        settings: ``section.key=value`` texts; a value is read as TOML, and as a string where it is none.
        without: Dotted keys of the recipe that are left out.

    Raises:
        ConfigError: The recipe cannot be read, or something in it is wrong; every fault is listed.
    """
    tree = read_toml(recipe) if recipe else {}
    for key in without:
        _leave_out(tree, key)
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    faults: list[Fault] = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or "." not in key:
            told = f"--set {setting}: expected SECTION.KEY=VALUE, for example --set optimizer.lr=0.1"
            faults.append(Fault(told, COMMAND_LINE))
        else:
            given[key.strip()] = parse_value(text.strip())
    for key, value in given.items():
        faults += [Fault(told, str(recipe or COMMAND_LINE)) for told in _put(tree, key, value)]
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        faults += [_fault(details, given, recipe) for details in error.errors(include_url=False)]
    if faults:
        sources = " and ".join(dict.fromkeys(fault.source for fault in faults))
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError("\n".join([f"{sources}: {count} in the configuration", *(f"  {told}" for told, _ in faults)]))
    return config


def read_toml(path: Path) -> Tree:
    """The tables of a TOML file.

    Raises:
        ConfigError: It is missing or not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} is not valid TOML: {error}") from error


def parse_value(text: str) -> object:
    """A value of TOML (``0.1``, ``true``, ``"a b"``), else the text itself."""
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return tree["value"] if len(tree) == 1 else text


def to_toml(config: Config) -> str:
    """The resolved configuration; keys without a value are left out, since TOML has no null."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def changed_keys(before: Config, after: Config) -> list[str]:
    """What differs in the computation, one ``key: old -> new`` each; ``LOCATION_KEYS`` are left out."""
    old, new = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    keys = [key for key in {**old, **new} if key not in LOCATION_KEYS and old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys]


def _flat(tree: Tree, prefix: str = "") -> Tree:
    flat: Tree = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _leave_out(tree: Tree, dotted: str) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        inner = tree.get(section)
        if not isinstance(inner, dict):
            return
        tree = inner
    tree.pop(key, None)


def _put(tree: Tree, dotted: str, value: object) -> list[str]:
    *sections, key = dotted.split(".")
    for depth, section in enumerate(sections):
        inner: object = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            return [f"{dotted}: {'.'.join(sections[: depth + 1])} is a value in the recipe, expected a [section]"]
        tree = inner
    # The command line hands over strings and paths alike; a recipe holds strings.
    tree[key] = os.fspath(value) if isinstance(value, Path) else value
    return []


def _fault(details: ErrorDetails, given: Collection[str], recipe: Path | None) -> Fault:
    """What is wrong, and whether the command line (which has the keys ``given``) or the recipe says so."""
    key = ".".join(str(part) for part in details["loc"])
    by_hand = any(f"{key}.".startswith(f"{own}.") or f"{own}.".startswith(f"{key}.") for own in given)
    if recipe is None or (key and by_hand):
        source = COMMAND_LINE
    elif key or not given:
        source = str(recipe)
    else:  # several keys together, from either
        source = f"{recipe} with the {COMMAND_LINE}"
    return Fault(_told(details), source)


def _told(details: ErrorDetails) -> str:
    key = ".".join(str(part) for part in details["loc"])
    if not key:  # several keys together; the message names them
        return details["msg"].removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        return _unknown_key(key)
    if details["type"] == "missing":
        return f"{key}: missing; give it in the recipe or with {_hint(key)}"
    if details["type"] == "model_type":
        return f"{key}: got {details['input']!r}, expected a [{key}] section"
    told = details["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    told = told.replace("a valid integer", "an integer").replace("valid ", "")
    known = told.partition("known: ")[2].replace(",", " ").split()
    near = difflib.get_close_matches(str(details["input"]), known, n=1)
    return f"{key}: got {details['input']!r}; {told}" + (f" (did you mean {near[0]}?)" if near else "")


def _hint(key: str) -> str:
    section = key.removesuffix(".name")
    return {"model": "--model NAME", "data": "--dataset NAME"}.get(section, f"--set {key}=VALUE")


def _unknown_key(key: str) -> str:
    *sections, name = key.split(".")
    table: type[BaseModel] = Config
    for section in sections:
        annotation = table.model_fields[section].annotation
        kinds = get_args(annotation) or (annotation,)  # a section, or a section that may be left out
        table = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    known = list(table.model_fields)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {'.'.join([*sections, near[0]])}?)" if near else ""
    return f"{key}: unknown key{hint}; known: {', '.join(known)}"
