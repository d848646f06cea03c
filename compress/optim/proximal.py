"""Proximal steps on groups, in the metric of the optimiser.

With one step ``eta`` for a whole group, the proximal operator of a penalty on the group's norm only rescales the group:
``w_g * prox(||w_g||, eta) / ||w_g||``, exact for every penalty. With a step for each coordinate (RMSProp, Adam):

* single weights: the scalar operator with each weight's own step; exact for every penalty;
* ``l0``: the group stays iff ``sum_i w_i^2 / (2 eta_i) > strength_g``; exact;
* ``l1`` on norms: the root of a scalar equation for each group; exact;
* any other penalty: one step for each group, the one that leaves ``sum_i w_i^2 / eta_i`` as it is; an approximation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress.groups import Groups, GroupSlice
from compress.optim.metric import Step
from compress.penalties import L0, L1, Penalty
from compress.penalties.l1 import GroupLasso

_NEWTON_LIMIT = 50
"""Newton's method on the secular equation converges quadratically from below; it has never needed more than 15."""

_NEWTON_TOLERANCE = 1e-6
"""Relative change of the root at which float32 has nothing more to gain."""


def prox_weights_(groups: Groups, penalty: Penalty, steps: list[Step]) -> None:
    """Apply the scalar operator to every single weight, in place."""
    for (_, parameter), step in zip(groups.weights, steps, strict=True):
        w = parameter.detach()
        w.copy_(penalty.prox(w.abs(), step).copysign(w))


def prox_groups_(groups: Groups, penalty: Penalty, weights: Tensor, steps: list[Step]) -> None:
    """Apply the group operator to every group, in place.

    Args:
        groups: the groups.
        penalty: acts on group norms.
        weights: ``[count]``, the factor of the penalty for each group.
        steps: the step of each slice's parameter, in the order of ``groups.slices``.
    """
    common = _common_step(steps)
    if common is not None:
        norms = groups.squared_norms().sqrt()
        _rescale_(groups, norms, penalty.prox(norms, common * weights))
    else:
        by_slice = {id(part): step for part, step in zip(groups.slices, steps, strict=True)}
        exact = DIAGONAL.get(type(penalty), _one_step_a_group_)
        exact(groups, penalty, weights, lambda part: by_slice[id(part)])


def _common_step(steps: list[Step]) -> float | None:
    """The one step of all slices, if there is one."""
    first = steps[0]
    return first if isinstance(first, float) and all(isinstance(s, float) and s == first for s in steps) else None


def _rescale_(groups: Groups, norms: Tensor, shrunk: Tensor) -> None:
    """Scale every group from its norm to the new one; an all-zero group stays as it is."""
    if not torch.equal(norms, shrunk):
        groups.scale_(torch.where(norms > 0, shrunk / norms.clamp_min(torch.finfo(norms.dtype).tiny), 1.0))


StepOf = Callable[[GroupSlice], Step]


def _weighted_squares(groups: Groups, step_of: StepOf) -> Tensor:
    """``sum_i w_i^2 / eta_i`` of every group; a coordinate that was not stepped cannot move: infinite unless zero."""

    def quotient(part: GroupSlice) -> Tensor:
        w2, eta = part.parameter.detach().square(), step_of(part)
        return torch.where(w2 > 0, w2 / torch.as_tensor(eta, dtype=w2.dtype, device=w2.device), 0.0)

    return groups.gather(quotient)


def _l0_diagonal_(groups: Groups, penalty: Penalty, weights: Tensor, step_of: StepOf) -> None:
    """Keep a group iff dropping it would cost more than the penalty."""
    cost = _weighted_squares(groups, step_of) / 2
    keep = cost > penalty.strength * weights
    if not bool(keep.all()):
        groups.scale_(keep.to(cost.dtype))


def _l1_diagonal_(groups: Groups, penalty: Penalty, weights: Tensor, step_of: StepOf) -> None:
    """``min_x sum_i (x_i - w_i)^2 / (2 eta_i) + s_g ||x||``, exactly.

    The solution is 0 iff ``||w / eta|| <= s_g``; else ``x_i = w_i r / (r + eta_i s_g)`` with ``r = ||x||`` the root of
    ``f(r) = sum_i (w_i / (r + eta_i s_g))^2 = 1``. ``1 / sqrt(f)`` is concave and increasing in ``r``, so that
    Newton's method on it, started below the root, approaches it from below without ever passing it.
    """
    strength = penalty.strength * weights
    etas = {
        id(part): torch.as_tensor(step_of(part), dtype=part.parameter.dtype, device=part.parameter.device)
        for part in groups.slices
    }

    extended = torch.cat((strength, strength.new_zeros(1)))

    def shifted(part: GroupSlice, r: Tensor) -> Tensor:
        return part.spread(torch.cat((r, r.new_ones(1)))) + etas[id(part)] * part.spread(extended)

    def share(part: GroupSlice, r: Tensor) -> Tensor:
        w = part.parameter.detach()
        return torch.where(w != 0, w / shifted(part, r), 0.0).square()

    def steepness(part: GroupSlice, r: Tensor) -> Tensor:
        return torch.where(part.parameter.detach() != 0, share(part, r) / shifted(part, r), 0.0)

    norms = groups.squared_norms().sqrt()
    force = groups.gather(lambda part: share(part, torch.zeros_like(norms)))
    alive = (norms > 0) & (force > 1) & (strength > 0)
    if bool(alive.any()):
        unmoved = groups.gather(lambda part: torch.where(etas[id(part)] == 0, part.parameter.detach().square(), 0.0))
        r = torch.where(alive, unmoved.sqrt(), norms.clamp_min(1.0))
        for _ in range(_NEWTON_LIMIT):
            f = groups.gather(lambda part: share(part, r))
            slope = groups.gather(lambda part: steepness(part, r))
            step = torch.where(alive, f / slope.clamp_min(torch.finfo(f.dtype).tiny) * (f.sqrt() - 1), 0.0)
            r = r + step.clamp_min(0.0)
            if bool((step <= _NEWTON_TOLERANCE * r).all()):
                break
        spread_r = torch.cat((torch.where(alive, r, 0.0), r.new_ones(1)))
        for part in groups.slices:
            rg, sg = part.spread(spread_r), part.spread(extended)
            factor = rg / (rg + etas[id(part)] * sg).clamp_min(torch.finfo(rg.dtype).tiny)
            part.parameter.detach().mul_(torch.where(sg > 0, factor, 1.0))
    elif bool((strength > 0).any()):
        groups.scale_(torch.where(strength > 0, 0.0, 1.0))


def _one_step_a_group_(groups: Groups, penalty: Penalty, weights: Tensor, step_of: StepOf) -> None:
    """Approximation for the other penalties: the step ``||w||^2 / sum_i (w_i^2 / eta_i)`` for the whole group."""
    squares = groups.squared_norms()
    step = torch.where(squares > 0, squares / _weighted_squares(groups, step_of), 0.0)
    norms = squares.sqrt()
    _rescale_(groups, norms, penalty.prox(norms, step * weights))


DIAGONAL: dict[type[Penalty], Callable[[Groups, Penalty, Tensor, StepOf], None]] = {
    L0: _l0_diagonal_,
    L1: _l1_diagonal_,
    GroupLasso: _l1_diagonal_,
}
"""Penalty -> its exact group operator in a diagonal metric."""
