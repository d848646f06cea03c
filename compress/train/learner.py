"""One training step: gradient, optimizer, penalty.

What changes a single step (precision, distillation, several processes) belongs here; what orders the steps is in
``loop``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import compress
from compress.optim import HardConcrete
from compress.optim.slicing import slice_optimizer_, sliced, unread, whole, without_unread
from compress.penalties import PENALTIES
from compress.surgery import Plan
from compress.surgery.bake import private_copy
from compress.train.average import Average, Weights, cut, lent, load_, put_, taken, twin
from compress.train.budget import Budget, Landing
from compress.train.checkpoint import State
from compress.train.compaction import cut_, plan_from_state, plan_to_state
from compress.train.config import HARD_CONCRETE, NO_PENALTY, Config
from compress.train.distill import Distillation, Teacher
from compress.train.divergence import DivergenceError
from compress.train.execution import Execution, execution_of
from compress.train.loss import Loss
from compress.train.optimizers import build_optimizer
from compress.train.world import World

LR_FACTOR = "lr_factor"
"""Key of a parameter group of the optimizer: its learning rate over that of the others."""


@dataclass(frozen=True)
class StepResult:
    """What one step says about its batch.

    Attributes:
        loss: Mean cross-entropy before the step, in nats.
        correct: Images that were classified rightly; a mixed one as what it is most of.
        images: Images in the batch.
    """

    loss: float
    correct: int
    images: int


def set_rate_(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next step, times the factor of each parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(LR_FACTOR, 1.0)


class Learner:
    """A model with the optimizer and the penalty that move it.

    Attributes:
        network: What computes: the model, or the model with its gates.
        frozen: Whether dead groups stay dead and the others train without penalty.
        plans: Of all compactions so far, in their order.
        execution: How a step computes the network's outputs.
        loss: What a step minimises beside the penalty; the cross-entropy unless it is replaced.
        average: Of the model's weights, judged and kept in their place; None unless it is set.
        world: The processes that share each batch.

    Args:
        model: Maps images ``[N, C, H, W]`` to logits ``[N, classes]``; it is trained in place.
        optimizer: Over the model's parameters.
        regularizer: None to train without penalty.
        subgradient: Add the penalty's subgradient to the gradient instead of taking a proximal step.
        budget: What corrects the strength, so that training ends at a given size.
        gates: Of the model, in place of a penalty; then ``regularizer`` acts only after they are folded.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        regularizer: compress.Regularizer | None,
        *,
        subgradient: bool = False,
        budget: Budget | None = None,
        gates: HardConcrete | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.regularizer = regularizer
        self.budget = budget
        self.gates = gates
        self.network: nn.Module = model if gates is None else gates
        self.frozen = False
        self.plans: list[Plan] = []
        self.execution = Execution()
        self.loss = Loss()
        self.average: Average | None = None
        self.world = World()
        self._best: Weights | None = None
        self._subgradient = subgradient
        self._groups_at_start = 0 if regularizer is None else regularizer.groups.count

    def step(self, images: Tensor, labels: Tensor, *, lr: float, strength: float) -> StepResult:
        """Take one step on normalised images ``[N, C, H, W]`` and labels ``[N]`` or shares of classes ``[N, classes]``.

        Raises:
            DivergenceError: The loss is NaN or infinite; the weights are those from before the step.
        """
        set_rate_(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.execution(self.network, images)
        loss = self.loss(images, logits, labels)
        classes = labels if labels.ndim == 1 else labels.argmax(1)
        result = self._counted(loss, int((logits.argmax(1) == classes).sum()), len(labels))
        if not math.isfinite(result.loss):
            raise DivergenceError(f"the loss is {result.loss}")
        if self.gates is not None:
            self.gates.strength = strength
            loss = loss + self.gates.penalty()
        if self.world.size > 1:
            loss = loss * (len(labels) / result.images)
        loss.backward()  # type: ignore[no-untyped-call]
        self.world.sum_gradients_(p for group in self.optimizer.param_groups for p in group["params"])
        self._move(strength)
        self.world.mean_statistics_(self.model)
        if self.average is not None:
            self.average.update_()
        return result

    def _counted(self, loss: Tensor, correct: int, images: int) -> StepResult:
        """Of the whole batch, which processes may share."""
        if self.world.size == 1:
            return StepResult(loss.item(), correct, images)
        sums = torch.tensor([loss.item() * images, correct, images], dtype=torch.float64, device=loss.device)
        total, right, count = self.world.sum_(sums).tolist()
        return StepResult(total / count, int(right), int(count))

    def _move(self, strength: float) -> None:
        if self.regularizer is None or (self.gates is not None and not self.gates.folded):
            self.optimizer.step()
            return
        for weights in self._unread():
            weights.grad = torch.zeros_like(weights)
        self.regularizer.strength = strength
        self._advance(self.optimizer, self.regularizer)

    def _advance(self, optimizer: torch.optim.Optimizer, regularizer: compress.Regularizer) -> None:
        """The step of the optimizer, and that of the penalty before or behind it."""
        # Once frozen, the proximal step only keeps dead groups dead, whichever way they died.
        proximal = self.frozen or not self._subgradient
        if not proximal:
            regularizer.add_subgradient_()
        optimizer.step()
        if proximal and self.budget is not None and not self.frozen:
            self.budget.prox_(regularizer, optimizer)
        elif proximal:
            regularizer.prox_(optimizer)

    @torch.no_grad()
    def coasted(self, *, lr: float, strength: float) -> nn.Module:
        """A copy of the model one step on, a step whose gradient is zero: what momentum makes of the weights.

        Momentum fades from step to step: a weight that no gradient reaches and that is zero now and then stays so.
        """
        other = private_copy(self.model)
        if self.regularizer is None:
            return other
        optimizer, regularizer = copy.deepcopy((self.optimizer, self.regularizer))  # in one, as they share parameters
        pairs = [
            (before, after)
            for group, copied in zip(self.optimizer.param_groups, optimizer.param_groups, strict=True)
            for before, after in zip(group["params"], copied["params"], strict=True)
        ]
        for _, after in pairs:
            after.grad = torch.zeros_like(after) if after.requires_grad else None
        set_rate_(optimizer, lr)
        regularizer.strength = strength
        self._advance(optimizer, regularizer)
        moved = dict(pairs)
        for own, weights in zip(self.model.parameters(), other.parameters(), strict=True):
            weights.copy_(moved.get(own, own))
        return other

    @contextmanager
    def judged(self) -> Iterator[nn.Module]:
        """What is to be judged: the network, with the average of its weights if there is one."""
        with nullcontext() if self.average is None else lent(self.model, self.average.weights()):
            yield self.network

    def remember_(self) -> None:
        """Keep what is judged now: it is what training ends with, unless another call comes."""
        self._best = taken(self.model) if self.average is None else self.average.weights()

    def finish_(self) -> None:
        """Give the model the weights that training ends with, when it has ended."""
        if self._best is not None:
            put_(self.model, self._best)
        elif self.average is not None:
            put_(self.model, self.average.weights())

    def twins(self) -> list[nn.Module]:
        """Copies of the model with the other weights that a compaction cuts too."""
        others = [self._best, None if self.average is None else self.average.weights()]
        return [twin(self.model, weights) for weights in others if weights is not None]

    def check_budget_(self, time_epochs: float) -> None:
        """Let the budget, if there is one, correct the strength."""
        if self.budget is not None and self.regularizer is not None and not self.frozen:
            self.budget.check_(self.regularizer, self.optimizer, time_epochs)

    def freeze_(self) -> None:
        """From now on dead groups stay dead, and the others train without penalty."""
        self.settle_()
        self._keep_dead_()

    def settle_(self) -> None:
        """Make exact zeros of what the penalty has left open: what the budget does not need, and closed gates."""
        if self.regularizer is None or self.frozen:
            return
        if self.budget is not None:
            self.budget.land_(self.regularizer, self.optimizer)
        if self.gates is not None:
            self.gates.fold_()

    @property
    def landing(self) -> Landing | None:
        """How near the budget was met, if there is one and it was."""
        return None if self.budget is None else self.budget.landing

    def _keep_dead_(self) -> None:
        if self.regularizer is not None and not self.frozen:
            self.regularizer, forgotten = without_unread(self.regularizer)
            slice_optimizer_(self.optimizer, forgotten)
            self.regularizer.freeze_()
        self.frozen = True

    def compact_(self, plan: Plan) -> None:
        """Cut the model, the state of the optimizer and the penalty's groups.

        Args:
            plan: Takes out what is zero or unread (see ``find_compaction``): no weight changes its value.

        Raises:
            CheckpointError: It was made for another model.
        """
        smaller = cut_(self.model, plan)
        pieces = whole(smaller)
        if self.regularizer is not None:
            self.regularizer, pieces = sliced(self.regularizer, smaller)
        slice_optimizer_(self.optimizer, pieces)
        if self.average is not None:
            self.average.cut_(plan)
        if self._best is not None:
            self._best = cut(self._best, plan)
        self.plans.append(plan)

    def dead_share(self) -> float | None:
        """Share of the penalty's groups that are exactly zero, or have left; None without penalty."""
        if self.regularizer is None:
            return None
        if self.gates is not None:
            return self.gates.closed_share()
        count = self.regularizer.groups.count
        left = self._groups_at_start - count
        return (left + self.regularizer.dead_share() * count) / self._groups_at_start

    def live_groups(self) -> dict[str, int] | None:
        """Groups that are not zero, by layer; None without penalty."""
        if self.regularizer is None:
            return None
        acting = self.regularizer if self.gates is None else self.gates
        return {layer: count.total - count.dead for layer, count in acting.sparsity().items()}

    def state(self) -> State:
        """What ``load_state_`` needs; tensors are shared with the model, not copied."""
        return {
            "plans": [plan_to_state(plan) for plan in self.plans],
            "frozen": self.frozen,
            "model": self.model.state_dict(),
            "unread": [weights.detach() for weights in self._unread()],
            "optimizer": self.optimizer.state_dict(),
            "budget": None if self.budget is None else self.budget.state(),
            "gates": None if self.gates is None else self.gates.gate_state(),
            "average": None if self.average is None else self.average.state(),
            "best": self._best,
        }

    def load_state_(self, state: State) -> None:
        """Go on from ``state``, in a learner at its start: the model is cut as it was then.

        Raises:
            CheckpointError, RuntimeError, ValueError, KeyError, TypeError: It belongs to another model or optimizer.
        """
        for plan in state["plans"]:
            self.compact_(plan_from_state(plan))
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_(state["average"])
        if state["best"] is not None:
            self._best = taken(self.model)
            load_(self._best, state["best"])
        if self.budget is not None:
            self.budget.load_state_(state["budget"])
        if self.gates is not None:
            self.gates.load_gate_state_(state["gates"])
        if state["frozen"]:
            self._keep_dead_()
        for weights, value in zip(self._unread(), state["unread"], strict=True):
            weights.detach().copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])

    def _unread(self) -> list[nn.Parameter]:
        return [] if self.regularizer is None else unread(self.regularizer)


def build_learner(config: Config, model: nn.Module, example: Tensor, teacher: Teacher | None = None) -> Learner:
    """The learner of a recipe around ``model``.

    Args:
        config: The recipe; ``penalty.name`` may be ``none``.
        model: On the device where it is to be trained.
        example: Images ``[1, C, H, W]`` on the same device; the model is traced with them.
        teacher: Whom ``[distill]`` names, if it does.
    """
    learner = _penalised(config, model, example)
    learner.execution = execution_of(config.run, model, example.device)
    follows = None if teacher is None or config.distill is None else Distillation(teacher, config.distill)
    learner.loss = Loss(config.schedule.label_smoothing, follows)
    learner.average = None if config.average is None else Average(model, config.average.decay)
    return learner


def _penalised(config: Config, model: nn.Module, example: Tensor) -> Learner:
    penalty = config.penalty
    optimizer = build_optimizer(model, config.optimizer)
    if penalty.name == NO_PENALTY:
        return Learner(model, optimizer, None)
    if penalty.name == HARD_CONCRETE:
        return _gated(config, model, optimizer, example)
    regularizer = compress.Regularizer(
        model,
        penalty=PENALTIES[penalty.name](penalty.strength, **penalty.shape()),
        granularity=penalty.granularity,
        example_inputs=(example,),
        group_weights=config.group_weights,
    )
    budget = None if penalty.budget is None else Budget(model, regularizer, config, example)
    return Learner(model, optimizer, regularizer, subgradient=penalty.mode == "subgradient", budget=budget)


def _gated(config: Config, model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor) -> Learner:
    penalty = config.penalty
    gates = HardConcrete(
        model,
        penalty.granularity,
        penalty.strength,
        example_inputs=(example,),
        group_weights=penalty.group_weights or "none",
    )
    optimizer.add_param_group(
        {"params": [gates.log_alpha], "weight_decay": 0.0, LR_FACTOR: penalty.gate_lr_factor},
    )
    after = compress.Regularizer(model, "l0", penalty.granularity, 0.0, example_inputs=(example,))
    return Learner(model, optimizer, after, gates=gates)
