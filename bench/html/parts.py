"""What a section of the page is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MIB = 1 << 20
KIB = 1 << 10


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A figure that matters; `mood` colours it: ``good``, ``bad``, ``doubt`` or none."""

    label: str
    value: str
    note: str = ""
    mood: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A plot or a table: `kind` is the macro of ``templates/panels.html.j2`` that draws `data`."""

    kind: str
    title: str
    caption: str
    data: Any
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A report's part of the page."""

    anchor: str
    title: str
    source: str
    models: tuple[tuple[str, str, str], ...]
    tiles: tuple[Tile, ...]
    panels: tuple[Panel, ...]
    warnings: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Part:
    """A piece of a bar: its class for the colour, its share of the bar's full width, and what it is."""

    style: str
    percent: float
    title: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row of a bar plot."""

    label: str
    parts: tuple[Part, ...]
    value: str
    note: str = ""


def percents(values: Sequence[float], full: float) -> list[float]:
    """Shares of the full width, never below 0."""
    return [percent(value, full) for value in values]


def percent(value: float, full: float) -> float:
    """Share of the full width, never below 0."""
    return 100 * max(0.0, value) / full if full > 0 else 0.0


def figure(value: float) -> str:
    """Four significant digits, zeros at the end included: 0.1070 beside 0.1234."""
    return f"{value:#.4g}".removesuffix(".") if 1e-4 <= abs(value) < 1e4 else f"{value:.4g}"
