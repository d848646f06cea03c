"""What pruning is asked for: a limit on scores, or a size to come down to."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from compress.errors import ConfigError
from compress.surgery import CompactReport

TOLERANCE = 0.01
"""How near to a target the compact network must come, as a share of the network before pruning."""

_UNITS = {"": 1.0, "%": 1e-2, "k": 1e3, "m": 1e6, "g": 1e9}
_AMOUNT = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([%kmg]?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """When to stop.

    ============ =======================================================================================
    threshold    every group whose score is below ``value`` leaves
    keep-ratio   the share ``value`` of the groups stays
    macs         multiply-accumulates of the compact network: below 1 a share of the network that is
                 given, above 1 a number
    params       its parameters, likewise
    ============ =======================================================================================

    Raises:
        ConfigError: an unknown kind, or a value out of its range.
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"unknown target {self.kind!r}; known: {', '.join(KINDS)}")
        if not (math.isfinite(self.value) and self.value > 0):
            raise ConfigError(f"target {self.kind} {self.value:g}: must be a finite number above 0")
        if self.kind == "keep-ratio" and self.value >= 1:
            raise ConfigError(f"target keep-ratio {self.value:g}: the share of groups that stay must be below 1")
        if self.kind in COSTS and self.value == 1:
            raise ConfigError(f"target {self.kind} 1: that is the network as it is; below 1 a share, above 1 a number")

    def goal(self, given: float) -> float:
        """The cost to come down to, of a network that costs ``given``.

        Raises:
            ConfigError: the network costs no more than that already.
        """
        goal = self.value * given if self.value < 1 else self.value
        if goal >= given:
            raise ConfigError(
                f"target {self.kind} {self.value:,.0f}: the network has {given:,.0f} {NAMES[self.kind]} as it is; "
                "ask for fewer"
            )
        return goal

    def cost(self, report: CompactReport) -> int:
        """What the compact network costs, in what a target on its size counts."""
        return {"macs": report.macs_after, "params": report.params_after}[self.kind]


COSTS = ("macs", "params")
"""Targets on the size of the compact network."""

KINDS = ("threshold", "keep-ratio", *COSTS)

NAMES = {"threshold": "groups", "keep-ratio": "groups", "macs": "MACs", "params": "parameters"}
"""Kind of target -> what it counts."""


def parse_amount(text: str, option: str) -> float:
    """A share or a number as people write it: ``0.5``, ``50%``, ``800k``, ``1.5M``, ``2G``.

    Raises:
        ConfigError: it is none of these.
    """
    match = _AMOUNT.fullmatch(text)
    try:
        value = float(match[1]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or math.isnan(value):
        raise ConfigError(f"{option} {text}: expected a share (0.5 or 50%) or a number (800k, 1.5M, 2G)")
    unit = match[2].lower()
    amount = value * _UNITS[unit]
    if (unit == "%" and amount >= 1) or (unit in ("k", "m", "g") and amount <= 1):
        raise ConfigError(f"{option} {text}: a share must be below 100%, a number above 1")
    return amount
