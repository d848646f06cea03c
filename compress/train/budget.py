"""A budget: training that ends at a size which was asked for.

From the end of the warm-up to the end of the penalty's epochs the size is to follow a plan, from all to the target. Ten
times an epoch the strength is corrected: up where the network is larger than planned, down where it is not. A strength
that rises too far cannot do harm, since the groups that the next point of the plan needs are *reserved*: the most
important ones, and in every layer as many as its floor; the proximal step may shrink those, but not drop them. At the
end of the penalty's epochs whatever is not needed for the target becomes zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

import compress
from compress.errors import ConfigError
from compress.graph import ChannelGraph, channel_graph
from compress.groups import Groups
from compress.pruning.allocation import UnreachableError, down_to
from compress.pruning.candidates import locate
from compress.pruning.cost import COSTS, Ledger, Term, params
from compress.pruning.units import find_units, in_blocks
from compress.surgery.rounding import filled
from compress.train.checkpoint import State
from compress.train.config import BudgetSection, Config

CHECKS_PER_EPOCH = 10

TOLERANCE = 0.01
"""How near the landing comes to the target, as a share of it, where whole channels allow; half of what is promised."""

ROUNDING = 1e-9
"""Relative: sums of costs in another order."""

GAIN, STEEPEST, HELD, SLACK = 400.0, 1.0, 0.1, 0.02
"""How the logarithm of the strength follows the excess over the plan (the logarithm of the one over the other, as a
share of that of the whole way): by ``GAIN`` times it over all checks together, by ``STEEPEST`` at most at one; down by
``HELD`` where reserved groups had to be held back although the excess is no more than ``SLACK``."""

BYTES = 4
"""Of one parameter, float32."""


class Account(ABC):
    """What the budget counts.

    Attributes:
        given: with all groups; ``goal``: with those that the target leaves.
        margin: how much more than the target is reserved, as a share of it: what the landing chooses among.
    """

    given: float
    goal: float
    margin: float

    @abstractmethod
    def cost(self, dead: Tensor) -> float:
        """The count without the groups ``dead``, bool ``[groups]``."""

    def leaving(self, dead: Tensor) -> Tensor:
        """Bool ``[groups]``: those of the groups ``dead`` that leave; the others fill the last block of a layer."""
        return dead

    @abstractmethod
    def needed(
        self, goal: float, importance: Tensor, dead: Tensor, tolerance: float = math.inf, *, at_least: bool = False
    ) -> Tensor:
        """Bool ``[groups]``: those that stay when the least important leave until the count is nearest to ``goal``.

        Args:
            goal: the count to come down to.
            importance: float64 ``[groups]``.
            dead: bool ``[groups]``, those that have left.
            tolerance: how near is near enough; infinite for strictly by importance.
            at_least: whether the count must not be below ``goal``.
        """


class GroupAccount(Account):
    """Counts groups: every number can be reached, so that the landing needs no choice.

    Args:
        groups: those that the penalty acts on.
        section: the budget.
    """

    margin = 0.0

    def __init__(self, groups: Groups, section: BudgetSection) -> None:
        self.given = float(groups.count)
        self.goal = _goal(section, self.given)
        self._floor = section.floor
        self._layers = [layer.cpu() for layer in groups.layers()]

    def cost(self, dead: Tensor) -> float:  # noqa: D102
        return self.given - int(dead.sum())

    def needed(  # noqa: D102
        self, goal: float, importance: Tensor, dead: Tensor, tolerance: float = math.inf, *, at_least: bool = False
    ) -> Tensor:
        del tolerance, at_least  # every number of groups can be reached
        wanted = importance.masked_fill(dead, -1.0)
        for layer in self._layers:
            own = wanted[layer]
            first = layer[own.topk(min(self._floor, len(layer))).indices]
            wanted[first] = torch.where(wanted[first] < 0, wanted[first], torch.inf)
        stays = torch.zeros_like(dead)
        stays[wanted.topk(max(round(goal), int(wanted.isinf().sum()))).indices] = True
        return stays & ~dead


class NetworkAccount(Account):
    """Counts what the network would have without its dead channels: multiply-accumulates, parameters, or bytes.

    Args:
        model: the network.
        groups: its coupled groups.
        section: the budget.
        example: images ``[1, C, H, W]``.
        round_to: of what widths will be multiples: dead channels that fill the last block of a layer count as there.
    """

    margin = 0.3

    def __init__(
        self, model: nn.Module, groups: Groups, section: BudgetSection, example: Tensor, round_to: int = 1
    ) -> None:
        graph = channel_graph(model, (example,))
        self._terms = MEASURES[section.measure](model, graph)
        self._floor = section.floor
        self._round_to = round_to
        self._classes = graph.classes.count
        self._partitions = graph.partitions
        self._class_of, self._rows, self._layers = locate(groups, graph)
        self.given = math.fsum(term.cost for term in self._terms)
        self.goal = _goal(section, self.given)

    def cost(self, dead: Tensor) -> float:  # noqa: D102
        nothing = torch.full((self._classes,), -1)
        return Ledger(self._terms, nothing, self._gone(dead)).total

    def needed(  # noqa: D102
        self, goal: float, importance: Tensor, dead: Tensor, tolerance: float = math.inf, *, at_least: bool = False
    ) -> Tensor:
        gone = self._gone(dead)
        scores = torch.full((self._classes,), torch.nan, dtype=torch.float64)
        scores[self._class_of] = importance.masked_fill(dead, 0.0)
        scores[gone] = torch.nan
        units = find_units(scores, self._layers, self._partitions)
        units = in_blocks(units, [along[~gone[along]] for along in self._rows], self._round_to)
        ledger = Ledger(self._terms, units.of_class, gone, self._rows, self._floor)
        if ledger.total <= goal:
            return ~dead
        leaving = down_to(goal, tolerance, units.score, units.layer, ledger)
        leaving.sort(key=units.score.__getitem__)
        while at_least and ledger.total < goal:
            ledger.restore(leaving.pop())
        return ~dead & ~units.members(leaving)[self._class_of]

    def leaving(self, dead: Tensor) -> Tensor:  # noqa: D102
        return dead & self._gone(dead)[self._class_of]

    def _gone(self, dead: Tensor) -> Tensor:
        """Bool ``[classes]``: those that would leave."""
        gone = torch.zeros(self._classes, dtype=torch.bool)
        gone[self._class_of[dead]] = True
        return filled(self._rows, gone, self._round_to)


def _bytes(model: nn.Module, graph: ChannelGraph) -> list[Term]:
    return [replace(term, cost=BYTES * term.cost) for term in params(model, graph)]


MEASURES: dict[str, Callable[[nn.Module, ChannelGraph], list[Term]]] = {**COSTS, "bytes": _bytes}
"""What is counted in a network -> its terms."""


@dataclass(frozen=True)
class Landing:
    """How near a run came to its target.

    Attributes:
        measure: what was counted; ``target`` of it was asked for, ``reached`` of it is left, of ``given`` at first.
    """

    measure: str
    target: float
    reached: float
    given: float


class Budget:
    """The controller of one run.

    Attributes:
        strength: of the penalty, before the warm-up's factor.
        reserve: bool ``[groups]``, groups that the proximal step may not drop.
        landing: how near the target was met, once it was.

    Args:
        model: the network, at its start.
        regularizer: the penalty on it.
        config: the recipe; ``penalty.budget`` is set.
        example: images ``[1, C, H, W]``, for what is counted in the network.

    Raises:
        ConfigError: the target cannot be reached.
    """

    def __init__(self, model: nn.Module, regularizer: compress.Regularizer, config: Config, example: Tensor) -> None:
        section = config.penalty.budget
        assert section is not None
        self.strength = config.penalty.strength
        self.landing: Landing | None = None
        self._measure = section.measure
        self._controls = config.penalty.mode == "prox"
        self._epochs = config.penalty.warmup_epochs, config.penalty_epochs
        if section.measure == "groups":
            self._account: Account = GroupAccount(regularizer.groups, section)
        else:
            self._account = NetworkAccount(model, regularizer.groups, section, example, config.run.round_to)
        block = config.run.round_to
        self._blocks = f", the blocks of {block} channels of run.round_to" if block > 1 else ""
        self._held = 0
        self._check_reachable(regularizer)
        self.reserve = self._needed(0.0, regularizer.importance(), _dead(regularizer))

    def prox_(self, regularizer: compress.Regularizer, optimizer: torch.optim.Optimizer) -> None:
        """The proximal step, but for reserved groups that it would drop: they stay as they are."""
        parameters = [parameter.detach() for _, parameter in regularizer.groups.parameters]
        before = [parameter.clone() for parameter in parameters]
        regularizer.prox_(optimizer)
        lost = self.reserve.to(parameters[0].device) & regularizer.dead()
        if bool(lost.any()):
            self._held += int(lost.sum())
            for parameter, old, own in zip(parameters, before, regularizer.groups.masks(lost), strict=True):
                parameter.copy_(torch.where(own, old, parameter))

    def check_(self, regularizer: compress.Regularizer, optimizer: torch.optim.Optimizer, time_epochs: float) -> None:
        """Correct the strength and renew the reserve.

        Args:
            regularizer: the penalty.
            optimizer: its metric says what groups are worth.
            time_epochs: where the training stands.
        """
        account, dead = self._account, _dead(regularizer)
        start, end = self._epochs
        checks = max(CHECKS_PER_EPOCH * (end - start), 1.0)
        progress = min(max((time_epochs - start) / (end - start), 0.0), 1.0)
        if self._controls and progress > 0:
            over = math.log(max(account.cost(dead), 1.0) / self._planned(progress))
            excess = over / math.log(account.given / account.goal)
            change = min(max(GAIN / checks * excess, -STEEPEST), STEEPEST)
            self.strength *= math.exp(min(change, -HELD) if self._held and excess <= SLACK else change)
        self._held = 0
        self.reserve = self._needed(min(progress + 1 / checks, 1.0), regularizer.importance(optimizer), dead)

    def land_(self, regularizer: compress.Regularizer, optimizer: torch.optim.Optimizer) -> None:
        """Make zero what the target does not need."""
        account, dead = self._account, _dead(regularizer)
        worth = regularizer.importance(optimizer)
        try:
            stays = account.needed(account.goal, worth, dead, TOLERANCE * account.goal)
        except UnreachableError as error:  # as near as whole channels come
            nearest = abs(error.nearest - account.goal)
            stays = account.needed(account.goal, worth, dead, nearest * (1 + ROUNDING))
        regularizer.zero_(account.leaving(~stays))
        self.landing = Landing(self._measure, account.goal, account.cost(~stays), account.given)

    def state(self) -> State:
        """What ``load_state_`` needs."""
        landing = self.landing and asdict(self.landing)
        return {"strength": self.strength, "reserve": self.reserve, "held": self._held, "landing": landing}

    def load_state_(self, state: State) -> None:
        """Go on from ``state``."""
        self.strength, self.reserve, self._held = state["strength"], state["reserve"], state["held"]
        self.landing = state["landing"] and Landing(**state["landing"])

    def _needed(self, progress: float, importance: Tensor, dead: Tensor) -> Tensor:
        size = max(self._planned(progress), (1 + self._account.margin) * self._account.goal)
        return self._account.needed(min(size, self._account.given), importance, dead, at_least=True)

    def _planned(self, progress: float) -> float:
        """The size at a point of the way: it falls fast at first, while the network can still learn without.

        ``goal + (given - goal) (1 - progress)^3`` (Zhu and Gupta 2017, "To prune, or not to prune").
        """
        return self._account.goal + (self._account.given - self._account.goal) * (1 - progress) ** 3

    def _check_reachable(self, regularizer: compress.Regularizer) -> None:
        account, dead = self._account, _dead(regularizer)
        least = account.cost(~account.needed(0.0, regularizer.importance(), dead))
        if least > account.goal * (1 + 2 * TOLERANCE):
            raise ConfigError(
                f"penalty.budget.target: {account.goal:,.0f} of {account.given:,.0f} {self._measure} is out of reach; "
                f"with penalty.budget.floor{self._blocks} and the channels that cannot leave, the least is "
                f"{least:,.0f} ({least / account.given:.1%}). Ask for more, or lower the floor"
            )


def _dead(regularizer: compress.Regularizer) -> Tensor:
    return regularizer.dead().cpu()


def _goal(section: BudgetSection, given: float) -> float:
    goal = section.target * given if section.target < 1 else section.target
    if goal >= given:
        raise ConfigError(
            f"penalty.budget.target: got {section.target:g}, the network has {given:,.0f} {section.measure} as it is; "
            "below 1 it is a share, else a number"
        )
    return goal
