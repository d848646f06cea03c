"""The four lines that people add to their own training loop."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from compress.errors import ConfigError
from compress.groups import Groups, find_groups
from compress.optim.blocks import Layout
from compress.optim.importance import importance
from compress.optim.metric import Step, inner_optimizer, steps
from compress.optim.proximal import is_exact, prox_groups_, prox_weights_, seen_at_once
from compress.penalties import PENALTIES, Penalty

_LOG = logging.getLogger(__name__)


def _equal(groups: Groups) -> Tensor:
    return torch.ones_like(groups.sizes())


def _sqrt_size(groups: Groups) -> Tensor:
    return groups.sizes().sqrt()


def _size(groups: Groups) -> Tensor:
    sizes = groups.sizes()
    return sizes / sizes.mean()


def _macs(groups: Groups) -> Tensor:
    assert groups.macs is not None
    sizes = groups.sizes()
    return (groups.macs / groups.macs.mean()).to(sizes)


GROUP_WEIGHTS: dict[str, Callable[[Groups], Tensor]] = {
    "none": _equal,
    "sqrt-size": _sqrt_size,
    "size": _size,
    "macs": _macs,
}
"""How the penalty of a group is weighted: all alike; by the square root of its number of weights; by that number over
its mean; by the multiply-accumulates that leave with it over their mean over groups (so that the mean weight is 1),
which makes the penalty what the user pays."""


def check_group_weights(name: str, groups: Groups, granularity: str) -> None:
    """Refuse group weights that are unknown, or that these groups don't have."""
    if name not in GROUP_WEIGHTS:
        raise ConfigError(f"unknown group_weights {name!r}; known: {', '.join(GROUP_WEIGHTS)}.")
    if name == "macs" and (groups.macs is None or not bool((groups.macs > 0).any())):
        raise ConfigError(
            f'group_weights "macs" needs groups whose removal saves work, got granularity {granularity!r}; '
            "use filter, channel, bn-scale or coupled."
        )


@dataclass(frozen=True)
class LayerSparsity:
    """How many of a layer's groups are exactly zero."""

    dead: int
    total: int


class Regularizer:
    """A sparsity penalty on the groups of a model.

    Example::

        reg = compress.Regularizer(model, "l0", "coupled", strength=1e-3, example_inputs=(x[:1],))
        loss.backward()
        optimizer.step()
        reg.prox_(optimizer)

    Args:
        model: the network. Its parameters are held, so that the optimiser and the penalty see the same tensors.
        penalty: a name in ``PENALTIES``, or a penalty.
        granularity: a name in ``compress.groups.GRANULARITIES``.
        strength: factor of the penalty; may be changed at any time (``reg.strength = ...``).
        example_inputs: what ``forward`` takes; needed for every granularity but ``weight`` and ``kernel``.
        group_weights: a name in ``GROUP_WEIGHTS``; the penalty's own default if not given.

    Raises:
        ConfigError: an unknown name, a strength below 0, or no group for the penalty to act on.
        ModelError: the model can't be traced.
    """

    def __init__(
        self,
        model: nn.Module,
        penalty: str | Penalty,
        granularity: str,
        strength: float | None = None,
        *,
        example_inputs: tuple[Tensor, ...] | None = None,
        group_weights: str | None = None,
    ):
        self.penalty = _make_penalty(penalty, strength)
        self.granularity = granularity
        self.groups: Groups = find_groups(model, granularity, example_inputs)
        self.group_weights = group_weights or self.penalty.default_group_weights
        check_group_weights(self.group_weights, self.groups, granularity)
        self._factors: Tensor | None = None
        self._layout: Layout | None = None
        self._frozen: list[Tensor] | None = None
        self._told = False
        self._steps_taken: WeakKeyDictionary[torch.optim.Optimizer, bool] = WeakKeyDictionary()

    @property
    def strength(self) -> float:
        """Factor of the penalty."""
        return self.penalty.strength

    @strength.setter
    def strength(self, value: float) -> None:
        if value != self.penalty.strength:
            self.penalty = dataclasses.replace(self.penalty, strength=value)

    @torch.no_grad()
    def value(self) -> float:
        """The penalty of the present weights."""
        if self.groups.slices:
            part, norms = self.penalty.on_norms, self.groups.squared_norms().sqrt()
            seen = seen_at_once(self.groups, part, self._weights())
            total = sum(float((factor * part.value(norms[at])).sum()) for at, factor in seen)
            if self.penalty.on_weights is not None:
                each = self.penalty.on_weights.value
                total += float(self.groups.gather(lambda own: each(own.parameter.detach().abs())).sum())
            return total
        return sum(
            float(part.value(p.abs().flatten()).sum()) for part in self.penalty.parts for _, p in self.groups.weights
        )

    @torch.no_grad()
    def prox_(self, optimizer: torch.optim.Optimizer) -> None:
        """The proximal step that belongs to the optimiser's last step; call it right after ``optimizer.step()``.

        It does nothing where the optimiser has taken no step since the last call: while gradients are accumulated, or
        where a gradient scaler has skipped a step whose gradients overflowed. The first call for an optimiser takes the
        step for granted.

        Its step is the optimiser's own (``lr``, or ``lr`` over the preconditioner), without momentum's amplification:
        at momentum 0.9 gradients weigh ten times as much in the long run, so that a strength acts like a tenth of it.

        Weights that are frozen out of training (``requires_grad``) stay as they are, and so no group dies that holds
        one which is not zero.

        Raises:
            ConfigError: the optimiser's type has no metric, or it does not train a parameter of the groups.
        """
        if not self._has_stepped(optimizer):
            return
        if self._frozen is not None:
            self._zero_frozen_()
            return
        metric = steps(optimizer, self.groups.parameters)
        self._tell_if_approximate(metric)
        if self.groups.slices:
            prox_groups_(self._laid_out(), self.penalty, self._weights(), metric)
        else:
            prox_weights_(self.groups, self.penalty, metric)

    @torch.no_grad()
    def add_subgradient_(self) -> None:
        """Add the penalty's subgradient to the gradients; call it between ``backward()`` and ``optimizer.step()``.

        Call it once for each step: after the last ``backward()`` where gradients are accumulated, and after
        ``scaler.unscale_(optimizer)`` where a gradient scaler has enlarged them.

        It passes through the optimiser's momentum and scaling, as in network slimming, and makes no weight exactly 0.
        After ``freeze_()`` it adds nothing.

        Raises:
            ConfigError: the penalty's derivative is 0 (L0), so that this would do nothing.
        """
        if not self.penalty.pulls:
            raise ConfigError(
                f"the derivative of {type(self.penalty).__name__} is 0 wherever it exists: as a subgradient it does "
                "nothing; call prox_(optimizer) after the step instead."
            )
        if self._frozen is not None:
            return
        if self.groups.slices:
            self._pull_groups_()
        for part in self.penalty.parts:
            for _, parameter in self.groups.weights:
                if parameter.grad is not None:
                    pull = part.subgradient(parameter.abs().flatten()).reshape(parameter.shape)
                    parameter.grad.add_(pull * parameter.sign())

    def _pull_groups_(self) -> None:
        part, norms = self.penalty.on_norms, self.groups.squared_norms().sqrt()
        pull = torch.zeros(self.groups.count + 1, dtype=norms.dtype, device=norms.device)
        for at, factor in seen_at_once(self.groups, part, self._weights()):
            pull[:-1][at] = factor * part.subgradient(norms[at])
        unit = torch.cat((norms, norms.new_ones(1))).clamp_min(torch.finfo(norms.dtype).tiny).reciprocal()
        each = self.penalty.on_weights
        for own in self.groups.slices:
            w, gradient = own.parameter.detach(), own.parameter.grad
            if gradient is None:
                continue
            gradient.add_(own.spread(pull) * (own.spread(unit) * w))
            if each is not None:
                inside = own.broadcast(own.index() < self.groups.count)
                gradient.add_(inside * each.subgradient(w.abs()) * w.sign())

    @torch.no_grad()
    def freeze_(self) -> None:
        """From now on keep dead groups dead and penalise nothing: the phase that lets the survivors recover."""
        if self.groups.slices:
            self._frozen = [~self.groups.dead()]
        else:
            self._frozen = [parameter != 0 for _, parameter in self.groups.weights]

    @torch.no_grad()
    def sparsity(self) -> dict[str, LayerSparsity]:
        """Dead and all groups, by layer (the weight's state-dict name without ``.weight``)."""
        if not self.groups.slices:
            return {_layer(name): LayerSparsity(int((p == 0).sum()), p.numel()) for name, p in self.groups.weights}
        return layer_sparsity(self.groups, self.groups.dead())

    @torch.no_grad()
    def dead(self) -> Tensor:
        """Bool ``[groups]``: those that are exactly zero."""
        return self.groups.dead()

    @torch.no_grad()
    def dead_share(self) -> float:
        """The share of groups that are exactly zero."""
        return float(self.groups.dead().double().mean())

    @torch.no_grad()
    def importance(self, optimizer: torch.optim.Optimizer | None = None) -> Tensor:
        """What it would cost to drop a group, float64 ``[groups]`` on the CPU (see ``compress.optim.importance``).

        Without an optimiser its metric counts as 1.
        """
        parameters = self.groups.parameters
        taken = [Step(1.0)] * len(parameters) if optimizer is None else steps(optimizer, parameters)
        factors = self._weights() if self.groups.slices else torch.ones((), device=self._device())
        return importance(self.groups, factors, taken)

    @torch.no_grad()
    def zero_(self, chosen: Tensor) -> None:
        """Make groups, bool ``[groups]``, exactly zero."""
        self.groups.zero_(chosen.to(self._device()))

    def _tell_if_approximate(self, metric: list[Step]) -> None:
        if self._told or is_exact(self.groups, self.penalty, metric):
            return
        self._told = True
        _LOG.warning(
            "the proximal step of %s on %s groups is approximate after this optimiser: it takes one step for each "
            "group (or layer), though every weight has its own. Exact there: l0, l1, group-lasso, sparse-group-lasso, "
            "and any separable penalty on single weights.",
            type(self.penalty).__name__,
            self.granularity,
        )

    def _has_stepped(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the optimiser has taken a step since it was last asked.

        The first time that is taken for granted, unless Accelerate knows better.
        """
        inner, taken = inner_optimizer(optimizer), self._steps_taken
        if inner not in taken:
            inner.register_step_post_hook(lambda stepped, *_: taken.update({stepped: True}))
            accumulates = not getattr(getattr(optimizer, "gradient_state", None), "sync_gradients", True)
            taken[inner] = not (accumulates or getattr(optimizer, "step_was_skipped", False))
        stepped = taken[inner]
        taken[inner] = False
        return stepped

    def _zero_frozen_(self) -> None:
        assert self._frozen is not None
        if self.groups.slices:
            self.groups.scale_(self._frozen[0].to(self.groups.slices[0].parameter.dtype))
        else:
            for (_, parameter), alive in zip(self.groups.weights, self._frozen, strict=True):
                parameter.mul_(alive)

    def _weights(self) -> Tensor:
        if self._factors is None or self._factors.device != self._device():
            self._factors = GROUP_WEIGHTS[self.group_weights](self.groups)
        return self._factors

    def _laid_out(self) -> Layout:
        """The groups in blocks, with buffers: kept on the CPU, where they are small."""
        if self._layout is not None and self._layout.fits(self.groups):
            return self._layout
        layout = Layout(self.groups)
        self._layout = layout if self._device().type == "cpu" else None
        return layout

    def _device(self) -> torch.device:
        return self.groups.parameters[0][1].device


def layer_sparsity(groups: Groups, dead: Tensor) -> dict[str, LayerSparsity]:
    """Which groups, bool ``[groups]``, are dead, counted by layer."""
    extended = torch.cat((dead, dead.new_zeros(1)))
    found: dict[str, LayerSparsity] = {}
    for part in groups.slices:
        if part.layer:
            own = torch.unique(part.index())
            found[_layer(part.name)] = LayerSparsity(int(extended[own].sum()), int((own < groups.count).sum()))
    return found


def _layer(name: str) -> str:
    return name.removesuffix(".weight") or name


def _make_penalty(penalty: str | Penalty, strength: float | None) -> Penalty:
    if isinstance(penalty, Penalty):
        return penalty if strength is None else dataclasses.replace(penalty, strength=strength)
    if penalty not in PENALTIES:
        raise ConfigError(f"unknown penalty {penalty!r}; known: {', '.join(PENALTIES)}.")
    if strength is None:
        raise ConfigError(f"the penalty {penalty!r} needs a strength, a number >= 0.")
    return PENALTIES[penalty](strength)
