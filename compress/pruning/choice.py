"""From scores and a target to the classes of channels that leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.errors import ConfigError
from compress.pruning.allocation import UnreachableError, below, down_to, ranks
from compress.pruning.candidates import Candidates
from compress.pruning.cost import COSTS, Ledger, Term
from compress.pruning.policy import Policy
from compress.pruning.target import NAMES, TOLERANCE, Target
from compress.pruning.units import Units, find_units, in_blocks

SMALL_TARGET = 0.1
"""How near to a small target the result must come, as a share of the target itself."""


@dataclass(frozen=True)
class Goal:
    """A target in what it counts: multiply-accumulates, parameters, or groups.

    Attributes:
        target: what was asked for.
        terms: what is counted.
        given: the count before pruning.
        value: the count to come down to.
    """

    target: Target
    terms: tuple[Term, ...]
    given: float
    value: float

    @property
    def tolerance(self) -> float:
        """How far from ``value`` the result may be."""
        return min(TOLERANCE * self.given, SMALL_TARGET * self.value)

    @property
    def asked(self) -> str:
        """In words."""
        amount = f"{self.value:,.0f} of {self.given:,.0f} {NAMES[self.target.kind]}"
        return f"target {self.target.kind} {self.target.value:g} ({amount})"

    def refusal(self, nearest: float, least: float, policy: Policy) -> ConfigError:
        """What to tell where the target is out of reach.

        Args:
            nearest: the nearest count that was found.
            least: the count with everything gone that may leave.
            policy: what limits the choice.
        """
        if least - self.value > self.tolerance:
            floor = f"{policy.min_channels} channel" + "s" * (policy.min_channels > 1)
            found, why = least, f"every layer keeps at least {floor} (min_channels), and some channels cannot leave"
        else:
            found = nearest
            why = "channels leave whole" if policy.round_to == 1 else f"channels leave in blocks of {policy.round_to}"
        small = SMALL_TARGET * self.value < TOLERANCE * self.given
        within = f"{SMALL_TARGET:.0%} of itself" if small else f"{TOLERANCE:.0%}"
        percent = self.target.value == self.value and self.value < 100 and self.target.kind in COSTS
        meant = f"; a share is written {self.value:g}%" if percent else ""
        return ConfigError(
            f"{self.asked} cannot be reached within {within}: {why}; the nearest that was found is "
            f"{found:,.0f} {NAMES[self.target.kind]} ({found / self.given:.2%}){meant}"
        )

    def no_block(self, policy: Policy) -> ConfigError:
        """What to tell where no layer can lose a whole block."""
        return ConfigError(
            f"{self.asked}: no layer can lose a whole block of {policy.round_to} channels; remove more, or round less"
        )


def make_goal(target: Target, model: nn.Module, candidates: Candidates) -> Goal:
    """The goal of a target for a network.

    Raises:
        ConfigError: the network meets it as it is.
    """
    if target.kind in COSTS:
        terms = tuple(COSTS[target.kind](model, candidates.graph))
        given = sum(term.cost for term in terms) if candidates.compact is None else target.cost(candidates.compact)
        return Goal(target, terms, given, target.goal(given))
    count = len(candidates.alive)
    return Goal(target, (Term(count, (candidates.alive,)),), count, round(target.value * count))


@dataclass(frozen=True)
class Choice:
    """What leaves.

    Attributes:
        leaving: bool ``[classes]``.
        considered: bool ``[classes]``, the classes that could have been chosen.
    """

    leaving: Tensor
    considered: Tensor


def choose(candidates: Candidates, goal: Goal, policy: Policy, *, excluded: Tensor, surplus: float) -> Choice:
    """Choose the classes that leave.

    Args:
        candidates: the classes and their scores.
        goal: what is to be reached.
        policy: how.
        excluded: bool ``[classes]``, candidates that must stay.
        surplus: how much more the compact network was found to cost than is counted here.

    Raises:
        ConfigError: the target cannot be reached, or nothing has to leave for it.
    """
    scores = candidates.scores.masked_fill(excluded, torch.nan)
    units = find_units(scores, candidates.layers, candidates.graph.partitions)
    units = in_blocks(units, [along[~candidates.gone[along]] for along in candidates.rows], policy.round_to)
    ledger = Ledger(goal.terms, units.of_class, candidates.gone, candidates.rows, policy.min_channels)
    chosen = _choose(units, goal, policy, ledger, surplus)
    if not chosen:
        raise ConfigError(f"{goal.asked}: no group has to leave for it; ask for less")
    return Choice(units.members(chosen), units.of_class >= 0)


def _choose(units: Units, goal: Goal, policy: Policy, ledger: Ledger, surplus: float) -> list[int]:
    if goal.target.kind == "threshold":
        return _below_threshold(units, goal.target.value, ledger)
    if goal.target.kind == "keep-ratio" and policy.per_layer:
        return _same_share(units, goal, policy, ledger)
    values = ranks(units) if policy.per_layer else units.score
    # a number of groups is rounded to whole units
    tolerance = max(goal.tolerance, units.largest / 2) if goal.target.kind == "keep-ratio" else goal.tolerance
    try:
        return down_to(goal.value - surplus, tolerance, values, units.layer, ledger)
    except UnreachableError as error:
        raise goal.refusal(error.nearest + surplus, error.least + surplus, policy) from error


def _below_threshold(units: Units, limit: float, ledger: Ledger) -> list[int]:
    chosen = below(limit, units.highest, ledger)
    if not chosen:
        scores = f"from {units.highest.min():.4g} to {units.highest.max():.4g}" if len(units) else "there are none"
        raise ConfigError(f"target threshold {limit:g}: no group is below it and may leave; scores run {scores}")
    return chosen


def _same_share(units: Units, goal: Goal, policy: Policy, ledger: Ledger) -> list[int]:
    """The same share of each layer, rounded to whole units."""
    limit, places = 1 - goal.target.value, ranks(units)
    chosen = below(limit, places, ledger)
    wanted = goal.given - int(units.members((places < limit).nonzero().flatten().tolist()).sum())
    if ledger.total - wanted > goal.tolerance:
        raise goal.refusal(ledger.total, ledger.total, policy)
    return chosen
