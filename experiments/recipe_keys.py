"""The table of all keys of a recipe in docs/training.md, from the classes in compress/train/config.py.

    python experiments/recipe_keys.py --insert docs/training.md

Defaults and limits are those that are checked; meanings are the classes' own documentation, in which "a name of" a
table is replaced by the names that the table has.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any, get_args

from marks import insert
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from compress.penalties import PENALTIES
from compress.train.config import Config

MARK = "keys"
HEADINGS = ("key", "values", "default", "meaning")
KINDS = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text"}
BOUNDS = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}"}
LARGEST_SHOWN = 2**62
"""Bounds of what 64 bits hold tell a reader nothing."""

TABLE = re.compile(r"\b[Aa] name of ``(compress[\w.]*)\.([A-Z_]+)``")
ATTRIBUTE = re.compile(r"^    (\w+(?:, \w+)*): (.+(?:\n {8}.+)*)", re.MULTILINE)


def table() -> list[str]:
    """Its lines, in Markdown."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS), *_rows(Config)]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def _rows(section: type[BaseModel], prefix: str = "", where: str = "") -> Iterator[tuple[str, ...]]:
    """A row for each key; ``where`` says what has to be in the recipe for its default to count."""
    meanings = _meanings(section)
    values = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        inner = _section(field)
        if inner is not None:
            optional = not field.is_required() and field.default is None
            yield from _rows(inner, f"{prefix}{name}.", f" where there is `[{prefix}{name}]`" if optional else where)
        else:
            yield f"`{prefix}{name}`", _values(values[name]), _default(field, where), _shape(name) or meanings[name]


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a key stands for, if it does."""
    kinds = get_args(field.annotation) or (field.annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _meanings(section: type[BaseModel]) -> dict[str, str]:
    """Key -> what the section's documentation says of it."""
    documentation = cleandoc(section.__doc__ or "")
    found = {}
    for names, text in ATTRIBUTE.findall(documentation):
        told = TABLE.sub(_names, " ".join(text.split())).replace("``", "`")
        found |= dict.fromkeys(names.split(", "), told[0].upper() + told[1:])
    return found


def _names(match: re.Match[str]) -> str:
    return ", ".join(f"``{name}``" for name in getattr(import_module(match[1]), match[2]))


def _values(schema: dict[str, Any]) -> str:
    """Kinds and bounds of what is accepted, from a JSON schema."""
    if "anyOf" in schema:
        return ", ".join(_values(kind) for kind in schema["anyOf"] if kind.get("type") != "null")
    named = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if named:
        return ", ".join(f"`{name}`" for name in named)
    kind = "path" if schema.get("format") == "path" else KINDS[schema["type"]]
    bounds = {told: schema[key] for key, told in BOUNDS.items() if key in schema}
    return " ".join([kind, *(told.format(bound) for told, bound in bounds.items() if bound < LARGEST_SHOWN)])


def _shape(key: str) -> str:
    """Which penalties have a shape parameter of that name, and what it is for them by default."""
    own = {name: cls.shape_parameters().get(key) for name, cls in PENALTIES.items()}
    told = [f"`{name}` (`{value}` by default)" for name, value in own.items() if value is not None]
    return f"Shape of {', '.join(told)}." if told else ""


def _default(field: FieldInfo, where: str) -> str:
    if field.is_required():
        return f"must be given{where}"
    if field.default is None:
        return ""
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`{where}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--insert", type=Path, help="the document; by default the table is printed")
    document = parser.parse_args().insert
    if document is None:
        print("\n".join(table()))
    else:
        insert(document, MARK, table())
