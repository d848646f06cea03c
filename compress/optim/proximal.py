"""Proximal steps on groups, in the metric of the optimiser.

With one step ``eta`` for a whole group, the proximal operator of a penalty on the group's norm only rescales the group:
``w_g * prox(||w_g||, eta) / ||w_g||``, exact for every penalty. With a step for each coordinate (RMSProp, Adam):

* single weights: the scalar operator with each weight's own step; exact for every penalty;
* ``l0``: the group stays iff ``sum_i w_i^2 / (2 eta_i) > strength_g``; exact;
* ``l1`` on norms: the root of a scalar equation for each group; exact;
* ``sparse-group-lasso``: its part on single weights, then its part on norms; exact;
* any other penalty: one step for each group, the one that leaves ``sum_i w_i^2 / eta_i`` as it is; an approximation.

A layerwise penalty takes one step for each layer, found in the same way, on single weights too; its weight is the mean
of the layer's group weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from compress.groups import Groups, GroupSlice
from compress.optim.metric import Step
from compress.penalties import L0, L1, GroupLasso, LayerwisePenalty, Penalty, SeparablePenalty

Part = SeparablePenalty | LayerwisePenalty
Index = slice | Tensor

_NEWTON_LIMIT = 100
"""Far from the root a step grows ``r + t`` by half or more, near it convergence is quadratic: 2 to 5 steps for common
groups, some 45 for the worst ones in float64."""

_NEWTON_TOLERANCE = 8
"""Largest relative residual of the optimality condition, ``sqrt(f) - 1``, in units of the dtype's epsilon: the rounding
error of a sum over a few thousand weights."""


def prox_weights_(groups: Groups, penalty: Penalty, steps: list[Step]) -> None:
    """Apply the operator to single weights, in place: to each by itself, or to each parameter as a layer."""
    for part in penalty.parts:
        for (_, parameter), step in zip(groups.weights, steps, strict=True):
            w = parameter.detach()
            if isinstance(part, LayerwisePenalty):
                own = _one_step(part, w.square(), _quotients(w, step))
                w.copy_(part.prox(w.abs().flatten(), own).reshape(w.shape).copysign(w))
            else:
                w.copy_(part.prox(w.abs(), step).copysign(w))


def prox_groups_(groups: Groups, penalty: Penalty, weights: Tensor, steps: list[Step]) -> None:
    """Apply the group operator to every group, in place.

    Args:
        groups: the groups.
        penalty: acts on group norms.
        weights: ``[count]``, the factor of the penalty for each group.
        steps: the step of each slice's parameter, in the order of ``groups.slices``.
    """
    if penalty.on_weights is not None:
        _prox_members_(groups, penalty.on_weights, steps)
    part, common = penalty.on_norms, _common_step(steps)
    if common is not None:
        norms = groups.squared_norms().sqrt()
        _rescale_(groups, norms, _prox_norms(groups, part, weights, norms, lambda _: common))
    else:
        by_slice = {id(part): step for part, step in zip(groups.slices, steps, strict=True)}
        exact = DIAGONAL.get(type(part), _one_step_a_group_)
        exact(groups, part, weights, lambda part: by_slice[id(part)])


def seen_at_once(groups: Groups, part: Part, weights: Tensor) -> Iterator[tuple[Index, Tensor]]:
    """Which groups a penalty sees at once, and its factor on them: all, each by itself, or those of a layer."""
    if isinstance(part, LayerwisePenalty):
        for layer in groups.layers():
            yield layer, weights[layer].mean()
    else:
        yield slice(None), weights


def _prox_norms(
    groups: Groups, part: Part, weights: Tensor, norms: Tensor, step_of: Callable[[Index], Tensor | float]
) -> Tensor:
    shrunk = torch.empty_like(norms)
    for at, factor in seen_at_once(groups, part, weights):
        shrunk[at] = part.prox(norms[at], factor * step_of(at))
    return shrunk


def _prox_members_(groups: Groups, penalty: SeparablePenalty, steps: list[Step]) -> None:
    """Apply the scalar operator to every weight that is in a group, in place."""
    for part, step in zip(groups.slices, steps, strict=True):
        w = part.parameter.detach()
        inside = part.broadcast(part.index() < groups.count)
        w.copy_(torch.where(inside, penalty.prox(w.abs(), step).copysign(w), w))


def _common_step(steps: list[Step]) -> float | None:
    """The one step of all slices, if there is one."""
    first = steps[0]
    return first if isinstance(first, float) and all(isinstance(s, float) and s == first for s in steps) else None


def _rescale_(groups: Groups, norms: Tensor, shrunk: Tensor) -> None:
    """Scale every group from its norm to the new one; a group whose norm underflows to 0 becomes exactly 0."""
    groups.scale_(torch.where(norms > 0, shrunk / norms, 0.0))


StepOf = Callable[[GroupSlice], Step]


def _weighted_squares(groups: Groups, step_of: StepOf) -> Tensor:
    """``sum_i w_i^2 / eta_i`` of every group; a coordinate that was not stepped cannot move: infinite unless zero."""
    return groups.gather(lambda part: _quotients(part.parameter.detach(), step_of(part)))


def _quotients(w: Tensor, eta: Step) -> Tensor:
    w2 = w.square()
    return torch.where(w2 > 0, w2 / torch.as_tensor(eta, dtype=w2.dtype, device=w2.device), 0.0)


def _one_step(part: Part, squares: Tensor, quotients: Tensor) -> Tensor:
    """The step that leaves ``sum_i w_i^2 / eta_i`` as it is: of each group, or of all together as one layer."""
    if isinstance(part, LayerwisePenalty):
        squares, quotients = squares.sum(), quotients.sum()
    return torch.where(squares > 0, squares / quotients, 0.0)


def _l0_diagonal_(groups: Groups, penalty: Part, weights: Tensor, step_of: StepOf) -> None:
    """Keep a group iff dropping it would cost more than the penalty."""
    cost = _weighted_squares(groups, step_of) / 2
    keep = cost > penalty.strength * weights
    if not bool(keep.all()):
        groups.scale_(keep.to(cost.dtype))


def _l1_diagonal_(groups: Groups, penalty: Part, weights: Tensor, step_of: StepOf) -> None:
    """``min_x sum_i (x_i - w_i)^2 / (2 eta_i) + s_g ||x||``, exactly.

    With ``t_i = eta_i s_g`` the solution is ``x_i = w_i r / (r + t_i)``, where ``r = ||x||`` is the root of
    ``f(r) = sum_i (w_i / (r + t_i))^2 = 1``; where ``f(0) <= 1`` there is none and ``x = 0``. A coordinate with
    ``t_i = 0`` stays as it is.
    """
    strength = torch.cat((penalty.strength * weights, weights.new_zeros(1)))
    t = {id(part): step_of(part) * part.spread(strength) for part in groups.slices}
    roots = _secular_roots(groups, t)
    roots = torch.cat((roots, roots.new_ones(1)))
    for part in groups.slices:
        r = part.spread(roots)
        part.parameter.detach().mul_(torch.where(t[id(part)] > 0, r / (r + t[id(part)]), 1.0))


def _secular_roots(groups: Groups, t: dict[int, Tensor]) -> Tensor:
    """The root of ``f(r) = sum_i (w_i / (r + t_i))^2 = 1`` of every group, ``[count]``; 0 where ``f(0) <= 1``.

    ``1 / sqrt(f)`` is increasing and concave in ``r`` (a power mean of the ``r + t_i``), so that Newton's method on it,
    started below the root, approaches it from below. The start is ``||max(|w_i| - t_i, 0)||``, from where on no term
    of ``f`` exceeds 1: nothing overflows, however different the steps are. Where there is no root the start is 0, and
    it stays. Weights whose square underflows count as 0.
    """
    w = {id(part): _without_underflow(part.parameter.detach().abs()) for part in groups.slices}

    def sums(r: Tensor) -> tuple[Tensor, Tensor]:
        """``f(r)`` and ``-f'(r) / 2``."""
        extended = torch.cat((r, r.new_ones(1)))
        squares, shifted = {}, {}
        for part in groups.slices:
            total = part.spread(extended) + t[id(part)]
            shifted[id(part)] = total.clamp_min_(torch.finfo(total.dtype).tiny)
            squares[id(part)] = (w[id(part)] / shifted[id(part)]).square_()
        f = groups.gather(lambda part: squares[id(part)])
        return f, groups.gather(lambda part: squares[id(part)].div_(shifted[id(part)]))

    r = groups.gather(lambda part: (w[id(part)] - t[id(part)]).clamp_min_(0.0).square_()).sqrt()
    tolerance = _NEWTON_TOLERANCE * torch.finfo(r.dtype).eps
    for _ in range(_NEWTON_LIMIT):
        f, slope = sums(r)
        excess = f.sqrt() - 1
        r = torch.where(excess > 0, r + excess * f / slope, r)
        if not bool((excess > tolerance).any()):
            break
    return r


def _without_underflow(magnitudes: Tensor) -> Tensor:
    return torch.where(magnitudes.square() > 0, magnitudes, 0.0)


def _one_step_a_group_(groups: Groups, part: Part, weights: Tensor, step_of: StepOf) -> None:
    """Approximation for the other penalties: the step ``||w||^2 / sum_i (w_i^2 / eta_i)`` for the whole group."""
    squares, quotients = groups.squared_norms(), _weighted_squares(groups, step_of)
    norms = squares.sqrt()
    shrunk = _prox_norms(groups, part, weights, norms, lambda at: _one_step(part, squares[at], quotients[at]))
    _rescale_(groups, norms, shrunk)


DIAGONAL: dict[type[Penalty], Callable[[Groups, Part, Tensor, StepOf], None]] = {
    L0: _l0_diagonal_,
    L1: _l1_diagonal_,
    GroupLasso: _l1_diagonal_,
}
"""Penalty -> its exact group operator in a diagonal metric."""
