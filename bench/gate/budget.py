"""The budget file (TOML): limits by section, and ``[measure]``. Every fault is told at once, typos with the near key.

docs/bench-gate.md describes the keys; docs/examples/budget.toml is one to start from.
"""

import difflib
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.gate.evidence import Measurement
from bench.gate.limits import LIMITS, UNITS
from bench.stats import MIN_RUNS

MEASURE = "measure"
NEED_DEADLINE = ("latency.missed_share", "latency.longest_run")
EXAMPLE = "[latency] p50_ms = 5.0"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a model may take.

    Attributes:
        name: The file's.
        limits: By key of ``bench.gate.limits.LIMITS``, in the file's order.
        measure: How to measure.
    """

    name: str
    limits: dict[str, float]
    measure: Measurement


def load_budget(path: Path) -> Budget:
    """Read a budget file.

    Raises:
        BenchError: It cannot be read, or holds faults; the message lists all of them.
    """
    try:
        return parse_budget(tomllib.loads(path.read_text(encoding="utf-8")), path)
    except FileNotFoundError as error:
        raise BenchError(f"budget file not found: {path}") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, not TOML, a null in the name
        raise BenchError(f"budget {path} cannot be read: {error}") from error


def parse_budget(tree: dict[str, Any], path: Path) -> Budget:
    """The budget of a parsed file.

    Raises:
        BenchError: Lists every fault.
    """
    faults: list[str] = []
    values: dict[str, Any] = {}
    for key, value in _flat(tree):
        if key in values:
            faults.append(f"{key}: given twice, in its section and as one quoted word; leave one of them out")
        try:
            values[key] = _checked(key, value)
        except ValueError as fault:
            faults.append(f"{key}: {fault}")
    limits = {key: value for key, value in values.items() if key in LIMITS}
    frames = [key for key in limits if key in NEED_DEADLINE]
    if frames and f"{MEASURE}.deadline_ms" not in values:
        faults.append(f"{', '.join(frames)}: set measure.deadline_ms, the time in which a frame's result is of use")
    if f"{MEASURE}.period_ms" in values and f"{MEASURE}.deadline_ms" not in values:
        faults.append("measure.period_ms: set measure.deadline_ms, too; without a deadline no frames are fed")
    if not limits and not faults:
        faults.append(f"no limit is given; write one, for example {EXAMPLE}")
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise BenchError(f"budget {path}: {count}" + "".join(f"\n  {fault}" for fault in faults))
    settings = {name: values[f"{MEASURE}.{name}"] for name in SETTINGS if f"{MEASURE}.{name}" in values}
    return Budget(name=path.name, limits=limits, measure=Measurement(**{"shapes": {}, **settings}))


def _flat(tree: dict[str, Any]) -> list[tuple[str, Any]]:
    """``section.key`` and value, for the known sections; others as they stand."""
    found: list[tuple[str, Any]] = []
    for section, content in tree.items():
        if isinstance(content, dict):
            found += [(f"{section}.{key}", value) for key, value in content.items()] or [(section, content)]
        else:
            found.append((section, content))
    return found


def _checked(key: str, value: Any) -> Any:
    if key in SECTIONS:
        if value == {}:
            return value
        raise ValueError(f"got {value!r}, expected a section [{key}]")
    if key in LIMITS:
        return _limit(key, value)
    section, _, name = key.partition(".")
    if section == MEASURE and name in SETTINGS:
        return SETTINGS[name](value)
    raise ValueError(_unknown(key))


def _unknown(key: str) -> str:
    """The near key, of the whole name or of its last part, and what is known in the section."""
    known = [*LIMITS, *(f"{MEASURE}.{name}" for name in SETTINGS)]
    section, _, name = key.partition(".")
    of_name = {whole.partition(".")[2]: whole for whole in known}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    near = near or [of_name[match] for match in difflib.get_close_matches(name or section, of_name, n=1, cutoff=0.7)]
    hint = f" (did you mean {near[0]}?)" if near else ""
    inside = [whole for whole in known if whole.startswith(f"{section}.")]
    if inside:
        return f"unknown key{hint}; known: {', '.join(inside)}"
    return f"unknown key{hint}; known sections: {', '.join(SECTIONS)}"


def _limit(key: str, value: Any) -> float:
    unit = UNITS[LIMITS[key].unit]
    least = "0 or more" if unit.zero else "a number above 0"
    expected = "a share from 0 to 1, for example 0.98" if unit.largest == 1 else least
    number = _number(value, expected)
    if number < 0 or number > unit.largest or (number == 0 and not unit.zero):
        raise ValueError(f"got {value!r}, expected {expected}")
    return number


def _number(value: Any, expected: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"got {value!r:.60}, expected {expected}")
    return float(value)


def _whole(least: int) -> Callable[[Any], int]:
    def checked(value: Any) -> int:
        if type(value) is not int or value < least:
            raise ValueError(f"got {value!r}, expected an integer of at least {least}")
        return value

    return checked


def _real(expected: str, *, zero: bool) -> Callable[[Any], float]:
    def checked(value: Any) -> float:
        number = _number(value, expected)
        if number < 0 or (number == 0 and not zero):
            raise ValueError(f"got {value!r}, expected {expected}")
        return number

    return checked


def _cores(value: Any) -> tuple[int, ...]:
    cores = value if isinstance(value, list) else [value]
    if not all(type(core) is int and core >= 0 for core in cores) or len(set(cores)) < len(cores):
        raise ValueError(f"got {value!r}, expected different cores, for example [2, 3]")
    return tuple(cores)


def _word(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f'got {value!r}, expected a name, for example "xnnpack"')
    return value


def _shapes(value: Any) -> dict[str, tuple[int, ...]]:
    expected = "sizes by input, for example {image = [1, 3, 224, 224]}"
    if not isinstance(value, dict):
        raise ValueError(f"got {value!r}, expected {expected}")  # noqa: TRY004 - a fault of the file, told like others
    for sizes in value.values():
        if not isinstance(sizes, list) or not all(type(size) is int and size >= 1 for size in sizes):
            raise ValueError(f"got {value!r}, expected {expected}, each 1 or more")
    return {name: tuple(sizes) for name, sizes in value.items()}


SETTINGS: dict[str, Callable[[Any], Any]] = {
    "threads": _whole(1),
    "pin": _cores,
    "provider": _word,
    "batch": _whole(1),
    "shapes": _shapes,
    "runs": _whole(MIN_RUNS),
    "samples": _whole(1),
    "min_seconds": _real("seconds, 0 or more", zero=True),
    "memory_runs": _whole(1),
    "instruction_runs": _whole(1),
    "instruction_samples": _whole(1),
    "tolerance": _real("a share, 0 or more", zero=True),
    "deadline_ms": _real("milliseconds above 0", zero=False),
    "period_ms": _real("milliseconds above 0", zero=False),
    "frames": _whole(1),
    "seed": _whole(0),
    "timeout_s": _real("seconds above 0", zero=False),
}
SECTIONS = tuple(dict.fromkeys([*(key.partition(".")[0] for key in LIMITS), MEASURE]))
